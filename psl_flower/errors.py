"""Errors that users meet. A message says what, where, and what to do; never a tensor value, label, token or key.

PslError
├── ConfigError            a setting is unknown, mistyped, out of range or contradicts another
│   └── GridError          the patch grid does not fit the image
├── DataError              the images, the labels or their folder are not usable
│   ├── DatasetNotFound    no such dataset or folder
│   └── CorruptImage       one image cannot be decoded
├── StoreError             a patch store is missing, damaged or not the one expected
│   ├── StoreNotFound      no store, segment or manifest at that place
│   ├── StoreExists        something is already where a store or its output should go
│   ├── StoreUnreachable   the disk or the remote file system refuses
│   │   └── PatchServerLost  the machine that a store's URL names does not answer; it may come back
│   ├── UnknownFormat      not a file of this kind
│   ├── UnknownVersion     a version or cipher suite that this program does not know
│   ├── TruncatedFile      the file ends too early
│   ├── TrailingBytes      bytes follow where the file should end
│   ├── HeaderDamaged      a segment header is not the one that was signed for
│   ├── ForeignSegment     a segment of another ...
│   │   ├── WrongDataset   ... dataset
│   │   ├── WrongStore     ... store, or for other positions
│   │   ├── WrongEpoch     ... key epoch
│   │   └── WrongSegment   ... place or generation in the store
│   ├── WrongNodeKey       this identity opens no store here
│   ├── KeyMismatch        an unwrapped key is not the one committed to
│   ├── RecordError        one record ...
│   │   ├── RecordDamaged  ... was changed
│   │   ├── RecordSwapped  ... and another one changed places
│   │   ├── RecordsReordered  ... and several others changed places
│   │   ├── RecordDuplicated  ... stands where another one belongs
│   │   └── RecordForeign  ... comes from another store
│   ├── DigestTableDamaged the digests at a segment's end were changed; the records are whole
│   ├── SegmentDamaged     records and digests were changed both
│   ├── SourceChanged      the images are not those that an interrupted ingest began with
│   ├── ManifestError      the signed manifest ...
│   │   ├── SignatureInvalid  ... or another signed document was changed, or signed by another key
│   │   ├── WrongOwner     ... is by another owner than the one trusted
│   │   ├── StaleManifest  ... is older than one already seen
│   │   ├── ForkedManifest ... differs from one of the same generation already seen
│   │   └── MixedGenerations  ... and the stores are of different generations
│   ├── LabelError         a label version is missing, damaged, or not by someone entitled
│   ├── RestoreRefused     restoration is not allowed ...
│   │   ├── TooFewShares   ... with so few restorers
│   │   ├── UnknownRestorer   ... to someone the manifest does not name
│   │   ├── RevokedRestorer   ... to a restorer who was dropped
│   │   ├── WrongShare     ... with a share that is not the one dealt
│   │   └── AuthorisationInvalid  ... by this authorisation (expired, altered, for other images)
│   ├── AuditError         the audit log ...
│   │   ├── AuditLogEdited ... was changed
│   │   └── AuditLogTruncated ... lacks entries that it once had
│   └── BundleDamaged      a sealed bundle was changed, cut, or is for another node
├── IdentityError          a key file or public key cannot be used
│   ├── InsecureKeyFile    others may read the private key
│   ├── PassphraseError    the passphrase is missing or wrong
│   ├── WeakKey            a public key of low order, which would give no secrecy
│   └── WrongRole          the key is for another role
├── WireError              a frame is malformed; the peer that sent it is refused
│   ├── FrameVersionError  unknown magic or version
│   ├── FrameTooLarge      a declared size is above its bound
│   └── FrameMismatch      the content is not what was declared or expected (shape, dtype, length)
├── ProtocolError          frames come in the wrong order, for the wrong step, or not at all
│   ├── AuthenticationError  wrong token, node, run or position
│   └── PeerLost           the connection ended or its deadline passed
├── NodeError              a node reports that it failed
│   └── NodeLost           a node, its process or its patch server is gone; it may come back
├── PositionError          a grid position is held twice or unknown
│   └── PositionMissing    ... is held by no node online; it may come back
├── AlignmentError         parties do not hold the same samples
├── TrainingError          training cannot continue (a loss that is not finite)
│   └── TrainingStopped    the user asked to stop; a checkpoint was written
├── ExportError            a network cannot be written as one file, or that file cannot be run or answers otherwise
├── LighteningError        a network cannot be lightened, or what came from the server is no light model
│   └── LighteningImpossible  no degree of lightening meets the conditions; the best one is shown
├── OutputLost             standard output cannot be written, as on a full disk; the work is done
├── PredictionStopped      the user asked to stop a prediction; nothing was written
└── RunError               a run folder, checkpoint or model is missing, damaged or of another run
    ├── NoCheckpoint       a run, or a node, keeps no weights of that step
    └── OtherDataset       the dataset is not the one that the run was trained on
"""

from __future__ import annotations


class PslError(Exception):
    """Root of every error that a user can meet; `outward` is the text for other parties, if it differs."""

    outward = ""


class ConfigError(PslError):
    """A setting is unknown, mistyped, out of range or contradicts another."""


class GridError(ConfigError):
    """The patch grid does not fit the image."""


class DataError(PslError):
    """The images, the labels or their folder are not usable."""


class DatasetNotFound(DataError):
    """No such dataset or folder."""


class CorruptImage(DataError):
    """One image cannot be decoded."""


class StoreError(PslError):
    """A patch store is missing, damaged or not the one expected."""


class WireError(PslError):
    """A frame is malformed; the peer that sent it is refused."""


class FrameVersionError(WireError):
    """Unknown magic or version."""


class FrameTooLarge(WireError):
    """A declared size is above its bound."""


class FrameMismatch(WireError):
    """The content is not what was declared or expected (shape, dtype, length)."""


class ProtocolError(PslError):
    """Frames come in the wrong order, for the wrong step, or not at all."""


class AuthenticationError(ProtocolError):
    """Wrong token, node, run or position."""


class PeerLost(ProtocolError):
    """The connection ended or its deadline passed; `nodes` are Flower's ids of those that are silent, if known."""

    nodes: tuple[int, ...] = ()


class NodeError(PslError):
    """A node reports that it failed."""

    @staticmethod
    def reported(kind: str, text: str) -> NodeError:
        """Return the error for a failure of a class that a node names: NodeLost if what it needs may come back."""
        return NodeLost(text) if kind == PatchServerLost.__name__ else NodeError(text)


class NodeLost(NodeError):
    """A node, its process or its patch server is gone; it may come back. `nodes` is Flower's id of it, if known."""

    nodes: tuple[int, ...] = ()


class PositionError(PslError):
    """A grid position is missing, held twice or unknown."""


class PositionMissing(PositionError):
    """Nodes that are needed have not come up, or are gone; they may still come. `uppers` are theirs; empty for all."""

    def __init__(self, message: str, uppers: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.uppers = uppers


class AlignmentError(PslError):
    """Parties do not hold the same samples."""


class TrainingError(PslError):
    """Training cannot continue."""


class TrainingStopped(TrainingError):
    """The user asked to stop; a checkpoint was written."""


class ExportError(PslError):
    """A network cannot be written as one file, or that file cannot be run or answers otherwise than the network."""


class LighteningError(PslError):
    """A network cannot be lightened, or what came from the server is no light model."""


class LighteningImpossible(LighteningError):
    """No degree of lightening meets the conditions."""


class OutputLost(PslError):
    """Standard output cannot be written, as on a full disk; the work is done."""


class PredictionStopped(PslError):
    """The user asked to stop a prediction; nothing was written."""


class RunError(PslError):
    """A run folder, checkpoint or model is missing, damaged or of another run."""


class NoCheckpoint(RunError):
    """A run, or a node, keeps no weights of that step."""


class OtherDataset(RunError):
    """The dataset is not the one that the run was trained on."""


class StoreNotFound(StoreError):
    """No store, segment or manifest at that place."""


class StoreExists(StoreError):
    """Something is already where a store or its output should go."""


class StoreUnreachable(StoreError):
    """The disk or the remote file system refuses."""


class PatchServerLost(StoreUnreachable):
    """The machine that a store's URL names does not answer; it may come back."""


class UnknownFormat(StoreError):
    """Not a file of this kind."""


class UnknownVersion(StoreError):
    """A version or cipher suite that this program does not know."""


class TruncatedFile(StoreError):
    """The file ends too early."""


class TrailingBytes(StoreError):
    """Bytes follow where the file should end."""


class HeaderDamaged(StoreError):
    """A segment header is not the one that was signed for."""


class ForeignSegment(StoreError):
    """A segment of another dataset, store, epoch or place."""


class WrongDataset(ForeignSegment):
    """A segment of another dataset."""


class WrongStore(ForeignSegment):
    """A segment of another store, or for other positions."""


class WrongEpoch(ForeignSegment):
    """A segment of another key epoch."""


class WrongSegment(ForeignSegment):
    """A segment of another place or generation in the store."""


class WrongNodeKey(StoreError):
    """An identity that opens no store here."""


class KeyMismatch(StoreError):
    """An unwrapped key is not the one committed to."""


class RecordError(StoreError):
    """One record is not what was stored."""


class RecordDamaged(RecordError):
    """A record was changed."""


class RecordSwapped(RecordError):
    """Two records changed places."""


class RecordsReordered(RecordError):
    """Several records changed places."""


class RecordDuplicated(RecordError):
    """A record stands where another one belongs."""


class RecordForeign(RecordError):
    """A record comes from another store, dataset or epoch."""


class DigestTableDamaged(StoreError):
    """The digests at a segment's end were changed; the records are whole."""


class SegmentDamaged(StoreError):
    """Records and digests of a segment were changed both."""


class SourceChanged(StoreError):
    """The images are not those that an interrupted ingest began with."""


class ManifestError(StoreError):
    """The signed manifest cannot be trusted or does not fit."""


class SignatureInvalid(ManifestError):
    """A signed document was changed, or signed by another key."""


class WrongOwner(ManifestError):
    """The manifest is by another owner than the one trusted."""


class StaleManifest(ManifestError):
    """The manifest is older than one already seen."""


class ForkedManifest(ManifestError):
    """The manifest differs from one of the same generation already seen."""


class MixedGenerations(ManifestError):
    """Manifest and stores are of different generations."""


class LabelError(StoreError):
    """A label version is missing, damaged, or not by someone entitled."""


class RestoreRefused(StoreError):
    """Restoration is not allowed."""


class TooFewShares(RestoreRefused):
    """Fewer restorers than the threshold."""


class UnknownRestorer(RestoreRefused):
    """The manifest does not name this restorer."""


class RevokedRestorer(RestoreRefused):
    """The owner has dropped this restorer."""


class WrongShare(RestoreRefused):
    """A share is not the one dealt to this restorer."""


class AuthorisationInvalid(RestoreRefused):
    """The authorisation is expired, altered, or for other images."""


class AuditError(StoreError):
    """The audit log cannot be trusted."""


class AuditLogEdited(AuditError):
    """An entry of the audit log was changed."""


class AuditLogTruncated(AuditError):
    """The audit log lacks entries that it once had."""


class BundleDamaged(StoreError):
    """A sealed bundle was changed, cut, or is for another node."""


class IdentityError(PslError):
    """A key file or public key cannot be used."""


class InsecureKeyFile(IdentityError):
    """Others may read the private key."""


class PassphraseError(IdentityError):
    """The passphrase is missing or wrong."""


class WeakKey(IdentityError):
    """A public key of low order, which would give no secrecy."""


class WrongRole(IdentityError):
    """The key is for another role."""
