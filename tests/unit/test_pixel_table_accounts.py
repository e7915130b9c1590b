"""Tables with a column for each pixel, good ones and bad."""

import numpy as np
import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import DataError
from tests.unit.accounts import passed_by
from tests.unit.tiny_arrays import RANDOM, TEST, TEST_LABELS, TRAIN, TRAIN_LABELS, check_mnist, pixel_table

NUMBERED = [f"pixel{k}" for k in range(784)]
HEADERS = {
    "kaggle": NUMBERED,
    "fashion": [f"pixel{k}" for k in range(1, 785)],
    "mnist_train": [f"{y}x{x}" for y in range(1, 29) for x in range(1, 29)],
    "hmnist": [f"pixel{k:04}" for k in range(784)],
}


@pytest.mark.parametrize("header", HEADERS)
def test_tables_with_a_column_for_each_pixel(tmp_path, header):
    pixel_table(tmp_path / "set" / "fashion-mnist_train.csv", HEADERS[header], TRAIN, TRAIN_LABELS)
    name = pixel_table(tmp_path / "set" / "fashion-mnist_test.csv", HEADERS[header], TEST, TEST_LABELS)
    source = open_dataset(name)
    check_mnist(source)
    assert (
        "images from column 'pixels'" in source.account().reader and "classes from 'label'" in source.account().reader
    )
    square = "flat lists of 784 numbers were read as images of 28x28, row by row"
    assert source.account().notes == (() if header == "mnist_train" else (square,))


def test_kaggles_digits_have_no_labels_to_test_on(tmp_path):
    pixel_table(tmp_path / "set" / "train.csv", NUMBERED, TRAIN, TRAIN_LABELS)
    name = pixel_table(tmp_path / "set" / "test.csv", NUMBERED, TEST)
    (tmp_path / "set" / "sample_submission.csv").write_text("ImageId,Label\n1,0\n2,0\n")
    with pytest.raises(DataError, match=r"split 'test' has no column 'label'.*test-split=none"):
        open_dataset(name)
    account = open_dataset(name, test_split="none").account()
    assert sum(split.count for split in account.splits) == 20
    assert passed_by(account) == {
        ("table that lists no images", ".csv"): 1, ("rows of a split that is neither trained nor tested on", ""): 10,
    }  # fmt: skip


def test_columns_out_of_order_are_put_in_order_by_their_numbers(tmp_path):
    order = RANDOM.permutation(784)
    pixel_table(
        tmp_path / "set" / "train.csv", [NUMBERED[k] for k in order], TRAIN.reshape(20, 784)[:, order], TRAIN_LABELS
    )
    name = pixel_table(tmp_path / "set" / "test.csv", NUMBERED, TEST, TEST_LABELS)
    check_mnist(open_dataset(name))


def test_images_that_are_no_squares_are_read_where_the_columns_say_their_size(tmp_path):
    images = RANDOM.integers(0, 256, (20, 8, 10), np.uint8)
    name = pixel_table(tmp_path / "a.csv", [f"{y}x{x}" for y in range(8) for x in range(10)], images, TRAIN_LABELS)
    found = [image for split in ("train", "test") for image, _ in open_dataset(name).samples(split)]
    assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in images)


CROSSED = [f"{y}x{x}" for x in range(1, 29) for y in range(1, 29)]
FLAT = TRAIN.reshape(20, 784)
WRONG = [
    (NUMBERED[:783], FLAT[:, :783], "783 columns for pixels, which is no square.*call them 1x1, 1x2"),
    ([*NUMBERED[:783], "pixel784"], FLAT, "784 columns for pixels, pixel0 to pixel784, of which some are missing"),
    ([*NUMBERED[2:], "pixel784", "pixel785"], FLAT, "some are missing"),
    ([*NUMBERED[:783], "pixel00"], FLAT, "some are missing or there twice"),
    (CROSSED, FLAT, "do not go through the image row by row"),
    (NUMBERED, FLAT / 255, "has a column 'pixel0' for pixels with something else than whole numbers"),
    ([f"pixel{k}" for k in range(2352)], np.zeros((20, 2352), int), "2352 columns for pixels, which is no square"),
    ([str(k) for k in range(784)], FLAT, "no column holds images; the columns are label, 0, .* and 765 more"),
]


@pytest.mark.parametrize(("columns", "values", "match"), WRONG)
def test_columns_of_pixels_that_can_be_read_in_two_ways_are_refused(tmp_path, columns, values, match):
    assert WRONG
    name = pixel_table(tmp_path / "train.csv", columns, values, TRAIN_LABELS)
    with pytest.raises(DataError, match=match) as caught:
        open_dataset(name)
    assert name in str(caught.value) and "train.csv" in str(caught.value) and len(str(caught.value)) < 700


def test_a_table_without_names_of_its_columns_says_so(tmp_path):
    name = pixel_table(tmp_path / "mnist_train.csv", [str(k % 9) for k in range(784)], TRAIN, TRAIN_LABELS, name="5")
    with pytest.raises(
        DataError, match=r"mnist_train\.csv: has numbers in its first row, not names of columns; put those"
    ):
        open_dataset(name)
    (tmp_path / "mnist_train.csv").write_text(
        (tmp_path / "mnist_train.csv").read_text().replace("5,0,1", "label,0,1", 1)
    )
    with pytest.raises(DataError, match=r"cannot be read as a table"):
        open_dataset(name)


def test_empty_cells_beyond_the_first_rows_are_said(tmp_path):
    many = np.tile(FLAT, (30, 1))
    name = pixel_table(tmp_path / "train.csv", NUMBERED, many, np.tile(TRAIN_LABELS, 30))
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.rstrip().rpartition(",")[0] + ",\n")
    with pytest.raises(DataError, match=r"train\.csv has a column 'pixel783' for pixels with something else"):
        open_dataset(name)
