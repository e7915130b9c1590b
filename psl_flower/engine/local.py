"""The exchange without a network: every Upper in this process, frames encoded and decoded as on the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from psl_flower.engine.exchange import Down, Up, WireFormat, down_of, up_of
from psl_flower.engine.upper import UpperEngine
from psl_flower.wire.frames import decode_frame, frame_bytes


class LocalExchange:
    """Implements `psl_flower.engine.exchange.Exchange`.

    Parameters
    ----------
    uppers : mapping
        The Uppers, by index.
    wire : WireFormat
        Codecs and dtype.
    """

    def __init__(self, uppers: Mapping[int, UpperEngine], wire: WireFormat) -> None:
        self._uppers = uppers
        self._wire = wire
        self._up = dict.fromkeys(uppers, 0)
        self._down = dict.fromkeys(uppers, 0)

    def exchange(
        self,
        down: Mapping[int, Down],
        shapes: Mapping[int, tuple[int, ...]] | None,
        meanwhile: Callable[[], None],
    ) -> dict[int, Up]:
        """Let one Upper after the other do its part; see `Exchange.exchange`."""
        meanwhile()
        answers = {}
        for m in down:
            engine, gradient = self._uppers[m], down[m].gradient_BKhwC
            expected = self._wire.expect_down(None if gradient is None else tuple(gradient.shape))
            sent = frame_bytes(self._wire.down_frame(down[m]))
            reply = frame_bytes(self._wire.up_frame(engine.handle(down_of(decode_frame(bytearray(sent), expected)))))
            wanted = self._wire.expect_up(down[m].step, shapes[m] if shapes else None)
            answers[m] = up_of(decode_frame(bytearray(reply), wanted))
            self._down[m] += len(sent)
            self._up[m] += len(reply)
        return answers

    def bytes_up(self) -> dict[int, int]:
        """Return bytes of frames from each Upper so far."""
        return dict(self._up)

    def bytes_down(self) -> dict[int, int]:
        """Return bytes of frames to each Upper so far."""
        return dict(self._down)
