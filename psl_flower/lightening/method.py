"""Makes and judges the models: the method of JP2025075101 over a backend that trains and measures.

The backend is this machine, with whole images (`psl_flower.lightening.local`), or the federation, where patches stay
on their nodes (`server.lightening`). Both give the same weights from the same settings.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from psl_flower.engine.build import Blueprint
from psl_flower.inference.trained_model import TrainedModel
from psl_flower.lightening.artefacts import Artefacts, make_float
from psl_flower.lightening.folder import LighteningFolder, degree_name
from psl_flower.lightening.judging import Speed
from psl_flower.lightening.pruning import check_prunable, ladder, prune
from psl_flower.lightening.quantising import folded, with_rounding, without_rounding
from psl_flower.lightening.search import Attempt, Conditions, End, Judged, Outcome, search
from psl_flower.lightening.settings import Against, Goals, LighteningSettings, TeacherChoice
from psl_flower.lightening.sizing import Cost, choose_second, cost_of, size_of_run
from psl_flower.lightening.training import SizedTeacher, Training, epochs_of_run
from psl_flower.models import PatchSplitNet
from psl_flower.models.architectures import BackboneSize

_CALIBRATION_IMAGES = 256


class Answers(NamedTuple):
    """Classes (N,) int64 of the run's test images: those found, and the labels."""

    found_N: NDArray[np.int64]
    labels_N: NDArray[np.int64]


class Backend(Protocol):
    """Where networks are trained and artefacts measured."""

    def train(self, training: Training, net: PatchSplitNet) -> PatchSplitNet:
        """Train a network, from the weights it has; return it, or another of the same kind, in eval mode.

        An interrupted training continues from its last checkpoint; a finished one is not repeated.
        """
        ...

    def quantise(self, made: Artefacts, samples_N: NDArray[np.int64], bits: int) -> Artefacts:
        """Return a network in int8, calibrated on these images; parameters as in `artefacts.make_int8`."""
        ...

    def answers(self, name: str, place: Path) -> Answers:
        """Return the predictions of the artefacts in a folder for all test images."""
        ...

    def speed(self, place: Path) -> Speed:
        """Return the speed of the artefacts in a folder, after `answers`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lightened:
    """The result of a lightening.

    Attributes
    ----------
    folder : LighteningFolder
        All files and the log.
    conditions : Conditions
        As the loop took them.
    outcome : Outcome
        How it ended.
    third : Path or None
        Folder of the light model, if the conditions hold.
    """

    folder: LighteningFolder
    conditions: Conditions
    outcome: Outcome
    third: Path | None


class Lightening:
    """One lightening: makes the models and judges them.

    Parameters
    ----------
    folder : LighteningFolder
        For all files and the log.
    trained : TrainedModel
        The first model.
    settings : LighteningSettings
        How.
    backend : Backend
        Where.
    """

    def __init__(
        self, folder: LighteningFolder, trained: TrainedModel, settings: LighteningSettings, backend: Backend
    ) -> None:
        self.folder = folder
        self._settings, self._backend = settings, backend
        self._blueprint = Blueprint(trained.config, trained.description)
        self._description = trained.description
        self._first = trained.net
        check_prunable(trained.net)
        self._first_size = size_of_run(trained.config)
        self._second_size = choose_second(
            self._first_size, self._cost, ratio=settings.second_ratio, measure=settings.measure, growth=settings.growth
        )
        self._sizes = ladder(self._second_size, settings.max_pruned, settings.degrees)
        self._epochs = settings.epochs or epochs_of_run(trained.config, trained.description)
        self._first_answers: NDArray[np.int64] | None = None
        self._seconds: dict[int, float] = {}

    def find(self, goals: Goals, on_attempt: Callable[[Attempt], None] = lambda _: None) -> Lightened:
        """Find a light model; called again after an interruption, it keeps what is finished.

        Parameters
        ----------
        goals : Goals
            What is to be reached.
        on_attempt : callable
            Called with every attempt.

        Raises
        ------
        PslError
            If a network, a setting or the runtime does not allow it; or whatever the backend raises.
        """
        first, first_int8 = self._judge_first()
        conditions = goals.conditions(first.accuracy)
        second = self._make_second()
        teacher = self._make_teacher(second)

        def note(attempt: Attempt) -> None:
            self.folder.note_attempt(attempt, conditions, self._seconds.get(attempt.degree, 0.0))
            on_attempt(attempt)

        known = {k: judged for k in range(len(self._sizes)) if (judged := self.folder.judged(degree_name(k)))}
        outcome = search(
            lambda degree: self._attempt(degree, second, teacher),
            conditions,
            len(self._sizes) - 1,
            start=self._guess(conditions, first_int8),
            known=known,
            on_attempt=note,
        )
        third = self.folder.keep_third(outcome.best) if outcome.end is End.SATISFIED else None
        return Lightened(folder=self.folder, conditions=conditions, outcome=outcome, third=third)

    def _cost(self, size: BackboneSize) -> Cost:
        return cost_of(self._blueprint, size)

    def _judge_first(self) -> tuple[Judged, Judged]:
        """Measure the first model, in float32 and directly quantised."""
        names = ("first", "first-int8")
        if not all(self.folder.judged(name) for name in names):
            made = make_float(folded(self._first.cpu()), self._description)
            self._judge("first", made, self._first_size)
            self._judge("first-int8", self._int8(made), self._first_size)
        first, int8 = (self.folder.judged(name) for name in names)
        assert first is not None and int8 is not None
        return first, int8

    def _make_second(self) -> PatchSplitNet:
        net = self._blueprint.network(self._second_size)
        began = time.monotonic()
        net = self._train("second", "second model", net, self._second_size)
        if self.folder.judged("second") is None:
            self._judge("second", make_float(folded(net.cpu()), self._description), self._second_size, began)
        return net

    def _make_teacher(self, second: PatchSplitNet) -> SizedTeacher | None:
        by_second = self._as_teacher(second, self._second_size)
        first = self._first
        if self._settings.distil_first:
            first, began = copy.deepcopy(first).requires_grad_(True), time.monotonic()
            first = self._train("first-distilled", "first, from the second", first, self._first_size, by_second)
            if self.folder.judged("first-distilled") is None:
                made = make_float(folded(first.cpu()), self._description)
                self._judge("first-distilled", made, self._first_size, began)
        if self._settings.teacher is TeacherChoice.LABELS:
            return None
        return self._as_teacher(first, self._first_size) if self._settings.teacher is TeacherChoice.FIRST else by_second

    def _as_teacher(self, net: PatchSplitNet, size: BackboneSize) -> SizedTeacher:
        frozen = copy.deepcopy(net).eval().requires_grad_(False)
        return SizedTeacher(net=frozen, share=self._settings.distil_share, size=size)

    def _attempt(self, degree: int, second: PatchSplitNet, teacher: SizedTeacher | None) -> Judged:
        began, name, size = time.monotonic(), degree_name(degree), self._sizes[degree]
        settings = self._settings
        third = prune(second.cpu(), self._blueprint.network(size))
        third = self._train(name, f"degree {degree}", third, size, teacher)
        plain = folded(third.cpu())
        rounded = self._train(
            name,
            f"degree {degree}, rounded",
            with_rounding(plain, settings.weight_bits),
            size,
            teacher,
            epochs=settings.rounding_epochs or max(1, self._epochs // 4),
            weight_bits=settings.weight_bits,
        )
        plain.load_state_dict(without_rounding(rounded))
        judged = self._judge(name, self._int8(make_float(plain, self._description)), size, note=False)
        self._seconds[degree] = time.monotonic() - began
        return judged

    def _train(
        self,
        name: str,
        what: str,
        net: PatchSplitNet,
        size: BackboneSize,
        teacher: SizedTeacher | None = None,
        *,
        epochs: int = 0,
        weight_bits: int = 0,
    ) -> PatchSplitNet:
        training = Training(
            what=what,
            place=self.folder.place(name),
            size=size,
            epochs=epochs or self._epochs,
            teacher=teacher,
            weight_bits=weight_bits,
        )
        return self._backend.train(training, net)

    def _int8(self, made: Artefacts) -> Artefacts:
        pool = self._description.samples_of("train")
        drawn = np.sort(np.random.default_rng(0).permutation(pool)[:_CALIBRATION_IMAGES])
        return self._backend.quantise(made, drawn, self._settings.weight_bits)

    def _judge(
        self, name: str, made: Artefacts, size: BackboneSize, began: float | None = None, *, note: bool = True
    ) -> Judged:
        """Write an artefact and measure it as it lies on the disk."""
        place = self.folder.place(name)
        path = made.save(place)
        found_N, right_N = self._backend.answers(name, place)
        speed = self._backend.speed(place)
        if name == "first":
            self._first_answers = found_N
        if self._settings.against is Against.FIRST:
            right_N = self._answers_of_first()
        parameters, multiply_adds = self._cost(size)
        judged = Judged(
            accuracy=float((found_N == right_N).mean()),
            images_per_s=speed.images_per_s,
            latency_ms=speed.latency_ms,
            num_bytes=path.stat().st_size,
            parameters=parameters,
            multiply_adds=multiply_adds,
        )
        if note:
            self.folder.note(name, judged, 0.0 if began is None else time.monotonic() - began)
        return judged

    def _answers_of_first(self) -> NDArray[np.int64]:
        if self._first_answers is None:
            self._first_answers = self._backend.answers("first", self.folder.place("first")).found_N
        return self._first_answers

    def _guess(self, conditions: Conditions, first_int8: Judged) -> int:
        """Return the lightest change that should be fast enough, if time goes with multiply-adds."""
        for degree, size in enumerate(self._sizes):
            share = conditions.speed_share(first_int8) * first_int8.multiply_adds / self._cost(size)[1]
            if share > 1:
                return degree
        return len(self._sizes) - 1
