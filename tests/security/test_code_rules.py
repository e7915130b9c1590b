"""What the app's code never does: rules of this project, beside those of ruff and bandit in `make check`.

Each rule is a question to a node of the syntax tree. semgrep would read such rules from a file, but its release for our
other packages is years old, and it wants to replace some of theirs.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

FOLDERS = ("psl_flower", "strategies", "clients", "server")
Rule = Callable[[ast.AST], bool]


def name_of(node: ast.AST) -> str:
    """Return a call's or an attribute's dotted name, as it is written; empty if it has none."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def option(node: ast.Call, name: str) -> object:
    """Return the constant that a call gives an option; None if there is none."""
    values = [each.value for each in node.keywords if each.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def loads_code(node: ast.AST) -> bool:
    """Tensors, arrays and documents are read without running what is in them."""
    if not isinstance(node, ast.Call):
        return False
    name = name_of(node)
    return (
        (name == "torch.load" and option(node, "weights_only") is not True)
        or (name == "np.load" and option(node, "allow_pickle") is not False)
        or name in {"pickle.load", "pickle.loads", "marshal.loads", "yaml.load", "eval", "exec", "dill.loads"}
    )


def skips_verification(node: ast.AST) -> bool:
    """Certificates and host names are checked, always, and by TLS 1.3."""
    if isinstance(node, ast.Attribute) and node.attr in {"CERT_NONE", "CERT_OPTIONAL", "_create_unverified_context"}:
        return True
    if isinstance(node, ast.Assign):
        off = isinstance(node.value, ast.Constant) and node.value.value is False
        return off and any(isinstance(each, ast.Attribute) and each.attr == "check_hostname" for each in node.targets)
    return isinstance(node, ast.Call) and option(node, "verify") is False


def compares_secrets(node: ast.AST) -> bool:
    """Tokens, signatures and keys are compared in constant time (hmac.compare_digest), not by == and !=."""
    secret = ("token", "tokens", "passphrase", "password", "signature", "mac", "secret")
    return isinstance(node, ast.Compare) and any(
        isinstance(operator, ast.Eq | ast.NotEq)
        and any(name_of(side).rpartition(".")[2] in secret for side in (left, right))
        for operator, left, right in zip(node.ops, [node.left, *node.comparators], node.comparators, strict=False)
    )


def runs_a_shell(node: ast.AST) -> bool:
    """Programs are called with lists of words."""
    if not isinstance(node, ast.Call):
        return False
    return option(node, "shell") is True or name_of(node) in {"os.system", "os.popen", "subprocess.getoutput"}


def guessable(node: ast.AST) -> bool:
    """No secret, and no name of a temporary file, can be guessed."""
    return name_of(node) in {"tempfile.mktemp", "os.tmpnam", "uuid.uuid1"} and isinstance(node, ast.Call)


def trusts_the_clock(node: ast.AST) -> bool:
    """No wait, timeout or order goes by a clock that may be set: `time.monotonic` does, apart from listed places."""
    return isinstance(node, ast.Call) and name_of(node) in {"time.time", "time.time_ns", "datetime.datetime.now"}


def opens_by_itself(node: ast.AST) -> bool:
    """Files that must be whole after a crash are written by `psl_flower.system.files`."""
    return isinstance(node, ast.Call) and name_of(node).rpartition(".")[2] in {"write_text", "write_bytes"}


# What each rule permits after all, with its reason.
RULES: dict[Rule, dict[str, str]] = {
    loads_code: {},
    skips_verification: {},
    compares_secrets: {},
    runs_a_shell: {},
    guessable: {},
    trusts_the_clock: {
        "psl_flower/doctor/network.py": "compares two clocks",
        "psl_flower/system/machine.py": "notices that it was set",
        "psl_flower/sealed/authorisation.py": "expires by the calendar",
        "psl_flower/wire/tls.py": "certificates hold by the calendar",
        "psl_flower/wire/certificates.py": "certificates hold by the calendar",
        "psl_flower/runs/folder.py": "a time for people",
        "psl_flower/runs/trackers.py": "a time for people",
        "psl_flower/lightening/folder.py": "a time for people",
    },
    opens_by_itself: {"psl_flower/launch/superlink.py": "in a folder that ends with its process"},
}
BROKEN: dict[Rule, list[str]] = {
    loads_code: ["torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)", "pickle.loads(data)", "eval(x)"],
    skips_verification: [
        "context.verify_mode = ssl.CERT_NONE", "context.check_hostname = False", "httpx.get(url, verify=False)",
        "ssl._create_unverified_context()",
    ],
    compares_secrets: ["ticket.token == hello.token", "signature != wanted", "a.b.passphrase == given"],
    runs_a_shell: ["subprocess.run(words, shell=True)", "os.system(x)"],
    guessable: ["tempfile.mktemp()"],
    trusts_the_clock: ["deadline = time.time() + 5", "datetime.datetime.now(datetime.UTC)"],
    opens_by_itself: ["path.write_text(x)", "(a / b).write_bytes(data)"],
}  # fmt: skip


def broken_at(rule: Rule, code: str) -> Iterator[int]:
    for node in ast.walk(ast.parse(code)):
        if rule(node):
            yield getattr(node, "lineno", 0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_module_breaks_it(rule: Rule) -> None:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    found: dict[str, list[int]] = {}
    for path in files:
        if lines := list(broken_at(rule, path.read_text("utf-8"))):
            found[path.relative_to(ROOT).as_posix()] = lines
    assert {path: lines for path, lines in found.items() if path not in RULES[rule]} == {}
    assert RULES[rule].keys() <= found.keys(), "a permission without a use"


@pytest.mark.parametrize(("rule", "code"), [(rule, code) for rule in BROKEN for code in BROKEN[rule]])
def test_a_break_is_found(rule: Rule, code: str) -> None:
    assert BROKEN.keys() == RULES.keys()
    assert list(broken_at(rule, f"def f():\n    {code}")) == [2]


def test_paths_of_permissions() -> None:
    assert all(Path(ROOT / path).is_file() for permitted in RULES.values() for path in permitted)
