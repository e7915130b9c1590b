"""Settings: how smashed data and gradients travel, and how long to wait."""

from __future__ import annotations

from dataclasses import dataclass

from psl_flower.config.fields import Form, Settings, setting
from psl_flower.errors import ConfigError

TRANSPORTS = ("auto", "stream", "flower")
ON_MISSING_NODE = ("wait", "continue")
CODECS = ("float32", "bfloat16", "float16", "int8")

_NODE_ID = Form(r"([1-9][0-9]{0,19})?", "a node's id in digits, as flwr supernode list prints it")


@dataclass(frozen=True, slots=True, kw_only=True)
class WireSettings(Settings):
    """How smashed data and gradients travel between the parties, and how long to wait for nodes."""

    transport: str = setting("auto", "stream, flower; auto: stream, wherever nodes can run at once", choices=TRANSPORTS)
    wire_activations: str = setting("float32", "codec of smashed data", choices=CODECS)
    wire_gradients: str = setting("float32", "codec of their gradients", choices=CODECS)
    gradient_feedback: bool = setting(
        False, "add what rounding took from gradients to those of the next step; for patch-split training"
    )
    exchange_host: str = setting("127.0.0.1", "address the Lower listens on for streams; TLS unless all is loopback")
    exchange_port: int = setting(0, "its port; 0: any free one", least=0, most=65_535)
    exchange_advertise: str = setting("", "host that nodes connect to; empty: exchange-host")
    exchange_cert: str = setting(
        "", "certificate for streams, a PEM file on the server; empty: one made for the run", path=True
    )
    exchange_key: str = setting("", "its private key, a PEM file", path=True)
    exchange_client_ca: str = setting(
        "", "authority that signs the nodes' certificates (mutual TLS); empty: none needed", path=True
    )
    exchange_plaintext_on_untrusted_network: bool = setting(
        False, "streams WITHOUT encryption also outside loopback; nodes must agree"
    )
    node_timeout_s: float = setting(180.0, "seconds to wait for nodes to come up and connect", above=0)
    step_timeout_s: float = setting(600.0, "longest time of one exchange, in seconds", above=0)
    on_missing_node: str = setting(
        "wait", "wait: stop after node-timeout-s; continue: train without the missing nodes", choices=ON_MISSING_NODE
    )

    adaptation_node: str = setting(
        "", "id of the only node that may host the Adaptation Net; empty: the registered one with that role",
        form=_NODE_ID,
    )  # fmt: skip

    def _check(self) -> None:
        if bool(self.exchange_cert) != bool(self.exchange_key):
            raise ConfigError("exchange-cert and exchange-key belong together: give both files, or neither")
        if self.gradient_feedback and self.wire_gradients == "float32":
            raise ConfigError(
                "gradient-feedback: is set, but wire-gradients=float32 rounds nothing; choose another codec, or leave "
                "it out"
            )
        if self.exchange_plaintext_on_untrusted_network and (self.exchange_cert or self.exchange_client_ca):
            raise ConfigError(
                "exchange-plaintext-on-untrusted-network contradicts exchange-cert and exchange-client-ca: "
                "streams are in plaintext or they are not"
            )
