"""Versions of Python and of the packages that all parties must agree on."""

from __future__ import annotations

import sys
from importlib import metadata

from psl_flower.system.findings import Finding, failed, ok

# As in pyproject.toml, which a test compares: package -> (from, below).
PYTHON = ((3, 11), (3, 14))
PACKAGES: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "flwr": ((1, 41), (1, 43)),
    "torch": ((2, 11), None),
}
_INSTALL = "install psl-flower again, in the same way on all hosts"


def check_versions() -> list[Finding]:
    """Return one finding for Python and one for each package."""
    findings = [_judged("python", ".".join(map(str, sys.version_info[:3])), *PYTHON)]
    for package, (start, stop) in PACKAGES.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            findings.append(failed(package, "not installed", _INSTALL))
            continue
        findings.append(_judged(package, version, start, stop))
    try:
        findings.append(ok("psl-flower", metadata.version("psl-flower")))
    except metadata.PackageNotFoundError:
        # `flwr run` ships the app's code, so that a node needs only what the app imports.
        findings.append(ok("psl-flower", "not installed; the code comes with each run"))
    return findings


def _judged(name: str, version: str, start: tuple[int, ...], stop: tuple[int, ...] | None) -> Finding:
    release = tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdecimal())
    if start <= release and (stop is None or release < stop):
        return ok(name, version)
    wanted = f"{_text(start)} or newer" + (f", below {_text(stop)}" if stop else "")
    return failed(name, f"{version}; expected {wanted}", _INSTALL)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
