"""Scores of predictions, worked out by hand."""

from contextlib import closing

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from psl_flower.engine.classification_scores import scores
from psl_flower.engine.rounds import predictions
from psl_flower.inference.class_table import write_class_table
from server.event_files import EventFiles
from server.scores import draw, recorded

LABELS = np.array([0, 0, 0, 1, 1, 2])
ANSWERS = [0, 0, 1, 1, 2, 2]


def of(answers, labels=LABELS, num_classes=3, sure=2.0):
    logits = torch.zeros(len(answers), num_classes)
    logits[torch.arange(len(answers)), torch.tensor(answers)] = sure
    return scores(predictions(logits, np.arange(len(answers)), np.asarray(labels)))


def test_by_hand():
    found = of(ANSWERS)
    assert found.confusion_KK.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found.images_K.tolist() == [3, 2, 1]
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.recall_K.tolist() == pytest.approx([2 / 3, 1 / 2, 1])
    assert found.precision_K.tolist() == pytest.approx([1, 1 / 2, 1 / 2])
    assert found.f1_K.tolist() == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found.macro_f1 == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert found.majority == 0.5


def test_auc_by_hand():
    """Three of four pairs of one image of the class and one of the other are in order, seen from either class."""
    logits = torch.tensor([[0.0, 2.0], [0.0, -0.5], [0.0, 0.5], [0.0, -2.0]])
    assert scores(predictions(logits, np.arange(4), np.array([1, 1, 0, 0]))).auc == pytest.approx(0.75)
    spoilt = torch.full((4, 2), float("nan"))
    assert scores(predictions(spoilt, np.arange(4), np.array([1, 1, 0, 0]))).auc is None


def test_classes_without_images_do_not_count():
    found = of([0, 1, 1], [0, 1, 0], num_classes=4)
    assert found.balanced_accuracy == pytest.approx(0.75)
    assert found.images_K.tolist() == [2, 1, 0, 0]


def test_one_class_alone_has_no_auc():
    assert of([0, 0], [0, 0], num_classes=2).auc is None


@pytest.mark.parametrize(("answers", "labels", "at_chance"), [
    ([0] * 100, [0] * 90 + [1] * 10, True),  # the majority class, 90 % accurate
    ([0] * 85 + [1] * 15, [0] * 90 + [1] * 10, False),  # less accurate, but it knows the rare class
    ([0, 1, 2] * 20, [0] * 20 + [1] * 20 + [2] * 20, True),
    ([0] * 20 + [1] * 20 + [2] * 20, [0] * 20 + [1] * 20 + [2] * 20, False),
])  # fmt: skip
def test_chance_is_told_from_learning(answers, labels, at_chance):
    assert of(answers, labels).at_chance is at_chance


def test_a_result_at_chance_is_called_that():
    found = of([0] * 100, [0] * 90 + [1] * 10, num_classes=3)
    assert found.note(["cat", "dog", "fox"]).startswith(
        "no better than chance: balanced accuracy 50.0%, chance 1 in 2 (50.0%); always answering cat would be 90.0% "
    )
    assert of(ANSWERS * 10, np.tile(LABELS, 10)).note(["a", "b", "c"]) == ""


def test_what_a_round_records():
    found = recorded(of(ANSWERS))
    assert found["balanced_accuracy"] == pytest.approx(0.7222222)
    assert found["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found["classes"]["images"] == [3, 2, 1]
    assert recorded(None) == {"balanced_accuracy": None, "macro_f1": None, "auc": None}
    assert "confusion" not in recorded(of([0, 1], [0, 1], num_classes=101))


def test_tensorboard_has_the_table_and_the_matrix(tmp_path):
    with closing(EventFiles(tmp_path)) as writer:
        draw(writer, of(ANSWERS), 7, ["a|b", "b", "c"])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [image.step for image in events.Images("round/confusion")] == [7]
    (text,) = events.Tensors("round/classes/text_summary")
    assert rb"| a\|b | 3 | 1.0000 | 0.6667 | 0.8000 |" in text.tensor_proto.string_val[0]


def test_a_table_of_classes_is_written(tmp_path):
    write_class_table(of(ANSWERS), ["a", "b", "c"], tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "class,images,precision,recall,f1,predicted a,predicted b,predicted c"
    assert lines[1].startswith("a,3,1.0,0.666")
    assert lines[1].endswith(",2,1,0")
    assert len(lines) == 4
