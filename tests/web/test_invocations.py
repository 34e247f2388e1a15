"""The scoring protocol: XGBoost's own predictions for tables in every form, for the right model, and refusals that its clients read."""

import importlib.metadata
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmserver.catalog import registering
from mmserver.catalog.catalog import Actor
from mmserver.catalog.refreshing import refresh_model

WebOf = Callable[..., Any]
FACTORS = ("mom", "vol", "roc")
ROWS = [[0.5, -1.0, 0.25], [None, 2.0, -0.75], [-1.5, 0.0, 3.0]]
TEST = Actor("test")
ANY_MACHINE = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
"""Checks that are left out: what is slow is the machine, and the fixtures are the same for all examples."""


@pytest.fixture(scope="module")
def one(make_web: WebOf, group_writer: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Model `solo` with one group, and nothing else."""
    made = make_web(tmp_path_factory.mktemp("one"), max_rows=50)
    group_writer(made.directory / "solo", "BTCUSDT_ret_1h", factors=FACTORS, seed=1)
    registering.register_model(made.store, "solo", str(made.directory / "solo"), TEST)
    return made


@pytest.fixture(scope="module")
def several(make_web: WebOf, group_writer: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`solo` with one group, `solo.v2` with two, `kinds` with classifiers; no default."""
    made = make_web(tmp_path_factory.mktemp("several"))
    group_writer(made.directory / "solo", "BTCUSDT_ret_1h", factors=FACTORS, seed=1)
    group_writer(made.directory / "two", "BTCUSDT_ret_1h", factors=FACTORS, seed=2)
    group_writer(made.directory / "two", "ETHUSDT_ret_1h", factors=FACTORS, seed=3)
    group_writer(made.directory / "two", "SOLUSDT_ret_1h", factors=FACTORS, has_model=False)
    for name, n_classes in (("two", 2), ("three", 3)):
        group_writer(made.directory / "kinds", f"{name}_label", factors=FACTORS, has_model=False)
        (made.directory / "kinds" / f"{name}_label_model.json").write_bytes(classifier(n_classes))
    for name, directory in (("solo", "solo"), ("solo.v2", "two"), ("kinds", "kinds")):
        registering.register_model(made.store, name, str(made.directory / directory), TEST)
    return made


def classifier(n_classes: int) -> bytes:
    random = np.random.default_rng(n_classes)
    rows = random.normal(size=(200, len(FACTORS))).astype(np.float32)
    options = {"objective": "multi:softprob", "num_class": 3} if n_classes > 2 else {"objective": "binary:logistic"}
    data = xgboost.DMatrix(rows, label=(np.abs(rows[:, 0]) * 2).astype(int) % n_classes)
    return bytes(xgboost.train({**options, "max_depth": 2, "nthread": 1}, data, num_boost_round=4).save_raw("json"))


def expected(model: Path, rows: Any = ROWS) -> list[Any]:
    """What XGBoost itself predicts."""
    booster = xgboost.Booster()
    booster.load_model(bytearray(model.read_bytes()))
    found: list[Any] = booster.predict(xgboost.DMatrix(np.array(rows, np.float32))).tolist()
    return found


def post(
    web: Any,
    path: str = "/invocations",
    *,
    data: bytes | str | None = None,
    media_type: str | None = "application/json",
    **body: Any,
) -> Any:
    """POST a body; what the answer is, is the caller's to say."""
    headers = {} if media_type is None else {"Content-Type": media_type}
    return web.client.post(path, data=json.dumps(body) if data is None else data, headers=headers)


def predictions(answer: Any) -> list[Any]:
    assert answer.status_code == 200, answer.text
    assert answer.content_type == "application/json"
    assert list(answer.json) == ["predictions"]
    found: list[Any] = answer.json["predictions"]
    return found


def refusal(answer: Any, status: int, error_code: str) -> str:
    """The message of a refusal, which is in the protocol's form."""
    assert (answer.status_code, answer.json["error_code"]) == (status, error_code), answer.text
    assert answer.content_type == "application/json"
    assert answer.json["request_id"] == answer.headers["X-Request-ID"]
    message: str = answer.json["message"]
    return message


def btc(web: Any) -> Path:
    path: Path = web.directory / "solo" / "BTCUSDT_ret_1h_model.json"
    return path


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"dataframe_split": {"columns": list(FACTORS), "data": ROWS}}, id="dataframe_split"),
        pytest.param({"dataframe_split": {"columns": ["roc", "x", "vol", "mom"], "index": [3, 4, 5], "data": [[r[2], "?", r[1], r[0]] for r in ROWS]}}, id="dataframe_split reordered"),
        pytest.param({"dataframe_records": [dict(zip(FACTORS, row, strict=True)) for row in ROWS]}, id="dataframe_records"),
        pytest.param({"instances": [dict(zip(reversed(FACTORS), reversed(row), strict=True)) for row in ROWS]}, id="instances by name"),
        pytest.param({"instances": ROWS, "params": {}}, id="instances"),
        pytest.param({"inputs": ROWS}, id="inputs"),
        pytest.param({"inputs": {name: [row[i] for row in ROWS] for i, name in enumerate(FACTORS)}}, id="inputs by column"),
    ],
)  # fmt: skip
def test_every_form_of_table_is_predicted_as_xgboost_does(one: Any, body: dict[str, Any]) -> None:
    assert predictions(post(one, **body)) == expected(btc(one))


@pytest.mark.parametrize("media_type", ["text/csv", "text/csv; charset=utf-8", "text/csv;header=present"])
def test_csv_is_predicted_as_xgboost_does(one: Any, media_type: str) -> None:
    text = "day,roc,vol,mom\nmon,0.25,-1,0.5\ntue,-0.75,2,\nwed,3.0,0.0,-1.5\n"
    assert predictions(post(one, data=text, media_type=media_type)) == expected(btc(one))


def test_parquet_is_predicted_as_xgboost_does(one: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra test)")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (the extra test)")
    file = io.BytesIO()
    parquet.write_table(
        pyarrow.table({name: [row[i] for row in ROWS] for i, name in reversed(list(enumerate(FACTORS)))}), file
    )
    for media_type in ("application/vnd.apache.parquet", "application/x-parquet"):
        assert predictions(post(one, data=file.getvalue(), media_type=media_type)) == expected(btc(one))


@pytest.mark.parametrize(
    "media_type", [None, "", "application/json; charset=UTF-8", "application/x-www-form-urlencoded"]
)
def test_what_is_not_declared_otherwise_is_json(one: Any, media_type: str | None) -> None:
    assert predictions(post(one, media_type=media_type, instances=ROWS)) == expected(btc(one))


def test_no_rows_have_no_predictions(one: Any) -> None:
    assert predictions(post(one, instances=[])) == []
    assert predictions(post(one, data="mom,vol,roc\n", media_type="text/csv")) == []


def test_a_classifier_of_two_answers_a_probability_and_one_of_three_answers_three(several: Any) -> None:
    for name, shape in (("two", (3,)), ("three", (3, 3))):
        found = predictions(post(several, f"/models/kinds.{name}/invocations", instances=ROWS))
        assert np.shape(found) == shape
        np.testing.assert_allclose(found, expected(several.directory / "kinds" / f"{name}_label_model.json"), rtol=1e-6)


@pytest.mark.parametrize("directory", ["daily_5d", "kinds", "xgboost_1_7"])
def test_real_artifacts_are_predicted_as_their_writers_did(
    directory: str, make_web: WebOf, tmp_path: Path, shared_artifacts: Path
) -> None:
    web = make_web(tmp_path)
    registering.register_model(web.store, "real.1", str(shared_artifacts / directory), TEST)
    for group_key, group in web.store.model("real.1").serving.groups.items():
        golden = json.loads((shared_artifacts / "golden" / f"{directory}__{group_key}.json").read_text())
        found = predictions(post(web, f"/models/real.1.{group.symbol}/invocations", inputs=golden["rows"]))
        native = np.array(golden["native"], np.float32)
        if native.ndim == 2 and native.shape[1] == 2:
            native = native[:, 1]  # the wrapper's predict_proba; the library's own prediction is the second column
        np.testing.assert_allclose(np.array(found, np.float32), native, rtol=1e-6)
        if group.return_name.startswith("ret"):
            assert np.array(found, np.float32).tolist() == native.tolist()


# --- which model ------------------------------------------------------------------------------------------------------


def test_the_default_is_the_only_model_that_there_is(one: Any) -> None:
    answer = post(one, instances=ROWS)
    assert predictions(answer) == expected(btc(one))
    assert answer.headers["X-Model-Version"] == one.store.model("solo").serving.label


def test_without_a_default_among_several_the_way_out_is_named(several: Any) -> None:
    message = refusal(post(several, instances=ROWS), 404, "RESOURCE_DOES_NOT_EXIST")
    assert "set default_model" in message
    assert "/models/MODEL.SYMBOL/invocations" in message


@pytest.mark.parametrize(("default", "group"), [("solo", "solo/BTCUSDT"), ("solo.v2.eth-usdt", "two/ETHUSDT")])
def test_the_default_can_be_set(several: Any, make_web: WebOf, default: str, group: str) -> None:
    again = make_web(several.directory, default_model=default)
    assert predictions(post(again, instances=ROWS)) == expected(several.directory / f"{group}_ret_1h_model.json")


@pytest.mark.parametrize("default", ["gone", "solo.v2", "solo.v2.XRPUSDT"])
def test_a_default_that_names_no_model_is_an_error(several: Any, make_web: WebOf, default: str) -> None:
    answer = post(make_web(several.directory, default_model=default), instances=ROWS)
    assert 400 <= answer.status_code < 500
    assert answer.json["error_code"] in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("solo", "solo/BTCUSDT"),
        ("solo.BTCUSDT", "solo/BTCUSDT"),
        ("solo.btc-usdt", "solo/BTCUSDT"),
        ("solo.v2.BTCUSDT", "two/BTCUSDT"),
        ("solo.v2.ETH_USDT", "two/ETHUSDT"),
        ("solo.v2.ETHUSDT@production", "two/ETHUSDT"),
        ("solo@latest", "solo/BTCUSDT"),
    ],
)
def test_names_are_models_and_symbols_the_longest_model_first(several: Any, name: str, group: str) -> None:
    found = predictions(post(several, f"/models/{name}/invocations", instances=ROWS))
    assert found == expected(several.directory / f"{group}_ret_1h_model.json")


@pytest.mark.parametrize(
    "name",
    [
        "sol",
        "solo.",
        "solo.XRP",
        "solo.v3.BTCUSDT",
        "solo.v2.SOLUSDT",
        "solo@gone",
        "@latest",
        ".BTCUSDT",
        "solo.v2.",
        "%00",
    ],
)
def test_names_of_nothing_are_not_found(several: Any, name: str) -> None:
    refusal(post(several, f"/models/{name}/invocations", instances=ROWS), 404, "RESOURCE_DOES_NOT_EXIST")


def test_a_version_predicts_what_it_did(make_web: WebOf, tmp_path: Path, group_writer: Callable[..., None]) -> None:
    web = make_web(tmp_path)
    group_writer(tmp_path / "solo", "BTCUSDT_ret_1h", factors=FACTORS, seed=1)
    old = registering.register_model(web.store, "solo", str(tmp_path / "solo"), TEST).serving
    before = expected(btc(web))
    group_writer(tmp_path / "solo", "BTCUSDT_ret_1h", factors=FACTORS, seed=2)
    refresh_model(web.store, "solo", TEST)
    assert predictions(post(web, instances=ROWS)) == expected(btc(web)) != before
    answer = post(web, f"/models/solo/versions/{old.label}/invocations", instances=ROWS)
    assert predictions(answer) == before
    assert answer.headers["X-Model-Version"] == old.label
    assert predictions(post(web, f"/models/solo@{old.label}/invocations", instances=ROWS)) == before
    moment = old.created_at.isoformat().replace("+00:00", "Z")
    assert predictions(post(web, f"/invocations?as_of={moment}", instances=ROWS)) == before
    assert predictions(post(web, f"/models/solo.BTCUSDT/invocations?as_of={moment}", instances=ROWS)) == before
    refusal(post(web, "/models/solo/versions/9/invocations", instances=ROWS), 404, "RESOURCE_DOES_NOT_EXIST")
    refusal(post(web, "/invocations?as_of=yesterday", instances=ROWS), 400, "BAD_REQUEST")


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"[[1,2,3]]", "must be an object", id="bare array"),
        pytest.param(b'{"instances":[[1,2,3]]', "not valid JSON", id="cut"),
        pytest.param(b'{"instances":[[1,2,NaN]]}', "NaN", id="NaN"),
        pytest.param(b'{"instances":[[1,2,Infinity]]}', "Infinity", id="Infinity"),
        pytest.param(b'{"instances":[[1,2,3]],"instances":[[4,5,6]]}', "twice", id="name twice"),
        pytest.param(b'{"instances":[{"mom":1,"mom":2,"vol":1,"roc":1}]}', "twice", id="column twice"),
        pytest.param(b'{"instances":[[1,2,3]],"inputs":[[1,2,3]]}', "exactly one", id="two inputs"),
        pytest.param(b'{"data":[[1,2,3]]}', "exactly one", id="no input"),
        pytest.param(b'{"instances":[1,2,3]}', "array of rows", id="flat"),
        pytest.param(b'{"instances":' + b"[" * 200_000, "", id="deep"),
        pytest.param(b'\xff\xfe{"instances":[]}', "UTF-8", id="not UTF-8"),
    ],
)
def test_bodies_that_are_no_table_are_bad_requests(one: Any, data: bytes, said: str) -> None:
    assert said in refusal(post(one, data=data), 400, "BAD_REQUEST")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param({"instances": [{"mom": 1, "vol": 2}]}, "missing columns: 'roc'", id="missing column"),
        pytest.param({"instances": [[1, 2]]}, "2 values without names; the model takes 3", id="narrow"),
        pytest.param({"instances": [[1, 2, "3"]]}, "row 0, column 2: '3' is not a number", id="text"),
        pytest.param({"instances": [[1, 2, True]]}, "True is not a number", id="flag"),
        pytest.param({"instances": [[1, 2, 1e300]]}, "row 0, roc: is not finite", id="too large"),
    ],
)
def test_tables_that_do_not_fit_the_model_are_400_by_column(one: Any, body: dict[str, Any], said: str) -> None:
    answer = post(one, **body)
    assert said in refusal(answer, 400, "INVALID_PARAMETER_VALUE")
    assert answer.json["code"] == "features_invalid"
    assert answer.json["errors"]


def test_csv_that_is_damaged_is_a_bad_request_by_line(one: Any) -> None:
    answer = post(one, data="mom,vol,roc\n1,2\n", media_type="text/csv")
    assert "line 2: has 2 values" in refusal(answer, 400, "BAD_REQUEST")


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/octet-stream",
        "application/json; charset=latin-1",
        "text/csv; charset=utf-16",
        "text/csv; header=absent",
        "nonsense",
    ],
)
def test_other_media_types_are_unsupported(one: Any, media_type: str) -> None:
    refusal(post(one, media_type=media_type, instances=ROWS), 415, "BAD_REQUEST")


def test_compressed_bodies_are_unsupported(one: Any) -> None:
    answer = one.client.post("/invocations", data=b"x", headers={"Content-Encoding": "gzip"})
    refusal(answer, 415, "BAD_REQUEST")


def test_parquet_without_its_library_says_what_to_install(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = post(one, data=b"PAR1", media_type="application/vnd.apache.parquet")
    assert "pip install 'mmserver[parquet]'" in refusal(answer, 415, "BAD_REQUEST")


def test_more_rows_than_allowed_are_413(one: Any) -> None:
    assert len(predictions(post(one, instances=ROWS[:1] * 50))) == 50
    assert "51 rows" in refusal(post(one, instances=ROWS[:1] * 51), 413, "REQUEST_LIMIT_EXCEEDED")


def test_a_body_beyond_the_limit_is_413(make_web: WebOf, several: Any) -> None:
    small = make_web(several.directory, max_body_bytes=1024, default_model="solo")
    refusal(post(small, data=b'{"instances":[' + b" " * 2000 + b"]}"), 413, "REQUEST_LIMIT_EXCEEDED")


@pytest.mark.parametrize("path", ["/invocations", "/models/solo/invocations", "/models/solo/versions/1/invocations"])
def test_errors_are_json_even_for_browsers(several: Any, path: str) -> None:
    answer = several.client.get(path, headers={"Accept": "text/html"})
    assert answer.status_code == 405
    assert answer.content_type == "application/json"
    assert "POST" in answer.headers["Allow"]
    assert set(answer.json) >= {"error_code", "message"}


# --- the server -------------------------------------------------------------------------------------------------------


def test_ping_is_200_where_something_predicts_and_404_where_nothing_does(
    one: Any, make_web: WebOf, tmp_path: Path
) -> None:
    for web, status in ((one, 200), (make_web(tmp_path), 404)):
        answer = web.client.get("/ping")
        assert (answer.status_code, answer.data, answer.content_type) == (status, b"\n", "application/json")


def test_without_any_model_there_is_no_default(make_web: WebOf, tmp_path: Path) -> None:
    assert "0 predictors" in refusal(post(make_web(tmp_path), instances=ROWS), 404, "RESOURCE_DOES_NOT_EXIST")


def test_version_is_bare_text(one: Any) -> None:
    answer = one.client.get("/version")
    assert (answer.status_code, answer.text) == (200, importlib.metadata.version("mmserver"))
    assert answer.content_type.startswith("text/plain")


# --- whatever is sent --------------------------------------------------------------------------------------------------

CELLS = st.sampled_from(
    [0.25, -1.5, 3, None, 1e-45, -0.0, 3.4028234663852886e38, 1e39, 2**63 - 1, 2**64, True, "1", "", [1], {}, 9007199254740993]
)  # fmt: skip
COLUMNS = st.sampled_from([*FACTORS, *FACTORS, "x", "0", "1", "2", ""])
CSV_CELLS = st.sampled_from(
    ["1", "-2.5", "", "nan", "NULL", "inf", "1e999", "1_0", "١", " 1 ", '"1"', '"', "a", "0x1", "1e-50"]
)
TABLES = st.one_of(
    st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=3),
    st.lists(st.dictionaries(COLUMNS, CELLS, max_size=4), max_size=3),
    st.dictionaries(COLUMNS, CELLS | st.lists(CELLS, max_size=2), max_size=4),
    st.fixed_dictionaries({"data": st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=3)},
                          optional={"columns": st.lists(COLUMNS | CELLS, max_size=4), "index": CELLS}),
    CELLS,
)  # fmt: skip
FIELDS = st.sampled_from(
    ["dataframe_split", "dataframe_records", "instances", "inputs", "params", "signature_name", "x"]
)


def is_answered_or_refused(web: Any, data: bytes, media_type: str) -> None:
    answer = post(web, data=data, media_type=media_type)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        assert all(type(value) is float and math.isfinite(value) for value in answer.json["predictions"])
    else:
        assert answer.json["error_code"] in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")


@settings(max_examples=150, deadline=None, suppress_health_check=ANY_MACHINE)
@given(st.dictionaries(FIELDS, TABLES, min_size=1, max_size=2))
def test_any_json_is_answered_or_refused_by_a_known_error(one: Any, document: dict[str, Any]) -> None:
    is_answered_or_refused(one, json.dumps(document).encode(), "application/json")


@settings(max_examples=150, deadline=None, suppress_health_check=ANY_MACHINE)
@given(
    st.lists(COLUMNS, min_size=1, max_size=4, unique=True),
    st.lists(st.lists(CSV_CELLS, min_size=1, max_size=4), max_size=4),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\0"]),
)
def test_any_csv_is_answered_or_refused_by_a_known_error(
    one: Any, header: list[str], lines: list[list[str]], end: str
) -> None:
    text = end.join(",".join(cells) for cells in [header, *lines])
    is_answered_or_refused(one, text.encode(), "text/csv")


@settings(max_examples=40, deadline=None, suppress_health_check=ANY_MACHINE)
@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_any_finite_rows_are_predicted_as_xgboost_does(one: Any, rows: list[list[float]]) -> None:
    assert predictions(post(one, inputs=rows)) == expected(btc(one), rows)
