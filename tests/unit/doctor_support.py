"""How the tests of psl doctor read its findings."""


def levels(findings):
    return [finding.level for finding in findings]


def only_failed(findings):
    """Return the one failure's text, with its advice."""
    wrong = [finding for finding in findings if finding.level == "failed"]
    assert len(wrong) == 1, findings
    assert wrong[0].do
    return wrong[0].found
