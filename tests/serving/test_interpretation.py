"""A decision says what the outputs say, and nothing that they do not."""

import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from mmserver.errors import NotInterpretable, PredictionFailed
from mmserver.formats import Decision, Interpreter, ModelFile
from mmserver.plugin_loading import Plugins
from mmserver.serving.interpretation import NoInterpreter, decide, load_interpreter


def model(
    objective: str, n_outputs: int = 1, *, kind: str = "xgboost", content: bytes = b"", **summary: Any
) -> ModelFile:
    return ModelFile(
        kind=kind,
        content=content,
        n_features=3,
        n_outputs=n_outputs,
        objective=objective,
        library_version="3.2.0",
        summary=summary,
    )


def tables(outputs: Mapping[str, list[float]]) -> dict[str, Any]:
    return {name: np.array([row], np.float32) for name, row in outputs.items()}


def interpreter_for(
    described: ModelFile,
    outputs: Mapping[str, list[float]],
    plugins: Plugins,
    info: dict[str, Any] | None = None,
    sample: Any = None,
) -> Interpreter:
    return load_interpreter(described, info or {}, {name: len(row) for name, row in outputs.items()}, plugins, sample)


@pytest.fixture
def decided(desk_plugins: Plugins, switches: dict[str, Any]) -> Any:
    """A function: model, outputs of one row → the decision."""

    def of(
        described: ModelFile,
        outputs: Mapping[str, list[float]],
        *,
        info: dict[str, Any] | None = None,
        dead_band: float = 0.0,
        sample: Any = None,
    ) -> Decision:
        interpreter = interpreter_for(described, outputs, desk_plugins, info, sample)
        (decision,) = decide(interpreter, "BTC_ret_1h", tables(outputs), dead_band)
        return decision

    return of


# --- returns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "direction"),
    [(0.01, "BUY"), (-0.01, "SELL"), (0.0, "HOLD"), (-0.0, "HOLD"), (1e-30, "BUY"), (-1e30, "SELL")],
)
def test_the_sign_of_a_return_is_its_direction(decided: Any, x: float, direction: str) -> None:
    found = decided(model("reg:squarederror"), {"margin": [x], "prediction": [x]})
    assert found == Decision(direction, None, None, float(np.float32(x)))


@pytest.mark.parametrize(
    ("x", "direction"), [(0.5, "HOLD"), (-0.5, "HOLD"), (0.50001, "BUY"), (-0.50001, "SELL"), (0.25, "HOLD")]
)
def test_a_return_as_small_as_the_dead_band_is_hold(decided: Any, x: float, direction: str) -> None:
    found = decided(model("reg:squarederror"), {"prediction": [x]}, dead_band=0.5)
    assert (found.direction, found.expected_return) == (direction, float(np.float32(x)))


@pytest.mark.parametrize("x", [0.25, -0.25, 0.03125, 2.0])
def test_the_confidence_in_a_return_is_how_likely_its_sign_is_right(decided: Any, x: float) -> None:
    found = decided(model("reg:squarederror"), {"prediction": [x]}, info={"metrics": {"residual_std": 0.5}})
    assert found.confidence == pytest.approx(1 - NormalDist(abs(x), 0.5).cdf(0), abs=1e-12)
    assert found.probability is None


@pytest.mark.parametrize("x", [0.25, -0.25, 0.0, 0.75])
def test_the_confidence_in_hold_is_how_likely_the_return_stays_in_the_band(decided: Any, x: float) -> None:
    found = decided(model("reg:squarederror"), {"prediction": [x]}, info={"residual_std": 0.5}, dead_band=0.75)
    normal = NormalDist(x, 0.5)
    assert found.direction == "HOLD"
    assert found.confidence == pytest.approx(normal.cdf(0.75) - normal.cdf(-0.75), abs=1e-12)


@pytest.mark.parametrize(
    "info",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"rmse": 0.5}, id="rmse"),
        pytest.param({"metrics": {"rmse": 0.5, "mae": 0.4}}, id="other-metrics"),
        pytest.param({"train_metrics": {"residual_std": 0.5}}, id="of-the-training-data"),
        pytest.param({"train_residual_std": 0.5}, id="of-the-training-data-by-name"),
        pytest.param({"metrics": {"train": {"residual_std": 0.5}}}, id="of-the-training-data-deeper"),
        pytest.param({"residual_std": 0.0}, id="zero"),
        pytest.param({"residual_std": -1.0}, id="negative"),
        pytest.param({"residual_std": None}, id="null"),
        pytest.param({"residual_std": "0.5"}, id="text"),
        pytest.param({"residual_std": True}, id="a-switch"),
    ],
)
def test_without_a_spread_of_held_out_residuals_there_is_no_confidence(
    decided: Any, desk_plugins: Plugins, info: dict[str, Any]
) -> None:
    outputs = {"prediction": [0.25]}
    assert decided(model("reg:squarederror"), outputs, info=info) == Decision("BUY", None, None, 0.25)
    assert interpreter_for(model("reg:squarederror"), outputs, desk_plugins, info).confidence_from is None


@pytest.mark.parametrize(
    ("info", "key"),
    [
        ({"residual_std": 0.5}, "residual_std"),
        ({"Metrics": {"Residual Std": 0.5, "residual_std_train": 9}}, "metrics.residual_std"),
        ({"metrics": {"train": {"residual_std": 9}, "test": {"residual_std": 0.5}}}, "metrics.test.residual_std"),
        ({"residual_std": 9, "oos_residual_std": 0.5}, "oos_residual_std"),
    ],
)
def test_the_answer_says_which_spread_was_used(desk_plugins: Plugins, info: dict[str, Any], key: str) -> None:
    interpreter = interpreter_for(model("reg:squarederror"), {"prediction": [1.0]}, desk_plugins, info)
    assert interpreter.confidence_from == f"expected_return against {key} of the info file"
    (decision,) = interpreter.decide(tables({"prediction": [0.25]}), 0.0)
    assert decision.confidence == pytest.approx(NormalDist().cdf(0.5))


@pytest.mark.parametrize(
    "objective",
    ["reg:logistic", "reg:gamma", "reg:tweedie", "count:poisson", "survival:cox", "survival:aft", "rank:pairwise",
     "rank:ndcg", "rank:map"],
)  # fmt: skip
def test_what_is_no_return_is_refused_and_not_made_one(decided: Any, objective: str) -> None:
    with pytest.raises(NotInterpretable, match=f"{objective}.*plugin"):
        decided(model(objective), {"margin": [0.5], "prediction": [0.5]})


def quantile_document(alpha: str) -> bytes:
    return json.dumps({"learner": {"objective": {"quantile_loss_param": {"quantile_alpha": alpha}}}}).encode()


@pytest.mark.parametrize("alpha", ["[0.5]", "0.5", "(0.5)", "[5E-1]"])
def test_the_median_of_a_return_has_a_direction(decided: Any, alpha: str) -> None:
    described = model("reg:quantileerror", content=quantile_document(alpha))
    assert decided(described, {"prediction": [-0.25]}) == Decision("SELL", None, None, -0.25)


@pytest.mark.parametrize("alpha", ["[0.9]", "[0.1,0.5]", "", "nonsense"])
def test_another_quantile_of_a_return_has_none(decided: Any, alpha: str) -> None:
    with pytest.raises(NotInterpretable, match="quantile"):
        decided(model("reg:quantileerror", content=quantile_document(alpha)), {"prediction": [0.25]})


def test_a_trained_median_model_is_known_for_one(decided: Any) -> None:
    import xgboost

    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    asked = {"objective": "reg:quantileerror", "quantile_alpha": 0.5, "nthread": 1}
    booster = xgboost.train(asked, xgboost.DMatrix(rows, label=rows[:, 0]), 2)
    described = model("reg:quantileerror", content=bytes(booster.save_raw("json")))
    assert decided(described, {"prediction": [0.25]}).direction == "BUY"


def test_several_targets_at_once_say_no_direction(decided: Any) -> None:
    with pytest.raises(NotInterpretable, match="2 outputs"):
        decided(model("reg:squarederror", 2), {"prediction": [0.1, 0.2]})


# --- two classes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.75, Decision("BUY", 0.75, 0.75, None)),
        (0.25, Decision("SELL", 0.75, 0.75, None)),
        (0.5, Decision("HOLD", None, None, None)),
        (1.0, Decision("BUY", 1.0, 1.0, None)),
        (0.0, Decision("SELL", 1.0, 1.0, None)),
    ],
)
def test_the_likelier_of_two_classes_is_the_direction(decided: Any, p: float, expected: Decision) -> None:
    assert decided(model("binary:logistic"), {"margin": [9.0], "prediction": [p]}, dead_band=0.9) == expected


@pytest.mark.parametrize("logit", [0.75, -0.75, 40.0, -40.0, 800.0, -800.0])
def test_log_odds_become_the_probability_that_they_stand_for(decided: Any, logit: float) -> None:
    found = decided(model("binary:logitraw"), {"prediction": [logit]})
    assert found.direction == ("BUY" if logit > 0 else "SELL")
    assert found.probability == found.confidence == pytest.approx(1 / (1 + math.exp(-abs(logit))))
    assert found.expected_return is None


def test_log_odds_of_zero_say_nothing(decided: Any) -> None:
    assert decided(model("binary:logitraw"), {"prediction": [0.0]}) == Decision("HOLD", None, None, None)


@pytest.mark.parametrize(("label", "direction"), [(0.0, "SELL"), (1.0, "BUY")])
def test_a_hinge_gives_a_class_and_no_probability(decided: Any, label: float, direction: str) -> None:
    assert decided(model("binary:hinge"), {"prediction": [label]}) == Decision(direction, None, None, None)


@pytest.mark.parametrize(
    ("info", "high", "low"),
    [
        ({"class_names": ["up", "down"]}, "SELL", "BUY"),
        ({"classes": [-1, 1]}, "BUY", "SELL"),
        ({"label_map": {"no_trade": 0, "long": 1}}, "BUY", "HOLD"),
        ({"signals": {"0": "buy", "1": "sell"}}, "SELL", "BUY"),
    ],
)
def test_two_classes_mean_what_the_info_file_calls_them(
    decided: Any, info: dict[str, Any], high: str, low: str
) -> None:
    assert decided(model("binary:logistic"), {"prediction": [0.75]}, info=info).direction == high
    assert decided(model("binary:logistic"), {"prediction": [0.25]}, info=info) == Decision(low, 0.75, 0.75, None)


# --- more classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "direction"), [(0, "HOLD"), (1, "BUY"), (2, "SELL")])
def test_three_classes_are_hold_buy_sell(decided: Any, at: int, direction: str) -> None:
    row = [0.25, 0.25, 0.25]
    row[at] = 0.5
    assert decided(model("multi:softprob", 3), {"prediction": row}) == Decision(direction, 0.5, 0.5, None)


@pytest.mark.parametrize(
    ("info", "classes"),
    [
        pytest.param({"classes": [-1, 0, 1]}, None, id="numbers"),
        pytest.param({"class_names": ["SELL", "HOLD", "BUY"]}, None, id="texts"),
        pytest.param({"metrics": {"labels": ["short", "neutral", "long"]}}, None, id="deeper"),
        pytest.param({"label_mapping": {"-1": 0, "0": 1, "1": 2}}, None, id="label-to-class"),
        pytest.param({"idx_to_class": {"2": "Up", "1": "Flat", "0": "Down"}}, None, id="class-to-label"),
        pytest.param({"anything": ["down", "flat", "up"]}, None, id="directions-under-any-name"),
        pytest.param({}, [-1, 0, 1], id="the-classifier"),
        pytest.param({"classes": ["sell", "hold", "buy"]}, [-1, 0, 1], id="both-agree"),
    ],
)
def test_three_classes_mean_what_somebody_calls_them(decided: Any, info: dict[str, Any], classes: Any) -> None:
    described = model("multi:softprob", 3, classes=classes)
    found = [
        decided(described, {"prediction": list(np.roll([0.5, 0.25, 0.25], at))}, info=info).direction for at in range(3)
    ]
    assert found == ["SELL", "HOLD", "BUY"]


@pytest.mark.parametrize(
    ("info", "classes", "why"),
    [
        pytest.param({"class_names": ["a", "b", "c"]}, None, "not directions", id="unknown-names"),
        pytest.param({"classes": [10, 20, 30]}, None, "not directions", id="unknown-numbers"),
        pytest.param({"classes": ["buy", "buy", "sell"]}, None, "not directions", id="one-direction-twice"),
        pytest.param({"label_map": {"0": 1, "1": 2, "2": 0}}, None, "maps numbers", id="which-side-is-the-class"),
        pytest.param({"label_names": {"-1": "sell", "0": "hold", "1": "buy"}}, None, "which number", id="no-class-numbers"),
        pytest.param({"classes": ["sell", "hold", "buy"]}, [0, 1, 2], "differently", id="they-differ"),
    ],
)  # fmt: skip
def test_names_that_do_not_say_it_are_refused_and_not_guessed(
    decided: Any, info: dict[str, Any], classes: Any, why: str
) -> None:
    with pytest.raises(NotInterpretable, match=why):
        decided(model("multi:softprob", 3, classes=classes), {"prediction": [0.5, 0.25, 0.25]}, info=info)


@pytest.mark.parametrize(
    "info",
    [
        {"class_weights": [1.0, 2.0, 3.0]},
        {"class_counts": {"-1": 10, "0": 20, "1": 30}},
        {"classes": 3},
        {"counts": {"BUY": 120, "SELL": 130, "HOLD": 60}},
        {"factors": ["a", "b", "c"]},
    ],
)
def test_what_only_looks_like_names_of_classes_changes_nothing(decided: Any, info: dict[str, Any]) -> None:
    assert decided(model("multi:softprob", 3), {"prediction": [0.25, 0.5, 0.25]}, info=info).direction == "BUY"


def test_a_number_of_classes_that_nobody_names_is_refused(decided: Any) -> None:
    with pytest.raises(NotInterpretable, match="4 classes"):
        decided(model("multi:softprob", 4), {"prediction": [0.25] * 4})


@pytest.mark.parametrize("classes", [[-1, 1], [2, 0, 1, -1]])
def test_a_classifier_that_names_another_number_of_classes_than_it_gives_is_refused(decided: Any, classes: Any) -> None:
    """Taking the usual order instead would be another direction than was meant."""
    with pytest.raises(NotInterpretable, match=f"names {len(classes)} classes, and its output has 3"):
        decided(model("multi:softprob", 3, classes=classes), {"prediction": [0.25, 0.5, 0.25]})


def test_more_classes_than_directions_are_refused_even_with_names(decided: Any) -> None:
    names = {"class_names": ["strong buy", "buy", "hold", "sell"]}
    with pytest.raises(NotInterpretable, match="not directions"):
        decided(model("multi:softprob", 4), {"prediction": [0.1, 0.2, 0.3, 0.4]}, info=names)


def test_a_draw_is_hold_with_what_the_model_gives_hold(decided: Any) -> None:
    assert decided(model("multi:softprob", 3), {"prediction": [0.25, 0.375, 0.375]}) == Decision(
        "HOLD", 0.25, 0.25, None
    )


def test_a_draw_without_a_class_for_hold_has_no_number(decided: Any) -> None:
    described = model("", kind="net")
    assert decided(described, {"probabilities": [0.5, 0.5]}) == Decision("HOLD", None, None, None)


def test_class_numbers_are_completed_by_the_margins(decided: Any) -> None:
    margins = [0.5, 2.0, -1.0]
    found = decided(model("multi:softmax", 3), {"margin": margins, "prediction": [1.0]})
    share = math.exp(2.0) / sum(math.exp(margin) for margin in margins)
    assert found.direction == "BUY"
    assert found.probability == pytest.approx(share)


# --- models of other kinds --------------------------------------------------------------------------------------------


def test_two_heads_give_a_class_and_a_return(decided: Any) -> None:
    outputs = {"probabilities": [0.25, 0.625, 0.125], "expected_return": [-0.5]}
    assert decided(model("", kind="net"), outputs) == Decision("BUY", 0.625, 0.625, -0.5)


@pytest.mark.parametrize(
    "outputs", [{"prediction": [0.5]}, {"expected_return": [0.5]}, {"expected_return": [0.5], "x": [1, 2]}]
)
def test_one_number_of_a_regressor_is_a_return(decided: Any, outputs: dict[str, list[float]]) -> None:
    assert decided(model("linear", kind="net"), outputs) == Decision("BUY", None, None, 0.5)


@pytest.mark.parametrize(
    ("objective", "outputs"),
    [
        ("binary_classification", {"prediction": [0.7]}),
        ("lambdarank", {"prediction": [0.7]}),
        ("", {"prediction": [0.7, 0.2]}),
        ("", {"label": [1.0]}),
        ("", {"probabilities": [0.7], "expected_return": [0.1]}),
    ],
)
def test_outputs_that_say_nothing_are_refused(decided: Any, objective: str, outputs: dict[str, list[float]]) -> None:
    with pytest.raises(NotInterpretable, match="nothing says"):
        decided(model(objective, kind="net"), outputs)


ROW = [1.0, 3.0, -2.0]
SOFTMAX = [float(np.exp(x) / np.exp(ROW).sum()) for x in ROW]


@pytest.mark.parametrize(
    "name", ["probabilities", "output_probability", "class_probabilities", "dense/Softmax:0", "proba"]
)
def test_an_output_named_for_probabilities_is_taken_at_its_word(decided: Any, name: str) -> None:
    outputs = {"output_label": [1.0], name: [0.25, 0.625, 0.125]}
    assert decided(model("", kind="onnx"), outputs) == Decision("BUY", 0.625, 0.625, None)


@pytest.mark.parametrize("name", ["logits", "class_logits", "log_probs", "LogSoftmax", "log_softmax", "logprobs"])
def test_softmax_makes_probabilities_of_an_output_named_for_logits(decided: Any, name: str) -> None:
    found = decided(model("", kind="onnx"), {name: ROW})
    assert (found.direction, found.expected_return) == ("BUY", None)
    assert found.confidence == found.probability == pytest.approx(SOFTMAX[1], abs=1e-7)


def test_logarithms_of_probabilities_give_the_probabilities_back(decided: Any) -> None:
    found = decided(model("", kind="onnx"), {"log_probs": np.log([0.2, 0.1, 0.7]).tolist()})
    assert (found.direction, found.confidence) == ("SELL", pytest.approx(0.7, abs=1e-6))


@pytest.mark.parametrize("info", [{"output": "logits"}, {"Output Type": "Logits"}, {"model": {"output": "logit"}}])
def test_the_info_says_that_an_output_of_any_name_holds_logits(decided: Any, info: dict[str, Any]) -> None:
    found = decided(model("", kind="onnx"), {"dense_2": ROW}, info=info)
    assert (found.direction, found.confidence) == ("BUY", pytest.approx(SOFTMAX[1], abs=1e-7))


def test_the_info_says_that_an_output_of_any_name_holds_probabilities(decided: Any) -> None:
    outputs = {"dense_2": [0.25, 0.125, 0.625]}
    assert decided(model("", kind="onnx"), outputs, info={"output": "probabilities"}).direction == "SELL"
    with pytest.raises(PredictionFailed, match="named a probability"):
        decided(model("", kind="onnx"), {"dense_2": ROW}, info={"output": "probabilities"})


@pytest.mark.parametrize(
    ("info", "outputs", "why"),
    [
        ({"output": "logits"}, {"probabilities": [0.2, 0.3, 0.5]}, "its info says that it gives logits"),
        ({"output": "probabilities"}, {"logits": ROW}, "its info says that it gives probabilities"),
        ({"output": "logits", "params": {"output": "probabilities"}}, {"x": ROW}, "logits and probabilities"),
        ({"output": "logits"}, {"first": ROW, "second": ROW}, "nothing says"),
        ({}, {"first_logits": ROW, "second_logits": ROW}, "nothing says"),
        ({"output": "logits"}, {"dense": [1.0, 2.0, 3.0, 4.0]}, "4 classes"),
    ],
)
def test_outputs_that_are_said_to_be_two_things_are_refused(
    decided: Any, info: dict[str, Any], outputs: dict[str, list[float]], why: str
) -> None:
    with pytest.raises(NotInterpretable, match=why):
        decided(model("", kind="onnx"), outputs, info=info)


def test_of_logits_and_probabilities_those_are_used_that_need_no_arithmetic(decided: Any) -> None:
    outputs = {"logits": ROW, "probabilities": [0.2, 0.3, 0.5]}
    assert decided(model("", kind="onnx"), outputs) == Decision("SELL", 0.5, 0.5, None)
    assert decided(model("", kind="onnx"), outputs, info={"output": "logits"}).direction == "BUY"


@pytest.mark.parametrize(
    ("classes", "directions"),
    [
        (["SELL", "HOLD", "BUY"], ["SELL", "HOLD", "BUY"]),
        (["down", "flat", "up"], ["SELL", "HOLD", "BUY"]),
        ([0, 1, 2], ["HOLD", "BUY", "SELL"]),
        ([2, 0, 1], ["SELL", "HOLD", "BUY"]),
        (["1", "0", "2"], ["BUY", "HOLD", "SELL"]),
        ([-1, 0, 1], ["SELL", "HOLD", "BUY"]),
        ({"BUY": 2, "SELL": 0, "HOLD": 1}, ["SELL", "HOLD", "BUY"]),
    ],
)
def test_the_classes_of_any_output_mean_what_the_info_calls_them(
    decided: Any, classes: Any, directions: list[str]
) -> None:
    for output in ("logits", "dense_2"):
        rows = [[9.0 * (at == best) for at in range(3)] for best in range(3)]
        info = {"classes": classes}
        assert [decided(model("", kind="onnx"), {output: row}, info=info).direction for row in rows] == directions


CLASSIFIERS = [
    pytest.param("multiclass", {}, id="objective"),
    pytest.param("", {"task": "classification"}, id="task"),
    pytest.param("", {"training": {"loss": "CrossEntropyLoss"}}, id="loss"),
    pytest.param("", {"n_classes": 3}, id="number of classes"),
    pytest.param("", {"class_names": ["HOLD", "BUY", "SELL"]}, id="names"),
]


@pytest.mark.parametrize(("objective", "info"), CLASSIFIERS)
def test_numbers_of_a_classifier_that_nothing_calls_probabilities_have_a_direction_and_no_confidence(
    decided: Any, objective: str, info: dict[str, Any]
) -> None:
    described = model(objective, kind="onnx")
    for row in (ROW, [0.0, 1.0, 0.0], [-5.0, -1.0, -3.0], [0.2, 0.7, 0.1]):
        assert decided(described, {"dense_2": row}, info=info) == Decision("BUY", None, None, None)
    assert decided(described, {"dense_2": [2.0, 1.0, 2.0]}, info=info) == Decision("HOLD", None, None, None)


@pytest.mark.parametrize(("objective", "info"), CLASSIFIERS)
def test_rows_of_a_sample_that_all_sum_to_1_are_probabilities(
    decided: Any, objective: str, info: dict[str, Any]
) -> None:
    rng = np.random.default_rng(1)
    sample = {"dense_2": rng.dirichlet((1, 1, 1), 16).astype(np.float32)}
    found = decided(model(objective, kind="onnx"), {"dense_2": [0.25, 0.625, 0.125]}, info=info, sample=lambda: sample)
    assert found == Decision("BUY", 0.625, 0.625, None)


def _not_all_sum_to_1() -> Any:
    return np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.6]], np.float32)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(_not_all_sum_to_1(), id="another sum"),
        pytest.param(np.array([[0.2, 0.3, 0.5], [-1.0, 0.5, 1.5]], np.float32), id="out of range"),
        pytest.param(np.eye(3, dtype=np.float32), id="labels"),
        pytest.param(np.full((2, 3), np.nan, np.float32), id="not finite"),
        pytest.param(None, id="no sample"),
    ],
)
def test_rows_of_a_sample_that_are_no_probabilities_give_no_confidence(decided: Any, rows: Any) -> None:
    def sample() -> Any:
        if rows is None:
            raise ValueError("no such rows")
        return {"dense_2": rows}

    found = decided(model("multiclass", kind="onnx"), {"dense_2": [0.25, 0.625, 0.125]}, sample=sample)
    assert found == Decision("BUY", None, None, None)


def test_three_numbers_of_which_nothing_says_that_they_are_classes_are_refused(decided: Any) -> None:
    with pytest.raises(NotInterpretable, match="its info can say"):
        decided(model("", kind="onnx"), {"output": ROW})
    with pytest.raises(NotInterpretable, match="nothing says"):
        decided(model("", kind="onnx"), {"output": ROW}, info={"task": "regression"})


@pytest.mark.parametrize(
    ("objective", "name", "info"),
    [
        pytest.param("", "predicted_return", {}, id="name"),
        pytest.param("", "return_5d", {}, id="horizon"),
        pytest.param("", "output", {"output": "return"}, id="output"),
        pytest.param("regression", "output", {}, id="objective"),
        pytest.param("", "output", {"loss": "MSELoss", "task": "regression"}, id="task"),
        pytest.param("", "output", {"training": {"loss": "mse"}}, id="loss"),
        pytest.param("", "variable", {}, id="sklearn"),
        pytest.param("RMSE", "predictions", {}, id="catboost"),
    ],
)
def test_the_one_number_of_what_is_said_to_be_a_regressor_is_a_return(
    decided: Any, objective: str, name: str, info: dict[str, Any]
) -> None:
    described = model(objective, kind="onnx")
    assert decided(described, {name: [-0.5]}, info=info) == Decision("SELL", None, None, -0.5)
    assert decided(described, {name: [0.25]}, info=info, dead_band=0.25) == Decision("HOLD", None, None, 0.25)
    spread = decided(described, {name: [1.0]}, info={**info, "residual_std": 1.0})
    assert spread.confidence == pytest.approx(NormalDist().cdf(1.0))


@pytest.mark.parametrize(
    ("objective", "name", "info"),
    [
        pytest.param("", "output", {}, id="nothing said"),
        pytest.param("", "prediction", {"task": "binary classification"}, id="classifier"),
        pytest.param("", "variable", {"loss": "BCEWithLogitsLoss"}, id="logistic loss"),
        pytest.param("quantile", "variable", {}, id="quantile"),
        pytest.param("", "prediction", {"objective": "poisson"}, id="count"),
        pytest.param("", "output_label", {"task": "regression"}, id="label"),
    ],
)
def test_one_number_of_which_nothing_says_that_it_is_a_return_is_refused(
    decided: Any, objective: str, name: str, info: dict[str, Any]
) -> None:
    with pytest.raises(NotInterpretable, match="nothing says"):
        decided(model(objective, kind="onnx"), {name: [0.7]}, info=info)


@pytest.mark.parametrize(
    "outputs",
    [
        pytest.param({"prob_down": [0.7]}, id="another class"),
        pytest.param({"prob_up": [0.7], "prob_down": [0.3]}, id="one output a class"),
        pytest.param({"regime_probabilities": [0.2, 0.3, 0.5]}, id="other classes"),
        pytest.param({"regime_logits": [0.2, 0.3, 0.5]}, id="logits of other classes"),
        pytest.param({"return_volatility": [0.7]}, id="what is of a return"),
        pytest.param({"return_1h": [0.7], "return_1d": [-0.2]}, id="two horizons"),
    ],
)
def test_a_name_that_says_more_than_what_an_output_is_decides_nothing(
    decided: Any, outputs: dict[str, list[float]]
) -> None:
    with pytest.raises(NotInterpretable, match="nothing says"):
        decided(model("", kind="onnx"), outputs)


def test_a_prediction_is_the_return_whatever_stands_beside_it(decided: Any) -> None:
    outputs = {"margin": [0.1, 0.2], "prediction": [-0.5], "variance": [2.0]}
    assert decided(model("linear", kind="net"), outputs) == Decision("SELL", None, None, -0.5)


def test_one_number_is_the_second_class_where_something_says_so(decided: Any) -> None:
    described = model("", kind="onnx")
    assert decided(described, {"probability": [0.75]}) == Decision("BUY", 0.75, 0.75, None)
    assert decided(described, {"x": [0.25]}, info={"output": "probabilities"}) == Decision("SELL", 0.75, 0.75, None)
    found = decided(described, {"x": [-math.log(3)]}, info={"output": "logits"})
    assert (found.direction, found.confidence) == ("SELL", pytest.approx(0.75))


def test_a_head_of_logits_and_one_of_returns_are_used_together(decided: Any) -> None:
    found = decided(model("", kind="onnx"), {"direction_logits": ROW, "expected_return": [-0.5]})
    assert (found.direction, found.expected_return) == ("BUY", -0.5)
    assert found.confidence == pytest.approx(SOFTMAX[1], abs=1e-7)


def test_float32_rounding_does_not_make_a_probability_wrong(decided: Any) -> None:
    found = decided(model("", kind="net"), {"probabilities": [0.0, 1.0 + 1e-6, 0.0]})
    assert found == Decision("BUY", 1.0, 1.0, None)


@pytest.mark.parametrize("row", [[0.1, 1.5, 0.1], [-3.0, -1.0, -2.0]])
def test_numbers_that_are_no_probabilities_are_not_passed_off_as_such(decided: Any, row: list[float]) -> None:
    with pytest.raises(PredictionFailed, match="named a probability"):
        decided(model("", kind="net"), {"probabilities": row})


def test_a_row_s_decision_does_not_depend_on_the_others(desk_plugins: Plugins, switches: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    described = model("multi:softprob", 3)
    interpreter = load_interpreter(described, {}, {"prediction": 3}, desk_plugins)
    table = rng.dirichlet([1, 1, 1], size=50).astype(np.float32)
    together = interpreter.decide({"prediction": table}, 0.0)
    assert list(together) == [interpreter.decide({"prediction": table[at : at + 1]}, 0.0)[0] for at in range(50)]


# --- plugins ----------------------------------------------------------------------------------------------------------


class Contrarian:
    """Buys what falls."""

    direction_from = "the opposite sign"
    confidence_from = None

    def decide(self, outputs: Any, dead_band: float) -> list[Decision]:
        del dead_band
        return [Decision("SELL" if x > 0 else "BUY", None, None, -x) for (x,) in outputs["prediction"].tolist()]


def test_a_plugin_s_interpreter_comes_before_our_own(decided: Any, switches: dict[str, Any]) -> None:
    seen: list[Any] = []

    def given(described: ModelFile, info: dict[str, Any]) -> Any:
        seen.append((described.content, info))
        return Contrarian()

    switches["interpreting"] = given
    described = model("reg:squarederror", content=b"trees")
    assert decided(described, {"prediction": [0.5]}, info={"a": 1}) == Decision("SELL", None, None, -0.5)
    assert seen == [(b"trees", {"a": 1})]


def test_a_plugin_that_fails_to_say_it_leaves_no_other_meaning(decided: Any, switches: dict[str, Any]) -> None:
    def failing(described: ModelFile, info: dict[str, Any]) -> Any:
        raise RuntimeError("broken")

    switches["interpreting"] = failing
    with pytest.raises(NotInterpretable, match=r"plugin.*RuntimeError"):
        decided(model("reg:squarederror"), {"prediction": [0.5]})


@pytest.mark.parametrize(
    "given",
    [
        pytest.param([], id="no-decision"),
        pytest.param(["BUY"], id="no-value-of-ours"),
        pytest.param([Decision("UP", None, None, None)], id="no-direction"),  # type: ignore[arg-type]
        pytest.param([Decision("BUY", 1.5, None, None)], id="more-than-certain"),
        pytest.param([Decision("BUY", None, None, math.nan)], id="not-finite"),
        pytest.param(None, id="nothing"),
        pytest.param(RuntimeError("broken"), id="raises"),
    ],
)
def test_what_a_plugin_makes_up_is_never_passed_on(decided: Any, switches: dict[str, Any], given: Any) -> None:
    class Broken(Contrarian):
        def decide(self, outputs: Any, dead_band: float) -> Any:
            if isinstance(given, Exception):
                raise given
            return given

    switches["interpreting"] = lambda described, info: Broken()
    with pytest.raises(PredictionFailed, match="interpreter"):
        decided(model("reg:squarederror"), {"prediction": [0.5]})


def test_the_real_classifier_and_its_info_mean_what_they_meant_to_their_writer(
    shared_artifacts: Path, desk_plugins: Plugins, switches: dict[str, Any]
) -> None:
    info = pickle.loads((shared_artifacts / "kinds" / "SP500_up_1d_info.pkl").read_bytes())
    plain = json.loads(json.dumps(info, default=str))
    interpreter = load_interpreter(model("binary:logistic"), plain, {"prediction": 1}, desk_plugins)
    assert not isinstance(interpreter, NoInterpreter)
    assert interpreter.direction_from == "the likelier class (0 SELL, 1 BUY)"
