"""What a tracker is told of a run's settings: nothing of where things lie on this machine."""

from psl_flower.config import RunConfig
from psl_flower.config.fields import fields_of
from psl_flower.config.run_config import GROUPS
from psl_flower.runs.tracking import told_settings


def test_no_setting_that_names_a_path_is_told(tmp_path):
    paths = {field.key for group in GROUPS.values() for field in fields_of(group) if field.about.path}
    assert {"upper-weights", "keys", "exchange-key"} <= paths
    told = told_settings(RunConfig.of(upper_weights=str(tmp_path / "uppers.safetensors")))
    assert paths & told.keys() == {"dataset"}


def test_of_a_folder_of_images_its_name_alone_is_told(tmp_path, monkeypatch):
    (tmp_path / "wards" / "ward7").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for dataset in ("wards/ward7", "./wards/ward7", str(tmp_path / "wards" / "ward7"), "/elsewhere/ward7"):
        assert told_settings(RunConfig.of(dataset=dataset))["dataset"] == "ward7"
    # A name of the hub, where no folder is called so.
    assert told_settings(RunConfig.of(dataset="uoft-cs/cifar10"))["dataset"] == "uoft-cs/cifar10"
