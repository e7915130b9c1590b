"""What people read: counts that agree with their nouns."""

import pytest

from psl_flower.text import counted


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (1, "image", "1 image"), (0, "image", "0 images"), (2, "test image", "2 test images"),
        (1, "class", "1 class"), (3, "class", "3 classes"), (1, "entry", "1 entry"), (4, "entry", "4 entries"),
        (2, "key", "2 keys"),
    ],
)  # fmt: skip
def test_counts_agree_with_their_nouns(count: int, noun: str, said: str) -> None:
    assert counted(count, noun) == said
