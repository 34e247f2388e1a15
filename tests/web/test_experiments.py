"""`/api/ml/experiments` over HTTP: from a draft to what is applied, and everything that is sent to it wrongly."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.web.current import EXPERIMENTER_KEY

TEST = Actor("test")
ROOT = "/api/ml/experiments"
ROW = [0.25, -1.5, 0.75]
PLAN = {
    "experiment_id": "exp",
    "control_model": "alpha",
    "control_version": "latest",
    "treatment_model": "beta",
    "treatment_version": "latest",
    "traffic_split": 0.5,
    "unit": "prediction",
}


@pytest.fixture
def lab(tmp_path: Path, make_web: Callable[..., Any], group_writer: Callable[..., None]) -> Iterator[Any]:
    """An application with two models of one symbol; its log ends with the test."""
    web = make_web(tmp_path / "data")
    for seed, name in enumerate(("alpha", "beta")):
        group_writer(tmp_path / name, "BTCUSDT_ret", seed=seed)
        register_model(web.store, name, str(tmp_path / name), TEST)
    yield web
    web.app.extensions[EXPERIMENTER_KEY].close()


def create(web: Any, **changes: Any) -> Any:
    return web.client.post(ROOT, json={**PLAN, **changes})


def predict(web: Any, n: int) -> list[dict[str, Any]]:
    one = {"symbol": "BTC/USDT", "features": ROW, "model_name": "alpha"}
    answers: list[dict[str, Any]] = web.client.post("/predict/batch", json={"requests": [one] * n}).json["predictions"]
    return answers


def test_an_experiment_over_http_from_its_draft_to_its_end(lab: Any) -> None:
    made = create(lab, start=False)
    assert (made.status_code, made.headers["Location"]) == (201, f"{ROOT}/exp")
    assert (made.json["status"], made.json["traffic_split"], made.json["policy"]["policy"]) == (
        "draft",
        0.5,
        "sequential",
    )
    changed = lab.client.patch(
        f"{ROOT}/exp", json={"traffic_split": 0.8, "policy": {"policy": "classic", "min_hours": 2}}
    )
    assert (changed.json["traffic_split"], changed.json["policy"]["min_hours"]) == (0.8, 2)
    assert changed.json["unit"] == "prediction"
    assert lab.json("/api/ml/health")["active_experiments"] == 0
    assert lab.client.post(f"{ROOT}/exp/start").json["status"] == "running"
    assert lab.json("/api/ml/health")["active_experiments"] == 1
    ramped = lab.client.post(f"{ROOT}/exp/ramp", json={"traffic_split": 0.5}).json
    assert [phase["traffic_split"] for phase in ramped["phases"]] == [0.8, 0.5]
    answers = predict(lab, 40)
    outcomes = [{"prediction_id": one["prediction_id"], "label": "BUY", "realized_return": 0.01} for one in answers]
    report = lab.client.post(f"{ROOT}/exp/outcomes", json=outcomes).json
    assert (report["n_accepted"], report["errors"]) == (40, [])
    analysis = lab.json(f"{ROOT}/exp/analysis")
    n_of = {arm: sum(one["variant"] == arm for one in answers) for arm in ("control", "treatment")}
    for arm in ("control", "treatment"):
        assert (analysis[arm]["n_predictions"], analysis[arm]["n_matured"]) == (n_of[arm], n_of[arm])
    assert analysis["recommendation"]["action"] == "continue"
    assert analysis["experiment"]["experiment_id"] == "exp"
    stopped = lab.client.post(f"{ROOT}/exp/stop").json
    assert (stopped["experiment"]["status"], stopped["control"]["n_matured"]) == ("stopped", n_of["control"])
    assert predict(lab, 1)[0]["variant"] is None
    undecided = lab.client.post(f"{ROOT}/exp/apply")
    assert (undecided.status_code, undecided.json["code"]) == (409, "experiment_undecided")
    applied = lab.client.post(f"{ROOT}/exp/apply", json={"action": "promote"}).json
    latest = applied["experiment"]["treatment_version"]
    assert (applied["action"], applied["promoted"]) == ("promote", {"model_name": "beta", "version": latest})
    assert lab.store.model("beta").stages == {"production": latest}
    assert lab.client.post(f"{ROOT}/exp/apply", json={"action": "keep"}).json["code"] == "experiment_status_conflict"
    kept = lab.json(f"{ROOT}/exp/evaluations")["items"]
    assert [one["reason"] for one in kept] == ["applied", "asked", "stopped"]
    assert kept[0]["decision"]["looks"]["n"] == 3


def test_the_blocks_of_a_shadow_last_a_day_unless_that_is_said_and_a_changed_draft_keeps_its_own(lab: Any) -> None:
    for number, said in enumerate(({}, {"block_s": None}, {"block_s": 900})):
        made = create(lab, experiment_id=f"dark{number}", mode="shadow", start=False, **said).json
        assert made["block_s"] == (said.get("block_s") or 86400.0)
        changed = lab.client.patch(f"{ROOT}/dark{number}", json={"mode": "split"}).json
        assert (changed["mode"], changed["block_s"]) == ("split", made["block_s"])


def test_experiments_are_listed_by_status_and_page(lab: Any) -> None:
    for name in ("a", "b", "c"):
        assert create(lab, experiment_id=name, start=False).status_code == 201
    lab.client.post(f"{ROOT}/b/start")
    assert [one["experiment_id"] for one in lab.json(f"{ROOT}?status=running")["items"]] == ["b"]
    first = lab.json(f"{ROOT}?limit=2")
    assert [one["experiment_id"] for one in first["items"]] == ["c", "b"]
    rest = lab.json(f"{ROOT}?limit=2&cursor={first['next_cursor']}")
    assert ([one["experiment_id"] for one in rest["items"]], rest["next_cursor"]) == (["a"], None)
    for query in ("status=moving", "cursor=zzz", "limit=0"):
        assert lab.client.get(f"{ROOT}?{query}").status_code == 400


@pytest.mark.parametrize(
    ("changes", "status", "code", "loc"),
    [
        pytest.param({"traffic_split": 1.5}, 400, "request_invalid", "traffic_split", id="split-above-1"),
        pytest.param({"traffic_split": -0.1}, 400, "request_invalid", "traffic_split", id="split-below-0"),
        pytest.param({"traffic_split": "most"}, 400, "request_invalid", "traffic_split", id="split-in-words"),
        pytest.param({"treatment_version": "9"}, 404, "version_not_found", None, id="unknown-version"),
        pytest.param({"control_model": "nobody"}, 404, "model_not_found", None, id="unknown-model"),
        pytest.param({"treatment_model": "alpha"}, 400, "request_invalid", "treatment_version", id="same-arms"),
        pytest.param({"unit": "moon"}, 400, "request_invalid", "unit", id="unknown-unit"),
        pytest.param({"policy": {"alpha": 2}}, 400, "request_invalid", "policy.alpha", id="policy-out-of-limits"),
        pytest.param({"policy": {"alhpa": 0.1}}, 400, "request_invalid", "policy.alhpa", id="policy-misspelt"),
        pytest.param({"experiment_id": "../x"}, 400, "request_invalid", "experiment_id", id="bad-name"),
        pytest.param(
            {"deadline_at": "2020-01-01T00:00:00Z"}, 400, "request_invalid", "deadline_at", id="deadline-over"
        ),
        pytest.param({"deadline_at": "tomorrow"}, 400, "request_invalid", "deadline_at", id="deadline-in-words"),
        pytest.param({"block_s": 1e400}, 400, "request_invalid", "", id="infinite-block"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_its_field(
    lab: Any, changes: dict[str, Any], status: int, code: str, loc: str | None
) -> None:
    refused = create(lab, **changes)
    assert (refused.status_code, refused.json["code"]) == (status, code)
    if loc is not None:
        assert refused.json["errors"][0]["loc"] == loc
    assert lab.json(ROOT)["items"] == []


def test_a_ramp_that_does_not_fit_is_refused_in_the_words_of_its_body(lab: Any) -> None:
    create(lab, traffic_split=0.75)
    for asked, problem in (
        (1.5, "must be from 0 to 1, not 1.5"),
        (-0.25, "must be from 0 to 1, not -0.25"),
        (0.9, "it is 0.75 now; with 0.9 treated units would go back: draw all units anew (redraw), or stop"),
    ):
        refused = lab.client.post(f"{ROOT}/exp/ramp", json={"traffic_split": asked})
        assert (refused.status_code, refused.json["detail"]) == (400, f"traffic_split: {problem}")
        assert refused.json["errors"] == [{"loc": "traffic_split", "msg": problem}]
    assert len(lab.json(f"{ROOT}/exp")["phases"]) == 1


def test_two_on_one_model_are_refused_and_a_running_one_is_not_changed(lab: Any) -> None:
    assert create(lab).status_code == 201
    assert create(lab).json["code"] == "experiment_taken"
    assert create(lab, experiment_id="second").json["code"] == "experiment_conflict"
    assert lab.client.patch(f"{ROOT}/exp", json={"unit": "symbol"}).json["code"] == "experiment_status_conflict"
    assert lab.client.delete("/api/models/beta").json["code"] == "version_in_use"
    for call in ("", "/analysis", "/evaluations"):
        assert lab.client.get(f"{ROOT}/nobody{call}").json["code"] == "experiment_not_found"
    for call in ("/start", "/stop", "/apply"):
        assert lab.client.post(f"{ROOT}/nobody{call}").json["code"] == "experiment_not_found"


def test_each_outcome_gets_its_own_answer(lab: Any) -> None:
    create(lab)
    ids = [one["prediction_id"] for one in predict(lab, 6)]
    sent: list[dict[str, Any]] = [
        {"prediction_id": ids[0], "realized_return": 0.02},
        {"prediction_id": ids[0], "realized_return": 0.02},
        {"prediction_id": ids[0], "realized_return": 0.03},
        {"prediction_id": "nobody", "label": "BUY"},
        {"prediction_id": ids[1], "label": "MOON"},
        {"prediction_id": ids[2], "realized_return": "NaN"},
        {"prediction_id": ids[3], "label": 2, "at": "2099-01-01T00:00:00Z"},
        {"prediction_id": ids[4], "label": "SELL"},
    ]
    report = lab.client.post(f"{ROOT}/exp/outcomes", json=sent).json
    counts = {name: value for name, value in report.items() if isinstance(value, int) and value}
    assert counts["n_accepted"] == 2
    assert counts["n_duplicates"] == counts["n_conflicts"] == counts["n_unknown"] == counts["n_in_future"] == 1
    assert counts["n_invalid"] == 2
    assert {error["index"] for error in report["errors"]} == {2, 3, 4, 5, 6}
    single = lab.client.post(f"{ROOT}/exp/outcomes", json={"prediction_id": ids[5], "label": "HOLD"})
    assert single.json["n_accepted"] == 1


def test_outcomes_come_as_csv_and_parquet_too(lab: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    create(lab)
    ids = [one["prediction_id"] for one in predict(lab, 4)]
    text = f"prediction_id,realized_return,label\n{ids[0]},0.01,\n{ids[1]},,SELL\n"
    report = lab.client.post(f"{ROOT}/exp/outcomes", data=text, content_type="text/csv").json
    assert report["n_accepted"] == 2
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"prediction_id": ids[2:], "realized_return": [0.1, -0.2]}), file)
    media_type = "application/vnd.apache.parquet"
    sent = lab.client.post(f"{ROOT}/exp/outcomes", data=file.getvalue(), content_type=media_type)
    assert sent.json["n_accepted"] == 2


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        pytest.param(b"[]", "application/json", id="an-empty-list"),
        pytest.param(b"[1]", "application/json", id="no-objects"),
        pytest.param(b'{"prediction_id": "x", "realized_return": NaN}', "application/json", id="nan"),
        pytest.param(b"\xff\xfe", "text/csv", id="no-utf-8"),
        pytest.param(b"a,b\n1,2\n", "text/csv", id="other-columns"),
        pytest.param(b"PAR1", "application/vnd.apache.parquet", id="no-parquet"),
        pytest.param(b"", "text/csv", id="nothing"),
    ],
)
def test_rubbish_for_outcomes_is_refused_whole(lab: Any, data: bytes, content_type: str) -> None:
    create(lab)
    refused = lab.client.post(f"{ROOT}/exp/outcomes", data=data, content_type=content_type)
    assert (refused.status_code, refused.json["code"]) == (400, "request_invalid")


def test_prices_give_open_predictions_their_outcomes(lab: Any) -> None:
    create(lab)
    [answer] = predict(lab, 1)
    price = {"symbol": "BTC-USDT", "price": 100.0, "time": answer["timestamp"]}
    report = lab.client.post("/api/ml/outcomes/prices", json={"prices": [price, {**price, "price": -1.0}]}).json
    assert (report["n_prices"], report["n_invalid"]) == (1, 1)
    assert lab.client.post("/api/ml/outcomes/prices", json={"prices": [{"symbol": "X"}]}).status_code == 400


def test_a_read_only_server_shows_experiments_and_changes_none(lab: Any, make_web: Callable[..., Any]) -> None:
    create(lab)
    reader = make_web(lab.directory, read_only=True)
    assert reader.json(f"{ROOT}/exp")["status"] == "running"
    for call, body in (("stop", {}), ("apply", {"action": "keep"}), ("ramp", {"traffic_split": 0.1})):
        refused = reader.client.post(f"{ROOT}/exp/{call}", json=body)
        assert (refused.status_code, refused.json["code"]) == (403, "read_only")
    refused = reader.client.post(f"{ROOT}/exp/outcomes", data=json.dumps([]), content_type="application/json")
    assert refused.json["code"] == "read_only"
