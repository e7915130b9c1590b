"""What an account says, as plain dictionaries."""

from psl_flower.data.account import Account


def taken(account: Account) -> dict[str, dict[str, int]]:
    """Return the images of each split by class."""
    return {split.name: split.classes for split in account.splits}


def passed_by(account: Account) -> dict[tuple[str, str], int]:
    """Return how many things were left out by reason and ending."""
    return {(entry.reason, entry.ending): entry.count for entry in account.left_out}
