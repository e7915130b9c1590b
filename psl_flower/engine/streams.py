"""The stream transport, joined to the engines on either side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from psl_flower.engine.exchange import Exchange, WireFormat
from psl_flower.engine.mid_step import MidStepParty
from psl_flower.engine.party import Party, PartyEngine
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.messages import Failed
from psl_flower.wire.stream import UpperStream, heard


class StreamExchange(Exchange):
    """The Lower's side: implements `psl_flower.engine.exchange.Exchange` over an endpoint that all parties connect to.

    An exchange takes `timeout_s` seconds at most.
    """

    def __init__(self, endpoint: ExchangeEndpoint, wire: WireFormat, timeout_s: float) -> None:
        super().__init__(wire, ())  # the endpoint counts the bytes
        self._endpoint, self._timeout_s = endpoint, timeout_s

    def carry(
        self, frames: Mapping[int, Frame], expected: Mapping[int, Expectation], meanwhile: Callable[[], None]
    ) -> dict[int, Frame]:
        """Exchange frames with all parties at once; see `Exchange.carry`."""
        return self._endpoint.exchange(frames, expected, self._timeout_s, meanwhile)

    def finish(self, parties: Collection[int]) -> None:
        """Send the parties the end of the round, and close their streams."""
        self._endpoint.finish(parties, self._timeout_s)

    def bytes_up(self) -> dict[int, int]:
        """Return bytes of frames from each party so far."""
        return {m: traffic.bytes_up for m, traffic in self._endpoint.traffic.items()}

    def bytes_down(self) -> dict[int, int]:
        """Return bytes of frames to each party so far."""
        return {m: traffic.bytes_down for m, traffic in self._endpoint.traffic.items()}


def serve(parties: Mapping[int, tuple[Party, UpperStream]], wire: WireFormat, timeout_s: float) -> None:
    """Answer the Lower on every stream of this node until the round is over.

    Streams are served in turn, since the Lower always writes to all Uppers before it waits for any. A party that is
    asked in the middle of a step has no place in that order: if there is one, streams are served as frames arrive.

    Raises
    ------
    PslError
        Any failure here, once the Lower was informed; or the Lower's reason for ending the exchange.
    """
    waiting = dict(parties)
    try:
        while waiting:
            for m in _next(waiting, timeout_s):
                party, stream = waiting[m]
                frame = stream.receive(party.expects(wire), timeout_s)
                if frame.message.answered_by is None:
                    del waiting[m]
                    continue
                answer = party.reply(frame, wire)
                stream.send(answer.message, answer.tensors, answer.codec, timeout_s=timeout_s)
    except Exception as error:
        for _, stream in waiting.values():
            stream.fail(Failed.of(error))
        raise


def _next(waiting: Mapping[int, tuple[Party, UpperStream]], timeout_s: float) -> Iterable[int]:
    """Return the parties to be served next."""
    mid_step = any(isinstance(party, MidStepParty) for party, _ in waiting.values())
    # Where some share their weights, the others receive fewer messages.
    sharing = {isinstance(party, PartyEngine) and party.weight_count > 0 for party, _ in waiting.values()}
    if len(waiting) == 1 or not (mid_step or len(sharing) > 1):
        return list(waiting)
    return heard({m: stream for m, (_, stream) in waiting.items()}, timeout_s)
