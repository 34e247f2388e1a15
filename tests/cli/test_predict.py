"""`mmserver predict`: the model's own predictions for every form of features, and refusals that name row and column."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.commands import run
from tests.windows import window_outputs, write_plugin, write_window

Run = Callable[..., Any]
FACTORS = ("mom_1h", "vol_1d")
ROWS = [[0.5, -1.0], [-1.5, 0.25], [2.0, 2.0]]
COLUMNS = ["row", "direction", "confidence", "probability", "expected_return", "model_version"]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, models: list[bytes]) -> Path:
    """A data directory with model `alpha`: BTCUSDT and ETHUSDT, and BTCUSDT of another training before."""
    place = tmp_path_factory.mktemp("predict")
    artifacts = place / "artifacts"
    artifacts.mkdir()
    for symbol, model in (("BTCUSDT", 1), ("ETHUSDT", 1)):
        (artifacts / f"{symbol}_ret_1h_factors.txt").write_text("\n".join(FACTORS))
        (artifacts / f"{symbol}_ret_1h_model.pkl").write_bytes(models[model])
    run("models", "add", "alpha", artifacts, "--data-dir", place / "data")
    (artifacts / "BTCUSDT_ret_1h_model.pkl").write_bytes(models[0])
    run("models", "refresh", "alpha", "--data-dir", place / "data")
    return place / "data"


@pytest.fixture
def predict(state: Path, tmp_path: Path) -> Run:
    """`mmserver predict alpha SYMBOL --features FILE …` for a file with that text."""

    def call(text: str, *options: str, symbol: str = "BTCUSDT", code: int = 0) -> Any:
        path = tmp_path / "features"
        path.write_text(text)
        return run("predict", "alpha", symbol, "--features", path, "--data-dir", state, *options, code=code)

    return call


def expected(models: list[bytes], model: int, rows: Any = ROWS) -> list[float]:
    """What the pickled model itself predicts."""
    found: list[float] = pickle.loads(models[model]).predict(np.array(rows, np.float32)).tolist()
    return found


def returns(done: Any) -> list[float]:
    """The expected returns of `--json`, one line a prediction."""
    return [json.loads(line)["prediction"]["expected_return"] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("vol_1d,day,mom_1h\n-1,mon,0.5\n0.25,tue,-1.5\n2.0,wed,2.0\n", id="CSV in another order"),
        pytest.param("mom_1h,vol_1d\n0.5,-1\n-1.5,0.25\n2,2\n", id="CSV"),
        pytest.param(json.dumps(ROWS), id="rows"),
        pytest.param(json.dumps([{"vol_1d": vol, "mom_1h": mom} for mom, vol in ROWS]), id="objects"),
    ],
)
def test_every_form_of_features_is_predicted_as_the_model_does(text: str, predict: Run, models: list[bytes]) -> None:
    assert returns(predict(text, "--json", symbol="eth-usdt")) == expected(models, 1)
    assert returns(predict(text, "--json")) == expected(models, 0) != expected(models, 1)


@pytest.mark.parametrize("text", ["[0.5, -1.0]", '{"vol_1d": -1, "mom_1h": 0.5}', " \n[[0.5, -1]]"])
def test_one_vector_is_one_prediction(text: str, predict: Run, models: list[bytes]) -> None:
    assert returns(predict(text, "--json")) == expected(models, 0)[:1]


def test_missing_values_are_missing_to_the_model(predict: Run, models: list[bytes]) -> None:
    rows = [[np.nan, 1.0], [0.5, np.nan]]
    for text in ("mom_1h,vol_1d\n,1\n0.5,NaN\n", "[[null, 1], [0.5, null]]"):
        assert returns(predict(text, "--json")) == expected(models, 0, rows)


def test_standard_input_is_read_by_a_process_of_its_own(state: Path, models: list[bytes]) -> None:
    command = [Path(sys.executable).with_name("mmserver"), "predict", "alpha", "BTCUSDT", "--features", "-", "--json"]
    done = subprocess.run(
        [*command, "--data-dir", state], input="mom_1h,vol_1d\n0.5,-1\n", capture_output=True, text=True, check=True
    )
    assert returns(done) == expected(models, 0)[:1]
    assert done.stderr == ""


def test_a_pipe_gets_a_header_and_a_line_for_each_row(predict: Run) -> None:
    header, *lines = predict(json.dumps(ROWS)).stdout.splitlines()
    assert header.split("\t") == COLUMNS
    assert [line.split("\t")[0] for line in lines] == ["0", "1", "2"]
    for line in lines:
        row = dict(zip(COLUMNS, line.split("\t"), strict=True))
        assert row["probability"] == "-"
        assert row["direction"] == ("BUY" if float(row["expected_return"]) > 0 else "SELL")


def test_columns_that_are_not_used_are_named(predict: Run) -> None:
    done = predict("vol_1d,day,mom_1h,note\n-1,mon,0.5,x\n")
    assert "not used: day, note" in done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_an_earlier_version_predicts_what_it_did(predict: Run, state: Path, models: list[bytes]) -> None:
    versions = json.loads(run("models", "versions", "alpha", "--json", "--data-dir", state).stdout)["items"]
    assert returns(predict(json.dumps(ROWS), "--json", "--version", versions[0]["version"])) == expected(models, 0)
    assert returns(predict(json.dumps(ROWS), "--json", "--version", versions[1]["version"])) == expected(models, 1)


def test_more_rows_than_one_request_may_have_are_predicted_all_the_same(
    predict: Run, monkeypatch: pytest.MonkeyPatch, models: list[bytes]
) -> None:
    monkeypatch.setenv("MMSERVER_MAX_ROWS", "2")
    assert returns(predict(json.dumps(ROWS), "--json")) == expected(models, 0)


def test_explaining_shows_what_each_factor_contributes_and_the_sum_is_the_prediction(
    predict: Run, models: list[bytes]
) -> None:
    _, table = predict(json.dumps(ROWS), "--explain").stdout.split("\n\n")
    header, *lines = (line.split("\t") for line in table.splitlines())
    assert header == ["row", "output", "factor", "value", "contribution"]
    sums = [sum(float(line[4]) for line in lines if line[0] == str(row)) for row in range(len(ROWS))]
    np.testing.assert_allclose(sums, expected(models, 0), rtol=1e-5)
    assert {line[2] for line in lines} == {*FACTORS, "(base)"}
    for line in predict(json.dumps(ROWS), "--explain", "--json").stdout.splitlines():
        assert set(json.loads(line)["contributions"]["factors"]) == set(FACTORS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mom_1h\n1\n", "missing columns: 'vol_1d'"),
        ("mom_1h,vol_1d\n1,2\n1,x\n", "row 1, vol_1d: 'x' is not a number"),
        ("mom_1h,vol_1d\n1\n", "line 2: has 1 values"),
        ("[1, 2, 3]", "3 values without names; the model takes 2"),
        ('{"mom_1h": 1, "mom_1h": 2, "vol_1d": 1}', "twice"),
        ("[1, NaN]", "NaN"),
        ("[[1, 2], 3]", "array of rows"),
        ('{"mom_1h": "1", "vol_1d": 1}', "row 0, mom_1h: '1' is not a number"),
        ("", "empty"),
        ("mom_1h,vol_1d\n", "no rows"),
        ("[]", "no rows"),
        ("mom_1h;vol_1d\n1;2\n", "missing columns: 'mom_1h', 'vol_1d'; given, but unknown: 'mom_1h;vol_1d'"),
    ],
)
def test_features_that_do_not_fit_are_2_by_name(text: str, said: str, predict: Run) -> None:
    done = predict(text, code=2)
    assert said in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("alpha", "XRPUSDT", "--features", "-"), 4),
        (("beta", "BTCUSDT", "--features", "-"), 4),
        (("alpha", "BTCUSDT", "--features", "-", "--version", "9"), 4),
        (("alpha", "BTCUSDT", "--features", "gone.json"), 2),
        (("alpha", "BTCUSDT", "--features", "."), 2),
        (("alpha", "BTCUSDT"), 2),
    ],
)
def test_what_is_not_there_has_its_exit_code(arguments: tuple[str, ...], code: int, state: Path) -> None:
    done = run("predict", *arguments, "--data-dir", state, code=code, stdin="[1, 2]")
    assert done.stdout == ""
    assert done.stderr


# --- models with timesteps --------------------------------------------------------------------------------------------

WINDOWS = np.random.default_rng(2).normal(size=(2, 4, 3)).astype(np.float32)
WINDOW_FACTORS = ("factor_0", "factor_1", "factor_2")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A directory with model `net` of 4 timesteps × 3 factors, and its weights."""
    place = tmp_path_factory.mktemp("windows")
    weights = write_window(place / "net", "BTCUSDT_ret_1h", (4, 3), explains=True)
    plugins = write_plugin(place / "plugins")
    run("models", "add", "net", place / "net", "--data-dir", place / "data", "--plugins-dir", plugins)
    return place, weights


def predict_windows(place: Path, text: str, *options: str, code: int = 0) -> Any:
    path = place / "features"
    path.write_text(text)
    where = ("--data-dir", place / "data", "--plugins-dir", place / "plugins")
    return run("predict", "net", "BTCUSDT", "--features", path, *where, *options, code=code)


@pytest.mark.parametrize(
    ("text", "n_rows"),
    [
        pytest.param(json.dumps(WINDOWS.tolist()), 2, id="nested"),
        pytest.param(json.dumps(WINDOWS[0].tolist()), 1, id="one matrix"),
        pytest.param(json.dumps([dict(zip(WINDOW_FACTORS, line, strict=True)) for line in WINDOWS[0].tolist()]), 1, id="records"),
        pytest.param("factor_2,x,factor_0,factor_1\n" + "".join(f"{c},9,{a},{b}\n" for a, b, c in WINDOWS[0].tolist()), 1, id="CSV"),
    ],
)  # fmt: skip
def test_windows_of_timesteps_are_predicted_as_the_model_does(
    windows: tuple[Path, Any], text: str, n_rows: int
) -> None:
    place, weights = windows
    found = [json.loads(line) for line in predict_windows(place, text, "--json").stdout.splitlines() if "{" in line]
    returns = np.array([answer["prediction"]["expected_return"] for answer in found], np.float32)
    assert returns.tobytes() == window_outputs(weights, WINDOWS[:n_rows])[:, 0].tobytes()


def test_explaining_a_window_shows_each_timestep_of_each_factor(windows: tuple[Path, Any]) -> None:
    place, weights = windows
    lines = predict_windows(place, json.dumps(WINDOWS[0].tolist()), "--explain").stdout.splitlines()
    told = {cells[2]: cells for line in lines if len(cells := line.split()) == 5}
    assert float(told["factor_1[3]"][3]) == pytest.approx(float(WINDOWS[0, 3, 1]), rel=1e-4)
    assert float(told["factor_1[3]"][4]) == pytest.approx(float(WINDOWS[0, 3, 1] * weights[0, 3, 1]), rel=1e-4)
    assert sum(name.startswith("factor_") for name in told) == 12


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("factor_0,factor_1,factor_2\n1,2,3\n", "a table of 4 lines", id="one line"),
        pytest.param(json.dumps(WINDOWS[0][:3].tolist()), "an array of 4 is expected, found 3", id="short"),
        pytest.param(json.dumps(WINDOWS.reshape(2, -1).tolist()), "an array of 4 is expected, found 2", id="flat"),
        pytest.param("[]", "no rows", id="nothing"),
        pytest.param("factor_0\n1\n", "missing columns", id="columns"),
    ],
)
def test_what_is_no_window_is_refused(windows: tuple[Path, Any], text: str, said: str) -> None:
    assert said in predict_windows(windows[0], text, code=2).output
