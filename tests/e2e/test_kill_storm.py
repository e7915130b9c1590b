"""A short storm of kills as a user calls it; `python -m simulations.chaos --kills 50` is a long one."""

import json

from simulations.chaos.__main__ import main


def test_kills_leave_the_weights_as_they_would_be(tmp_path, capsys):
    out = tmp_path / "chaos.json"
    assert main(["--kills", "2", "--seed", "3", "--steps", "12", "--json", "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(out.read_text("utf-8"))
    assert told["equal"]
    assert sum(told["kills"].values()) == len(told["measurements"]) == 2
    assert told["seconds_lost"] > 0
    assert {"cpu", "cores"} <= told["machine"].keys()
