"""Remote restoration: restorers sign a request, nodes re-seal the patches to them, a relay sees nothing.

    authorisation   a signed document: k restorers ask for these images, for these recipients, until then
    answer          a signed document of one node: its patches of these images, sealed to the recipients

No share travels: each node holds its own data key, and it is the k signatures that it insists on. The same
authorisation may be answered again until it expires, since only the same people can open the answer; every
answer is logged by the node first.

Shape suffixes: B images, P positions, C channels, H and W pixels of the image, h and w of a patch.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import AuthorisationInvalid, RestoreRefused, SignatureInvalid, TooFewShares, UnknownRestorer
from psl_flower.patches.store import PatchStore
from psl_flower.sealed import envelope
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.labels import ReaderKey
from psl_flower.sealed.manifest import Manifest, SignedManifest
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.seen import SeenBook
from psl_flower.sealed.shares import member_of, revoked
from psl_flower.sealed.suite import Purpose, context, digest, unwrap, wrap

AUTHORISATION = envelope.DocumentKind(b"PSLAUTHR", Purpose.SIGN_AUTHORISATION, "restoration authorisation")
ANSWER = envelope.DocumentKind(b"PSLANSWR", Purpose.SIGN_ANSWER, "restoration answer")
MAX_VALID_S = 7 * 24 * 3600
MAX_ANSWER_BYTES = 64 << 20
MAX_AUTHORISATION_BYTES = 16 << 20
_CLOCK_SKEW_S = 300


class Authorisation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The restorers' request."""

    dataset: bytes  #: Its 16-byte name.
    epoch: int  #: Key epoch of the stores.
    images: tuple[int, ...]  #: Global sample indices, each once.
    recipients: tuple[str, ...]  #: Public keys of the restorers who will be able to open the answers.
    why: str  #: Reason, for the logs.
    #: Seconds since 1970 UTC.
    issued: int
    expires: int
    nonce: bytes  #: 16 random bytes, so that no two authorisations are equal.


class _Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    dataset: bytes
    store: bytes
    upper: int
    request: bytes
    readers: tuple[ReaderKey, ...]
    body: bytes


def authorise(
    signed: SignedManifest,
    restorers: Sequence[Identity],
    images: Sequence[int],
    *,
    why: str,
    recipients: Sequence[PublicIdentity] = (),
    valid_s: int = 24 * 3600,
) -> bytes:
    """Write an authorisation and sign it; `co_sign` adds those who are elsewhere.

    Parameters
    ----------
    restorers : Sequence[Identity]
        Those who sign now, one or more.
    recipients : Sequence[PublicIdentity], optional
        Those who may open the answers; by default those who sign now.
    valid_s : int, optional
        Seconds until it expires, at most a week.

    Raises
    ------
    RestoreRefused
        If a signer is not allowed to restore or signs twice, or if no image is requested.
    """
    manifest, start = signed.manifest, int(time.time())
    request = Authorisation(
        dataset=manifest.dataset,
        epoch=manifest.epoch,
        images=tuple(images),
        recipients=tuple(str(r) for r in (recipients or [restorer.public for restorer in restorers])),
        why=why,
        issued=start,
        expires=start + min(valid_s, MAX_VALID_S),
        nonce=secrets.token_bytes(16),
    )
    for number, restorer in enumerate(restorers):
        member_of(manifest, restorer.expect(Role.RESTORER).public, restorer.name)
        if restorer.public in [other.public for other in restorers[:number]]:
            raise RestoreRefused(f"restorer {restorer.name!r} is to sign twice; different restorers must sign")
    _check_request(request, manifest, start)
    return envelope.sign(AUTHORISATION, envelope.encode(request), list(restorers))


def co_sign(data: bytes, signed: SignedManifest, restorer: Identity) -> bytes:
    """Add one restorer's signature, after checking that the authorisation makes sense.

    Raises
    ------
    RestoreRefused
        If this restorer is not allowed to restore, or has signed already.
    StoreError
        As `check` does, but for signatures that are still missing.
    """
    envelope_ = envelope.parse(AUTHORISATION, data, "the authorisation")
    _check_request(_decode(envelope_), signed.manifest, int(time.time()))
    member_of(signed.manifest, restorer.expect(Role.RESTORER).public, restorer.name)
    if envelope_.signed_by(restorer.public):
        raise RestoreRefused(f"restorer {restorer.name!r} has signed this already; another restorer must sign")
    return envelope.add_signature(AUTHORISATION, data, restorer, "the authorisation")


def describe(data: bytes) -> tuple[Authorisation, int]:
    """Return an authorisation's request and the number of its signers; `check` decides if they may."""
    envelope_ = envelope.parse(AUTHORISATION, data, "the authorisation")
    return _decode(envelope_), len(envelope_.signers)


def check(data: bytes, signed: SignedManifest, when: float | None = None) -> Authorisation:
    """Check an authorisation, as every node does before it reads a record.

    Raises
    ------
    UnknownFormat, UnknownVersion, TruncatedFile, TrailingBytes, SignatureInvalid
        If it is malformed or was changed.
    AuthorisationInvalid
        If it is for another dataset or epoch, expired or not yet valid, or asks for images that are not
        there.
    UnknownRestorer, RevokedRestorer, TooFewShares
        If those who signed are not enough restorers.
    """
    signed_request = envelope.parse(AUTHORISATION, data, "the authorisation")
    request = _decode(signed_request)
    _check_request(request, signed.manifest, time.time() if when is None else when)
    members = {PublicIdentity.parse(m.public).sign_key for m in signed.manifest.restorers}
    for signer in set(signed_request.signers) - members:
        _refuse_signer(signer, signed.manifest)
    if len(signed_request.signers) < signed.manifest.threshold:
        raise TooFewShares(f"{signed.manifest.threshold} restorers must sign, {len(signed_request.signers)} did")
    return request


def answer(
    data: bytes,
    signed: SignedManifest,
    store: PatchStore,
    node: Identity,
    log: AuditLog,
    when: float | None = None,
    *,
    seen: SeenBook | None = None,
) -> bytes:
    """Check an authorisation, log it, and return this node's patches sealed to the recipients.

    Raises
    ------
    StoreError
        As `check` does, and as reading the store and the log does, which is held to what was `seen` of it. Nothing is
        read before all of it is checked and logged.
    """
    manifest = signed.manifest
    request = check(data, signed, when)
    entry = next((e for e in manifest.stores if e.upper == store.meta.upper and e.node == str(node.public)), None)
    if entry is None:
        raise AuthorisationInvalid(f"node {node.name!r} does not hold the store of Upper {store.meta.upper}")
    log.append(signed, [node.expect(Role.NODE)], "answer", request.images, request.why, seen=seen)
    patches_BKChw = store.read(np.asarray(request.images, np.int64))
    bound = (manifest.dataset, entry.store, digest(data))
    with Secret.random() as key:
        readers = tuple(
            ReaderKey(public=p, key=PublicIdentity.parse(p).seal(key.reveal(), context(Purpose.ANSWER_KEY, *bound)))
            for p in request.recipients
        )
        body = wrap(key, patches_BKChw.tobytes(), context(Purpose.ANSWER, *bound))
    document = _Answer(
        dataset=manifest.dataset,
        store=entry.store,
        upper=entry.upper,
        request=digest(data),
        readers=readers,
        body=body,
    )
    return envelope.sign(ANSWER, envelope.encode(document), [node])


def open_answers(
    answers: Sequence[bytes], data: bytes, signed: SignedManifest, restorer: Identity
) -> NDArray[np.uint8]:
    """Put the images (B, C, H, W) together from the answers of all nodes.

    Raises
    ------
    UnknownRestorer, RevokedRestorer
        If the manifest does not name this restorer, or does no longer.
    SignatureInvalid
        If an answer is not by the node that the manifest names.
    AuthorisationInvalid
        If an answer is to another request, not for this restorer, or missing.
    """
    manifest = signed.manifest
    member_of(manifest, restorer.public, restorer.name)
    request = _decode(envelope.parse(AUTHORISATION, data, "the authorisation"))
    grid = manifest.description.grid()
    patches_BPChw = np.zeros((len(request.images), grid.num_patches, *manifest.description.stored_shape), np.uint8)
    missing = {entry.upper for entry in manifest.stores}
    for raw in answers:
        upper, patches_BKChw = _open_answer(raw, data, manifest, restorer, len(request.images))
        if upper not in missing:
            raise AuthorisationInvalid(f"two answers came from Upper {upper}")
        missing.remove(upper)
        patches_BPChw[:, list(manifest.stores[upper].positions)] = patches_BKChw
    if missing:
        raise AuthorisationInvalid(f"no answer came from Upper {', '.join(map(str, sorted(missing)))}")
    return grid.merge(patches_BPChw).astype(np.uint8, copy=False)


def _open_answer(
    raw: bytes, data: bytes, manifest: Manifest, restorer: Identity, count: int
) -> tuple[int, NDArray[np.uint8]]:
    signed = envelope.parse(ANSWER, raw, "an answer")
    found = envelope.decode(signed.payload, _Answer, "an answer")
    entry = next((e for e in manifest.stores if (e.store, e.upper) == (found.store, found.upper)), None)
    if entry is None or found.dataset != manifest.dataset or found.request != digest(data):
        raise AuthorisationInvalid("an answer is not to this request")
    if not signed.signed_by(PublicIdentity.parse(entry.node)):
        raise SignatureInvalid(f"the answer for Upper {entry.upper} is not signed by its node")
    bound = (manifest.dataset, entry.store, digest(data))
    box = next((reader.key for reader in found.readers if reader.public == str(restorer.public)), None)
    plain = None if box is None else restorer.open(box, context(Purpose.ANSWER_KEY, *bound))
    if plain is None:
        raise AuthorisationInvalid(f"the answer for Upper {entry.upper} is not sealed to restorer {restorer.name!r}")
    with Secret(plain) as key:
        body = unwrap(key, found.body, context(Purpose.ANSWER, *bound))
    shape = (count, len(entry.positions), *manifest.description.stored_shape)
    if body is None or len(body) != math.prod(shape):
        raise AuthorisationInvalid(f"the answer for Upper {entry.upper} does not hold the patches asked for")
    return entry.upper, np.frombuffer(body, np.uint8).reshape(shape)


def _decode(signed: envelope.Envelope) -> Authorisation:
    return envelope.decode(signed.payload, Authorisation, "the authorisation")


def _check_request(request: Authorisation, manifest: Manifest, when: float) -> None:
    if request.dataset != manifest.dataset:
        raise AuthorisationInvalid("the authorisation is for another dataset")
    if request.epoch != manifest.epoch:
        raise AuthorisationInvalid(
            f"the authorisation is for key epoch {request.epoch}, the stores are in {manifest.epoch}: since then the "
            "owner has rotated the keys; sign a new authorisation by this manifest"
        )
    if not request.issued < request.expires <= request.issued + MAX_VALID_S:
        raise AuthorisationInvalid("the authorisation is valid for longer than a week, or not at all")
    if not request.issued - _CLOCK_SKEW_S <= when < request.expires:
        raise AuthorisationInvalid("the authorisation has expired, or this clock is wrong; sign a new one")
    images = request.images
    if not images or len(set(images)) != len(images) or not 0 <= min(images) <= max(images) < manifest.num_samples:
        raise AuthorisationInvalid(
            f"the authorisation must name images of this dataset (0 to {manifest.num_samples - 1})"
        )
    most = max(len(entry.positions) for entry in manifest.stores) * math.prod(manifest.description.stored_shape)
    if len(images) * most > MAX_ANSWER_BYTES:
        raise AuthorisationInvalid(f"too many images for one answer; ask for at most {MAX_ANSWER_BYTES // most}")
    members = {member.public for member in manifest.restorers}
    for dropped in manifest.dropped:
        if dropped.public in set(request.recipients) - members:
            raise revoked(dropped)
    if not request.recipients or not set(request.recipients) <= members:
        raise AuthorisationInvalid("the recipients must be restorers whom the manifest names")


def _refuse_signer(signer: bytes, manifest: Manifest) -> None:
    for dropped in manifest.dropped:
        if PublicIdentity.parse(dropped.public).sign_key == signer:
            raise revoked(dropped)
    raise UnknownRestorer("the authorisation is signed by somebody whom the manifest does not name as a restorer")
