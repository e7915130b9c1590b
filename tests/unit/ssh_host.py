"""Another machine with an SSH server: a real one (asyncssh), on a port of this machine, that gives out one folder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import asyncssh


class SshHost:
    """The machine: what it stores under `folder` is at `url`; the user at `home` may log in with a key.

    Parameters
    ----------
    folder : Path
        What clients see as /.
    home : Path
        Home folder of the user, who knows the host and has a key; HOME must name it.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.read_only = False
        self.breaks_at = "nothing"  # a name; the connection breaks when a file so called is opened
        self._connections: list[asyncssh.SSHServerConnection] = []
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        user = asyncssh.generate_private_key("ssh-ed25519")
        (home / ".ssh").mkdir(parents=True)
        user.write_private_key(str(home / ".ssh" / "id_ed25519"))
        self._authorised = home / "authorised"
        user.write_public_key(str(self._authorised))
        folder.mkdir()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self.start()
        self.known = home / ".ssh" / "known_hosts"
        self.known.write_text(f"[127.0.0.1]:{self.port} {self._key.export_public_key().decode()}")

    def url(self, path: str, user: str = "") -> str:
        return f"ssh://{user}127.0.0.1:{self.port}/{path}"

    def start(self) -> None:
        """Listen, on the same port as before."""

        async def listen() -> asyncssh.SSHAcceptor:
            return await asyncssh.listen(
                "127.0.0.1",
                self.port,
                server_host_keys=[self._key],
                authorized_client_keys=str(self._authorised),
                sftp_factory=lambda channel: _Files(self, channel),
                acceptor=self._connections.append,
            )

        self._acceptor = self._run(listen())
        self.port = self._acceptor.get_port()

    def stop(self) -> None:
        """Break all connections and accept none."""

        async def stop() -> None:
            self._acceptor.close()
            self.drop()
            await self._acceptor.wait_closed()

        self._run(stop())

    def drop(self) -> None:
        """Break all connections."""
        while self._connections:
            self._connections.pop().abort()

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)


class _Files(asyncssh.SFTPServer):
    def __init__(self, host: SshHost, channel: asyncssh.SSHServerChannel) -> None:
        super().__init__(channel, chroot=str(host.folder))
        self._host = host

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        if self._host.read_only and pflags & asyncssh.FXF_WRITE:
            raise asyncssh.SFTPPermissionDenied("read-only")
        if self._host.breaks_at.encode() in path:
            self._host.drop()
            raise asyncssh.SFTPConnectionLost("gone")
        return super().open(path, pflags, attrs)
