"""`mmserver experiments` as scripts use it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]
SMALL = ("experiments", "simulate", "--runs", "12", "--days", "2", "--look-every-hours", "12")


def test_both_policies_are_shown_side_by_side(mmserver: Run) -> None:
    header, *rows = mmserver(*SMALL).stdout.splitlines()
    assert header.split("\t")[:3] == ["policy", "ever_promote", "ever_rollback"]
    assert [row.split("\t")[0] for row in rows] == ["sequential", "classic"]


def test_json_has_what_was_simulated_beside_what_came_of_it(mmserver: Run) -> None:
    given = (
        "--error-rate",
        "0",
        "--traffic-split",
        "0.5",
        "--accuracy-gain",
        "0.4",
        "--ramp",
        "24:0.6",
        "--policy",
        "sequential",
        "--set",
        "alpha=0.1",
    )
    found = json.loads(mmserver(*SMALL, *given, "--json").stdout)
    assert found["scenario"]["treatment_weight"] == 0.5
    assert found["scenario"]["ramps"] == [[24, 0.6]]
    assert [(policy["policy"], policy["alpha"]) for policy in found["policies"]] == [("sequential", 0.1)]
    (row,) = found["items"]
    assert (row["n_runs"], row["ever_rollback"], row["first_promote"]) == (12, 0.0, 1.0)


def test_the_same_seed_gives_the_same_answer(mmserver: Run) -> None:
    first, again = (mmserver(*SMALL, "--seed", "7", "--json").stdout for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(("--accuracy", "7"), "accuracy is 7.0", id="a share above one"),
        pytest.param(("--traffic-split", "1"), "--traffic-split", id="no treatment"),
        pytest.param(("--days", "nan"), "days is nan", id="not a number"),
        pytest.param(("--ramp", "soon"), "'soon' is no ramp", id="no ramp"),
        pytest.param(("--set", "alfa=0.1"), "no number is called 'alfa'", id="no such number"),
        pytest.param(("--set", "alpha=much"), "alpha is 'much'", id="no number"),
        pytest.param(("--set", "alpha=2"), "alpha is 2", id="a level above one"),
        pytest.param(("--policy", "classic", "--set", "planned_units=9"), "classic: no number", id="another policy's"),
        pytest.param(("--runs", "0"), "--runs", id="no runs"),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_its_name(mmserver: Run, given: tuple[str, ...], words: str) -> None:
    assert words in mmserver(*SMALL, *given, code=2).stderr
