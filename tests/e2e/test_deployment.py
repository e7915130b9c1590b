"""Separate hosts: SuperLink and server on one, four SuperNodes on one each; mutual TLS, node keys and firewalls.

The last node's store is on a sixth host, a web server. The hosts are network namespaces, the programs real ones, started
as docs/deploy.md says (`simulations.separate_hosts`, `watched`).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psl_flower.data.sources import open_dataset
from psl_flower.lightening.report import RESULT_FILE
from psl_flower.patches.store import read_all_positions, store_folder
from psl_flower.runs.folder import RunFolder
from psl_flower.runs.predictions import FOLDER, load_result
from psl_flower.sealed import manifest as manifests
from simulations.child import call
from simulations.separate_hosts.deployment import BIN, FLEET_PORT
from simulations.separate_hosts.network import Host
from tests.e2e.conftest import differing, model
from tests.e2e.watched import DATASET, PLAIN_PORT, RESTORERS, Deployment, sniffing

RUN_BYTES = 64
TOKEN_BYTES = 32

# Answers every connection with what it received first.
_ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("listening", flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(connection.recv(65536))
"""
_SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1) as connection:
    connection.sendall(bytes.fromhex(sys.argv[3]))
    print(connection.recv(65536).hex())
"""

# Asks a SuperLink for its next ServerApp, for its runs, and for a message of a node.
_TAKE = """
import http.client, ssl, sys
for path in ("runtime/acquire-task", "control/list-runs", "fleet/pull-messages"):
    trusted = ssl.create_default_context(cafile=sys.argv[3])
    connection = http.client.HTTPSConnection(sys.argv[1], int(sys.argv[2]), context=trusted, timeout=20)
    connection.request("POST", "/v1/" + path, b"", {"Content-Type": "application/protobuf"})
    print(connection.getresponse().status)
"""


def _exchange_plaintext(sender: Host, receiver: Host, data: bytes) -> bytes | None:
    """Send bytes from one host to another, unencrypted; return the answer, None if there is none."""
    done = sender.call([sys.executable, "-S", "-c", _SEND, receiver.address, str(PLAIN_PORT), data.hex()])
    return bytes.fromhex(done.stdout.strip()) if done.returncode == 0 else None


def _secrets(deployed: Deployment) -> dict[str, list[bytes]]:
    """Return what must not be seen on the wire: runs of 64 bytes of patches and of labels, and the tokens drawn."""
    samples = np.random.default_rng(0).choice(len(deployed.open_store(0)), 6, replace=False)
    labels_N = deployed.labels()
    drawn = deployed.tokens.read_bytes()
    return {
        "patch": [run for n in range(4) for run in _runs(deployed.open_store(n).read(samples))],
        "label": [labels_N.astype(kind).tobytes()[:RUN_BYTES] for kind in ("<i8", "u1")],
        "token": [drawn[start : start + TOKEN_BYTES] for start in range(0, len(drawn), TOKEN_BYTES)],
    }


def _runs(records: np.ndarray) -> list[bytes]:
    """Return 64 bytes of each record (B, ...), not of one colour: such a run could be seen by chance."""
    runs = []
    for record in records:
        pixels = record.tobytes()
        parts = [pixels[start : start + RUN_BYTES] for start in range(0, len(pixels) - RUN_BYTES + 1, 8)]
        runs += [part for part in parts if len(set(part)) > 16][:1]
    assert len(runs) > len(records) / 2
    return runs


def _seen(capture: Path, secrets: dict[str, list[bytes]]) -> dict[str, int]:
    """Return how many of the secrets of each kind occur in a capture."""
    frames = capture.read_bytes()
    return {kind: sum(secret in frames for secret in values) for kind, values in secrets.items()}


def test_hosts_are_apart(deployed: Deployment) -> None:
    """Only connections from a node to the server come about, and each place does have a listener."""
    hosts = (deployed.server, *deployed.nodes[:2])
    listeners = [
        host.start([sys.executable, "-S", "-c", _ECHO, host.address, str(PLAIN_PORT)], "echo.log") for host in hosts
    ]
    try:
        server, first, second = hosts
        for host in hosts:
            assert _eventually(host, host) == b"hello"
        assert _eventually(first, server) == b"hello"
        for sender, receiver in ((first, second), (second, first), (server, first), (server, second)):
            assert _exchange_plaintext(sender, receiver, b"hello") is None
    finally:
        for listener in listeners:
            listener.kill()
            listener.wait()


def _eventually(sender: Host, receiver: Host) -> bytes | None:
    answers = (_exchange_plaintext(sender, receiver, b"hello") for _ in range(50))
    return next((answer for answer in answers if answer is not None), None)


def test_another_host_gets_no_server_app_and_no_run(deployed: Deployment) -> None:
    """With the authority's certificate alone; at the server itself the operator gets both."""
    authority = deployed.server.folder / "ca.crt"
    take = [sys.executable, "-S", "-c", _TAKE, deployed.server.address, str(FLEET_PORT), str(authority)]
    hosts = {"guest": deployed.network.guest, "node": deployed.nodes[0], "server": deployed.server}
    answers = {name: host.call(take).stdout.split() for name, host in hosts.items()}
    assert [status[:2] for status in (answers["guest"], answers["node"])] == [["403", "403"]] * 2
    assert answers["server"][:2] == ["200", "200"]
    assert {status[2] for status in answers.values()}.isdisjoint({"200", "403"})  # Flower asks for a node's key


def test_stream_trains_exactly_and_shows_nothing(deployed: Deployment, tmp_path: Path) -> None:
    capture = tmp_path / "training.frames"
    with sniffing(deployed.network, capture) as counts:
        done = deployed.train("run-name=stream")
    status = deployed.status("stream")
    assert status.state == "completed", status.message + done.stdout + done.stderr + deployed.logs()
    run = deployed.run("stream")
    assert "4 nodes host 4 Uppers, stream transport" in (run.path / "log.txt").read_text()
    assert differing(model(run), deployed.oracle("stream", 4)) == []
    assert differing(model(run), deployed.oracle("stream", 3)) != []
    # The last node read every record of its batches from the patch server, in two rounds.
    served = (deployed.network.patch_server.folder / "web.log").read_text().splitlines()
    records = [line for line in served if line.startswith(deployed.nodes[3].address) and '.psl HTTP/1.1" 206' in line]
    assert len(records) >= 4 * 32
    assert not (deployed.nodes[3].folder / "store").exists()

    secrets = _secrets(deployed)
    exchanged = run.read_metrics()[-1]
    assert counts["lost"] == 0
    assert capture.stat().st_size > exchanged["bytes_up"] + exchanged["bytes_down"]
    # Two rounds of four one-time tokens; Flower may draw secrets of its own.
    assert len(secrets["token"]) >= 8
    assert _seen(capture, secrets) == {"patch": 0, "label": 0, "token": 0}
    # The same search sees all of them where they do travel in the clear.
    control = tmp_path / "control.frames"
    listener = deployed.server.start(
        [sys.executable, "-S", "-c", _ECHO, deployed.server.address, str(PLAIN_PORT)], "echo.log"
    )
    try:
        assert _eventually(deployed.nodes[0], deployed.server) == b"hello"
        with sniffing(deployed.network, control) as counts:
            everything = b"".join(secret for values in secrets.values() for secret in values)
            assert _exchange_plaintext(deployed.nodes[0], deployed.server, everything) == everything
    finally:
        listener.kill()
        listener.wait()
    assert _seen(control, secrets) == {kind: len(values) for kind, values in secrets.items()}


@pytest.mark.slow
def test_the_adaptation_net_on_a_host_of_its_own(deployed: Deployment) -> None:
    """A fifth host gets smashed data and labels, and no node reaches it; the weights are those of one process."""
    with deployed.guest(role="adaptation") as node_id:
        done = deployed.train("run-name=adapted", "adaptation-server=true", "rounds=1", "steps-per-round=2")
    status = deployed.status("adapted")
    assert status.state == "completed", status.message + done.stdout + done.stderr + deployed.logs()
    run = deployed.run("adapted")
    assert "5 nodes host 4 Uppers and the Adaptation Net, stream transport" in (run.path / "log.txt").read_text()
    assert node_id not in deployed.node_ids
    assert list(deployed.network.guest.folder.glob("state/adapted*/adaptation/step-00000002.pt"))
    assert run.read_metrics()[-1]["bytes_up_adaptation"] > 0
    assert differing(model(run), deployed.oracle("adapted", 2)) == []
    assert differing(model(run), deployed.oracle("adapted", 1)) != []


@pytest.mark.slow
def test_strangers_are_refused_by_name(deployed: Deployment) -> None:
    """Flower knows a stranger by its key, a node its store by its own key, the Lower a position by its holder."""
    guest, first = deployed.network.guest, deployed.nodes[0]
    deployed.equip(guest, "guest")
    stranger = guest.start(deployed.supernode_command(guest, {"role": "adaptation"}), "stranger.log")
    assert stranger.wait(timeout=120) != 0
    guest.kill_all()
    assert "ref-exit-codes/305" in (guest.folder / "stranger.log").read_text()
    assert "Attempted to register SuperNode with public key" in (deployed.server.folder / "superlink.log").read_text()

    shutil.copytree(deployed.store(0), guest.folder / "copied")
    shutil.copy(deployed.nodes[1].folder / "node.key", guest.folder / "wrong.key")
    shutil.copy(first.folder / "node.key", guest.folder / "stolen.key")
    settings = ("rounds=1", "steps-per-round=1")
    with deployed.guest(store=str(guest.folder / "copied"), key=str(guest.folder / "wrong.key")) as node_id:
        deployed.train("run-name=wrong-key", *settings)
    assert deployed.status("wrong-key").state == "completed", deployed.status("wrong-key").message
    log = (deployed.run("wrong-key").path / "log.txt").read_text()
    assert f"node {node_id}: " in log and "it is left out" in log
    assert differing(model(deployed.run("wrong-key")), deployed.oracle("wrong-key", 1)) == []

    with deployed.guest(store=str(guest.folder / "copied"), key=str(guest.folder / "stolen.key")) as node_id:
        deployed.train("run-name=claimed-twice", *settings)
    status = deployed.status("claimed-twice")
    assert status.state == "failed"
    assert "holds position 0, which node" in status.message
    assert node_id in status.message and deployed.node_ids[0] in status.message
    assert status.message in (deployed.run("claimed-twice").path / "log.txt").read_text()


@pytest.mark.slow
def test_a_light_model_is_put_in_place_and_predicts(deployed: Deployment) -> None:
    """The nodes lighten together, as their operators allow; prediction with their light Uppers is the whole's."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra lighten is not installed")
    deployed.train("run-name=heavy", "rounds=1", "steps-per-round=2")
    heavy = deployed.run("heavy").path
    asked = "method=loop min-accuracy=0 min-speed=0.001 degrees=1 epochs=1 rounding-epochs=1 second-ratio=1.3 threads=1"
    done = deployed.train("lighten=heavy", f"lighten-with={asked}", timeout=1500)
    (folder,) = (path.parent for path in (heavy / "light").glob("*/status.json"))
    status = RunFolder(folder).read_status()
    assert status is not None and status.state == "completed", (status, done.stdout, done.stderr, deployed.logs())
    third = Path(json.loads((folder / RESULT_FILE).read_text())["third"])

    done = deployed.train("predict=heavy", "predict-light=true", "run-name=answers")
    result = load_result(heavy / FOLDER / "answers")
    assert result is not None and result.light, done.stdout + done.stderr + deployed.logs()
    with np.load(heavy / FOLDER / "answers" / "predictions.npz") as file:
        predicted_N = file["predicted"]
    test = manifests.load(deployed.dataset).manifest.description.samples_of("test")
    images = _images(deployed, test).astype(np.float32) / 255
    session = onnxruntime.InferenceSession(third / "model.onnx", providers=["CPUExecutionProvider"])
    (logits_NC,) = session.run(None, {"images": images})
    np.testing.assert_array_equal(logits_NC.argmax(1), predicted_N)


def _images(deployed: Deployment, samples_B: np.ndarray) -> np.ndarray:
    """Return images (B, C, H, W), put together from the nodes' stores: only the owner knows which file has which number."""
    stores = [deployed.open_store(n) for n in range(len(deployed.nodes))]
    grid = manifests.load(deployed.dataset).manifest.description.grid()
    return grid.merge(read_all_positions(stores, samples_B)).astype(np.uint8, copy=False)


@pytest.mark.slow
def test_a_lost_node_is_replaced(deployed: Deployment, tmp_path: Path) -> None:
    """Its disk is lost: the owner, who has a copy, seals all anew, to a new node's keys; a thief's old ones are refused."""
    lost, lost_id = deployed.nodes[1], deployed.node_ids[1]
    sealed, stolen = tmp_path / "sealed", tmp_path / "stolen"
    shutil.copytree(deployed.dataset, sealed)
    for n in range(4):
        shutil.copytree(deployed.store(n), store_folder(sealed, n))
    shutil.copytree(lost.folder, stolen)
    lost.kill_all()
    shutil.rmtree(lost.folder)

    lost.folder.mkdir()
    deployed.equip(lost, "node1")
    call(BIN / "psl", "keygen", "node", "--out", lost.folder / "node.key")
    owner = deployed.server.folder.parent / "owner"
    shutil.copy(owner / "owner.key.pub", lost.folder)
    call(
        BIN / "psl", "rotate", "--manifest", sealed, "--owner-key", owner / "owner.key", "--delete-old",
        "--node-key", f"1={lost.folder / 'node.key.pub'}", PSL_STATE=str(owner),
    )  # fmt: skip
    for n in range(4):
        shutil.rmtree(deployed.store(n), ignore_errors=True)
        shutil.move(store_folder(sealed, n), deployed.store(n))
    shutil.rmtree(deployed.dataset)
    shutil.copytree(sealed, deployed.dataset)
    assert deployed.flwr("supernode", "unregister", lost_id, "lower").returncode == 0
    deployed.node_ids[1] = deployed.register_host(lost, "patch-1-again")
    deployed.start_node(1)
    deployed.wait_for_nodes(4)

    with deployed.guest(store=str(stolen / "store"), key=str(stolen / "node.key")) as thief_id:
        done = deployed.train("run-name=replaced", "rounds=1")
    status = deployed.status("replaced")
    assert status.state == "completed", status.message + done.stdout + done.stderr + deployed.logs()
    assert deployed.node_ids[1] != lost_id
    log = (deployed.run("replaced").path / "log.txt").read_text()
    assert f"node {thief_id}: " in log and "it is left out" in log
    assert differing(model(deployed.run("replaced")), deployed.oracle("replaced", 2)) == []
    assert differing(model(deployed.run("replaced")), deployed.oracle("replaced", 1)) != []


def test_flower_transport(deployed: Deployment) -> None:
    """A step, and an averaging, in Flower messages alone, for nodes that reach nothing but the SuperLink."""
    done = deployed.train("run-name=flower", "transport=flower", "rounds=1", "steps-per-round=1", "average-every=1")
    status = deployed.status("flower")
    assert status.state == "completed", status.message + done.stdout + done.stderr + deployed.logs()
    run = deployed.run("flower")
    assert "4 nodes host 4 Uppers, flower transport" in (run.path / "log.txt").read_text()
    assert differing(model(run), deployed.oracle("flower", 1)) == []
    logs = [log for host in (deployed.server, *deployed.nodes) for log in host.folder.glob("*.log")]
    assert len(logs) > len(deployed.nodes)
    told = [line for log in logs for line in log.read_text(errors="replace").splitlines() if "deprecat" in line.lower()]
    assert told == []


def test_an_audit_asks_the_nodes_about_images_of_the_auditors_own(deployed: Deployment) -> None:
    """Trained Uppers stay where they are, and so do the nodes' images."""
    deployed.train("run-name=audited", "rounds=1", "steps-per-round=2")
    brought = deployed.server.folder / "brought"
    names = deployed.run("audited").read_description().class_names
    for number, (image, label) in enumerate(open_dataset(DATASET, max_test=300).samples("test")):  # a fifth are taken
        (brought / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(brought / names[label] / f"{number}.png")
    asked = ("audit-victims=12", "audit-auxiliary=40", "audit-epochs=1")
    done = deployed.train("audit=audited", f"audit-images={brought}", *asked)
    leak = deployed.run("audited").path / "leak"
    status = RunFolder(leak).read_status()
    assert status is not None and status.state == "completed", (status, done.stdout, done.stderr, deployed.logs())
    report = json.loads((leak / "report.json").read_text())
    assert report["victims"] == 12 and (leak / "page.html").stat().st_size > 10_000
    for node in deployed.nodes:
        (noted,) = (node.folder / "state").rglob("audits.jsonl")
        assert sum(json.loads(line)["images"] for line in noted.read_text().splitlines()) == 52


def test_images_are_restored_from_afar(deployed: Deployment, tmp_path: Path) -> None:
    """Restorers sign, a run carries their authorisation to the nodes and the answers back; the server reads nothing."""
    asked = deployed.server.folder / "asked.psl"
    alice, bob = (("--identity", deployed.restorers / f"{name}.key") for name in RESTORERS)
    deployed.as_restorers(
        "authorise", *alice, *bob, "--image", "train:5,test:3", "--why", "complaint 4711", "--out", asked
    )
    done = deployed.train("run-name=restored", f"restore={asked}")
    status = deployed.status("restored")
    assert status.state == "completed", status.message + done.stdout + done.stderr + deployed.logs()
    answers = deployed.run("restored").path / "answers"
    assert len(list(answers.glob("*.psl"))) == 4

    out = tmp_path / "restored"
    deployed.as_restorers("restore", *alice, "--request", asked, "--answers", answers, "--out", out)
    source = open_dataset(DATASET, max_train=128, max_test=32)
    for name, split, number in (("test-000003", "test", 131), ("train-000005", "train", 5)):
        restored = np.asarray(Image.open(out / f"{name}.png"))
        (sealed_CHW,) = _images(deployed, np.array([number]))
        np.testing.assert_array_equal(restored, np.moveaxis(sealed_CHW, 0, -1).squeeze())
        assert sum((restored == original.squeeze()).all() for original, _ in source.samples(split)) == 1

    for n, node in enumerate(deployed.nodes):
        (log,) = (node.folder / "state" / "restorations").glob("*.log")
        (entry,) = json.loads(deployed.as_restorers("audit-log", log, "--json"))["entries"]
        assert (entry["action"], sorted(entry["images"]), entry["why"]) == ("answer", [5, 131], "complaint 4711"), n

    patches = [deployed.open_store(n).read(np.array([5, 131])) for n in range(4)]
    runs = [run for records in patches for run in _runs(records)]
    control = tmp_path / "control"
    control.write_bytes(b"".join(records.tobytes() for records in patches))
    assert _seen(control, {"patch": runs}) == {"patch": len(runs)}
    # Everything that the SuperLink and the server wrote: databases, logs, bundles, the run, the answers.
    files = [path for path in deployed.server.folder.rglob("*") if path.is_file()]
    assert {"superlink.db", "superlink.log"} <= {path.name for path in files}
    assert [path for path in files if _seen(path, {"patch": runs})["patch"]] == []
