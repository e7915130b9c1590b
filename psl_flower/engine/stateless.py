"""Parties that keep no state in memory between messages, as the flower transport needs.

Before a party answers, it writes its state from before the pending forward pass, with the plan of that pass; the next
message runs the pass again from there. So BatchNorm's statistics move once per step although the pass runs twice. A
party that is asked in the middle of a step has nothing pending between messages.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from psl_flower.engine.checkpoints import load_state, save_state
from psl_flower.engine.exchange import Down, Up, WireFormat, down_of
from psl_flower.engine.party import Party, PartyEngine
from psl_flower.errors import ProtocolError
from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.messages import Shared
from psl_flower.wire.plan import Plan, StepId

Record = TypeVar("Record", bound=msgspec.Struct)
P = TypeVar("P", bound=Party)


class _BetweenMessages(Generic[P]):
    """A party whose state is in a file between two messages; the engine's present state is replaced."""

    def __init__(self, engine: P, path: Path) -> None:
        self._engine: P = engine
        self._path = path

    def _go_to(self, step: int, saved: int | None) -> dict[str, Any]:
        """Go to the state after `step` steps; return it if it is the one kept between messages, else an empty dict."""
        state = load_state(self._path) if saved is None and self._path.exists() else {}
        if state.get("step") != step:
            self._engine.go_to(step, saved)
            return {}
        self._engine.restore(state)
        return state


class StatelessParty(_BetweenMessages[PartyEngine]):
    """Handles single messages of a party."""

    def __init__(self, engine: PartyEngine, path: Path) -> None:
        super().__init__(engine, path)
        self._plan: Plan | None = None

    def expects(self, wire: WireFormat, step: int, saved: int | None = None) -> Expectation:
        """Go to the state after `step` steps and return what may come now: a gradient only where a pass is pending.

        With `saved`, that state is the checkpoint of that step (see `Party.go_to`), and the file is ignored.

        Raises
        ------
        RunError
            If neither the state between messages nor a checkpoint is of that step.
        """
        state = self._go_to(step, saved)
        self._plan = _read(state.get("pending", ""), Plan)
        if state:
            self._engine.shared_after = _read(state.get("shared", ""), StepId)
            self._engine.sharing_s = state.get("sharing_s", 0.0)
        return wire.expect_turn(
            self._engine.smashed_shape(self._plan) if self._plan else None, self._engine.weight_count
        )

    def reply(self, frame: Frame, wire: WireFormat) -> Frame:
        """Do what `PartyEngine.reply` does, after `expects`.

        Raises
        ------
        ProtocolError
            If a gradient comes and no plan is pending.
        """
        return wire.frame(*self._handle(down_of(frame)))

    def _handle(self, down: Down) -> Up:
        started = time.perf_counter() - self._engine.sharing_s  # what was before sharing belongs to the same step
        turn, plan = down.turn, down.turn.plan
        if turn.gradient_of is not None:
            if self._plan is None:
                raise ProtocolError(f"received the gradient of {turn.gradient_of}, but no plan is pending")
            self._engine.run(self._plan)
        if plan is not None:
            down = down._replace(turn=msgspec.structs.replace(turn, plan=None))
        applied = self._engine.handle(down)
        if turn.answered_by is Shared:
            self._engine.sharing_s = time.perf_counter() - started  # the pass that was run again, too
        if turn.changes_state:
            pending = plan if plan is not None and plan.mode == "train" else None
            told = {
                "pending": _text(pending),
                "shared": _text(self._engine.shared_after),
                "sharing_s": self._engine.sharing_s,
            }
            save_state(self._path, self._engine.state() | told, durable=False)
        return applied if plan is None else self._engine.run(plan, time.perf_counter() - started)


class StatelessMidStep(_BetweenMessages[Party]):
    """Handles single messages of a party that is asked in the middle of a step."""

    def expects(self, wire: WireFormat, step: int, saved: int | None = None) -> Expectation:
        """Go to the state after `step` steps and return what may come now; with `saved` to the checkpoint of it.

        Raises
        ------
        RunError
            If neither the state between messages nor a checkpoint is of that step.
        """
        self._go_to(step, saved)
        return self._engine.expects(wire)

    def reply(self, frame: Frame, wire: WireFormat) -> Frame:
        """Do what `Party.reply` does, after `expects`."""
        answer = self._engine.reply(frame, wire)
        save_state(self._path, self._engine.state(), durable=False)
        return answer


def stateless(party: Party, path: Path) -> StatelessParty | StatelessMidStep:
    """Return the party as one that handles single messages, with its state between them in a file."""
    return StatelessParty(party, path) if isinstance(party, PartyEngine) else StatelessMidStep(party, path)


# As hexadecimal text: a file read with weights_only holds tensors, numbers and texts.
def _text(record: msgspec.Struct | None) -> str:
    return "" if record is None else msgspec.msgpack.encode(record).hex()


def _read(text: str, kind: type[Record]) -> Record | None:
    return msgspec.msgpack.decode(bytes.fromhex(text), type=kind) if text else None
