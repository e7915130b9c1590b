"""Vertical learning by Flower rounds, as Flower's example describes it, over the data and models of examples/tabular.

A round is one message to each party and back: down goes the gradient of the round before, which the party applies by
SGD; up comes what its model then gives for all rows. The server joins these, makes one step of SGD, and has the
gradients of the next round. Dropout is off, since a gradient would otherwise meet another mask than it was made with.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from tabular import PARTIES, TRAIN, VALID, Top, party
from torch import nn

client_app = ClientApp()
app = ServerApp()


@client_app.train()
def answer(message: Message, context: Context) -> Message:
    """Apply a gradient, if there is one, and return what the model gives for all rows."""
    number = int(context.node_config["partition-id"])
    name = list(PARTIES)[number]
    torch.manual_seed(number)
    side = party(name, context)
    net = side.net.eval()
    if "net" in context.state.array_records:
        net.load_state_dict(context.state.array_records["net"].to_torch_state_dict())
    if "gradient" in message.content.array_records:
        gradient = torch.from_numpy(message.content.array_records["gradient"].to_numpy_ndarrays()[0])
        net(side.data).backward(gradient)
        torch.optim.SGD(net.parameters(), lr=float(context.run_config["lr"])).step()
    context.state["net"] = ArrayRecord(net.state_dict())
    with torch.no_grad():
        outputs = net(side.data)
    return Message(RecordDict({name: ArrayRecord([outputs.numpy()])}), reply_to=message)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for the requested rounds; write a line of JSON to the log at the given interval."""
    config = context.run_config
    rounds, every, lr = int(config["rounds"]), int(config["every"]), float(config["lr"])
    labels = torch.tensor(load_breast_cancer().target, dtype=torch.float32)
    torch.manual_seed(len(PARTIES))
    top = Top().eval()
    optimizer = torch.optim.SGD(top.parameters(), lr=lr)
    while len(nodes := sorted(grid.get_node_ids())) < len(PARTIES):
        time.sleep(0.2)
    # The first messages start the parties' processes, so the clock begins after them.
    outputs, owners, up, down = _exchange(grid, dict.fromkeys(nodes))
    began = time.perf_counter()
    for number in range(1, rounds + 1):
        leaves = [part.requires_grad_() for part in outputs]
        logits = top(*leaves)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits[list(TRAIN)], labels[list(TRAIN)]).backward()
        optimizer.step()
        gradients = {node: leaves[owners[node]].grad for node in nodes}
        outputs, owners, more_up, more_down = _exchange(grid, gradients)
        up, down = up + more_up, down + more_down
        if number % every == 0 or number == rounds:
            with torch.no_grad():
                logits = top(*outputs)
            auc, train_auc = (roc_auc_score(labels[list(rows)], logits[list(rows)]) for rows in (VALID, TRAIN))
            line = {
                "round": number, "auc": auc, "train_auc": train_auc, "seconds": time.perf_counter() - began,
                "bytes_up": up, "bytes_down": down,
            }  # fmt: skip
            with Path(str(config["log"])).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _exchange(
    grid: Grid, gradients: dict[int, torch.Tensor | None]
) -> tuple[list[torch.Tensor], dict[int, int], int, int]:
    """Return all parties' outputs in order, which node is which party, and bytes of tensors up and down."""
    messages, down = [], 0
    for node, gradient in gradients.items():
        content = RecordDict()
        if gradient is not None:
            content["gradient"] = ArrayRecord([gradient.numpy()])
            down += gradient.nbytes
        messages.append(Message(content, dst_node_id=node, message_type="train"))
    owners, found = {}, {}
    for reply in grid.send_and_receive(messages):
        if reply.has_error():
            raise RuntimeError(f"node {reply.metadata.src_node_id}: {reply.error.reason}")
        ((name, record),) = reply.content.array_records.items()
        owners[reply.metadata.src_node_id] = list(PARTIES).index(name)
        found[name] = torch.from_numpy(record.to_numpy_ndarrays()[0].copy())
    outputs = [found[name] for name in PARTIES]
    return outputs, owners, sum(part.nbytes for part in outputs), down
