"""What `make audit` says of the outcomes of pip-audit; its outputs here are those of pip-audit 2.10."""

import importlib.util
import json

import pytest

from tests.paths import ROOT

SKIPPED = {
    "name": "click",
    "skip_reason": "Dependency not found on PyPI and could not be audited: click (8.5.1)",
}
GOOD = {"name": "msgspec", "version": "0.22.0", "vulns": []}
BAD = {
    "name": "flask",
    "version": "0.5",
    "vulns": [{"id": "PYSEC-2019-179", "fix_versions": ["1.0"], "aliases": [], "description": "..."}],
}
OFFLINE = """
  File "requests/adapters.py", line 729, in send
requests.exceptions.ConnectionError: HTTPSConnectionPool(host='api.osv.dev', port=443): Failed to resolve 'api.osv.dev'
"""


@pytest.fixture(scope="module")
def verdict():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.verdict


def output(*packages):
    return json.dumps({"dependencies": packages, "fixes": []})


def test_vulnerabilities_fail(verdict):
    status, words = verdict(1, output(GOOD, BAD, SKIPPED), "")
    assert status == 1
    assert "flask 0.5: PYSEC-2019-179, mended in 1.0" in words
    assert "not audited, since the database does not know them: click" in words
    assert words.endswith("packages audited: 2, with known vulnerabilities: 1")


def test_none_is_said_with_their_number(verdict):
    own = {"name": "psl-flower", "skip_reason": "distribution marked as editable"}
    assert verdict(0, output(GOOD, own), "") == (0, "packages audited: 1, with known vulnerabilities: 0")


@pytest.mark.parametrize(("out", "err"), [(output(SKIPPED, SKIPPED), "No known vulnerabilities found"), ("", OFFLINE)])
def test_a_database_out_of_reach_is_no_clean_bill_and_no_failure(verdict, out, err):
    """pip-audit itself ends with 0 and "No known vulnerabilities found" in the first case."""
    status, words = verdict(0, out, err)
    assert status == 0 and words.startswith("NOT AUDITED: the database of advisories cannot be reached from here: ")
    assert "could not be audited" in words or "Failed to resolve" in words


def test_another_failure_fails(verdict):
    assert verdict(2, "", "ERROR: no such option") == (2, "pip-audit failed: ERROR: no such option")
    assert verdict(0, "", "")[0] == 2
