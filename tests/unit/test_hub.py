"""Datasets of a hub, which is one on this machine: the classes that its files declare, and what is said without it."""

import json
import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from tests import hub_server
from tests.paths import ROOT
from tests.unit.tiny_pictures import colour, encode

PROGRAM = """
import json, sys
from psl_flower.data.sources import open_dataset
from psl_flower.errors import PslError
from tests.unit.tiny_pictures import all_levels

for name, options in json.loads(sys.argv[1]):
    try:
        source = open_dataset(name, **options)
        names = {level: source.class_names[label] for level, label in all_levels(source)}
        told = [names, source.account().reader, source.account().notes]
    except PslError as error:
        told = [type(error).__name__, str(error)]
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory, datasets):
    """Return a hub: write(name, files) makes a dataset, opened((name, options), ...) opens some in another process."""
    folder, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    server = hub_server.server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def opened(*asked, offline=False):
        environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        environment |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home), "NO_PROXY": "*",
            "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(asked)],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def write(name, files, card=""):
        """Write a dataset: {file: (class names, [(level, label)])}; each image has one grey level."""
        place = folder / name / "data"
        place.mkdir(parents=True)
        for file, (names, rows) in files.items():
            features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
            cells = [{"bytes": encode(colour(level)), "path": None} for level, _ in rows]
            table = datasets.Dataset.from_dict(
                {"image": cells, "label": [label for _, label in rows]}, features=features
            )
            pq.write_table(table.data.table, place / file)
        if card:
            (folder / name / "README.md").write_text(card)

    yield SimpleNamespace(write=write, opened=opened, home=home)
    server.shutdown()
    server.server_close()


TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"
CARD = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': dog
          '1': cat
---
"""


def test_classes_of_each_split_are_those_of_its_own_files(hub):
    rows = [(k, k % 2) for k in range(4)]
    one, other = ["cat", "dog"], ["dog", "cat"]
    hub.write("me/alike", {TRAIN: (one, rows), TEST: (one, [(10, 0), (11, 1)])})
    hub.write("me/crossed", {TRAIN: (one, rows), TEST: (other, [(10, 0), (11, 1)])})
    hub.write("me/shards", {"train-00000-of-00002.parquet": (one, rows), "train-00001-of-00002.parquet": (other, rows)})
    hub.write("me/card", {TRAIN: (one, rows), TEST: (one, [(10, 0), (11, 1)])}, CARD)
    reader = "a table, images from column 'image' (image files), classes from 'label'"
    alike = [{"0": "cat", "1": "dog", "2": "cat", "3": "dog", "10": "cat", "11": "dog"}, reader, []]
    crossed = "splits 'train' and 'test' number the classes of 'label' differently (0 is cat; 0 is dog)"
    asked = (
        ("me/alike", {}),
        ("me/crossed", {}),
        ("me/crossed", {"train_split": "train", "test_split": "none"}),
        ("me/shards", {}),
    )
    told = hub.opened(*asked, ("me/card", {}), ("me/nothing", {}))
    assert told[0] == alike
    assert told[1][0] == "DataError" and crossed in told[1][1] and "train-split=train test-split=none" in told[1][1]
    assert told[2] == [{"0": "cat", "1": "dog", "2": "cat", "3": "dog"}, reader, []]
    assert told[3][0] == "DataError" and "number the classes of column 'label' differently" in told[3][1]
    assert "train-00000-of-00002.parquet and " in told[3][1]
    assert told[4][0]["0"] == "dog", "the card's names"
    (note,) = told[4][2]
    assert "card numbers the classes of column 'label' otherwise than its files do (0 is dog; 0 is cat)" in note
    assert told[5] == ["DatasetNotFound", told[5][1]] and "the hub has no such public dataset" in told[5][1]

    # Without the hub, what was loaded once is checked as far as its files are still there.
    told = hub.opened(("me/alike", {}), ("me/crossed", {}), ("me/shards", {}), offline=True)
    assert told[0] == alike
    assert all(
        kind == "DataError" and "number the classes of column 'label' differently" in why for kind, why in told[1:]
    )
    for place in (hub.home / "hub").glob("datasets--me--*"):
        shutil.rmtree(place)
    for offline in (False, True):
        ((names, _, notes),) = hub.opened(("me/alike", {}), offline=offline)
        assert names == alike[0]
        (note,) = notes
        assert "split 'train' and 'test' number their classes like the others could not be checked" in note
