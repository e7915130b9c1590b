"""What an audit says of its own time and strength, before, meanwhile and after."""

import time

import pytest
import torch
from tiny_run import make_run

from psl_flower.leakage.attack import Pairs, train_decoder
from psl_flower.leakage.audit import Attacks
from psl_flower.leakage.complete import audit
from psl_flower.leakage.decoders import Sizes
from psl_flower.leakage.effort import Course, Effort, forecast
from psl_flower.leakage.images import AuditSettings
from psl_flower.leakage.recording import RecordedLooks
from psl_flower.leakage.replay import Replay
from psl_flower.patches import PatchGrid
from psl_flower.protection import Protection
from psl_flower.system.devices import torch_threads
from tests.engines import settings
from tests.unit.leaks import network, pictures


def test_a_forecast_grows_with_passes_images_and_looks(tmp_path, monkeypatch):
    run, net = make_run(tmp_path, backbone_width=8)
    description = run.read_description()
    times = {"decoder": 0.5}
    monkeypatch.setattr("psl_flower.leakage.effort._timed", lambda threads, *_: (times["decoder"] * threads, 0.25))

    def effort(auxiliary, joined=False, **settings):
        return forecast(net, description, AuditSettings(**settings), auxiliary, 40, joined=joined)

    few = effort(200, epochs=8)
    # 2 batches of 64 from nine tenths of 200, 28 of those of 2000. 40 victims and 20 images held back are mended.
    assert (few.decoder, few.substitutes, few.mending) == (8 * 2 * 0.5, 8 * 2 * 0.25, 60 * (40 + 20) / 64 * 0.25)
    assert effort(2000, epochs=8).decoder == 14 * few.decoder
    assert effort(200, epochs=16).seconds - few.seconds == 8 * few.decoder + few.substitutes
    joined = effort(200, joined=True, epochs=8)
    assert joined.seconds == few.seconds + 8 * few.decoder + few.mending
    threads = torch.get_num_threads()
    assert few.threads == 1 and torch.get_num_threads() == threads
    said = joined.line(AuditSettings(epochs=8), 200)
    assert said.startswith("attacks by decoders of up to 8 passes over 200 images: about ")
    assert said.endswith("at most, with 1 thread; the run is trained again first")


def test_the_first_timing_of_a_process_is_thrown_away(tmp_path, monkeypatch):
    """It includes torch's warm-up. Of the later ones, which alternate, the least counts: other load slows the rest."""
    run, net = make_run(tmp_path, backbone_width=8)
    seconds = {1: iter([0.86, 0.11, 0.08]), 2: iter([0.3, 0.5])}
    asked = []

    def timed(threads, *_):
        asked.append(threads)
        return next(seconds[threads]), 1.0 / len(asked)

    monkeypatch.setattr("psl_flower.leakage.effort._timed", timed)
    with torch_threads(2):
        effort = forecast(net, run.read_description(), AuditSettings(epochs=1), 40, 10, joined=False)
    assert asked == [1, 1, 2, 1, 2]
    # One step: 36 images are fewer than a batch.
    assert (effort.threads, effort.decoder, effort.substitutes) == (1, 0.08, 1 / 4)


def test_several_threads_are_taken_where_they_are_clearly_faster(tmp_path, monkeypatch):
    run, net = make_run(tmp_path, backbone_width=8)
    for speedup, expected in ((1.1, 1), (1.9, 2)):
        monkeypatch.setattr(
            "psl_flower.leakage.effort._timed", lambda threads, *_, s=speedup: (1.0 if threads == 1 else 1 / s, 0.0)
        )
        with torch_threads(2):
            effort = forecast(net, run.read_description(), AuditSettings(), 40, 10, joined=False)
        assert effort.threads == expected


def test_steps_are_really_timed(tmp_path):
    run, net = make_run(tmp_path, backbone_width=8)
    with torch_threads(1):
        effort = forecast(net, run.read_description(), AuditSettings(epochs=1), 40, 10, joined=False)
    assert min(effort.decoder, effort.substitutes, effort.mending) > 0
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_time_left_counts_all_attacks(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = []
    course = Course(lambda *told: shown.append(told), Effort(1, False, decoder=10.0, substitutes=10.0, mending=5.0))
    for what in ("dense from codes query", "convolutional from codes query"):
        for done in (1, 2):
            now[0] += 10
            course.note(what, done, 2)
    what, done, total, details = shown[-1]
    assert (what, done, total) == ("convolutional from codes query", 20.0, 95.0)
    # 30 s for what was seen of 20 of 95.
    assert details == "2 of 2 at most, about 1:52 left for all attacks"
    assert shown[0][3] == "1 of 2 at most", "nothing is known yet"
    # A second training under one title, as of a decoder that begins twice, is another attack.
    course.note("convolutional from codes query", 1, 2)
    assert shown[-1][1] == 25.0
    course.note("mending images of 1 look", 64, 64)
    assert shown[-1][1] == 35.0


@pytest.mark.parametrize(("looks", "epochs"), [(0, 2), (2, 1), (2, 2)])
def test_an_audit_takes_all_attacks_of_its_forecast_and_no_other(looks, epochs, stores_for):
    """The forecast knows attacks by their titles and their number: who changes these changes `Effort`, too."""
    victims, auxiliary = pictures(8, seed=1), pictures(40, seed=2)
    net = network(Protection(name="code", size=4), "layer1")
    again = None
    if looks:
        shape = (looks, 48, 4, 4, 1, 1)
        received = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        recorded = RecordedLooks(
            smashed_LNPChw=received, flipped_LN=torch.zeros(looks, 48, dtype=torch.bool),
            gradient_LND=torch.zeros(looks, 48, 0), positions=(0,), shown=looks,
        )  # fmt: skip
        again = Replay(recorded, exact=True, seconds=1.0)
    # Each kind of attack has digits of its own in the sum.
    effort = Effort(1, bool(looks), decoder=1.0, substitutes=100.0, mending=1000.0)
    course = Course(lambda *told: None, effort)
    chosen = AuditSettings(victims=8, auxiliary=40, epochs=epochs)
    attacks = Attacks(stores_for(settings()).description, victims, auxiliary, chosen, course.note)
    audit(attacks, net, replay=again)
    assert course.over == effort.seconds


@pytest.mark.parametrize("epochs", [9, 10, 11])
def test_a_decoder_learns_in_any_number_of_steps(epochs):
    """Exactly 10 steps made the schedule of the learning rate divide by zero."""
    grid = PatchGrid(image_size=(8, 8), patch_size=(4, 4), stride=(4, 4))
    pairs = Pairs(torch.rand(20, 4, 2, 1, 1), torch.rand(20, 1, 8, 8))
    sizes = Sizes(grid=grid, smashed=(2, 1, 1), channels=1)
    assert train_decoder("convolutional", sizes, pairs, epochs=epochs, seed=0).epochs <= epochs
