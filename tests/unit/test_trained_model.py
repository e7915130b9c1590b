"""The assembled network: written and read back exactly, images prepared as ingest does, every bad folder refused."""

import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import make_run

import psl_flower
from psl_flower.config import RunConfig
from psl_flower.engine.inputs import normalise
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.errors import CorruptImage, DataError, RunError, StoreError
from psl_flower.inference.evaluation import evaluate, other_test_images, own_test_images
from psl_flower.inference.trained_model import Normalised, load_trained_model, save_trained_model
from psl_flower.runs.choosing import choose_run
from psl_flower.runs.folder import RunFolder, create_run
from psl_flower.stores.ingest import ensure_stores
from psl_flower.stores.store_set import StoreRequest, store_request


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def fresh(tiny, tmp_path):
    """Return a copy of the run, to be damaged."""
    return RunFolder(shutil.copytree(tiny[0].path, tmp_path / "runs" / "tiny"))


def test_round_trip_is_exact(tiny):
    run, net = tiny
    trained = load_trained_model(run)
    assert not trained.net.training
    loaded = trained.net.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in net.state_dict().items())
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    description = trained.description
    with torch.no_grad():
        expected = net(normalise(images, description.mean, description.std))
    torch.testing.assert_close(trained.logits(images), expected)


def test_images_of_all_kinds_are_predicted_alike(tiny, tmp_path):
    run, net = tiny
    trained = psl_flower.load(run.name, str(run.path.parents[1]))
    pictures = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (20, 17, 3), np.uint8)) for k in range(3)]
    for k, picture in enumerate(pictures):
        picture.save(tmp_path / f"{k}.png")
    expected = net.eval()(normalise(trained.prepare(pictures), trained.description.mean, trained.description.std))
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for images in (pictures, paths, map(str, paths), [np.asarray(picture) for picture in pictures]):
        found = trained.predict(images)
        probabilities = torch.tensor([prediction.probabilities for prediction in found])
        torch.testing.assert_close(probabilities, expected.softmax(1))
        names = [trained.description.class_names[k] for k in expected.argmax(1).tolist()]
        assert [prediction.label for prediction in found] == names
    assert trained.predict(str(paths[1]))[0].top(2)[0] == (found[1].label, found[1].probability)
    # Another picture has another prediction, so the comparison can fail.
    assert found[0].probabilities != found[1].probabilities


def test_many_images_are_predicted_in_batches(tiny, monkeypatch):
    trained = load_trained_model(tiny[0])
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 1), np.uint8)
    whole = [prediction.label for prediction in trained.predict(images)]
    monkeypatch.setattr("psl_flower.inference.trained_model.PREDICTION_BATCH", 3)
    assert [prediction.label for prediction in trained.predict(iter(images))] == whole
    assert len(whole) == 7


def test_images_that_cannot_be_predicted(tiny, tmp_path):
    trained = load_trained_model(tiny[0])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(CorruptImage, match="text.png"):
        trained.predict(tmp_path / "text.png")
    with pytest.raises(CorruptImage, match="nosuch.png"):
        trained.predict([tmp_path / "nosuch.png"])
    with pytest.raises(DataError, match="expected one image or more"):
        trained.predict([])
    with pytest.raises(DataError, match=r"image 1: expected uint8"):
        trained.predict([np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.float32)])
    with pytest.raises(RunError, match="nosuch"):
        psl_flower.load("nosuch", str(tmp_path))


def test_weights_that_share_one_buffer_are_saved(tmp_path):
    buffer = torch.arange(12.0)
    path = save_trained_model(tmp_path / "model", {"a": buffer[:6].view(2, 3), "b": buffer[6:].view(2, 3).t()})
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.safetensors"]
    assert torch.equal(load_file(path)["b"], buffer[6:].view(2, 3).t())


def test_deployable_takes_pixels_in_0_to_1(tiny):
    trained = load_trained_model(tiny[0])
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(Normalised(trained.net, trained.description)(images / 255.0), trained.logits(images))


def test_deployable_with_a_channel_that_never_changes(tiny):
    trained = load_trained_model(tiny[0])
    constant = msgspec.structs.replace(trained.description, std=(0.0,))
    with torch.no_grad():
        assert Normalised(trained.net, constant)(torch.rand(2, 1, 16, 16)).isfinite().all()


def test_images_are_prepared_as_ingest_does(tmp_path, tiny):
    """Pictures of two sizes and modes, ingested into stores, equal the same pictures prepared one by one."""
    random = np.random.default_rng(0)
    pictures = tmp_path / "pictures"
    for split in ("train", "test"):
        for name in "ab":
            (pictures / split / name).mkdir(parents=True)
            pixels = random.integers(0, 256, (20, 30) if name == "a" else (33, 16), np.uint8)
            Image.fromarray(pixels).save(pictures / split / name / "0.png")
    stores = ensure_stores(tmp_path / "stores", StoreRequest(dataset=str(pictures), image_size=(16, 16)))
    store = [stores.open(m).read(np.arange(4))[:, 0] for m in range(4)]
    ingested = stores.description.grid().merge(np.stack(store, 1))
    files = [pictures / split / name / "0.png" for split in ("train", "test") for name in "ab"]
    trained = load_trained_model(tiny[0])
    prepared = trained.prepare([Image.open(file) for file in files])
    assert prepared.dtype == torch.uint8
    np.testing.assert_array_equal(prepared.numpy(), ingested)
    arrays = trained.prepare([np.asarray(Image.open(file)) for file in files])
    assert torch.equal(arrays, prepared)


def test_channels_are_converted(tmp_path, tiny):
    grey = load_trained_model(tiny[0])
    colour = np.zeros((16, 16, 3), np.uint8)
    colour[..., 1] = 100
    assert grey.prepare([colour]).unique().tolist() == [59]  # luma 0.587
    assert grey.prepare([Image.new("RGBA", (20, 20), (0, 100, 0, 7))]).shape == (1, 1, 16, 16)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8), np.uint8(3)]
)
def test_what_is_no_image_is_refused(tiny, image):
    with pytest.raises(DataError, match="image 0"):
        load_trained_model(tiny[0]).prepare([image])


def test_an_empty_batch_and_a_wrong_one_are_refused(tiny):
    trained = load_trained_model(tiny[0])
    with pytest.raises(DataError, match="got none"):
        trained.prepare([])
    for images in (torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)):
        with pytest.raises(DataError, match="expected uint8"):
            trained.logits(images)


def test_own_test_split_is_as_one_process_evaluates_it(tiny):
    run, net = tiny
    trained = load_trained_model(run)
    stores = ensure_stores(run.path.parents[1] / "stores", store_request(trained.config))
    opened = [stores.open(m) for m in range(2)]
    oracle = OneProcessTrainer(trained.config, stores.description, stores.labels, opened)
    oracle.net.load_state_dict(net.state_dict())
    expected = oracle.evaluate()
    found = evaluate(trained, own_test_images(run, trained))
    assert found.label.tolist() == expected.label.tolist()
    assert len(found.label) == 20
    assert found.predicted.tolist() == expected.predicted.tolist()
    np.testing.assert_array_equal(found.confidence, expected.confidence)
    assert found.loss == expected.loss
    # The same dataset, not from stores: the same images, in another order.
    other = evaluate(trained, other_test_images(trained, "digits", max_test=20))
    assert sorted(other.confidence.tolist()) == pytest.approx(sorted(expected.confidence.tolist()), rel=1e-5)
    few = own_test_images(run, trained, max_test=5)
    assert few.num_images == 5 == len(evaluate(trained, few).label)


def test_another_datasets_classes_are_matched_by_name(tmp_path, tiny):
    for split, count in (("train", 1), ("test", 3)):
        for name in ("7", "3"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 24), (i, 0, 0)).save(tmp_path / split / name / f"{i}.png")
    trained = load_trained_model(tiny[0])
    found = evaluate(trained, other_test_images(trained, str(tmp_path)))
    assert found.label.tolist() == [3, 3, 3, 7, 7, 7]
    (tmp_path / "train" / "7").rename(tmp_path / "train" / "eleven")
    with pytest.raises(DataError, match="knows no class 'eleven'"):
        other_test_images(trained, str(tmp_path))


def test_a_dataset_that_changed_since_is_refused(tiny):
    trained = load_trained_model(tiny[0])
    other = msgspec.structs.replace(trained.description, source="00")
    with pytest.raises(DataError, match="not as it was"):
        own_test_images(tiny[0], replace(trained, description=other))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def with_fewer_classes(run):
    weights = load_file(run.model / "model.safetensors")
    weights["lower.fc.weight"] = weights["lower.fc.weight"][:9]
    save_trained_model(run.model, weights)


def never_collected(run):
    shutil.rmtree(run.model)
    run.write_config(RunConfig.of(collect_model=False))


def without_one(run):
    weights = load_file(run.model / "model.safetensors")
    del weights["lower.fc.weight"]
    save_trained_model(run.model, weights)


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (lambda run: (run.model / "model.safetensors").unlink(), RunError, "may not have finished .*step 4"),
        (never_collected, RunError, "collect-model = false"),
        (lambda run: cut(run.model / "model.safetensors"), RunError, "model is damaged"),
        (lambda run: (run.model / "model.safetensors").write_bytes(b""), RunError, "model is damaged"),
        (lambda run: (run.model / "model.safetensors").write_bytes(b"\xff" * 64), RunError, "model is damaged"),
        (with_fewer_classes, RunError, "another network .*lower.fc.weight$"),
        (without_one, RunError, "another network .*lower.fc.weight$"),
        (lambda run: (run.path / "config.toml").write_text("uppers = 'two'"), RunError, "config.toml: damaged"),
        (lambda run: (run.path / "manifest.json").unlink(), StoreError, "manifest"),
        (lambda run: run.write_config(RunConfig.of(assignment="round-robin")), RunError, "of different runs"),
        (
            lambda run: run.write_config(RunConfig.of(uppers=2, backbone="resnet34")),
            RunError,
            "another network .* more",
        ),
    ],
)
def test_a_bad_run_folder_is_refused(fresh, damage, error, match):
    damage(fresh)
    with pytest.raises(error, match=match):
        load_trained_model(fresh)


def test_the_newest_run_with_a_model_is_chosen(tmp_path):
    with pytest.raises(RunError, match="no runs yet"):
        choose_run(tmp_path)
    run = create_run(tmp_path, "one", "digits")
    run.write_config(RunConfig())
    save_trained_model(run.model, {})
    unfinished = tmp_path / "runs" / "two"
    unfinished.mkdir()
    (unfinished / "config.toml").write_text("")
    assert choose_run(tmp_path).name == "one"
    assert choose_run(tmp_path, "two").name == "two"
    with pytest.raises(RunError, match=r"no such run \(there: one, two\)"):
        choose_run(tmp_path, "three")
    (run.model / "model.safetensors").unlink()
    with pytest.raises(RunError, match="none of the 2 runs has a model"):
        choose_run(tmp_path)


def test_default_grid_is_two_by_two(tmp_path):
    request = StoreRequest(dataset="digits", max_train=10, max_test=5)
    description = ensure_stores(tmp_path, request).description
    assert (description.patch_size, description.stride, description.num_uppers) == ((8, 8), (8, 8), 4)
