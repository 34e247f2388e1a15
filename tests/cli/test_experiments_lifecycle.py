"""`mmserver experiments`: setting up, starting, ramping, stopping and applying, and what a script can tell from the exit code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from mmserver.cli import experiments as commands
from mmserver.cli import experiments_values
from mmserver.experiments.experiments import STATUSES, Applied
from tests.cli.commands import run
from tests.cli.experiment_state import ARMS, fields

Call = Callable[..., Any]
LIST = ["experiment_id", "status", "control", "treatment", "traffic_split", "mode", "auto", "started_at", "applied"]


@pytest.fixture
def call(two_versions: Path, tmp_path: Path) -> Call:
    """`mmserver experiments …` on a data directory of this test's own, with two versions of `hybrid`."""
    shutil.copytree(two_versions, tmp_path / "data")

    def invoke(*arguments: str | Path, code: int = 0) -> Any:
        return run("experiments", *arguments, "--data-dir", tmp_path / "data", code=code)

    return invoke


def test_an_experiment_runs_as_soon_as_it_is_created(call: Call) -> None:
    made = json.loads(call("create", "exp", *ARMS, "--json").stdout)
    assert (made["status"], made["traffic_split"], made["mode"], made["unit"]) == (
        "running",
        0.9,
        "split",
        "symbol|time-block",
    )
    assert (made["control_version"], made["treatment_version"]) == ("1.0.0", "2.0.0")
    assert made["policy"]["policy"] == "sequential"
    assert made["started_at"] is not None


def test_every_option_is_what_the_experiment_is_set_up_with(call: Call) -> None:
    said = (
        *("--split", "0.75", "--mode", "shadow", "--unit", "symbol", "--block-s", "60", "--horizon-s", "5", "--auto"),
        *("--namespace", "desk:0:0.5", "--policy", "classic", "--set", "alpha=0.01", "--set", "min_samples=7"),
        *("--deadline", "2199-01-01T01:00:00+01:00", "--draft"),
    )
    made = json.loads(call("create", "exp", *ARMS, *said, "--json").stdout)
    expected = {
        "status": "draft",
        "traffic_split": 0.75,
        "mode": "shadow",
        "unit": "symbol",
        "block_s": 60.0,
        "horizon_s": 5.0,
        "auto": True,
        "namespace": {"name": "desk", "start": 0.0, "end": 0.5},
        "deadline_at": "2199-01-01T00:00:00Z",
        "started_at": None,
        "created_by": "command line",
    }
    assert {name: made[name] for name in expected} == expected
    policy = made["policy"]
    assert (policy["policy"], policy["alpha"], policy["min_samples"]) == ("classic", 0.01, 7)


@pytest.mark.parametrize(("mode", "block_s"), [("split", 3600.0), ("shadow", 86400.0)])
def test_a_block_that_is_not_said_is_the_modes_own(call: Call, mode: str, block_s: float) -> None:
    assert json.loads(call("create", "exp", *ARMS, "--mode", mode, "--json").stdout)["block_s"] == block_s


def test_a_policy_may_be_given_whole(call: Call, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"policy": "classic", "min_hours": 48}')
    given = ("--policy-json", f"@{tmp_path / 'policy.json'}")
    policy = json.loads(call("create", "exp", *ARMS, *given, "--json").stdout)["policy"]
    assert (policy["policy"], policy["min_hours"]) == ("classic", 48)


def test_a_draft_starts_when_it_is_started_and_only_once(call: Call) -> None:
    call("create", "exp", *ARMS, "--draft")
    assert fields(call("start", "exp"))["status"] == "running"
    assert "exp is running" in call("start", "exp", code=3).stderr


def test_a_ramp_raises_the_share_in_a_new_phase_and_lowers_it_only_anew(call: Call) -> None:
    call("create", "exp", *ARMS)
    found = fields(call("ramp", "exp", "--treatment-share", "0.2"))
    assert (found["traffic_split"], found["phases"]) == ("0.8", "1: 0.9, 2: 0.8")
    assert "redraw" in call("ramp", "exp", "--treatment-share", "0.1", code=2).stderr
    found = fields(call("ramp", "exp", "--treatment-share", "0.1", "--redraw"))
    assert (found["traffic_split"], found["phases"]) == ("0.9", "1: 0.9, 2: 0.8, 3: 0.9")


def test_the_list_has_the_newest_first_and_can_be_of_one_status(call: Call) -> None:
    call("create", "first", *ARMS)
    call("create", "second", *ARMS, "--draft")
    header, *rows = (line.split("\t") for line in call("list").stdout.splitlines())
    assert header == LIST
    assert [row[:5] for row in rows] == [
        ["second", "draft", "hybrid:1.0.0", "hybrid:2.0.0", "0.9"],
        ["first", "running", "hybrid:1.0.0", "hybrid:2.0.0", "0.9"],
    ]
    (item,) = json.loads(call("list", "--status", "running", "--json").stdout)["items"]
    assert item["experiment_id"] == "first"


def test_stopping_gives_the_final_report_and_again_the_same(call: Call) -> None:
    call("create", "exp", *ARMS)
    stopped = json.loads(call("stop", "exp", "--json").stdout)
    assert stopped["experiment"]["status"] == "stopped"
    assert stopped["recommendation"]["verdict"] == "continue"
    banner, *lines = call("stop", "exp").stdout.splitlines()
    assert banner == "exp: CONTINUE (by sequential)"
    assert any(line.startswith("status: stopped; ") for line in lines)
    (row,) = json.loads(call("evaluations", "exp", "--json").stdout)["items"]
    assert row["reason"] == "stopped"


def test_what_is_undecided_is_applied_only_where_the_action_is_named(call: Call, tmp_path: Path) -> None:
    call("create", "exp", *ARMS)
    refused = call("apply", "exp", code=3).stderr
    assert refused.startswith("mmserver: exp is not decided: continue (")
    assert refused.count("\n") == 1

    applied = json.loads(call("apply", "exp", "--action", "promote", "--json").stdout)
    assert (applied["experiment"]["status"], applied["action"]) == ("applied", "promote")
    assert applied["promoted"] == {"model_name": "hybrid", "version": "2.0.0"}
    shown = json.loads(run("registry", "show", "hybrid", "2.0.0", "--json", "--data-dir", tmp_path / "data").stdout)
    assert shown["stage"] == "Production"
    assert "applied once" in call("apply", "exp", "--action", "promote", code=3).stderr


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        pytest.param(("--control", "hybrid:7.0.0"), 4, "hybrid has no version '7.0.0'", id="unknown version"),
        pytest.param(("--treatment", "nothing:1.0.0"), 4, "no model is named 'nothing'", id="unknown model"),
        pytest.param(("--control", "hybrid"), 2, "'hybrid' is not MODEL:VERSION", id="no version"),
        pytest.param(("--treatment", "hybrid:1.0.0"), 2, "the control is hybrid 1.0.0 too", id="twice the same"),
        pytest.param(("--split", "1.5"), 2, "1.5 is not in the range", id="split above one"),
        pytest.param(("--split", "-0.1"), 2, "-0.1 is not in the range", id="split below zero"),
        pytest.param(("--split", "nan"), 2, "traffic_split: must be from 0 to 1, not nan", id="split of nothing"),
        pytest.param(("--mode", "mirror"), 2, "mode: must be split or shadow", id="unknown mode"),
        pytest.param(("--unit", "desk"), 2, "unit: must be one of", id="unknown unit"),
        pytest.param(("--horizon-s", "7200"), 2, "horizon_s: must be from 0 to below 3600", id="longer than a block"),
        pytest.param(("--set", "alfa=0.1"), 2, "`alfa`", id="unknown number"),
        pytest.param(("--set", "alpha=7"), 2, "alpha is 7", id="number out of its limits"),
        pytest.param(("--set", "alpha=much"), 2, "alpha is 'much'; it must be a number", id="no number"),
        pytest.param(("--set", "alpha=0.1", "--set", "alpha=0.2"), 2, "policy.alpha: given twice", id="number twice"),
        pytest.param(("--policy", "classic", "--policy-json", "{}"), 2, "leave out --policy", id="two policies"),
        pytest.param(("--namespace", "desk:0.5:0.2"), 2, "namespace: must have", id="slice turned round"),
        pytest.param(("--namespace", "desk"), 2, "'desk' is not NAME:FROM:TO", id="no slice"),
        pytest.param(("--deadline", "tomorrow"), 2, "'tomorrow' is not a time with an offset", id="no time"),
        pytest.param(("--deadline", "2199-01-01T00:00:00"), 2, "is not a time with an offset", id="no offset"),
        pytest.param(("--deadline", "2020-01-01T00:00:00Z"), 2, "deadline_at: ", id="deadline over"),
    ],
)
def test_what_cannot_be_set_up_is_one_line_and_leaves_nothing(
    call: Call, given: tuple[str, ...], code: int, words: str
) -> None:
    refused = call("create", "exp", *ARMS, *given, code=code).stderr
    assert words in refused.splitlines()[-1]
    assert json.loads(call("list", "--json").stdout)["items"] == []


def test_a_name_is_used_once_and_must_be_one(call: Call) -> None:
    call("create", "exp", *ARMS, "--draft")
    taken = call("create", "exp", *ARMS, "--draft", code=3).stderr
    assert taken == "mmserver: there is an experiment exp already; choose another name\n"
    assert "experiment_id: " in call("create", "a/b", *ARMS, code=2).stderr


def test_two_run_on_one_model_only_in_disjoint_slices(call: Call) -> None:
    call("create", "first", *ARMS, "--namespace", "desk:0:0.5")
    for refused in ((), ("--namespace", "desk:0.4:1")):
        assert "with first, which is running" in call("create", "second", *ARMS, *refused, code=3).stderr
    call("create", "second", *ARMS, "--namespace", "desk:0.5:1")


@pytest.mark.parametrize(
    "command",
    [
        ("start",),
        ("stop",),
        ("apply",),
        ("show",),
        ("analysis",),
        ("evaluations",),
        ("replay",),
        ("ramp", "--treatment-share", "0.5"),
    ],
    ids=lambda command: command[0],
)
def test_an_unknown_experiment_is_exit_code_4(call: Call, command: tuple[str, ...]) -> None:
    name, *options = command
    assert call(name, "nothing", *options, code=4).stderr == "mmserver: experiment nothing is not there\n"


def test_the_choices_are_those_that_experiments_have() -> None:
    assert experiments_values.STATUSES == STATUSES
    assert set(commands.ACTIONS) == set(get_args(Applied))
