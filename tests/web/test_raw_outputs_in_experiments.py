"""Raw outputs over HTTP while an experiment runs: `/v2/…/infer` and `/invocations` are put into arms and logged as predictions are."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.experiments.assignment import arm_of
from mmserver.experiments.experiments import list_experiments
from mmserver.experiments.lifecycle import create_experiment, stop_experiment
from mmserver.experiments.observations.values import Outcome
from mmserver.experiments.planning import checked_plan
from mmserver.web.current import EXPERIMENTER_KEY, QUICK_KEY

TEST = Actor("test")
ROWS = np.float32([[0.25, -1.5, 0.75], [-2.0, 0.5, 1.0], [1.0, 1.0, 1.0]])
NAME = "alpha.BTCUSDT"
INFER = f"/v2/models/{NAME}/infer"
SCORE = f"/models/{NAME}/invocations"
HEADER = "Inference-Header-Content-Length"


@pytest.fixture
def lab(tmp_path: Path, make_web: Callable[..., Any], group_writer: Callable[..., None]) -> Iterator[Any]:
    """An application with two models of one symbol; its log ends with the test."""
    web = make_web(tmp_path / "data")
    for seed, name in enumerate(("alpha", "beta")):
        add(web, tmp_path, group_writer, name, seed=seed)
    yield web
    web.app.extensions[EXPERIMENTER_KEY].close()


def add(web: Any, directory: Path, group_writer: Any, name: str, **options: Any) -> None:
    group_writer(directory / name, "BTCUSDT_ret", **options)
    register_model(web.store, name, str(directory / name), TEST)


def start(web: Any, experiment_id: str = "exp", **changes: Any) -> None:
    plan = {"control": ("alpha", "latest"), "treatment": ("beta", "latest"), "treatment_weight": 0.5, **changes}
    create_experiment(web.store, checked_plan(experiment_id=experiment_id, **plan), TEST, start=True)


def v2_body(
    rows: Any = ROWS, *, is_binary: bool = False, name: str = "features", **parameters: Any
) -> tuple[bytes, int]:
    tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(rows.shape)}
    data = np.ascontiguousarray(rows, np.float32).tobytes() if is_binary else b""
    tensor |= {"parameters": {"binary_data_size": len(data)}} if is_binary else {"data": rows.ravel().tolist()}
    asked = {"inputs": [tensor], "parameters": {**parameters, "binary_data_output": is_binary}}
    text = json.dumps(asked).encode()
    return text + data, len(text)


def parsed(body: bytes, header_length: Any) -> dict[str, Any]:
    answer = json.loads(body if header_length is None else body[: int(header_length)])
    first = answer["outputs"][0]
    if header_length is not None:
        size = first["parameters"]["binary_data_size"]
        start_at = int(header_length)
        first["data"] = np.frombuffer(body[start_at : start_at + size], np.float32).tolist()
    return {**answer, "values": first["data"]}


def quickly(web: Any, path: str = INFER, headers: Any = (), **options: Any) -> Any:
    body, n_json = v2_body(**options)
    given = {"INFERENCE_HEADER_CONTENT_LENGTH": str(n_json)} if options.get("is_binary") else {}
    answer = web.app.extensions[QUICK_KEY]().answer(path, {**given, **dict(headers)}, body, "mine")
    return None if answer is None else parsed(answer.body, dict(answer.headers).get(HEADER))


def through_flask(web: Any, path: str = INFER, headers: Any = (), **options: Any) -> Any:
    body, n_json = v2_body(**options)
    given = {HEADER: str(n_json)} if options.get("is_binary") else {}
    answer = web.client.post(f"{path}?flask=1", data=body, headers={**given, **dict(headers)})
    assert answer.status_code == 200, answer.text
    return parsed(answer.data, answer.headers.get(HEADER))


def scored(web: Any, path: str = SCORE, rows: Any = ROWS, **headers: str) -> Any:
    return web.client.post(
        path, json={"inputs": rows.tolist()}, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def alone(web: Any, model_name: str, rows: Any = ROWS) -> list[float]:
    """What the model itself gives; it names a version, so no experiment looks at it."""
    label = web.store.model(model_name).serving.label
    answer = through_flask(web, f"/v2/models/{model_name}.BTCUSDT/versions/{label}/infer", rows=rows)
    assert "variant" not in answer.get("parameters", {})
    values: list[float] = answer["values"]
    return values


def totals(web: Any) -> Any:
    log = web.app.extensions[EXPERIMENTER_KEY].log()
    log.flush()
    [experiment] = list_experiments(web.store)
    return log.read_totals(experiment.log_key)


def counted(web: Any) -> tuple[int, int]:
    found = totals(web)
    return found.control.n_predictions, found.treatment.n_predictions


@pytest.mark.parametrize("is_binary", [False, True], ids=["json", "binary"])
def test_each_unit_gets_its_arm_and_that_arms_outputs_quickly_and_through_flask(lab: Any, is_binary: bool) -> None:
    expected = {"control": alone(lab, "alpha"), "treatment": alone(lab, "beta")}
    assert expected["control"] != expected["treatment"]
    start(lab, unit="unit_id")
    through_flask(lab, unit_id="warm up")
    seen = set()
    for n in range(12):
        arm = arm_of(salt="exp:1", unit=f"order-{n}", treatment_weight=0.5)
        model_name = {"control": "alpha", "treatment": "beta"}[arm]
        for ask in (quickly, through_flask):
            answer = ask(lab, unit_id=f"order-{n}", is_binary=is_binary)
            assert answer["parameters"]["variant"] == arm
            assert answer["parameters"]["experiment_id"] == "exp"
            assert answer["model_name"] == f"{model_name}.BTCUSDT"
            assert answer["model_version"] == lab.store.model(model_name).serving.label
            assert answer["values"] == expected[arm]
        seen.add(arm)
    assert seen == {"control", "treatment"}
    assert sum(counted(lab)) == 25 * len(ROWS)


def test_invocations_get_their_arm_and_say_so_in_headers(lab: Any) -> None:
    expected = {"control": alone(lab, "alpha"), "treatment": alone(lab, "beta")}
    start(lab, unit="unit_id")
    seen = set()
    for n in range(12):
        arm = arm_of(salt="exp:1", unit=f"order-{n}", treatment_weight=0.5)
        answer = scored(lab, X_Unit_Id=f"order-{n}")
        assert answer.json == {"predictions": expected[arm]}
        assert answer.headers["X-Variant"] == arm
        assert answer.headers["X-Experiment-Id"] == "exp"
        assert answer.headers["X-Prediction-Id"]
        assert "X-Fallback" not in answer.headers
        seen.add(arm)
    assert seen == {"control", "treatment"}
    assert sum(counted(lab)) == 12 * len(ROWS)
    assert "X-Variant" not in scored(lab).headers  # without its unit


def test_all_protocols_put_a_symbol_into_the_same_arm(lab: Any) -> None:
    start(lab, unit="symbol")
    arm = arm_of(salt="exp:1", unit="btcusdt", treatment_weight=0.5)
    asked = {"symbol": "BTC/USDT", "features": ROWS[0].tolist(), "model_name": "alpha"}
    assert lab.client.post("/predict", json=asked).json["variant"] == arm
    assert through_flask(lab)["parameters"]["variant"] == arm
    assert through_flask(lab, "/v2/models/alpha/infer")["parameters"]["variant"] == arm
    assert quickly(lab)["parameters"]["variant"] == arm
    for path in (SCORE, "/models/alpha/invocations"):
        assert scored(lab, path).headers["X-Variant"] == arm


@pytest.mark.parametrize("n_rows", [1, 3])
def test_outcomes_are_given_by_what_the_answer_calls_the_prediction(lab: Any, n_rows: int) -> None:
    start(lab, treatment_weight=1.0)
    prediction_id = through_flask(lab, rows=ROWS[:n_rows])["parameters"]["prediction_id"]
    ids = [prediction_id] if n_rows == 1 else [f"{prediction_id}.{at}" for at in range(n_rows)]
    log = lab.app.extensions[EXPERIMENTER_KEY].log()
    [experiment] = list_experiments(lab.store)
    outcomes = [Outcome(prediction_id=one, label="BUY") for one in ids]
    report = log.add_outcomes(outcomes, experiment_key=experiment.log_key)
    assert report.n_accepted == n_rows
    assert totals(lab).treatment.n_matured == n_rows


def test_rows_of_one_request_are_one_unit_where_predictions_are_units(lab: Any) -> None:
    start(lab, unit="prediction", treatment_weight=1.0)
    through_flask(lab)
    found = totals(lab).treatment
    assert (found.n_units, found.n_predictions) == (1, 3)


def test_a_request_that_names_a_version_is_in_no_experiment(lab: Any) -> None:
    label = lab.store.model("alpha").serving.label
    start(lab, treatment_weight=1.0)
    path = f"/v2/models/{NAME}/versions/{label}/infer"
    for answer in (through_flask(lab, path), quickly(lab, path)):
        assert answer["model_version"] == label
        assert "variant" not in answer.get("parameters", {})
    for score in (f"/models/{NAME}@{label}/invocations", f"/models/{NAME}/versions/{label}/invocations"):
        answer = scored(lab, score)
        assert (answer.status_code, answer.headers["X-Model-Version"]) == (200, label)
        assert "X-Variant" not in answer.headers


def test_a_treatment_with_other_outputs_never_answers(
    lab: Any, tmp_path: Path, xgboost_text: Any, group_writer: Any
) -> None:
    """What the client reads as the control's `prediction` would be a number of another kind."""
    add(lab, tmp_path, group_writer, "classes", seed=5)
    model = json.loads((tmp_path / "classes" / "BTCUSDT_ret_model.json").read_bytes())
    model["learner"]["objective"] = {"name": "binary:logistic", "reg_loss_param": {"scale_pos_weight": "1"}}
    model["learner"]["learner_model_param"]["base_score"] = "5E-1"
    add(lab, tmp_path, group_writer, "odds", seed=6)
    (tmp_path / "odds" / "BTCUSDT_ret_model.json").write_text(json.dumps(model))
    from mmserver.catalog.refreshing import refresh_model

    refresh_model(lab.store, "odds", TEST)
    expected = alone(lab, "alpha")
    start(lab, treatment=("odds", "latest"), treatment_weight=1.0)
    for answer in (through_flask(lab), quickly(lab)):
        assert answer["parameters"]["variant"] == "control"
        assert answer["parameters"]["fallback"] == "outputs_differ"
        assert (answer["model_name"], answer["values"]) == (NAME, expected)
    answer = scored(lab)
    assert (answer.headers["X-Fallback"], answer.headers["X-Variant"]) == ("outputs_differ", "control")
    assert answer.json == {"predictions": expected}
    assert totals(lab).treatment.errors.y == 9


def test_numbers_without_names_do_not_go_to_a_treatment_with_other_factors(
    lab: Any, tmp_path: Path, group_writer: Any
) -> None:
    factors = ("vol_1d", "mom_1h", "other")
    add(lab, tmp_path, group_writer, "mixed", seed=4, factors=factors)
    expected = alone(lab, "alpha")
    start(lab, treatment=("mixed", "latest"), treatment_weight=1.0)
    answer = through_flask(lab)
    assert (answer["parameters"]["fallback"], answer["values"]) == ("inputs_differ", expected)
    assert scored(lab).headers["X-Fallback"] == "inputs_differ"


def test_named_columns_go_to_a_treatment_in_its_own_order(lab: Any, tmp_path: Path, group_writer: Any) -> None:
    ours = lab.store.model("alpha").serving.groups["BTCUSDT_ret"].factors
    add(lab, tmp_path, group_writer, "turned", seed=4, factors=tuple(reversed(ours)))
    expected = alone(lab, "turned", ROWS[:, ::-1])
    start(lab, treatment=("turned", "latest"), treatment_weight=1.0)
    columns = {"dataframe_split": {"columns": list(ours), "data": ROWS.tolist()}}
    answer = lab.client.post(SCORE, json=columns)
    assert (answer.headers["X-Variant"], answer.json) == ("treatment", {"predictions": expected})
    inputs = [
        {"name": factor, "datatype": "FP32", "shape": [3], "data": ROWS[:, dim].tolist()}
        for dim, factor in enumerate(ours)
    ]
    answer = lab.client.post(INFER, json={"inputs": inputs}).json
    assert (answer["parameters"]["variant"], answer["outputs"][0]["data"]) == ("treatment", expected)


def test_in_shadow_mode_the_control_answers_and_both_are_logged(lab: Any) -> None:
    expected = alone(lab, "alpha")
    start(lab, mode="shadow")
    for answer in (through_flask(lab), quickly(lab)):
        assert (answer["parameters"]["variant"], answer["values"]) == ("control", expected)
    assert counted(lab) == (6, 6)


def test_a_request_that_no_arm_can_read_is_refused_and_counts_against_none(lab: Any) -> None:
    start(lab, treatment_weight=1.0)
    through_flask(lab)
    refused = lab.client.post(INFER, data=v2_body(rows=ROWS[:, :2])[0])
    assert refused.status_code == 400
    assert scored(lab, rows=ROWS[:, :2]).status_code in (400, 422)
    assert quickly(lab, rows=ROWS[:, :2]) is None
    assert counted(lab) == (0, 3)


def test_an_empty_table_is_answered_as_ever_and_is_no_prediction(lab: Any) -> None:
    start(lab, treatment_weight=1.0)
    answer = lab.client.post(SCORE, json={"inputs": []})
    assert (answer.status_code, answer.json) == (200, {"predictions": []})
    assert counted(lab) == (0, 0)


@pytest.mark.parametrize("unit_id", [7, ["a"], "x" * 600], ids=["number", "list", "long"])
def test_a_unit_that_is_no_text_is_refused_by_its_place(lab: Any, unit_id: Any) -> None:
    start(lab, unit="unit_id")
    refused = lab.client.post(INFER, data=v2_body(unit_id=unit_id)[0])
    assert refused.status_code == 422
    assert "parameters.unit_id" in refused.text


def test_the_first_request_of_an_experiment_is_left_to_the_view_and_later_ones_are_quick(lab: Any) -> None:
    assert through_flask(lab)
    start(lab)
    assert quickly(lab) is None
    assert through_flask(lab)["parameters"]["experiment_id"] == "exp"
    assert quickly(lab)["parameters"]["experiment_id"] == "exp"
    stop_experiment(lab.store, "exp", TEST)
    through_flask(lab)
    assert "parameters" not in quickly(lab)


def test_what_the_log_cannot_keep_is_not_answered(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start(lab)
    through_flask(lab)
    lab.app.extensions[EXPERIMENTER_KEY].log().journal.set_unmoved(1 << 40)
    assert quickly(lab) is None
    assert lab.client.post(INFER, data=v2_body()[0]).status_code == 503
    assert scored(lab).status_code == 503
