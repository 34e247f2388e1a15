"""Predictions over HTTP while an experiment runs: quick or through Flask, one or many, they are put into arms and logged alike."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.experiments.assignment import arm_of
from mmserver.experiments.experiments import list_experiments
from mmserver.experiments.lifecycle import create_experiment, stop_experiment
from mmserver.experiments.planning import checked_plan
from mmserver.web.current import EXPERIMENTER_KEY, QUICK_KEY

TEST = Actor("test")
ROW = [0.25, -1.5, 0.75]
JSON = {"CONTENT_TYPE": "application/json"}


@pytest.fixture
def lab(tmp_path: Path, make_web: Callable[..., Any], group_writer: Callable[..., None]) -> Iterator[Any]:
    """An application with two models of one symbol; its log ends with the test."""
    web = make_web(tmp_path / "data")
    for seed, name in enumerate(("alpha", "beta")):
        group_writer(tmp_path / name, "BTCUSDT_ret", seed=seed)
        register_model(web.store, name, str(tmp_path / name), TEST)
    yield web
    web.app.extensions[EXPERIMENTER_KEY].close()


def start(web: Any, experiment_id: str = "exp", **changes: Any) -> None:
    plan = {"control": ("alpha", "latest"), "treatment": ("beta", "latest"), "treatment_weight": 0.5, **changes}
    create_experiment(web.store, checked_plan(experiment_id=experiment_id, **plan), TEST, start=True)


def body(**more: Any) -> dict[str, Any]:
    return {"symbol": "BTC/USDT", "features": ROW, "model_name": "alpha", **more}


def quickly(web: Any, path: str = "/predict", **more: Any) -> Any:
    answer = web.app.extensions[QUICK_KEY]().answer(path, JSON, json.dumps(body(**more)).encode(), "mine")
    return None if answer is None else msgspec.json.decode(answer.body)


def through_flask(web: Any, path: str = "/predict", **more: Any) -> Any:
    return web.client.post(f"{path}?flask=1", json=body(**more)).json


def counted(web: Any) -> dict[str, int]:
    """How many predictions of each arm are logged."""
    log = web.app.extensions[EXPERIMENTER_KEY].log()
    log.flush()
    [experiment] = list_experiments(web.store)
    totals = log.read_totals(experiment.log_key)
    return {"control": totals.control.n_predictions, "treatment": totals.treatment.n_predictions}


def test_without_an_experiment_answers_name_none_and_nothing_of_experiments_is_made(lab: Any) -> None:
    answers = (through_flask(lab), quickly(lab), lab.client.post("/predict/batch", json={"requests": [body()]}).json)
    for answer in (*answers[:2], answers[2]["predictions"][0]):
        assert answer["variant"] is None
        assert "experiment_id" not in answer
        assert "fallback" not in answer
    late = lab.app.extensions[EXPERIMENTER_KEY]
    assert late.made is None
    assert not (lab.store.settings.data_dir / "observations").exists()


def test_the_quick_way_and_flask_give_each_unit_the_same_arm_and_answer(lab: Any) -> None:
    start(lab, unit="unit_id")
    for unit_id in ("warm up", *(f"w{n}" for n in range(3))):
        through_flask(lab, unit_id=unit_id)
    seen = set()
    for n in range(30):
        arm = arm_of(salt="exp:1", unit=f"order-{n}", treatment_weight=0.5)
        ours, theirs = quickly(lab, unit_id=f"order-{n}"), through_flask(lab, unit_id=f"order-{n}")
        for answer in (ours, theirs):
            assert (answer["variant"], answer["experiment_id"]) == (arm, "exp")
            assert answer["model_name"] == {"control": "alpha", "treatment": "beta"}[arm]
        assert ours["prediction"] == theirs["prediction"]
        seen.add(arm)
    assert seen == {"control", "treatment"}
    assert sum(counted(lab).values()) == 64


@pytest.mark.parametrize("path", ["/predict", "/api/ml/predict"])
def test_each_answer_is_logged_once(lab: Any, path: str) -> None:
    start(lab, unit="prediction")
    answers = [through_flask(lab, path) for _ in range(10)] + [quickly(lab, path) for _ in range(30)]
    variants = [answer["variant"] for answer in answers]
    assert counted(lab) == {arm: variants.count(arm) for arm in ("control", "treatment")}
    assert len({answer["prediction_id"] for answer in answers}) == 40


def test_the_first_request_of_an_experiment_is_left_to_flask_and_later_ones_are_quick(lab: Any) -> None:
    quickly(lab)
    start(lab)
    assert quickly(lab) is None
    assert through_flask(lab)["experiment_id"] == "exp"
    assert quickly(lab)["experiment_id"] == "exp"
    stop_experiment(lab.store, "exp", TEST)
    assert quickly(lab)["variant"] is None


def test_a_batch_is_put_into_arms_item_by_item(lab: Any) -> None:
    start(lab, unit="unit_id")
    items = [body(unit_id=f"order-{n}") for n in range(12)]
    items[4] = body(model_name="beta")
    items[6] = body(features=[1.0], unit_id="order-6")
    answer = lab.client.post("/api/ml/predict/batch", json={"requests": items}).json["predictions"]
    assert answer[6]["error"]["code"] == "features_invalid"
    assert answer[4]["variant"] is None
    for n in (0, 1, 2, 3, 5, 7, 8, 9, 10, 11):
        assert answer[n]["variant"] == arm_of(salt="exp:1", unit=f"order-{n}", treatment_weight=0.5)
    assert sum(counted(lab).values()) == 10


def test_a_treatment_that_cannot_answer_is_marked(lab: Any, tmp_path: Path, group_writer: Any) -> None:
    group_writer(tmp_path / "gamma", "BTCUSDT_ret", factors=("a", "b", "c", "d"), info={"dim": 4}, seed=3)
    register_model(lab.store, "gamma", str(tmp_path / "gamma"), TEST)
    start(lab, treatment=("gamma", "latest"), treatment_weight=1.0)
    for answer in (through_flask(lab), quickly(lab)):
        assert (answer["variant"], answer["fallback"], answer["model_name"]) == ("control", "inputs_differ", "alpha")
    assert counted(lab) == {"control": 0, "treatment": 2}


def test_a_request_without_the_unit_that_it_needs_is_refused_by_name(lab: Any) -> None:
    start(lab, unit="unit_id")
    refused = lab.client.post("/predict", json=body(experiment_id="exp"))
    assert refused.status_code == 422
    assert refused.json["errors"][0]["loc"] == "unit_id"
    refused = lab.client.post("/predict", json=body(experiment_id="exp", model_version="3", unit_id="u"))
    assert refused.json["errors"][0]["loc"] == "model_version"


def test_an_explanation_is_of_the_arm_that_answers(lab: Any) -> None:
    start(lab, treatment_weight=1.0)
    answer = through_flask(lab, explain=True)
    assert answer["variant"] == "treatment"
    alone = through_flask(lab, explain=True, model_name="beta")
    assert answer["contributions"] == alone["contributions"]
    assert answer["prediction"] == alone["prediction"]


def test_a_read_only_server_is_in_no_experiment(lab: Any, make_web: Callable[..., Any]) -> None:
    start(lab)
    reader = make_web(lab.directory, read_only=True)
    assert reader.store.catalog.experiments
    assert through_flask(reader)["variant"] is None
    assert quickly(reader)["variant"] is None


def test_what_starts_a_server_imports_nothing_of_experiments() -> None:
    program = "import sys, mmserver.app; print([name for name in sys.modules if 'experiments' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_a_request_that_is_left_to_flask_keeps_the_arm_that_it_has_drawn(lab: Any) -> None:
    """Or a request that the control fails would be drawn again, until the treatment answers it."""
    start(lab, unit="prediction")
    through_flask(lab)  # both arms are loaded
    experimenter = lab.app.extensions[EXPERIMENTER_KEY]()
    handed_over = []
    hand_over = experimenter.hand_over

    def seen(asked: Any, assignment: Any) -> None:
        handed_over.append(assignment)
        hand_over(asked, assignment)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experimenter, "ready_arms", lambda *given: None)
        patched.setattr(experimenter, "hand_over", seen)
        for n in range(40):
            answer = lab.client.post("/predict", json=body(), headers={"X-Request-ID": f"order-{n}"}).json
            drawn = handed_over[n]
            assert (answer["prediction_id"], answer["variant"]) == (drawn.prediction_id, drawn.arm)
    assert {drawn.arm for drawn in handed_over} == {"control", "treatment"}
    assert sum(counted(lab).values()) == 41
