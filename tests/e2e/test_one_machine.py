"""docs/deploy.md, "Try it on one machine": its lines, pasted into bash as they are, on other ports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import textwrap
from pathlib import Path

from tests.e2e.conftest import BIN, Place, free_port, wait_until
from tests.paths import ROOT

_PORTS = ("19092", "19444", "19100", "19101")
_END = "kill $PIDS; wait $PIDS; until rm -rf $TRY; do sleep 1; done"


def commands() -> str:
    """Return the page's lines, as a reader would paste them."""
    page = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    recipe = page.partition("<!-- one machine: begin -->")[2].partition("<!-- one machine: end -->")[0]
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", recipe, re.MULTILINE)
    pasted = "\n".join(textwrap.dedent(block) for block in blocks if block.strip())
    assert pasted.count(_END) == 1
    return pasted


def test_the_recipe_trains_and_leaves_nothing(place: Place, tmp_path: Path) -> None:
    script = commands()
    assert script.count("1910$n") == 1
    ports = [str(free_port()) for _ in _PORTS]
    script = script.replace("1910$n", f"$((n ? {ports[2]} : {ports[3]}))")
    for written, port in zip(_PORTS[:2], ports, strict=False):
        assert written in script
        script = script.replace(written, port)
    last, saw = tmp_path / "last", tmp_path / "saw"
    # What the last line removes is looked at before it.
    look = f"psl runs --json > {last}; cp -r $TRY {saw}; echo $TRY > {last}.try"
    script = script.replace(_END, f"{look}; {_END}")
    environment = {
        **place.environment,
        "PATH": f"{BIN}{os.pathsep}{place.environment['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    pasting = subprocess.Popen(
        ["bash", "-u"], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = pasting.communicate(script, timeout=840)
    except subprocess.TimeoutExpired:
        os.killpg(pasting.pid, signal.SIGKILL)
        said = pasting.communicate()[0]
    told = said + "".join(log.read_text("utf-8", "replace")[-3000:] for log in Path(saw).rglob("*log"))
    assert pasting.returncode == 0, told
    assert '"state": "completed"' in last.read_text(), told
    assert "2 nodes host 2 Uppers, stream transport" in (saw / "workspace" / "runs" / "try" / "log.txt").read_text()
    assert not re.search(r"^failed ", said, re.MULTILINE), said  # psl doctor
    assert re.search(r"accuracy.*%", said), said
    assert not Path(Path(f"{last}.try").read_text().strip()).exists()
    wait_until(lambda: not place.processes(), 60, "the end of Flower's helper processes")
