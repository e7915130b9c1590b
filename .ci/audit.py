"""Asks whether the installed packages have known vulnerabilities; `make audit`.

pip-audit passes a package that its database does not answer for as one without vulnerabilities. This counts those, and
says so if the database cannot be reached, which is no failure of what was to be audited.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# How pip-audit ends where there is no network, or a registry without advisories.
_UNREACHABLE = ("ConnectionError", "Max retries exceeded", "Failed to resolve", "timed out", "ServiceError")
_OURS = "psl-flower"


def verdict(returncode: int, output: str, errors: str) -> tuple[int, str]:
    """Return the exit status, and what to print, for the outcome of `pip-audit --format json`."""
    try:
        found: list[Mapping[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        words = errors.strip().splitlines()[-1:] or ["it said nothing"]
        if any(sign in errors for sign in _UNREACHABLE):
            return 0, f"NOT AUDITED: the database of advisories cannot be reached from here: {words[0]}"
        return returncode or 2, f"pip-audit failed: {words[0]}"
    audited = [package for package in found if "vulns" in package]
    skipped = [package for package in found if "vulns" not in package and package["name"] != _OURS]
    lines = [
        f"{package['name']} {package['version']}: {advisory['id']}, mended in {', '.join(advisory['fix_versions'])}"
        for package in audited
        for advisory in package["vulns"]
    ]
    if not audited:
        why = skipped[0]["skip_reason"] if skipped else "no package was found"
        return 0, f"NOT AUDITED: the database of advisories cannot be reached from here: {why}"
    if skipped:
        names = ", ".join(package["name"] for package in skipped)
        lines.append(f"not audited, since the database does not know them: {names}")
    vulnerable = [package for package in audited if package["vulns"]]
    lines.append(f"packages audited: {len(audited)}, with known vulnerabilities: {len(vulnerable)}")
    return int(bool(vulnerable)), "\n".join(lines)


def main() -> int:
    """Audit this environment."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    status, words = verdict(done.returncode, done.stdout, done.stderr)
    print(words)
    return status


if __name__ == "__main__":
    sys.exit(main())
