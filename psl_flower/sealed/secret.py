"""Secret bytes that do not print themselves and can be wiped."""

from __future__ import annotations

import ctypes
import secrets
from typing import NoReturn


class Secret:
    """Secret bytes, masked wherever they might be shown.

    `wipe` overwrites this copy. It is the best that Python allows: `cryptography` and OpenSSL keep copies of
    their own in key objects, and a `bytes` made from a secret cannot be overwritten (docs/threat-model.md,
    "Keys in memory").
    """

    __slots__ = ("_data",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = bytearray(data)

    @classmethod
    def random(cls, num_bytes: int = 32) -> Secret:
        """Draw a secret from the system's generator."""
        return cls(secrets.token_bytes(num_bytes))

    def reveal(self) -> bytes:
        """Return a copy of the secret bytes; use it at once and do not keep it.

        Raises
        ------
        ValueError
            If the secret was wiped: using a wiped key would be our own mistake.
        """
        if not self._data:
            raise ValueError("this secret was wiped")
        return bytes(self._data)

    def wipe(self) -> None:
        """Overwrite the bytes with zeros and forget them; harmless when repeated."""
        if self._data:
            ctypes.memset((ctypes.c_char * len(self._data)).from_buffer(self._data), 0, len(self._data))
            self._data = bytearray()

    def __len__(self) -> int:
        """Return the number of bytes; 0 once wiped."""
        return len(self._data)

    def __repr__(self) -> str:
        """Show nothing."""
        return "Secret(***)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied; raises TypeError."""
        raise TypeError("a secret is not pickled")

    def __enter__(self) -> Secret:
        """Return itself, to be wiped at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wipe."""
        self.wipe()
