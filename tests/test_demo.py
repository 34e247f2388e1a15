"""The demo's models are real, honest and the same every time, and its directory is nobody else's."""

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mmserver.app import RUNTIME_KEY, create_app
from mmserver.cli.main import main
from mmserver.demo.directory import OWN_LIST, DemoResult, venue_files, write_demo
from mmserver.demo.factors import factor_columns, forward_return
from mmserver.demo.market_data import MarketSeries, load_market_series
from mmserver.demo.training import HORIZON_DAYS, split_rows
from mmserver.errors import DirectoryInvalid
from mmserver.settings import Settings

pytest.importorskip("arch", reason="arch is not installed (the extra demo)")


def write(directory: Path, *, retrain: bool = False) -> DemoResult:
    return write_demo(directory, retrain=retrain, report=lambda step, done, total: None)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return write(tmp_path_factory.mktemp("demo") / "models")


@pytest.fixture(scope="module")
def sp500() -> MarketSeries:
    return load_market_series()[0]


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_every_group_has_the_four_files_of_the_contract(demo: DemoResult) -> None:
    names = {p.name for p in demo.directory.iterdir()}
    for key in ("SP500_ret_5d", "NASDAQ_ret_5d", "WTI_ret_5d", "VIX_ret_5d"):
        assert {f"{key}_{end}" for end in ("factors.txt", "ic.csv", "info.pkl", "model.pkl")} <= names


def test_the_ic_table_has_the_columns_of_the_contract_and_a_row_for_every_factor(demo: DemoResult) -> None:
    factors = (demo.directory / "SP500_ret_5d_factors.txt").read_text().splitlines()
    header, *rows = (demo.directory / "SP500_ret_5d_ic.csv").read_text().splitlines()
    assert header == "factor,ic,rank_ic,kendall_tau,p_value,n"
    assert [row.split(",")[0] for row in rows] == factors
    assert all(-1 <= float(cell) <= 1 for row in rows for cell in row.split(",")[1:5])


def test_the_pickled_model_takes_the_listed_factors_and_predicts(demo: DemoResult) -> None:
    model = pickle.loads((demo.directory / "WTI_ret_5d_model.pkl").read_bytes())
    factors = (demo.directory / "WTI_ret_5d_factors.txt").read_text().splitlines()
    assert model.get_booster().feature_names == factors
    predicted = model.predict(np.random.default_rng(0).normal(size=(50, len(factors))))
    assert len(set(predicted.tolist())) > 1


def test_the_info_file_is_a_plain_dict_with_out_of_sample_metrics(demo: DemoResult) -> None:
    info = pickle.loads((demo.directory / "SP500_ret_5d_info.pkl").read_bytes())
    assert type(info) is dict
    assert info["train_end"] < info["test_start"]
    assert info["train_samples"] > info["test_samples"] > 0
    assert set(info["metrics"]) == {"ic", "rank_ic", "hit_rate", "rmse", "residual_std"}
    assert all(type(value) is float for value in info["metrics"].values())


def test_the_metrics_are_what_the_written_model_does_on_the_test_days(demo: DemoResult, sp500: MarketSeries) -> None:
    info = pickle.loads((demo.directory / "SP500_ret_5d_info.pkl").read_bytes())
    model = pickle.loads((demo.directory / "SP500_ret_5d_model.pkl").read_bytes())
    inputs = np.column_stack(list(factor_columns(sp500).values()))
    tested = (sp500.days >= np.datetime64(info["test_start"])) & (sp500.days <= np.datetime64(info["test_end"]))
    predicted, realized = model.predict(inputs[tested]), forward_return(sp500, HORIZON_DAYS)[tested]
    assert tested.sum() == info["test_samples"]
    assert np.corrcoef(predicted, realized)[0, 1] == pytest.approx(info["metrics"]["ic"], abs=1e-6)


def test_no_factor_knows_anything_of_the_days_after_it(sp500: MarketSeries) -> None:
    cut = 1000
    names = ("close", "open", "high", "low", "volume")
    doubled = {name: np.concatenate([getattr(sp500, name)[:cut], getattr(sp500, name)[cut:] * 2]) for name in names}
    before, after = factor_columns(sp500), factor_columns(dataclasses.replace(sp500, **doubled))
    for name, column in before.items():
        np.testing.assert_array_equal(column[:cut], after[name][:cut], err_msg=name)
    assert any(not np.array_equal(column[cut:], after[name][cut:]) for name, column in before.items())


def test_no_return_of_a_training_day_reaches_into_the_test_days() -> None:
    train, test = split_rows(np.arange(60, 1060))
    assert train[-1] + HORIZON_DAYS < test[0]
    assert test[-1] == 1059


def test_two_runs_write_the_same_bytes(demo: DemoResult, tmp_path: Path) -> None:
    assert files(write(tmp_path).directory) == files(demo.directory)


def test_a_second_run_leaves_everything_as_it_is(tmp_path: Path) -> None:
    first = write(tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert first.written
    assert not write(tmp_path).written
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == stamps


def test_a_retraining_writes_a_later_window_over_all_groups_and_starts_over_where_the_data_ends(tmp_path: Path) -> None:
    first, before = write(tmp_path), files(tmp_path)
    second, after = write(tmp_path, retrain=True), files(tmp_path)
    assert second.last_year == first.last_year + 1
    assert {name for name in before if before[name] == after[name] and not name.endswith("_factors.txt")} == {
        "venues/README.txt"
    }
    third, again = write(tmp_path, retrain=True), write(tmp_path, retrain=True)
    assert [result.last_year - first.last_year for result in (second, third, again)] == [1, 2, 0]
    assert [result.starts_over for result in (first, second, third, again)] == [False, False, False, True]
    assert files(tmp_path) == before


def test_a_run_that_was_killed_is_completed_by_the_next_one(demo: DemoResult, tmp_path: Path) -> None:
    write(tmp_path)
    own = (tmp_path / OWN_LIST).read_bytes()
    (tmp_path / OWN_LIST).write_bytes(own.replace(b'"complete":true', b'"complete":false'))
    (tmp_path / "VIX_ret_5d_model.pkl").unlink()
    assert write(tmp_path, retrain=True).last_year == demo.last_year
    assert files(tmp_path) == files(demo.directory)


@pytest.mark.parametrize("name", ["SP500_ret_5d_model.pkl", "venues/binance-futures_quantiles.pkl"])
def test_a_file_that_the_demo_did_not_write_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(DirectoryInvalid, match=name):
        write(tmp_path)
    assert files(tmp_path) == {name: b"mine"}


def test_a_path_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_bytes(b"")
    with pytest.raises(DirectoryInvalid, match="taken"):
        write(path)


def test_every_request_is_answered_by_the_model_for_days_that_it_was_not_trained_on(
    demo: DemoResult, sp500: MarketSeries, tmp_path: Path
) -> None:
    model = pickle.loads((demo.directory / "SP500_ret_5d_model.pkl").read_bytes())
    requests = demo.directory / "requests"
    rows = np.loadtxt(requests / "SP500.csv", delimiter=",", skiprows=1, dtype=np.float32)
    expected = model.predict(rows).tolist()
    days = np.column_stack(list(factor_columns(sp500).values()))[sp500.days <= np.datetime64("2016-12-31")][
        -len(rows) :
    ]
    np.testing.assert_allclose(rows, days, rtol=1e-5)

    assert run("models", "add", "demo", demo.directory, "--data-dir", tmp_path).exit_code == 0
    app = create_app(Settings(data_dir=tmp_path, watch_enabled=False, sandbox_workers=1))
    ask = app.test_client().post
    try:
        for name in ("SP500.json", "SP500_vector.json"):
            answer = ask("/predict", data=(requests / name).read_bytes(), content_type="application/json")
            assert answer.json["prediction"]["expected_return"] == expected[-1], name
        batch = ask("/predict/batch", data=(requests / "batch.json").read_bytes(), content_type="application/json")
        assert [item["symbol"] for item in batch.json["predictions"]] == ["SP500", "NASDAQ", "WTI", "VIX"]
        assert batch.json["predictions"][0]["prediction"]["expected_return"] == expected[-1]
        assert all("prediction" in item for item in batch.json["predictions"])
        tensors = ask("/v2/models/demo.SP500/infer", data=(requests / "SP500_v2.json").read_bytes())
        assert tensors.json["outputs"][0]["data"] == expected
        table = ask(
            "/models/demo.SP500/invocations", data=(requests / "SP500.csv").read_bytes(), content_type="text/csv"
        )
        assert table.json == {"predictions": expected}
    finally:
        app.extensions[RUNTIME_KEY].close()
    told = run("predict", "demo", "SP500", "--features", requests / "SP500.csv", "--json", "--data-dir", tmp_path)
    assert [json.loads(line)["prediction"]["expected_return"] for line in told.output.splitlines()] == expected


def test_no_temporary_file_stays_behind(demo: DemoResult) -> None:
    assert not [name for name in files(demo.directory) if ".tmp" in name]


def test_the_venue_files_hold_increasing_thresholds_and_call_themselves_examples(demo: DemoResult) -> None:
    for path in venue_files(demo.directory).values():
        rows = pickle.loads(path.read_bytes())
        assert [row["symbol"] for row in rows] == ["SP500", "NASDAQ"]
        assert all(0 < row["medium_notional_threshold"] < row["large_notional_threshold"] for row in rows)
    assert (demo.directory / "venues/README.txt").read_text().startswith("EXAMPLES")


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"MMSERVER_WATCH_DEBOUNCE_S": "0.05"}).invoke(main, [str(argument) for argument in arguments])


def listed(data_dir: Path, *command: str) -> list[dict[str, Any]]:
    result = run(*command, "--json", "--data-dir", data_dir)
    assert result.exit_code == 0, result.output
    items: list[dict[str, Any]] = json.loads(result.output)["items"]
    return items


def test_the_command_registers_its_model_and_venues_and_can_be_repeated(tmp_path: Path) -> None:
    data_dir, directory = tmp_path / "data", tmp_path / "demo"
    command = ("demo", directory, "--register", "--data-dir", data_dir)
    first, second = run(*command), run(*command)
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    (model,) = listed(data_dir, "models", "list")
    assert (model["model_name"], model["status"], model["group_count"], model["error"]) == ("demo", "ok", 4, None)
    assert model["version"] in first.output
    assert model["version"] in second.output
    assert {v["venue"]: v["symbols"] for v in listed(data_dir, "venues", "show")} == dict.fromkeys(
        venue_files(directory), 2
    )


def test_a_retraining_becomes_a_new_version_of_every_group(tmp_path: Path) -> None:
    data_dir, directory = tmp_path / "data", tmp_path / "demo"
    assert run("demo", directory, "--register", "--data-dir", data_dir).exit_code == 0
    retrained = run("demo", directory, "--register", "--retrain", "--data-dir", data_dir)
    assert retrained.exit_code == 0, retrained.output
    (model,) = listed(data_dir, "models", "list")
    newest, oldest = listed(data_dir, "models", "versions", "demo")
    assert model["version"] == newest["version"] != oldest["version"]
    assert len(newest["updated"]) == 4


def test_registering_the_demo_leaves_other_models_and_venues_alone(demo: DemoResult, tmp_path: Path) -> None:
    data_dir, directory = tmp_path / "data", tmp_path / "demo"
    own = tmp_path / "mine.pkl"
    own.write_bytes(pickle.dumps([{"symbol": "A", "medium_notional_threshold": 1.0, "large_notional_threshold": 2.0}]))
    assert run("models", "add", "demo", demo.directory, "--data-dir", data_dir).exit_code == 0
    assert run("venues", "set", "okex-futures", own, "--data-dir", data_dir).exit_code == 0
    taken = run("demo", directory, "--register", "--data-dir", data_dir)
    assert (taken.exit_code, "demo" in taken.output) == (3, True)
    again = run("demo", demo.directory, "--register", "--data-dir", data_dir)
    assert again.exit_code == 0, again.output
    paths = {v["venue"]: v["pkl_path"] for v in listed(data_dir, "venues", "show")}
    assert paths["okex-futures"] == str(own)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['arch'] = None\nfrom mmserver.cli.main import main\nmain(prog_name='mmserver')"
    command = [sys.executable, "-c", blocked, "demo", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "pip install 'mmserver[demo]'" in done.stderr
    assert not (tmp_path / "demo").exists()
