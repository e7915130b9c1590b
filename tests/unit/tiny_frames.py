"""Parts of small messages, and frames as the bytes that cross the wire."""

import torch

from psl_flower.wire.frames import encode_frame
from psl_flower.wire.messages import Hello, Message
from psl_flower.wire.plan import Plan, StepId, pack_samples

ID = StepId(1, 2, 3)
PLAN = Plan(ID, "train", 0.5, pack_samples([7, 8]), 2**63 - 1)
HELLO = Hello("run", 2**64 - 1, 3, (0, 5), 100, "digest", bytes(range(32)))
ONE = torch.tensor([[1.0, -2.0]])


def joined(message: Message, tensors: list[torch.Tensor], codec: str = "float32") -> bytes:
    return b"".join(encode_frame(message, tensors, codec))
