"""The exchange without a network: every party in this process, frames encoded and decoded as on the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from psl_flower.engine.exchange import Exchange, WireFormat
from psl_flower.engine.party import Party
from psl_flower.wire.frames import Expectation, Frame, decode_frame, frame_bytes


class LocalExchange(Exchange):
    """Implements `psl_flower.engine.exchange.Exchange` for parties, by number, in this process."""

    def __init__(self, parties: Mapping[int, Party], wire: WireFormat) -> None:
        super().__init__(wire, parties)
        self._parties = parties

    def carry(
        self, frames: Mapping[int, Frame], expected: Mapping[int, Expectation], meanwhile: Callable[[], None]
    ) -> dict[int, Frame]:
        """Let the parties answer one after the other; see `Exchange.carry`."""
        meanwhile()
        answers = {}
        for m, frame in frames.items():
            party, sent = self._parties[m], frame_bytes(frame)
            received = decode_frame(bytearray(sent), party.expects(self.wire))
            reply = frame_bytes(party.reply(received, self.wire))
            answers[m] = decode_frame(bytearray(reply), expected[m])
            self._down[m] += len(sent)
            self._up[m] += len(reply)
        return answers
