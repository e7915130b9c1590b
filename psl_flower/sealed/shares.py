"""Shares of the root: any k of n restorers together have it, fewer have nothing.

Shamir's scheme from pycryptodome works on blocks of 16 bytes; the root is two blocks, shared separately under
the same indices. Each share is sealed to one restorer, and committed to, so that a wrong one is named before
the shares are combined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from psl_flower.errors import (
    ConfigError,
    KeyMismatch,
    RestoreRefused,
    RevokedRestorer,
    TooFewShares,
    UnknownRestorer,
    WrongShare,
)
from psl_flower.sealed.data_keys import check_root
from psl_flower.sealed.identities import Identity, PublicIdentity, Role, check_name
from psl_flower.sealed.manifest import Dropped, Manifest, Member
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.suite import Purpose, context, digest, equal

if TYPE_CHECKING:
    from Crypto.Protocol.SecretSharing import Shamir  # nosec B413

_BLOCK = 16
_MAX_RESTORERS = 255


def deal(
    root: Secret, dataset: bytes, epoch: int, threshold: int, restorers: Mapping[str, PublicIdentity]
) -> tuple[Member, ...]:
    """Share a root among restorers, named in order.

    Raises
    ------
    ConfigError
        If the threshold is not in 1..n (1 without restorers), n is above 255, or two restorers have the same key.
    """
    if not 1 <= threshold <= max(1, len(restorers)) <= _MAX_RESTORERS:
        raise ConfigError(f"threshold {threshold} does not fit {len(restorers)} restorers (at most {_MAX_RESTORERS})")
    if not restorers:
        return ()
    if len(set(restorers.values())) != len(restorers):
        raise ConfigError("two restorers have the same public key: each needs a different one")
    blocks = [root.reveal()[:_BLOCK], root.reveal()[_BLOCK:]]
    shamir = _shamir()
    parts = [shamir.split(threshold, len(restorers), block, ssss=False) for block in blocks]
    members = []
    for (name, public), (index, low), (same, high) in zip(restorers.items(), *parts, strict=True):
        assert index == same
        share = low + high
        members.append(
            Member(
                name=check_name(name),
                public=str(public),
                index=index,
                share=public.seal(share, _info(dataset, epoch, index)),
                commitment=_commitment(dataset, epoch, index, share),
            )
        )
    return tuple(members)


def member_of(manifest: Manifest, restorer: PublicIdentity, name: str) -> Member:
    """Return a restorer's entry.

    Raises
    ------
    RevokedRestorer
        If the restorer was dropped.
    UnknownRestorer
        If the manifest does not name this key.
    """
    for member in manifest.restorers:
        if member.public == str(restorer):
            return member
    for dropped in manifest.dropped:
        if dropped.public == str(restorer):
            raise revoked(dropped)
    raise UnknownRestorer(f"restorer {name!r} ({restorer.fingerprint}) is not named in the manifest")


def revoked(dropped: Dropped) -> RevokedRestorer:
    """Return the error of a restorer that was dropped."""
    return RevokedRestorer(
        f"restorer {dropped.name!r} was dropped with epoch {dropped.epoch} and may restore nothing any more; "
        "leave this key out, or ask the owner to add it again (psl rotate --restorer)"
    )


def open_root_as_restorers(manifest: Manifest, restorers: Sequence[Identity]) -> Secret:
    """Combine the shares of these restorers into the root.

    Raises
    ------
    UnknownRestorer, RevokedRestorer
        If one of them is not, or no longer, allowed to restore.
    TooFewShares
        If they are fewer than the threshold.
    WrongShare
        If a share is not the one dealt.
    """
    members = {r.public: member_of(manifest, r.expect(Role.RESTORER).public, r.name) for r in restorers}
    if len(members) < manifest.threshold:
        here = "1 is here" if len(members) == 1 else f"{len(members)} are here"
        raise TooFewShares(
            f"{manifest.threshold} restorers are needed, {here}; add the keys of others with --identity, repeated"
        )
    shares = [(members[r.public].index, _open(manifest, members[r.public], r)) for r in dict.fromkeys(restorers)]
    chosen = list(dict(shares).items())[: manifest.threshold]
    root = Secret(
        b"".join(
            _shamir().combine([(i, share[s : s + _BLOCK]) for i, share in chosen], ssss=False) for s in (0, _BLOCK)
        )
    )
    try:
        check_root(root, manifest)
    except KeyMismatch:
        raise RestoreRefused(
            "the shares are those dealt but do not make the root: the manifest is inconsistent"
        ) from None
    return root


def _open(manifest: Manifest, member: Member, restorer: Identity) -> bytes:
    share = restorer.open(member.share, _info(manifest.dataset, manifest.epoch, member.index))
    if share is None or len(share) != 2 * _BLOCK:
        raise WrongShare(f"the share of {member.name!r} cannot be opened with this restorer's key")
    if not equal(_commitment(manifest.dataset, manifest.epoch, member.index, share), member.commitment):
        raise WrongShare(f"the share of {member.name!r} is not the one dealt")
    return share


def _info(dataset: bytes, epoch: int, index: int) -> bytes:
    return context(Purpose.SHARE, dataset, epoch, index)


def _commitment(dataset: bytes, epoch: int, index: int, share: bytes) -> bytes:
    return digest(context(Purpose.SHARE_COMMITMENT, dataset, epoch, index, share))


def _shamir() -> type[Shamir]:
    # Slow to load, and few commands share or combine a root.
    from Crypto.Protocol.SecretSharing import Shamir  # nosec B413 # of pycryptodome, which is maintained

    return Shamir
