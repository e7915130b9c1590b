"""The queue of the script that delays and loses frames; tests/e2e/test_slow_links.py has it between real hosts."""

from __future__ import annotations

import random

import pytest

from simulations.separate_hosts.slow_link import SlowQueue


def queue(delay_s: float = 0.5, loss: float = 0.0, seed: int = 0) -> SlowQueue:
    return SlowQueue(delay_s, loss, random.Random(seed))


def test_frames_leave_in_order_each_after_the_delay():
    slow = queue()
    slow.put(b"first", 10.0)
    slow.put(b"second", 10.25)
    slow.put(b"third", 10.25)
    assert slow.next_at() == 10.5
    assert list(slow.due(10.49)) == []
    assert list(slow.due(10.5)) == [b"first"]
    assert slow.next_at() == 10.75
    assert list(slow.due(11.0)) == [b"second", b"third"]
    assert list(slow.due(99.0)) == []
    assert slow.next_at() == float("inf")


@pytest.mark.parametrize(("loss", "fewest", "most"), [(0.0, 5000, 5000), (0.01, 4910, 4990), (1.0, 0, 0)])
def test_a_share_is_lost_and_the_rest_keeps_its_order(loss, fewest, most):
    slow = queue(0.0, loss)
    for n in range(5000):
        slow.put(b"%d" % n, 0.0)
    left = [int(frame) for frame in slow.due(0.0)]
    assert fewest <= len(left) <= most
    assert left == sorted(left)


def test_the_seed_decides_which():
    def left(seed: int) -> list[bytes]:
        slow = queue(0.0, 0.5, seed)
        for n in range(100):
            slow.put(b"%d" % n, 0.0)
        return list(slow.due(0.0))

    assert left(1) == left(1) != left(2)
