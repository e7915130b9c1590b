"""open_dataset: folders of parquet files, whose columns are found by type; good ones and bad."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from tiny_run import make_run

from psl_flower.data.sources import open_dataset
from psl_flower.errors import CorruptImage, DataError
from psl_flower.inference.evaluation import other_test_images
from psl_flower.inference.trained_model import load_trained_model
from tests.paths import DATA
from tests.unit.tiny_pictures import colour, encode, levels


@pytest.fixture
def parquet(tmp_path, datasets, monkeypatch):
    """Return a writer of parquet folders: parquet({"train": columns}, **feature types) -> name."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(splits, **features):
        folder = tmp_path / "tables"
        folder.mkdir()
        for split, columns in splits.items():
            table = datasets.Dataset.from_dict(columns, features=datasets.Features(**features))
            path = folder / f"{split}-00000-of-00001.parquet"
            if len(table):
                table.to_parquet(path)
            else:
                # Its own writer divides by the number of rows where there are images, up to datasets 4.
                pq.write_table(table.data.table.cast(table.features.arrow_schema), path)
        return str(folder)

    return write


def cells(*values):
    return [{"bytes": encode(colour(v)), "path": f"{v}.png"} for v in values]


def test_columns_are_found_by_type(parquet, datasets, tmp_path):
    columns = {
        "id": [7, 8, 9], "coarse": [0, 0, 0], "fine_label": [1, 0, 1], "picture": cells(1, 2, 3),
    }  # fmt: skip
    name = parquet(
        {"train": columns, "test": {**columns, "coarse": [0, 0, 1]}},
        id=datasets.Value("int64"),
        coarse=datasets.ClassLabel(names=["x", "y"]),
        fine_label=datasets.ClassLabel(names=["a", "b"]),
        picture=datasets.Image(),
    )
    source = open_dataset(name)
    assert source.class_names == ("a", "b")
    assert levels(source, "train") == [(1, 1), (2, 0), (3, 1)]
    chosen = open_dataset(name, image_column="picture", label_column="id")
    assert chosen.class_names == ("7", "8", "9")
    assert levels(chosen, "test") == [(1, 0), (2, 1), (3, 2)]
    # A run that was trained with these columns is evaluated by them, unless the dataset has none such.
    trained = load_trained_model(make_run(tmp_path / "workspace")[0])
    for own, asked, expected in (("id", "", [7, 8, 9]), ("", "id", [7, 8, 9]), ("gone", "id", [7, 8, 9])):
        other = replace(trained, config=trained.config.replace(label_column=own))
        batches = other_test_images(other, name, label_column=asked).batches
        assert [int(label) for _, labels in batches for label in labels] == expected
    with pytest.raises(DataError, match="knows no class 'a'"):
        other_test_images(replace(trained, config=trained.config.replace(label_column="gone")), name)
    for options, match in (
        ({"image_column": "id"}, "no image column 'id'; image columns: picture"),
        ({"label_column": "picture"}, "no label column 'picture'.*coarse, fine_label, id"),
    ):
        with pytest.raises(DataError, match=match):
            open_dataset(name, **options)


def test_text_labels_over_both_splits(parquet, datasets):
    name = parquet(
        {
            "train": {"img": cells(1, 2), "kind": ["pear", "fig"]},
            "validation": {"img": cells(3, 4), "kind": ["apple", "fig"]},
        },
        img=datasets.Image(),
        kind=datasets.Value("string"),
    )
    source = open_dataset(name)
    assert source.class_names == ("apple", "fig", "pear")
    assert levels(source, "train") == [(1, 2), (2, 1)]
    assert levels(source, "test") == [(3, 0), (4, 1)]


@pytest.mark.parametrize(
    ("columns", "kinds", "match"),
    [
        ({"label": [0, 1]}, {"label": "class"}, "no column holds images; the columns are label"),
        ({"image": cells(1, 2)}, {"image": "image"}, "no column holds labels"),
        (
            {"image": cells(1, 2), "a": [0, 1], "b": [0, 1]},
            {"image": "image", "a": "int64", "b": "int64"},
            r"several columns can be the label \(a, b\)",
        ),
        ({"image": cells(1, 2), "label": [1, 1]}, {"image": "image", "label": "class"}, "all of one class"),
        (
            {"image": cells(1, 2), "label": [1, -1]},
            {"image": "image", "label": "class"},
            "1 of 2 .* no label",
        ),
        (
            {"image": cells(1, 2), "label": [1, None]},
            {"image": "image", "label": "int64"},
            "1 of 2 .* no label",
        ),
        ({"image": [], "label": []}, {"image": "image", "label": "class"}, "corresponds to no data|empty"),
    ],
    ids=["no images", "no labels", "two plain", "one class", "-1", "null", "empty"],
)
def test_unusable_tables(parquet, datasets, columns, kinds, match):
    types = {"class": datasets.ClassLabel(names=["a", "b"]), "image": datasets.Image()}
    features = {name: types.get(kind) or datasets.Value(kind) for name, kind in kinds.items()}
    name = parquet({"train": columns}, **features)
    with pytest.raises(DataError, match=match) as caught:
        open_dataset(name)
    assert name in str(caught.value)


def test_unlabelled_test_split_is_named(parquet, datasets):
    name = parquet(
        {"train": {"i": cells(1, 2), "label": [0, 1]}, "test": {"i": cells(3, 4), "label": [-1, -1]}},
        i=datasets.Image(),
        label=datasets.ClassLabel(names=["a", "b"]),
    )
    with pytest.raises(DataError, match="2 of 2 images of split 'test'"):
        open_dataset(name)


def test_broken_cells_name_split_row_and_file(parquet, datasets):
    broken = [*cells(1, 2), {"bytes": encode(colour(3))[:-30], "path": "three.png"}, None]
    name = parquet(
        {"train": {"i": cells(1, 2), "label": [0, 1]}, "test": {"i": broken, "label": [0, 1, 0, 1]}},
        i=datasets.Image(),
        label=datasets.ClassLabel(names=["a", "b"]),
    )
    source = open_dataset(name)
    with pytest.raises(CorruptImage, match=r"image 2 of split 'test' \(three\.png\)"):
        list(source.samples("test"))
    with pytest.raises(CorruptImage, match="image 3 of split 'test': there is no image"):
        list(source.samples("test", start=3))
    assert len(list(source.samples("train"))) == 2


def test_no_train_split(parquet, datasets):
    columns = {"i": cells(1, 2), "label": [0, 1]}
    name = parquet(
        {"test": columns, "validation": {**columns, "label": [1, 0]}},
        i=datasets.Image(),
        label=datasets.ClassLabel(names=["a", "b"]),
    )
    with pytest.raises(DataError, match='no split is called "train"; the dataset has test, validation'):
        open_dataset(name)


@pytest.mark.parametrize("file", ["", "notes.xyz", "train-0.parquet"])
def test_folder_without_a_dataset(tmp_path, file):
    if file:
        (tmp_path / file).write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match=r"neither images .* nor files"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_real_data(dataset, classes):
    folder = DATA / dataset
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set PSL_DATA")
    source = open_dataset(str(folder), max_train=40, max_test=10)
    assert len(source.class_names) == classes
    assert (source.num_samples("train"), source.num_samples("test")) == (40, 10)
    samples = list(source.samples("train"))
    assert {image.shape for image, _ in samples} == {(32, 32, 3)}
    assert len({label for _, label in samples}) > 5
