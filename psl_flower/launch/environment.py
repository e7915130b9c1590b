"""The environment of Flower's processes on this machine: quiet, offline, and closed to everybody else."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from psl_flower.launch.only_this_user import LOOPBACK
from psl_flower.system.exposure import closed_ray

# Quiet and offline; and no `uv sync` of our dependencies, gigabytes of them, into a fresh environment for every run.
_OURS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # At Ray's niceness of 15 the Lower starves the Uppers on few cores, though it waits for them.
    "RAY_worker_niceness": "0",
    # Flower's nodes run in a separate environment, so workers that Ray starts ahead of them are never used.
    "RAY_prestart_worker_first_driver": "0",
}
# Somebody else's cluster, temporary folder or token, and ports that Flower opens for its own tests.
_FOREIGN = ("RAY_", "FLWR_INTERNAL_")
# May be relative; the first may be several.
_PATHS = {
    "PYTHONPATH", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "TORCH_HOME", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
}  # fmt: skip
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def environment() -> dict[str, str]:
    """Return the environment in which Flower's processes run here: ours, kept quiet, offline, and off any proxy.

    Programs installed beside this Python come first: Flower starts its own by name, and the environment need not be
    activated. Ray's settings are our own, with a new token each time.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    if not importlib.util.find_spec("socksio"):
        # Without it Flower cannot even be made to bypass such a proxy.
        kept = {key: value for key, value in kept.items() if not (key.lower() in _PROXIES and "socks" in value)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    direct = kept.get("no_proxy") or kept.get("NO_PROXY") or ""
    if direct != "*":
        direct = ",".join(filter(None, [direct, *LOOPBACK]))
    found = {**kept, **_OURS, **closed_ray(), "PATH": path, "no_proxy": direct, "NO_PROXY": direct}
    # They are started in another folder, to which relative paths and an empty part would refer.
    for name in _PATHS & kept.keys():
        found[name] = os.pathsep.join(os.path.abspath(part) for part in kept[name].split(os.pathsep) if part)
    return found
