"""A lightening as asked for by KEY=VALUE: read, written, refused; and in a run's settings."""

import pytest

from psl_flower.errors import ConfigError
from psl_flower.lightening.settings import (
    EDGE,
    Against,
    Goals,
    Growth,
    LighteningSettings,
    Method,
    parse_drop,
    parse_request,
    request_of,
)
from psl_flower.system.machine import usable_cores

CONDITIONS = "max-drop=0.01 min-speed=2000"


def test_a_request_is_read():
    goals, settings = parse_request(
        f"{CONDITIONS} degrees=3 growth=both distil-first=true target='node 3' second-ratio=3"
    )
    assert goals == Goals(max_drop=0.01, min_speed=2000.0)
    assert settings == LighteningSettings(
        degrees=3, growth=Growth.BOTH, distil_first=True, target="node 3", second_ratio=3.0, threads=1
    )
    assert type(settings.second_ratio) is float


def test_numbers_are_written_as_people_write_them():
    goals, settings = parse_request("max-drop=.01 min-speed=2e3 max-pruned=5e-1 batch=0x10")
    assert (goals.max_drop, goals.min_speed, settings.max_pruned, settings.batch) == (0.01, 2000.0, 0.5, 16)


def test_threads_are_this_machines_cores_or_one_of_a_node():
    assert parse_request(CONDITIONS).settings.threads == usable_cores()
    assert parse_request(f"{CONDITIONS} threads=0").settings.threads == usable_cores()
    assert parse_request(f"{CONDITIONS} target=attic").settings.threads == 1
    assert parse_request(f"{CONDITIONS} target=attic threads=5").settings.threads == 5


def test_what_is_written_is_read_again():
    values = {
        "min-accuracy": 0.5, "max-latency-ms": 2.5, "target": "the 'attic'", "against": Against.FIRST, "degrees": 4,
        "distil-first": True,
    }  # fmt: skip
    assert parse_request(request_of(values).text()) == request_of(values)
    assert request_of({**values, "target": EDGE}) != request_of(values)


@pytest.mark.parametrize("drop", ["0.01", "1pt", "1%", "0.000001", "100%", "0", "12.345pt"])
def test_a_drop_travels_as_it_was_given(drop):
    asked = parse_request(f"max-drop={drop} min-speed=1 max-mb=12 method=loop")
    assert asked.goals.max_drop == pytest.approx(parse_drop(drop))
    assert (asked.goals.method, asked.goals.max_mb) == (Method.LOOP, 12.0)
    assert parse_request(asked.text()) == asked


REFUSED = [
    ("", "give one condition of accuracy"),
    ("max-drop=0.1", "give one condition of speed"),
    (f"{CONDITIONS} min-accuracy=0.5", "give one condition of accuracy"),
    (f"{CONDITIONS} degree=3", "unknown setting degree; did you mean degrees?"),
    (f"{CONDITIONS} zebra=3", "unknown setting zebra; known: min-accuracy"),
    (f"{CONDITIONS} degrees=many", "degrees: expected a whole number, got 'many'"),
    (f"{CONDITIONS} degrees=2.5", "degrees: expected a whole number, got '2.5'"),
    (f"{CONDITIONS} second-ratio=big", "second-ratio: expected a number, got 'big'"),
    (f"{CONDITIONS} distil-first=1", "distil-first: expected true or false, got '1'"),
    (f"{CONDITIONS} teacher=nobody", "teacher: expected one of labels, first, second, got 'nobody'"),
    (f"{CONDITIONS} threads=false", "threads: expected a whole number, got 'false'"),
    (f"{CONDITIONS} degrees=3 degrees=4", "degrees is given twice"),
    (f"{CONDITIONS} degrees", "expected KEY=VALUE, got 'degrees'"),
    (f"{CONDITIONS} target='attic", "expected KEY=VALUE ..., got"),
    (f"{CONDITIONS} target=", "target: expected edge or the name of a node, got an empty text"),
    ("max-drop=2 min-speed=1", "max-drop: 2 may be meant in points or as a share; write 2pt"),
    ("max-drop=200% min-speed=1", "max-drop: expected a number at least 0 and at most 1, got 2.0"),
    (f"{CONDITIONS} method=guess", "method: expected one of auto, loop, got 'guess'"),
    (f"{CONDITIONS} max-mb=0", "max-mb: expected a number above 0, got 0"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_refused(text, words):
    assert REFUSED
    with pytest.raises(ConfigError) as caught:
        parse_request(text)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["0.01", ".01", "1%", "1pt", "1 pt", "1 point", "1.0 points", " 1 % "])
def test_a_drop_as_people_write_it(text):
    assert parse_drop(text) == pytest.approx(0.01)


@pytest.mark.parametrize("text", ["1", "2.5", "-1pt", "1e-2", "one", "", "1 pound"])
def test_a_drop_that_may_be_meant_otherwise(text):
    with pytest.raises(ConfigError, match="max-drop: "):
        parse_drop(text)
