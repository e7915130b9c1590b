"""Makes, judges and chooses the models: the method of JP2025075101 over a backend that trains and measures.

The backend is this machine, with whole images (`psl_flower.lightening.local`), or the federation, where patches stay
on their nodes (`server.lightening`). Both give the same weights from the same settings.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from psl_flower.engine.build import Blueprint
from psl_flower.inference.trained_model import TrainedModel
from psl_flower.lightening.artefacts import Artefacts, make_float
from psl_flower.lightening.choosing import Choice, asked_for, choose, verdict_line
from psl_flower.lightening.folder import LighteningFolder
from psl_flower.lightening.judging import ImagesToJudge, Speed, images_to_calibrate, images_to_judge
from psl_flower.lightening.names import (
    FIRST,
    FIRST_DISTILLED,
    FIRST_INT8,
    SECOND,
    degree_name,
    float_name,
    title_of,
)
from psl_flower.lightening.pruning import check_prunable, ladder, prune
from psl_flower.lightening.quantising import folded, with_rounding, without_rounding
from psl_flower.lightening.search import Attempt, Conditions, Judgement, LoopEnd, most_judgements, search
from psl_flower.lightening.settings import Against, Goals, LighteningSettings, Method, TeacherChoice
from psl_flower.lightening.sizing import Cost, choose_second, cost_of
from psl_flower.lightening.training import LightTraining, SizedTeacher, epochs_of_run
from psl_flower.lightening.turns import measure_in_turns, needs_turns
from psl_flower.models import PatchSplitNet
from psl_flower.models.architectures import BackboneSize
from psl_flower.text import counted, duration


class Answers(NamedTuple):
    """Classes (N,) int64 of images: those found, and the labels."""

    found_N: NDArray[np.int64]
    labels_N: NDArray[np.int64]


class Backend(Protocol):
    """Where networks are trained and artefacts measured."""

    def train(self, training: LightTraining, net: PatchSplitNet) -> PatchSplitNet:
        """Train a network, from the weights it has; return it, or another of the same kind, in eval mode.

        An interrupted training continues from its last checkpoint; a finished one is not repeated.
        """
        ...

    def quantise(self, made: Artefacts, samples_N: NDArray[np.int64], bits: int) -> Artefacts:
        """Return a network in int8, calibrated on these images; parameters as in `artefacts.make_int8`."""
        ...

    def answers(self, name: str, place: Path, samples_N: NDArray[np.int64]) -> Answers:
        """Return the predictions of the artefacts in a folder for these images."""
        ...

    def speed(self, place: Path) -> Speed:
        """Return the speed of the artefacts in a folder."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lightened:
    """The result of a lightening."""

    folder: LighteningFolder  #: All files and the log.
    conditions: Conditions  #: The conditions that the models were judged by.
    method: Method  #: How the light model was searched for.
    end: LoopEnd  #: How the search ended.
    reason: str  #: Why, in words.
    choice: Choice | None  #: The model chosen, if one meets the conditions.
    closest: str  #: Name of that one, or of the model that lacks least.
    images: ImagesToJudge  #: Images that accuracy was measured on.
    third: Path | None  #: Folder of the light model, if the conditions hold.


class Lightening:
    """One lightening of a trained model, the first: makes the others and judges them."""

    def __init__(
        self, folder: LighteningFolder, trained: TrainedModel, settings: LighteningSettings, backend: Backend
    ) -> None:
        self.folder = folder
        self._settings, self._backend = settings, backend
        self._blueprint = Blueprint(trained.config, trained.description)
        self._description = trained.description
        self._first = trained.net
        check_prunable(trained.net)
        self._first_size = trained.config.network.size
        self._second_size = choose_second(
            self._first_size, self._cost, ratio=settings.second_ratio, measure=settings.measure, growth=settings.growth
        )
        self._sizes = ladder(self._second_size, settings.max_pruned, settings.degrees)
        self._epochs = settings.epochs or epochs_of_run(trained.config, trained.description)
        self._images = images_to_judge(trained.config, trained.description)
        self._calibration_N = images_to_calibrate(trained.config, trained.description)
        self._first_answers: NDArray[np.int64] | None = None
        self._seconds: dict[int, float] = {}
        self._say: Callable[[str], None] = lambda line: None
        self._method = Method.AUTO

    def find(self, goals: Goals, say: Callable[[str], None] = lambda line: None) -> Lightened:
        """Find a light model; rerun after an interruption, it keeps finished work.

        `say` is called with lines for the user: the goals, each model's verdict, the time left.

        Raises
        ------
        PslError
            If a network, a setting or the runtime does not allow it; or whatever the backend raises.
        """
        self._say, self._method = say, goals.method
        say(f"accuracy is measured on {self._images.about}")
        self._judge_first()
        self._compare()
        first, first_int8 = self._judged(FIRST), self._judged(FIRST_INT8)
        conditions = goals.conditions(first.accuracy)
        say(f"goals: {conditions.text()}")
        for what, judged in self.folder.at_hand().items():
            say(verdict_line(what, judged, conditions))
        found = self._at_hand(conditions, "no model had to be trained for it")
        if found is None:
            if self.folder.judged(SECOND) is None:
                say(f"next: the second model, {counted(self._epochs, 'epoch')}")
            second = self._make_second()
            self._compare()
            say(verdict_line(SECOND, self._judged(SECOND), conditions))
            found = self._at_hand(conditions, "the second model itself will do") or self._loop(
                conditions, second, self._guess(conditions, first_int8)
            )
        say(f"chosen: {title_of(found.choice.what)}: {found.choice.why}" if found.choice else f"none: {found.reason}")
        return found

    def _at_hand(self, conditions: Conditions, reason: str) -> Lightened | None:
        """Return the choice among the existing models; None if none will do, or the loop is asked for."""
        at_hand = self.folder.at_hand()
        choice = choose(at_hand, conditions) if self._method is Method.AUTO else None
        return None if choice is None else self._ended(conditions, LoopEnd.SATISFIED, reason, choice)

    def _loop(self, conditions: Conditions, second: PatchSplitNet, start: int) -> Lightened:
        """Return the loop's result; with method auto, the choice among all models made so far."""
        teacher = self._make_teacher(second)

        def note(attempt: Attempt) -> None:
            self.folder.note_attempt(attempt, conditions, self._seconds.get(attempt.degree, 0.0))
            self._say(verdict_line(degree_name(attempt.degree), attempt.judged, conditions))
            if attempt.most_left:
                self._say(self._left(attempt.most_left))

        known = {k: judged for k in range(len(self._sizes)) if (judged := self.folder.judged(degree_name(k)))}
        self._say(self._left(1 + most_judgements(len(self._sizes) - 1)))
        outcome = search(
            lambda degree: self._attempt(degree, second, teacher),
            conditions,
            len(self._sizes) - 1,
            start=start,
            known=known,
            on_attempt=note,
        )
        if self._method is Method.AUTO:
            self._compare()
            at_hand, end = self.folder.at_hand(), outcome.end
            choice = choose(at_hand, conditions)
            reason = outcome.reason
            if choice and end is not LoopEnd.SATISFIED:
                end, reason = LoopEnd.SATISFIED, "no int8 model meets the goals; another one does"
            if not choice and end is LoopEnd.SATISFIED:
                end, reason = LoopEnd.NEVER_FAST, "measured in turns with the others, no model is fast enough"
            return self._ended(conditions, end, reason, choice)
        best = degree_name(outcome.best.degree)
        satisfied = outcome.end is LoopEnd.SATISFIED
        choice = asked_for(best, self.folder.at_hand(), conditions) if satisfied else None
        return self._ended(conditions, outcome.end, outcome.reason, choice, best)

    def _compare(self) -> None:
        """Compare the speeds of the existing models, among which method auto chooses; the loop needs no comparison."""
        if self._method is Method.AUTO and needs_turns(self.folder):
            self._say(f"measuring the speed of {counted(len(self.folder.at_hand()), 'model')} in turns")
            measure_in_turns(self.folder, self._backend.speed)

    def _ended(
        self, conditions: Conditions, end: LoopEnd, reason: str, choice: Choice | None, closest: str = ""
    ) -> Lightened:
        at_hand = self.folder.at_hand()
        closest = closest or min(at_hand, key=lambda what: conditions.shortfall(at_hand[what]))
        return Lightened(
            folder=self.folder,
            conditions=conditions,
            method=self._method,
            end=end,
            reason=reason,
            choice=choice,
            closest=choice.what if choice else closest,
            images=self._images,
            third=self.folder.keep_third(choice.what) if choice else None,
        )

    def _left(self, most: int) -> str:
        """Return in words the most judgements that may follow, and the time they may take."""
        took = list(self._seconds.values())
        if not took:
            # A third learns as long as the second, and then for some epochs more under rounding.
            took = [1.25 * e.seconds for e in self.folder.entries if e.what == SECOND and e.seconds]
        if not took:
            return f"at most {counted(most, 'degree')} to train and judge"
        each = statistics.mean(took)
        about = f"about {duration(each)} each, {duration(most * each)} left at most"
        return f"at most {counted(most, 'degree')} to train and judge, {about}"

    def _judged(self, what: str) -> Judgement:
        judged = self.folder.judged(what)
        assert judged is not None
        return judged

    def _cost(self, size: BackboneSize) -> Cost:
        return cost_of(self._blueprint, size)

    def _judge_first(self) -> None:
        """Measure the first model, in float32 and directly quantised."""
        if not (self.folder.judged(FIRST) and self.folder.judged(FIRST_INT8)):
            made = make_float(folded(self._first.cpu()), self._description)
            self._judge(FIRST, made, self._first_size)
            self._judge(FIRST_INT8, self._int8(made), self._first_size)

    def _make_second(self) -> PatchSplitNet:
        net = self._blueprint.network(self._second_size)
        began = time.monotonic()
        net = self._train(SECOND, "second model", net, self._second_size)
        if self.folder.judged(SECOND) is None:
            self._judge(SECOND, make_float(folded(net.cpu()), self._description), self._second_size, began)
        return net

    def _make_teacher(self, second: PatchSplitNet) -> SizedTeacher | None:
        by_second = self._as_teacher(second, self._second_size)
        first = self._first
        if self._settings.distil_first:
            first, began = copy.deepcopy(first).requires_grad_(True), time.monotonic()
            first = self._train(FIRST_DISTILLED, "first, from the second", first, self._first_size, by_second)
            if self.folder.judged(FIRST_DISTILLED) is None:
                made = make_float(folded(first.cpu()), self._description)
                self._judge(FIRST_DISTILLED, made, self._first_size, began)
        if self._settings.teacher is TeacherChoice.LABELS:
            return None
        return self._as_teacher(first, self._first_size) if self._settings.teacher is TeacherChoice.FIRST else by_second

    def _as_teacher(self, net: PatchSplitNet, size: BackboneSize) -> SizedTeacher:
        frozen = copy.deepcopy(net).eval().requires_grad_(False)
        return SizedTeacher(net=frozen, share=self._settings.distil_share, size=size)

    def _attempt(self, degree: int, second: PatchSplitNet, teacher: SizedTeacher | None) -> Judgement:
        began, name, size = time.monotonic(), degree_name(degree), self._sizes[degree]
        settings = self._settings
        third = prune(second.cpu(), self._blueprint.network(size))
        third = self._train(name, f"degree {degree}", third, size, teacher)
        plain = folded(third.cpu())
        if self._method is Method.AUTO and self.folder.judged(float_name(degree)) is None:
            self._judge(float_name(degree), make_float(plain, self._description), size, began)
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
        training = LightTraining(
            what=what,
            place=self.folder.place(name),
            size=size,
            epochs=epochs or self._epochs,
            teacher=teacher,
            weight_bits=weight_bits,
        )
        return self._backend.train(training, net)

    def _int8(self, made: Artefacts) -> Artefacts:
        return self._backend.quantise(made, self._calibration_N, self._settings.weight_bits)

    def _judge(
        self, name: str, made: Artefacts, size: BackboneSize, began: float | None = None, *, note: bool = True
    ) -> Judgement:
        """Write an artefact and measure it as it lies on the disk."""
        place = self.folder.place(name)
        path = made.save(place)
        found_N, right_N = self._backend.answers(name, place, self._images.all_N)
        speed = self._backend.speed(place)
        if name == FIRST:
            self._first_answers = found_N
        if self._settings.against is Against.FIRST:
            right_N = self._answers_of_first()
        parameters, multiply_adds = self._cost(size)
        right, num = found_N == right_N, len(self._images.choose_N)
        judged = Judgement(
            accuracy=float(right[:num].mean()),
            test_accuracy=float(right[num:].mean()) if len(right) > num else None,
            **asdict(speed),
            num_bytes=path.stat().st_size,
            parameters=parameters,
            multiply_adds=multiply_adds,
        )
        if note:
            self.folder.note(name, judged, 0.0 if began is None else time.monotonic() - began)
        return judged

    def _answers_of_first(self) -> NDArray[np.int64]:
        if self._first_answers is None:
            self._first_answers = self._backend.answers(FIRST, self.folder.place(FIRST), self._images.all_N).found_N
        return self._first_answers

    def _guess(self, conditions: Conditions, first_int8: Judgement) -> int:
        """Return the lightest change that should be fast enough, if time goes with multiply-adds."""
        for degree, size in enumerate(self._sizes):
            share = conditions.speed_share(first_int8) * first_int8.multiply_adds / self._cost(size)[1]
            if share > 1:
                return degree
        return len(self._sizes) - 1
