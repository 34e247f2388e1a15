"""Experiments fed by hostile and careless clients, on a real server: each mistake is named, and nothing that is right is lost."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = "/api/ml/experiments"
REGISTRY = "/api/ml/registry/models"
VERSIONS = ("1.0.0", "1.1.0", "1.2.0")
JSON = {"Content-Type": "application/json"}
CSV = {"Content-Type": "text/csv"}
PARQUET = {"Content-Type": "application/vnd.apache.parquet"}
PLAN: dict[str, Any] = {
    "control_version": "1.0.0",
    "treatment_version": "1.1.0",
    "traffic_split": 0.5,
    "unit": "prediction",
}
LARGE = 7_000_000


@pytest.fixture(scope="module")
def server(shared_servers: Any) -> Any:
    return shared_servers.start()


def plan_of(name: str, **changes: Any) -> dict[str, Any]:
    return {**PLAN, "experiment_id": name, "control_model": name, "treatment_model": name, **changes}


@pytest.fixture(scope="module")
def make(server: Any, artifacts: Any) -> Any:
    """A model of three versions of that name, the first in production."""

    def register(name: str) -> str:
        for version, content in zip(VERSIONS, artifacts.texts, strict=True):
            files = {"file": ("model.json", content)}
            found = server.client.post(REGISTRY, data={"name": name, "version": version}, files=files)
            assert found.status_code in {200, 201}, found.text
        assert server.client.post(f"{REGISTRY}/{name}/1.0.0/promote").status_code == 200
        return name

    return register


@pytest.fixture(scope="module")
def running(server: Any, make: Any) -> str:
    """An experiment that runs, which no test ends; it has the name of its model."""
    name: str = make("long")
    assert server.client.post(ROOT, json=plan_of(name)).status_code == 201
    return name


def predict(server: Any, name: str, n: int) -> list[Any]:
    one = {"model_name": name, "symbol": "ANY", "features": [0.1] * 5}
    found: list[Any] = server.client.post("/predict/batch", json={"requests": [one] * n}).json()["predictions"]
    return found


def send(server: Any, name: str, content: Any, headers: dict[str, str] = JSON) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    answer: httpx.Response = server.client.post(f"{ROOT}/{name}/outcomes", content=body, headers=headers)
    return answer


def check_refused(response: httpx.Response, status: int, words: str, loc: str | None = None) -> None:
    """A refusal says what is wrong, where, and repeats no more than a line of what was sent."""
    found = response.json()
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/problem+json"), found
    assert words in found["detail"]
    if loc is not None:
        assert loc in [error["loc"] for error in found["errors"]]
    assert len(response.content) < 5000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("NaN", "NaN is not JSON", id="nan"),
        pytest.param("1e999", "too large", id="too-large"),
        pytest.param("-1e999", "too large", id="too-small"),
        pytest.param('"0.5"', "traffic_split: Expected `float`", id="text"),
        pytest.param("-0.1", "traffic_split: must be from 0 to 1", id="negative"),
        pytest.param("1.0000001", "traffic_split: must be from 0 to 1", id="above-1"),
        pytest.param("true", "traffic_split: Expected `float`", id="boolean"),
        pytest.param("null", "traffic_split: Expected `float`", id="null"),
    ],
)
def test_a_share_that_is_none_starts_nothing(server: Any, make: Any, text: str, words: str) -> None:
    name = make("shares")
    body = json.dumps(plan_of(name, traffic_split="HERE")).replace('"HERE"', text)
    check_refused(server.client.post(ROOT, content=body, headers=JSON), 400, words)
    assert server.client.get(f"{ROOT}/{name}").status_code == 404


@pytest.mark.parametrize(
    ("changes", "status", "loc"),
    [
        pytest.param({"traffic_spilt": 0.1}, 400, "traffic_spilt", id="misspelt-field"),
        pytest.param({"namespace": {"name": "n", "start": 0, "end": 1, "stop": 2}}, 400, None, id="deep-unknown-field"),
        pytest.param({"treatment_version": "9.9.9"}, 404, None, id="unknown-version"),
        pytest.param({"treatment_model": "nobody"}, 404, None, id="unknown-model"),
        pytest.param({"experiment_id": "x" * LARGE}, 400, "experiment_id", id="long-name"),
        pytest.param({"treatment_version": "x" * LARGE}, 404, None, id="long-version"),
        pytest.param({"unit": "x" * LARGE}, 400, "unit", id="long-unit"),
    ],
)
def test_a_plan_that_does_not_fit_starts_nothing(
    server: Any, make: Any, changes: Any, status: int, loc: str | None
) -> None:
    name = make("shares")
    check_refused(server.client.post(ROOT, json=plan_of(name, **changes)), status, "", loc)
    assert server.client.get(f"{ROOT}/{name}").status_code == 404


def test_bodies_that_no_parser_should_see_are_refused(server: Any, running: str) -> None:
    deep = b'{"policy":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    check_refused(server.client.post(ROOT, content=deep, headers=JSON), 400, "nested deeper")
    check_refused(
        server.client.post(ROOT, content=b"a=b", headers={"Content-Type": "text/plain"}), 415, "application/json"
    )
    ten_megabytes = json.dumps(plan_of("x" * 10_000_000)).encode()
    assert server.client.post(ROOT, content=ten_megabytes, headers=JSON).status_code == 413
    assert server.client.get(f"{ROOT}/{'x' * 60_000}").status_code == 414
    for action in ("ramp", "apply"):
        answer = server.client.post(
            f"{ROOT}/{running}/{action}", content=b'{"traffic_split":0.4,"now":1}', headers=JSON
        )
        check_refused(answer, 400, "now: there is no such field", "now")
    assert server.get(f"{ROOT}/{running}")["status"] == "running"


def test_a_second_experiment_on_one_model_names_the_first(server: Any, running: str) -> None:
    refused = server.client.post(ROOT, json=plan_of(running, experiment_id="second", treatment_version="1.2.0"))
    check_refused(refused, 409, f"with {running}, which is running")


def test_outcomes_that_cannot_be_are_named_one_by_one_and_the_others_count(server: Any, running: str) -> None:
    ids = [one["prediction_id"] for one in predict(server, running, 12)]
    bad = [
        {"prediction_id": ids[0], "label": "LONG"},
        {"prediction_id": ids[1], "label": 7},
        {"prediction_id": ids[2], "label": True},
        {"prediction_id": ids[3], "realized_return": "much"},
        {"prediction_id": ids[4], "label": 1, "at": "2100-01-01T00:00:00Z"},
        {"prediction_id": ids[5], "label": 1, "at": 1e300},
        {"prediction_id": "\ud800", "label": 1},
        {"prediction_id": "x" * 100_000, "label": 1},
        {"prediction_id": "nobody's", "label": 1},
        {"prediction_id": None, "label": 1},
    ]
    good = [{"prediction_id": one, "label": "BUY", "realized_return": 0.01} for one in ids]
    answer = send(server, running, bad + good)
    report = answer.json()
    assert (answer.status_code, len(answer.content) < 10_000) == (200, True)
    assert [error["index"] for error in report["errors"]] == list(range(len(bad)))
    assert (report["n_accepted"], report["n_in_future"], report["n_unknown"], report["n_invalid"]) == (12, 2, 1, 7)
    again = send(server, running, [*good, {**good[0], "label": "SELL"}]).json()
    assert (again["n_accepted"], again["n_duplicates"], again["n_conflicts"]) == (0, 12, 1)
    for text, words in ((b"NaN", "NaN is not JSON"), (b"1e999", "too large"), (b"Infinity", "Infinity is not JSON")):
        refused = send(server, running, b'{"prediction_id":"x","realized_return":%b}' % text)
        check_refused(refused, 400, words)


def test_a_csv_holds_only_numbers_that_it_shows(server: Any, running: str) -> None:
    [one] = predict(server, running, 1)
    texts = ("nan", "1e999", "-inf", "1_0", "٣", "0x1")
    rows = "".join(f"{one['prediction_id']},{text}\n" for text in texts)
    report = send(server, running, f"prediction_id,realized_return\n{rows}".encode(), CSV).json()
    assert (report["n_invalid"], report["n_accepted"]) == (len(texts), 0)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="looks into /proc")
def test_a_small_parquet_file_of_millions_of_rows_fills_no_memory(server: Any, running: str) -> None:
    """It is refused for its rows before any is decoded; a long text that it has once, a million times over, is held once."""
    pyarrow = pytest.importorskip("pyarrow")
    check_refused(send(server, running, parquet_of(pyarrow, 1_000_001, "a"), PARQUET), 413, "1000001 rows")
    before_kb = peak_kb(server)
    report = send(server, running, parquet_of(pyarrow, 100_000, "x" * 50_000), PARQUET).json()
    assert (report["n_invalid"], len(report["errors"])) == (100_000, 100)
    assert peak_kb(server) - before_kb < 1_000_000  # 5 GB, if each row had its own


def parquet_of(pyarrow: Any, n: int, text: str) -> bytes:
    """As many outcomes of one prediction."""
    from pyarrow import parquet

    places = pyarrow.array([0] * n, pyarrow.int32())
    table = {"prediction_id": pyarrow.DictionaryArray.from_arrays(places, [text]), "label": pyarrow.repeat(1, n)}
    written = io.BytesIO()
    parquet.write_table(pyarrow.table(table), written, store_schema=False)
    return written.getvalue()


def test_a_million_outcomes_in_one_call_are_each_counted_and_predictions_go_on_meanwhile(
    server: Any, running: str
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    predict(server, running, 1)
    content = parquet_of(pyarrow, 1_000_000, "nobody's")
    address = f"{server.url}{ROOT}/{running}/outcomes"
    n_meanwhile = 0
    with ThreadPoolExecutor(1) as threads:
        sent = threads.submit(httpx.post, address, content=content, headers=PARQUET, timeout=600, trust_env=False)
        while not sent.done():
            assert predict(server, running, 1)[0]["variant"]
            n_meanwhile += not sent.done()
    report = sent.result().json()
    assert (report["n_unknown"], report["n_accepted"], len(report["errors"])) == (1_000_000, 0, 100)
    assert n_meanwhile > 0


def peak_kb(server: Any) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_more_outcomes_than_one_body_may_hold_are_refused_as_such(server: Any, running: str) -> None:
    content = b"prediction_id,label\n" + b"%024d,BUY\n" % 7 * 1_000_000
    answer = send(server, running, content, CSV)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_kept_decisions_have_numbers_and_are_made_again(server: Any, make: Any) -> None:
    name = make("again")
    server.client.post(ROOT, json=plan_of(name))
    assert server.client.post(f"{ROOT}/{name}/stop").status_code == 200
    [kept] = server.get(f"{ROOT}/{name}/evaluations")["items"]
    again = server.get(f"{ROOT}/{name}/evaluations/{kept['id']}")
    assert (again["evaluation"], again["verdict"]) == (kept, kept["decision"]["recommendation"]["verdict"])
    assert (again["is_same"], again["has_same_rules"]) == (True, True)
    for other in (kept["id"] + 1000, "9" * 400, "-1", "one"):
        check_refused(server.client.get(f"{ROOT}/{name}/evaluations/{other}"), 404, "has no evaluation")


def test_an_arm_of_a_running_experiment_is_neither_deleted_nor_retired(server: Any, running: str) -> None:
    for version in ("1.0.0", "1.1.0"):
        address = f"{REGISTRY}/{running}/{version}"
        for refused in (server.client.delete(address), server.client.post(f"{address}/retire")):
            check_refused(refused, 409, "")
    assert {one["variant"] for one in predict(server, running, 40)} == {"control", "treatment"}
