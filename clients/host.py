"""Builds what a node hosts: its Uppers, from the Lower's task and the node's own stores; or the Adaptation Net."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Context

from psl_flower.engine.adaptation import AdaptationNode
from psl_flower.engine.build import (
    Blueprint,
    CompressionTraining,
    OnnxInference,
)
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.party import Party, PartyEngine
from psl_flower.engine.pretrained import FILE, check_name, load_upper, read_weights
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import ConfigError, FrameMismatch, PositionError, RunError, StoreError
from psl_flower.flower.answering import LOWER
from psl_flower.flower.node_config import (
    is_simulated,
    own_amount,
    own_count,
    own_state,
    own_text,
    permission,
    simulation_slots,
    state_root,
)
from psl_flower.lightening.on_node import LIGHT_FOLDER, onnx_engine, training_engine
from psl_flower.lightening.settings import check_noiseless
from psl_flower.patches.description import StoreSetDescription
from psl_flower.patches.store import PatchStore
from psl_flower.sealed.keyring import KeyRing
from psl_flower.sealed.seen import SeenBook
from psl_flower.stores.opening import Opened, open_of_set, open_sealed, open_sealed_of_set, open_store
from psl_flower.system.devices import choose_device
from psl_flower.system.files import write_file
from psl_flower.system.folders import remove_leftovers
from psl_flower.system.machine import keep_freed_memory, usable_cores
from psl_flower.text import expanded
from psl_flower.wire.messages import ADAPTATION
from psl_flower.wire.node_messages import NodeTask

_LIGHTEN = "lighten"
_AVERAGE = "average"
_COLLECT = "collect"
_MOST_BITS = "most-bits"
_LEAST_NOISE = "least-noise"
_WEIGHTS = "allow-upper-weights"

# Makes the engine of one Upper from (the strategy's settings, its index, its store, where it saves checkpoints).
Build = Callable[[bytes, int, PatchStore, Checkpoints], UpperEngine]


def build_engine(settings: bytes, upper: int, store: PatchStore, checkpoints: Checkpoints) -> UpperEngine:
    """Return the engine of one Upper of a run of this app, or of its lightening.

    Raises
    ------
    StoreError
        If the store is of another dataset, grid or assignment than the run.
    ConfigError
        If the device asked for is not there, or light Uppers are asked for in a run with noise.
    RunError
        If weights or files of a lightening are not in place here.
    """
    blueprint = Blueprint.decode(settings)
    check_store(blueprint.description, upper, store)
    override = blueprint.override
    if override is not None:
        check_noiseless(blueprint.config)
    if isinstance(override, OnnxInference):
        return onnx_engine(blueprint, override, store, checkpoints)
    device = choose_device(blueprint.config.machine.device)
    if isinstance(override, CompressionTraining):
        return training_engine(blueprint, override, store, checkpoints, device)
    model, weights = blueprint.upper(upper), blueprint.config.network.upper_weights_hash
    if weights:
        path = checkpoints.folder / FILE
        load_upper(read_weights(path, weights), upper, model, str(path))
    return UpperEngine(model, store, blueprint.upper_options(device), checkpoints)


def check_store(description: StoreSetDescription, upper: int, store: PatchStore) -> None:
    """Raise StoreError unless the store is that of an Upper of the run."""
    if problem := description.mismatch(store.meta, upper):
        raise StoreError(f"the store {problem}")


@dataclass(frozen=True, slots=True)
class Host:
    """A node's view of a task; `build` makes the engine of one Upper."""

    context: Context
    task: NodeTask
    build: Build = build_engine

    @property
    def simulated(self) -> bool:
        """Whether this node is simulated, on the Lower's own machine."""
        return is_simulated(self.context)

    def open_store(self, upper: int) -> PatchStore:
        """Open the store of an Upper: on a real node the one that the node's own configuration names, no other.

        Raises
        ------
        StoreError
            If it is missing or damaged.
        PositionError
            If this node does not hold that Upper's patches.
        """
        if self.simulated:
            keys = KeyRing(Path(self.task.keys)) if self.task.keys else None
            return open_of_set(Path(self.task.stores), upper, keys, owner=self.task.owner)
        for store in own_stores(self.context):
            if store.meta.upper == upper:
                return store
            store.close()
        raise PositionError(f"this node holds no store of Upper {upper}")

    def sealed_stores(self) -> Iterator[tuple[Opened, Path]]:
        """Open this node's sealed stores, each with the place of its log of restorations.

        Raises
        ------
        StoreError
            If one is missing, damaged, or not sealed.
        """
        if not self.simulated:
            for opened in own_sealed_stores(self.context):
                name = f"{opened.signed.manifest.dataset.hex()[:16]}-{opened.store.meta.upper:03d}"
                yield opened, own_state(self.context) / "restorations" / f"{name}.log"
            return
        folder = Path(self.task.stores)
        keys = KeyRing(Path(self.task.keys)) if self.task.keys else None
        for m in self.task.parties:
            opened = open_sealed_of_set(folder, m, keys, owner=self.task.owner)
            yield opened, folder / "restorations" / f"node-{m:03d}.log"

    def checkpoints(self, m: int) -> Checkpoints:
        """Return where a party's states are kept: a real node chooses that itself (node_config "state").

        What a killed process left half written there is removed.

        Raises
        ------
        ConfigError
            If they are of a lightening, and this node's operator has not allowed any.
        """
        folder = state_root(self.context, self.task) / ("adaptation" if m == ADAPTATION else f"upper-{m:03d}")
        if self.task.part:
            check_lightening_allowed(self.context)
        remove_leftovers(folder)
        folder = folder / LIGHT_FOLDER / self.task.part if self.task.part else folder
        return Checkpoints(folder, self.task.kept.get(m, 0))

    def prepare_process(self) -> None:
        """Set memory use and threads of this process: as the task says, or a simulated node's share of the cores."""
        keep_freed_memory()
        if self.task.threads > 0:
            torch.set_num_threads(self.task.threads)
        elif self.simulated:
            torch.set_num_threads(max(1, usable_cores() // simulation_slots()))

    def party(self, m: int) -> UpperEngine | AdaptationNode:
        """Return a party that this node hosts; its own operator must have given it the role.

        Raises PslError as `open_store` and `build`; PositionError if this node is not the Adaptation Net's server.
        """
        if m != ADAPTATION:
            checkpoints, store = self.checkpoints(m), self.open_store(m)
            try:
                self._check_bits(len(store.meta.positions))
                self._check_noise()
                if self.build is build_engine:  # another may have other settings
                    self._check_weights(Blueprint.decode(self.task.settings))
                self.check_collecting(later=True)
                return self.build(self.task.settings, m, store, checkpoints)
            except BaseException:
                store.close()
                raise
        if not self.simulated and not serves_adaptation(self.context):
            raise PositionError("this node is not the Adaptation Net's server: node-config has no role='adaptation'")
        blueprint = Blueprint.decode(self.task.settings)
        return blueprint.adaptation_node(choose_device(blueprint.config.machine.device), self.checkpoints(m))

    @contextmanager
    def upper_after(self, m: int, saved: Mapping[int, int]) -> Iterator[UpperEngine]:
        """Open an Upper as it was after `saved[m]` steps, as the server names them; errors are those of `party`.

        Raises
        ------
        FrameMismatch
            If the server names no step of it, or asks for the Adaptation Net.
        RunError
            If there is no such checkpoint, or it is damaged.
        """
        if m not in saved:
            raise FrameMismatch(f"{LOWER}: expected the step of Upper {m}, received none")
        with closing(self.party(m)) as engine:
            if not isinstance(engine, UpperEngine):
                raise FrameMismatch(f"{LOWER}: expected to be asked for an Upper, not for the Adaptation Net")
            engine.go_to(saved[m])
            yield engine

    def keep_weights(self, m: int, content: bytes) -> None:
        """Keep the file of weights that Upper m begins with.

        Raises
        ------
        ConfigError
            If a real node's own configuration does not allow that very file, or it is of another network.
        RunError
            If it is another file than the run's settings name, or the disk refuses.
        """
        blueprint = Blueprint.decode(self.task.settings)
        check_name(content, blueprint.config.network.upper_weights_hash, LOWER)
        self._check_weights(blueprint)
        load_upper(content, m, blueprint.upper(m), LOWER)
        write_file(self.checkpoints(m).folder / FILE, content, RunError, mode=0o600, parents=True)

    def _check_weights(self, blueprint: Blueprint) -> None:
        """Raise ConfigError if the Uppers begin with weights that a real node's own configuration does not allow."""
        asked = blueprint.config.network.upper_weights_hash
        if not asked or self.simulated:
            return
        allowed = [name.strip() for name in own_text(self.context, _WEIGHTS).split(",")]
        if asked not in allowed:
            raise ConfigError(
                f"this run's Uppers begin with the weights {asked}, which this node does not take; its operator can "
                f"allow that very file with --node-config \"{_WEIGHTS}='{asked}'\" (docs/privacy.md)"
            )

    def _check_bits(self, num_positions: int) -> None:
        """Raise ConfigError if a real node's own configuration has `most-bits`, and a look at an image takes more.

        Only codes are bounded; the models of a lightening send what their maker likes.
        """
        most = None if self.simulated else own_count(self.context, _MOST_BITS)
        if most is None:
            return
        blueprint = Blueprint.decode(self.task.settings)
        bits = blueprint.config.network.cut_protection.bits(num_positions)
        if bits is None or blueprint.override is not None or bits > most:
            sends = "numbers" if bits is None or blueprint.override is not None else f"{bits} bits"
            raise ConfigError(
                f"this node sends at most {most} bits of an image in a look ({_MOST_BITS}), this run asks for {sends}; "
                "set protection=code, code-size and code-levels accordingly (docs/privacy.md)"
            )

    def _check_noise(self) -> None:
        """Raise ConfigError if a real node's own configuration has `least-noise`, and a run adds less to codes."""
        least = None if self.simulated else own_amount(self.context, _LEAST_NOISE)
        if least is None:
            return
        blueprint = Blueprint.decode(self.task.settings)
        noise = 0.0 if blueprint.override is not None else blueprint.config.network.code_noise
        if noise < least:
            raise ConfigError(
                f"this node sends codes with noise of {least:g} or more ({_LEAST_NOISE}), this run asks for {noise:g}; "
                "set protection and code-noise accordingly (docs/privacy.md)"
            )

    def check_collecting(self, *, later: bool = False) -> None:
        """Raise ConfigError if a real node must not send its weights: now, or `later`, when the run ends.

        Its own configuration may forbid it, or the run's settings may leave the model on the nodes. Weights of a
        lightening need the permission `lighten` instead (`check_lightening_allowed`).
        """
        if self.simulated or self.build is not build_engine:  # another may have other settings
            return
        withheld = _COLLECT in self.context.node_config and not permission(self.context, _COLLECT)
        if later and not withheld:  # asked with every message of a step: decode nothing
            return
        collects = Blueprint.decode(self.task.settings).config.output.collect_model
        if withheld and (collects or not later):
            raise ConfigError(
                f"this node never sends its weights ({_COLLECT}=false in its --node-config); set "
                "collect-model=false, and predict in place (docs/deploy.md)"
            )
        if not (collects or later or self.task.part):
            raise ConfigError("this run leaves its model on the nodes (collect-model=false), so no weights are sent")

    def check_allowed(self, party: Party) -> None:
        """Raise ConfigError if an Upper is to be averaged and a real node's own configuration has no `average`.

        The mean comes from the server, who could send any other weights: see `check_lightening_allowed`.
        """
        averaged = isinstance(party, PartyEngine) and party.weight_count > 0
        if averaged and not self.simulated and not permission(self.context, _AVERAGE):
            raise ConfigError(
                "this run averages the Uppers (average-every): nodes send the server their weights and take weights "
                f'from it; this node\'s operator can allow that with --node-config "{_AVERAGE}=true" '
                "(see docs/threat-model.md)"
            )


def serves_adaptation(context: Context) -> bool:
    """Return True if a real node's own configuration makes it the Adaptation Net's server.

    Raises
    ------
    ConfigError
        If it names another role, or a store too: that node would see patches and labels.
    """
    role = own_text(context, "role")
    if role not in ("", "adaptation"):
        raise ConfigError(f"node-config role: expected 'adaptation', got {role!r}; leave it out on an Upper node")
    if role and own_text(context, "store"):
        raise ConfigError("node-config: a node with role='adaptation' sees labels, so it must have no store; drop one")
    return bool(role)


def own_stores(context: Context) -> Iterator[PatchStore]:
    """Open the stores named in a real node's own configuration, one at a time.

    `store` is a folder or a URL, or several with commas between; `key` the node's private key, or a folder of keys,
    for sealed stores; `passphrase-file` has the key's passphrase; `owner` is the public key of the owner to trust, and
    where it is not given the first owner seen is trusted from then on.

    Raises
    ------
    StoreError
        If one is missing, damaged, sealed to another node, of another owner or older than one seen before.
    ConfigError
        If the configuration lacks something.
    """
    for place in _own_places(context):
        yield open_store(place, _own_keys(context), owner=own_text(context, "owner"), seen=_own_memory(context))


def own_sealed_stores(context: Context) -> Iterator[Opened]:
    """Open a real node's stores, one at a time; all must be sealed. See `own_stores`."""
    for place in _own_places(context):
        yield open_sealed(place, _own_keys(context), owner=own_text(context, "owner"), seen=_own_memory(context))


def check_lightening_allowed(context: Context) -> None:
    """Raise ConfigError unless a real node's own configuration allows `lighten`.

    The weights and files of a lightening come from the server, and the smashed data that they make go back to it:
    the server could choose them so that smashed data are the patches.
    """
    if not is_simulated(context) and not permission(context, _LIGHTEN):
        raise ConfigError(
            f"this node takes no models from the server; its operator can allow that with --node-config "
            f'"{_LIGHTEN}=true" (see docs/lightening.md)'
        )


def _own_places(context: Context) -> list[str | Path]:
    places = [place.strip() for place in own_text(context, "store").split(",") if place.strip()]
    return [place if "://" in place else expanded(place, "node-config store") for place in places]


def _own_keys(context: Context) -> KeyRing | None:
    key, passphrase_file = own_text(context, "key"), own_text(context, "passphrase-file")
    if not key:
        return None
    passphrase = expanded(passphrase_file, "node-config passphrase-file") if passphrase_file else None
    return KeyRing(expanded(key, "node-config key"), passphrase)


def _own_memory(context: Context) -> SeenBook:
    return SeenBook(own_state(context) / "seen")
