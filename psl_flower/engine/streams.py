"""The stream transport, joined to the engines on either side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from psl_flower.engine.exchange import Down, Up, WireFormat, down_of, up_of
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import PslError
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.messages import Finish
from psl_flower.wire.stream import UpperStream


class StreamExchange:
    """The Lower's side: implements `psl_flower.engine.exchange.Exchange` over an endpoint.

    Parameters
    ----------
    endpoint : ExchangeEndpoint
        All Uppers are connected to it.
    wire : WireFormat
        Codecs and dtype.
    timeout_s : float
        Longest time of one exchange, in seconds.
    """

    def __init__(self, endpoint: ExchangeEndpoint, wire: WireFormat, timeout_s: float) -> None:
        self._endpoint, self._wire, self._timeout_s = endpoint, wire, timeout_s

    def exchange(
        self,
        down: Mapping[int, Down],
        shapes: Mapping[int, tuple[int, ...]] | None,
        meanwhile: Callable[[], None],
    ) -> dict[int, Up]:
        """Exchange frames with all Uppers at once; see `Exchange.exchange`."""
        frames = {m: self._wire.down_frame(part) for m, part in down.items()}
        expected = {m: self._wire.expect_up(part.step, shapes[m] if shapes else None) for m, part in down.items()}
        answers = self._endpoint.exchange(frames, expected, self._timeout_s, meanwhile)
        return {m: up_of(frame) for m, frame in answers.items()}

    def finish(self, uppers: Collection[int]) -> None:
        """Tell the Uppers that the round is over, and part from them."""
        self._endpoint.finish(uppers, self._timeout_s)

    def bytes_up(self) -> dict[int, int]:
        """Return bytes of frames from each Upper so far."""
        return {m: traffic.bytes_up for m, traffic in self._endpoint.traffic.items()}

    def bytes_down(self) -> dict[int, int]:
        """Return bytes of frames to each Upper so far."""
        return {m: traffic.bytes_down for m, traffic in self._endpoint.traffic.items()}


def serve(uppers: Mapping[int, tuple[UpperEngine, UpperStream]], wire: WireFormat, timeout_s: float) -> None:
    """Answer the Lower on every stream of this node, in turn, until it says that the round is over; the Upper's side.

    One stream after the other suffices: the Lower always writes to all of them before it waits for any.

    Raises
    ------
    PslError
        Whatever fails here, after the Lower has been told; or the Lower's reason for ending the exchange.
    """
    waiting = dict(uppers)
    try:
        while waiting:
            for m, (engine, stream) in list(waiting.items()):
                frame = stream.receive(wire.expect_down(engine.pending_shape), timeout_s)
                if isinstance(frame.message, Finish):
                    del waiting[m]
                    continue
                answer = wire.up_frame(engine.handle(down_of(frame)))
                stream.send(answer.message, answer.tensors, answer.codec, timeout_s=timeout_s)
    except Exception as error:
        kind = type(error).__name__
        text = str(error) if isinstance(error, PslError) else f"{kind}: {error}"
        for _, stream in waiting.values():
            stream.fail(kind, text)
        raise
