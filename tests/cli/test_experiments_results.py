"""`mmserver experiments show`, `analysis`, `outcomes`, `evaluations` and `replay`, on predictions that a server left behind."""

import csv
import io
import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.values import Observation
from mmserver.experiments.replaying import RULES_VERSION
from tests.cli.commands import run
from tests.cli.experiment_state import ARMS

Call = Callable[..., Any]
QUICKLY = (
    *("--split", "0.5", "--unit", "prediction", "--set", "min_hours=0", "--set", "planned_units=300"),
    *("--set", "max_error_rate_margin=1", "--set", "max_latency_increase_ms=1000"),
)
BUY = 1
N = 150


@pytest.fixture
def call(two_versions: Path, tmp_path: Path) -> Call:
    """`mmserver experiments …` on a data directory of this test's own, where `exp` runs."""
    shutil.copytree(two_versions, tmp_path / "data")

    def invoke(*arguments: str | Path, code: int = 0, stdin: str | None = None) -> Any:
        return run("experiments", *arguments, "--data-dir", tmp_path / "data", code=code, stdin=stdin)

    invoke("create", "exp", *ARMS, *QUICKLY)
    return invoke


@pytest.fixture
def predicted(tmp_path: Path) -> Callable[[int, int], None]:
    """Leave that many predictions BUY of the two arms in a journal, as a server that was killed does."""

    def leave(n_control: int, n_treatment: int) -> None:
        at_us = int(time.time() * 1e6)
        with closing(sqlite3.connect(tmp_path / "data/state.db")) as connection:
            (log_key,) = connection.execute("SELECT log_key FROM experiments").fetchone()
        log = ObservationLog(tmp_path / "data")
        for arm, n, version in (("control", n_control, "1.0.0"), ("treatment", n_treatment, "2.0.0")):
            for number in range(n):
                observation = Observation(
                    prediction_id=f"{arm}-{number}",
                    at_us=at_us,
                    experiment_key=log_key,
                    arm=arm,
                    unit=f"{arm}-{number}",
                    symbol="BTCUSDT",
                    model_name="hybrid",
                    version=version,
                    direction=BUY,
                    latency_us=300 + number,
                )
                log.append(observation, must_keep=True)
        log.journal.close()

    return leave


@pytest.fixture
def better(call: Call, predicted: Callable[[int, int], None]) -> Call:
    """`call`, where the treatment was nearly always right and the control half of the time."""
    predicted(N, N)
    lines = ["prediction_id,realized_return,label"]
    for number in range(N):
        lines.append(f"control-{number},0.01,{'BUY' if number % 2 else 'SELL'}")
        lines.append(f"treatment-{number},0.02,{'BUY' if number % 10 else 'SELL'}")
    call("outcomes", "exp", "-", stdin="\n".join(lines))
    return call


def numbers(done: Any) -> dict[str, dict[str, str]]:
    """The table that is printed last, by its first column."""
    table = done.stdout.rpartition("\n\n")[2]
    return {row["number"]: row for row in csv.DictReader(io.StringIO(table), delimiter="\t")}


def test_what_is_shown_begins_with_what_to_do_and_ends_with_both_arms(better: Call) -> None:
    shown = better("show", "exp")
    lines = shown.stdout.splitlines()
    assert lines[0] == "exp: PROMOTE (by sequential)"
    assert lines[1].startswith("  the accuracy differs by +40 points")
    assert "health: sound" in lines
    found = numbers(shown)
    assert (found["n_predictions"]["control"], found["n_predictions"]["treatment"]) == (str(N), str(N))
    accuracy = found["accuracy"]
    assert float(accuracy["control"]) == 0.5
    assert float(accuracy["difference"]) == pytest.approx(0.4)
    assert 0.0 < float(accuracy["lower"]) < 0.4 < float(accuracy["upper"])
    assert float(found["average_return"]["treatment"]) == pytest.approx(0.02)


def test_an_experiment_without_predictions_says_what_it_lacks(call: Call) -> None:
    shown = call("show", "exp")
    assert shown.stdout.startswith("exp: CONTINUE (by sequential)\n  ")
    assert "health: nothing to check yet" in shown.stdout
    assert numbers(shown)["accuracy"] == {
        "number": "accuracy",
        **dict.fromkeys(("control", "treatment", "difference", "relative", "lower", "upper"), "-"),
    }


def test_arms_that_did_not_get_their_units_are_invalid_whatever_the_numbers_are(
    call: Call, predicted: Callable[[int, int], None]
) -> None:
    predicted(N, N // 3)
    lines = call("show", "exp").stdout.splitlines()
    assert lines[0] == "exp: INVALID (by sequential)"
    assert "health: NOT SOUND, the numbers mean nothing" in lines
    assert any(line.startswith(f"  WRONG: {N // 3} units met the treatment") for line in lines)


def test_looking_leaves_no_decision_behind(better: Call) -> None:
    better("show", "exp")
    better("show", "exp")
    better("analysis", "exp")
    assert json.loads(better("evaluations", "exp", "--json").stdout)["items"] == []


def test_the_analysis_is_a_table_and_as_json_all_that_is_known(better: Call) -> None:
    table = numbers(better("analysis", "exp"))
    found = json.loads(better("analysis", "exp", "--json").stdout)
    assert float(table["accuracy"]["treatment"]) == found["treatment"]["accuracy"] == 0.9
    assert found["recommendation"]["action"] == "promote"
    assert [symbol["symbol"] for symbol in found["by_symbol"]] == ["BTCUSDT"]
    assert found["experiment"]["treatment_version"] == "2.0.0"
    assert json.loads(better("show", "exp", "--json").stdout).keys() == found.keys()


def test_what_is_recommended_is_applied_without_being_named(better: Call, tmp_path: Path) -> None:
    applied = json.loads(better("apply", "exp", "--json").stdout)
    assert (applied["experiment"]["status"], applied["action"]) == ("applied", "promote")
    shown = json.loads(run("registry", "show", "hybrid", "2.0.0", "--json", "--data-dir", tmp_path / "data").stdout)
    assert shown["stage"] == "Production"


# --- outcomes -----------------------------------------------------------------------------------------------------------


def counts(done: Any) -> dict[str, int]:
    """Those that are not zero."""
    header, row = (line.split("\t") for line in done.stdout.splitlines())
    return {name: int(count) for name, count in zip(header, row, strict=True) if count != "0"}


def test_the_same_file_twice_changes_nothing(call: Call, predicted: Callable[[int, int], None], tmp_path: Path) -> None:
    predicted(2, 1)
    file = tmp_path / "outcomes.csv"
    file.write_text("prediction_id,label,realized_return\ncontrol-0,BUY,0.01\ncontrol-1,2,\ntreatment-0,,-0.5\n")
    assert counts(call("outcomes", "exp", file)) == {"n_accepted": 3}
    assert counts(call("outcomes", "exp", file)) == {"n_duplicates": 3}


def test_parquet_is_read_by_its_content(call: Call, predicted: Callable[[int, int], None], tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    predicted(2, 0)
    file = tmp_path / "outcomes"
    table = pyarrow.table({"prediction_id": ["control-0", "control-1"], "realized_return": [0.01, -0.02]})
    parquet.write_table(table, file)
    assert counts(call("outcomes", "exp", file, "--dead-band", "0.015")) == {"n_accepted": 2}
    classes = json.loads(call("analysis", "exp", "--json").stdout)["control"]["by_class"]
    assert {name: one["n_actual"] for name, one in classes.items()} == {"HOLD": 1, "BUY": 0, "SELL": 1}


def test_each_outcome_that_is_refused_is_named_and_the_others_are_added(
    call: Call, predicted: Callable[[int, int], None]
) -> None:
    predicted(4, 0)
    rows = ("control-0,nan,", "control-1,0.1,", "control-2,,LONG", "nobody,0.1,", "control-3,inf,")
    done = call("outcomes", "exp", "-", code=2, stdin="\n".join(("prediction_id,realized_return,label", *rows)))
    assert counts(done) == {"n_accepted": 1, "n_unknown": 1, "n_invalid": 3}
    assert done.stderr.splitlines() == [
        "mmserver: -: row 1, control-0: the realized_return nan is not a finite number",
        "mmserver: -: row 3, control-2: the label 'LONG' is none of BUY, SELL, HOLD, 0, 1, 2",
        "mmserver: -: row 4, nobody: no such prediction is known here",
        "mmserver: -: row 5, control-3: the realized_return inf is not a finite number",
    ]


def test_more_refusals_than_are_named_are_counted(call: Call) -> None:
    lines = ["prediction_id,label", *(f"nobody-{number},BUY" for number in range(130))]
    done = call("outcomes", "exp", "-", code=2, stdin="\n".join(lines))
    assert counts(done) == {"n_unknown": 130}
    assert done.stderr.splitlines()[-1] == "mmserver: -: 30 more were refused"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param("o.csv", None, "No such file or directory", id="no file"),
        pytest.param("o.csv", b"", "the columns must be prediction_id and some of", id="empty"),
        pytest.param("o.csv", b"id,label\n1,BUY\n", "the columns must be prediction_id", id="other columns"),
        pytest.param("o.csv", b"prediction_id\np\n", "one of the columns must be", id="no outcome"),
        pytest.param("o.csv", b"prediction_id,label\np\n", "line 2 has 1 fields", id="short line"),
        pytest.param("o.csv", b"prediction_id,label\n\xff,BUY\n", "not UTF-8", id="not UTF-8"),
        pytest.param("o.parquet", b"prediction_id,label\n", "not a whole Parquet file", id="no Parquet"),
        pytest.param("o.csv", b"PAR1 and no more", "not a whole Parquet file", id="torn Parquet"),
    ],
)
def test_a_file_that_holds_no_outcomes_is_one_line(
    call: Call, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    refused = call("outcomes", "exp", file, code=2).stderr
    assert refused.startswith(f"mmserver: {file}: ")
    assert words in refused
    assert refused.count("\n") == 1


def test_outcomes_of_no_experiment_are_not_added(call: Call, tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("prediction_id,label\ncontrol-0,BUY\n")
    refused = call("outcomes", "nothing", tmp_path / "o.csv", code=4).stderr
    assert refused == "mmserver: experiment nothing is not there\n"


# --- decisions that were kept -------------------------------------------------------------------------------------------


def test_a_decision_that_was_kept_is_made_again(better: Call) -> None:
    better("stop", "exp")
    header, row = (line.split("\t") for line in better("evaluations", "exp").stdout.splitlines())
    assert header == ["id", "at", "reason", "verdict", "reasons", "code_version"]
    assert (row[0], row[2], row[3]) == ("1", "stopped", "promote")
    (again,) = json.loads(better("replay", "exp", "--json").stdout)["items"]
    expected = {"id": 1, "verdict": "promote", "again": "promote", "is_same": True, "has_same_rules": True}
    assert {name: again[name] for name in expected} == expected
    assert better("replay", "exp", "1").stdout == better("replay", "exp").stdout


def test_a_decision_that_its_inputs_do_not_lead_to_is_found(better: Call, tmp_path: Path) -> None:
    better("stop", "exp")
    with closing(sqlite3.connect(tmp_path / "data/state.db")) as database, database:
        changed = 'replace(decision, \'"verdict":"promote"\', \'"verdict":"rollback"\')'
        database.execute(f"UPDATE experiment_evaluations SET decision = {changed}")
    done = better("replay", "exp", code=1)
    assert done.stderr == "mmserver: the same rules decide otherwise: 1\n"
    assert done.stdout.splitlines()[1].split("\t")[2:] == ["rollback", "promote", "no", "yes"]


def test_a_decision_of_older_rules_is_no_contradiction(better: Call, tmp_path: Path) -> None:
    better("stop", "exp")
    with closing(sqlite3.connect(tmp_path / "data/state.db")) as database, database:
        database.execute("UPDATE experiment_evaluations SET inputs = json_set(inputs, '$.rules_version', 0)")
        database.execute(
            """UPDATE experiment_evaluations SET decision = replace(decision, '"promote"', '"rollback"')"""
        )
    assert better("replay", "exp").stdout.splitlines()[1].split("\t")[2:] == ["rollback", "promote", "no", "no"]


@pytest.mark.parametrize(("rules_version", "code"), [(0, 0), (RULES_VERSION, 1)], ids=["older rules", "the same rules"])
def test_inputs_that_cannot_be_read_are_told_and_a_fault_of_the_same_rules_only(
    better: Call, tmp_path: Path, rules_version: int, code: int
) -> None:
    better("stop", "exp")
    with closing(sqlite3.connect(tmp_path / "data/state.db")) as database, database:
        inputs = json.dumps({"rules_version": rules_version})
        database.execute("UPDATE experiment_evaluations SET inputs = ?", (inputs,))
    assert better("replay", "exp", code=code).stdout.splitlines()[1].split("\t")[2:4] == ["promote", "-"]


def test_an_evaluation_that_is_not_there_is_exit_code_4(call: Call) -> None:
    assert call("replay", "exp", "7", code=4).stderr == "mmserver: experiment exp has no evaluation 7\n"


def test_a_damaged_file_of_observations_is_one_line(
    call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data/observations.sqlite").write_bytes(b"no database" * 1000)
    refused = call("show", "exp", code=5).stderr
    assert refused.startswith("mmserver: the observation file ")
    assert refused.count("\n") == 1
    assert not caplog.records
