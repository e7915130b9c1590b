"""The Lower's end of one stream: a long-lived thread that sends to one Upper and receives from it."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from psl_flower.errors import PeerLost, ProtocolError, PslError
from psl_flower.wire.connection import Connection, Interrupted
from psl_flower.wire.frames import Expectation, Frame, raise_ending
from psl_flower.wire.messages import Abort, Hello, Saved, Smashed, Welcome, party_names

Outcome = Frame | BaseException | None


@dataclass(frozen=True, slots=True)
class Job:
    """One exchange with one Upper: send `down`, then receive a frame as `expect` requires; either may be None."""

    down: Frame | None
    expect: Expectation | None
    deadline: float
    results: queue.SimpleQueue[tuple[int, Outcome]]


class Worker(threading.Thread):
    """Owns the connection of an Upper that was let in; no other thread touches its socket.

    The connection is past its `Hello`; `Welcome` is sent within `welcome_timeout_s` seconds. `count` is called with
    (upper, bytes up, bytes down) after each job, `gone` with this worker when it takes no more jobs.
    """

    def __init__(
        self,
        connection: Connection,
        hello: Hello,
        welcome_timeout_s: float,
        count: Callable[[int, int, int], None],
        gone: Callable[[Worker], None],
        names: Sequence[str] = (),
    ) -> None:
        super().__init__(name=f"psl-upper-{hello.upper}", daemon=True)
        self.upper = hello.upper
        self.name_of_peer = connection.peer = f"{party_names([hello.upper], names)} (node {hello.node})"
        self._connection = connection
        self._welcome_timeout_s = welcome_timeout_s
        self._count = count
        self._gone = gone
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended = False
        self._farewell: Frame | None = None
        self._end_reason = ""
        self._wake_fd, self._waker_fd = os.pipe()
        connection.watch(self._wake_fd)

    def submit(self, job: Job) -> None:
        """Queue a job; its outcome always arrives in ``job.results``."""
        with self._lock:
            if not self._ended:
                self._jobs.put(job)
                return
        job.results.put((self.upper, PeerLost(f"{self.name_of_peer} is not connected any more")))

    def end(self, reason: str, *, tell_peer: bool) -> None:
        """Interrupt this worker's wait and end it; it sends `Abort` first if `tell_peer`."""
        with self._lock:
            if self._ended or self._end_reason:
                return
            self._end_reason = reason
            self._farewell = Frame(Abort(reason)) if tell_peer else None
            os.write(self._waker_fd, b"x")
            self._jobs.put(None)

    def run(self) -> None:
        """Serve jobs until one fails or `end` is called."""
        error: BaseException | None = None
        try:
            deadline = time.monotonic() + self._welcome_timeout_s
            with suppress(Interrupted):
                self._connection.send(Frame(Welcome()), deadline)
                while (job := self._jobs.get()) is not None:
                    error = self._serve(job)
                    if error is not None:
                        break
        except PslError as failure:  # the Upper went away before it was welcomed
            error = failure
        finally:
            self._finish(error)

    def _serve(self, job: Job) -> BaseException | None:
        """Do one job and report its outcome; return the error after which the connection cannot be used."""
        outcome: Outcome
        error: BaseException | None = None
        sent, received = self._connection.bytes_sent, self._connection.bytes_received
        try:
            outcome = self._exchange(job)
        except Interrupted:
            outcome = error = ProtocolError(f"{self.name_of_peer}: {self._end_reason}")
        except Exception as failure:  # also a defect of ours: the caller must learn of it, or it would wait in vain
            outcome = error = failure
        if error is not None:
            self._leave()  # first, so that the failure's receiver does not find this worker connected
        self._count(self.upper, self._connection.bytes_received - received, self._connection.bytes_sent - sent)
        job.results.put((self.upper, outcome))
        return error

    def _exchange(self, job: Job) -> Frame | None:
        if job.down is not None:
            try:
                self._connection.send(job.down, job.deadline)
            except PeerLost:
                # An Upper that fails between two steps sends the reason and closes: sending fails, but the
                # reason can be read.
                word = self._connection.last_words(Expectation((Smashed, Saved)))
                if word is not None:
                    raise_ending(word, self.name_of_peer)
                raise
        if job.expect is None:
            return None
        answer = self._connection.receive(job.expect, job.deadline)
        raise_ending(answer, self.name_of_peer)
        return answer

    def _leave(self) -> None:
        with self._lock:
            self._ended = True
        self._gone(self)

    def _finish(self, error: BaseException | None) -> None:
        self._leave()
        farewell = self._farewell
        if farewell is None and isinstance(error, PslError):
            farewell = Frame(Abort(f"the exchange cannot continue: {error}"))
        if farewell is not None:
            self._connection.part(farewell)
        self._connection.close()
        with suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    lost = PeerLost(f"{self.name_of_peer} is not connected any more: {self._end_reason or error}")
                    job.results.put((self.upper, lost))
        os.close(self._wake_fd)
        os.close(self._waker_fd)
