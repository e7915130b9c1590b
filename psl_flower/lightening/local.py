"""Lightening in one process, on whole images: for those who have the images and need not keep them apart."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.architectures import BackboneSize
from psl_flower.assembled import Assembled, load_assembled
from psl_flower.devices import choose_device
from psl_flower.distillation import Teacher
from psl_flower.engine.build import make_network
from psl_flower.evaluation import images_in, stores_of
from psl_flower.lightening.artefacts import WHOLE_FILE, Artefacts, check_packages, make_float, make_int8
from psl_flower.lightening.folder import LighteningFolder, degree_name
from psl_flower.lightening.judging import answers, measure_speed, open_session
from psl_flower.lightening.loop import Attempt, Conditions, End, Judged, Outcome, search
from psl_flower.lightening.pruning import ladder, prune
from psl_flower.lightening.quantising import folded, with_rounding, without_rounding
from psl_flower.lightening.settings import Against, Asked, Lesson, LighteningSettings
from psl_flower.lightening.sizing import Cost, choose_second, cost_of, size_of_run
from psl_flower.lightening.training import Progress, School
from psl_flower.models import PatchSplitNet
from psl_flower.runs import RunFolder

_CALIBRATION_IMAGES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Lightened:
    """What came out.

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


def lighten(
    run: RunFolder,
    asked: Asked,
    settings: LighteningSettings,
    progress: Progress,
    on_attempt: Callable[[Attempt], None] = lambda _: None,
) -> Lightened:
    """Find a light model of a run; an interrupted lightening goes on where it was.

    Parameters
    ----------
    run : RunFolder
        With a trained model.
    asked : Asked
        The conditions.
    settings : LighteningSettings
        How.
    progress : callable
        Called as progress(what, done, in all).
    on_attempt : callable
        Called with every attempt.

    Raises
    ------
    PslError
        If the run, its images, a setting or the runtime does not allow it.
    """
    check_packages()
    assembled = load_assembled(run, choose_device("auto"))
    stores = stores_of(run, assembled, progress)
    with contextlib.ExitStack() as closing:
        opened = [closing.enter_context(contextlib.closing(stores.open(m))) for m in range(stores.manifest.num_uppers)]
        school = School(
            config=assembled.config, stores=stores, opened=opened, device=assembled.device, progress=progress
        )
        return _Bench(run, assembled, settings, school).find(asked, on_attempt)


class _Bench:
    """Makes the models and judges them."""

    def __init__(self, run: RunFolder, assembled: Assembled, settings: LighteningSettings, school: School) -> None:
        self._settings, self._school = settings, school
        self._config, self._manifest = assembled.config, assembled.manifest
        self._first = assembled.net
        first_size = size_of_run(self._config)
        self._second_size = choose_second(
            first_size, self._cost, ratio=settings.second_ratio, measure=settings.measure, growth=settings.growth
        )
        self._sizes = ladder(self._second_size, settings.max_pruned, settings.degrees)
        self._first_size = first_size
        self._epochs = settings.epochs or school.epochs_of_run()
        self.folder = LighteningFolder(run, settings)
        self._first_answers: NDArray[np.int64] | None = None
        self._seconds: dict[int, float] = {}

    def find(self, asked: Asked, on_attempt: Callable[[Attempt], None]) -> Lightened:
        first, first_int8 = self._judge_first()
        conditions = asked.conditions(first.accuracy)
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
        return cost_of(self._config, self._manifest, size)

    def _judge_first(self) -> tuple[Judged, Judged]:
        """Return what is measured of the first model, in float32 and directly quantised."""
        names = ("first", "first-int8")
        if not all(self.folder.judged(name) for name in names):
            plain = folded(self._first.cpu())
            made = make_float(plain, self._manifest)
            self._judge("first", made, self._first_size)
            self._judge("first-int8", self._int8(plain, made), self._first_size)
        first, int8 = (self.folder.judged(name) for name in names)
        assert first is not None and int8 is not None
        return first, int8

    def _make_second(self) -> PatchSplitNet:
        net = make_network(self._config, self._manifest, self._second_size)
        place = self.folder.place("second")
        began = time.monotonic()
        net = self._school.train("second model", net, self._epochs, place / "training.pt")
        if self.folder.judged("second") is None:
            self._judge("second", make_float(folded(net.cpu()), self._manifest), self._second_size, began)
        return net

    def _make_teacher(self, second: PatchSplitNet) -> Teacher | None:
        share = self._settings.distil_share
        first = self._first
        if self._settings.distil_first:
            first = copy.deepcopy(self._first).requires_grad_(True)
            place, began = self.folder.place("first-distilled"), time.monotonic()
            lesson = Teacher(net=self._as_teacher(second), share=share)
            first = self._school.train("first, from the second", first, self._epochs, place / "training.pt", lesson)
            if self.folder.judged("first-distilled") is None:
                made = make_float(folded(first.cpu()), self._manifest)
                self._judge("first-distilled", made, self._first_size, began)
        if self._settings.teacher is Lesson.LABELS:
            return None
        return Teacher(net=self._as_teacher(first if self._settings.teacher is Lesson.FIRST else second), share=share)

    def _as_teacher(self, net: PatchSplitNet) -> PatchSplitNet:
        copied = copy.deepcopy(net).eval().requires_grad_(False)
        return copied.to(self._school.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _attempt(self, degree: int, second: PatchSplitNet, teacher: Teacher | None) -> Judged:
        began, name, size = time.monotonic(), degree_name(degree), self._sizes[degree]
        place, settings = self.folder.place(name), self._settings
        third = prune(second.cpu(), make_network(self._config, self._manifest, size))
        third = self._school.train(f"degree {degree}", third, self._epochs, place / "training.pt", teacher)
        plain = folded(third.cpu())
        rounded = self._school.train(
            f"degree {degree}, rounded",
            with_rounding(plain, settings.weight_bits),
            settings.rounding_epochs or max(1, self._epochs // 4),
            place / "rounding.pt",
            teacher,
            rounding=True,
        )
        plain.load_state_dict(without_rounding(rounded))
        judged = self._judge(name, self._int8(plain, make_float(plain, self._manifest)), size, note=False)
        self._seconds[degree] = time.monotonic() - began
        return judged

    def _int8(self, plain: PatchSplitNet, made: Artefacts) -> Artefacts:
        pool = self._manifest.samples_of("train")
        drawn = np.sort(np.random.default_rng(0).permutation(pool)[:_CALIBRATION_IMAGES])
        images = torch.cat([images for images, _ in images_in(self._school.stores, drawn, _CALIBRATION_IMAGES)])
        return make_int8(plain, self._manifest, made, images, self._settings.weight_bits)

    def _judge(
        self, name: str, made: Artefacts, size: BackboneSize, began: float | None = None, *, note: bool = True
    ) -> Judged:
        """Write an artefact and measure it as it lies on the disk."""
        path = made.save(self.folder.place(name))
        session = open_session(path, self._settings.threads)
        labels: list[NDArray[np.int64]] = []
        found_N = answers(session, self._test_images(name, labels))
        if name == "first":
            self._first_answers = found_N
        right_N = np.concatenate(labels) if self._settings.against is Against.LABELS else self._answers_of_first()
        speed = measure_speed(session, self._one_batch())
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

    def _test_images(self, what: str, labels: list[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """Yield the test images in batches, and note their labels."""
        samples_N = self._manifest.samples_of("test")
        done = 0
        for images_BCHW, labels_B in images_in(self._school.stores, samples_N, self._config.evaluate_batch_size):
            labels.append(labels_B)
            done += len(labels_B)
            yield images_BCHW
            self._school.progress(f"judging {what}", done, len(samples_N))

    def _answers_of_first(self) -> NDArray[np.int64]:
        if self._first_answers is None:
            session = open_session(self.folder.place("first") / WHOLE_FILE, self._settings.threads)
            self._first_answers = answers(session, self._test_images("first", []))
        return self._first_answers

    def _one_batch(self) -> torch.Tensor:
        samples_N = np.resize(self._manifest.samples_of("test"), self._settings.batch)
        return torch.cat([images for images, _ in images_in(self._school.stores, samples_N, self._settings.batch)])

    def _guess(self, conditions: Conditions, first_int8: Judged) -> int:
        """Return the lightest change that should be fast enough, if time goes with multiply-adds."""
        for degree, size in enumerate(self._sizes):
            share = conditions.speed_share(first_int8) * first_int8.multiply_adds / self._cost(size)[1]
            if share > 1:
                return degree
        return len(self._sizes) - 1
