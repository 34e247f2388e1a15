"""What a model is said to give, known without loading it, is what it gives."""

from typing import Any

import numpy as np
import pytest
import xgboost

from mmserver.formats import Artifact, ModelFile
from mmserver.plugin_loading import load_plugins
from mmserver.plugins.xgboost_json import parse_model_json
from mmserver.serving.output_tensors import ModelFacts, output_tensors, output_values, widths_from_facts

OBJECTIVES = {
    "reg:squarederror": {},
    "reg:absoluteerror": {},
    "reg:logistic": {},
    "reg:quantileerror": {"quantile_alpha": [0.1, 0.5, 0.9]},
    "binary:logistic": {},
    "binary:logitraw": {},
    "binary:hinge": {},
    "count:poisson": {},
    "multi:softprob": {"num_class": 3},
    "multi:softmax": {"num_class": 3},
    "rank:pairwise": {},
}
ROWS = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)


def trained(objective: str, *, n_labels: int = 1) -> tuple[xgboost.Booster, ModelFile]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 3)).astype(np.float32)
    n_classes = OBJECTIVES[objective].get("num_class", 2)
    labels: Any = (rows[:, 0] > 0).astype(int) + (rows[:, 1] > 0) * (n_classes > 2)
    if n_labels > 1:
        labels = np.stack([labels] * n_labels, axis=1)
    data = xgboost.DMatrix(rows, label=labels)
    booster = xgboost.train({"objective": objective, "max_depth": 2, "nthread": 1, **OBJECTIVES[objective]}, data, 3)
    return booster, parse_model_json(Artifact("x_model.json", "x", bytes(booster.save_raw("json"))))


def given(booster: xgboost.Booster, model: ModelFile) -> tuple[ModelFacts, dict[str, Any]]:
    facts = ModelFacts(model.kind, model.objective, model.n_outputs)
    predictor = load_plugins().load_predictor(model)
    return facts, dict(predictor.predict(ROWS))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_names_and_shapes_are_known_before_loading(objective: str) -> None:
    booster, model = trained(objective)
    facts, outputs = given(booster, model)
    widths = widths_from_facts(facts)
    assert widths == {name: values.shape[1] for name, values in outputs.items()}
    for tensor in output_tensors(facts, widths):
        values = output_values(tensor.name, facts, outputs)
        assert values.dtype == np.float32
        assert values.shape == (len(ROWS), *tensor.shape[1:])
        assert tensor.meaning


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_prediction_is_what_xgboost_returns_in_its_shape(objective: str) -> None:
    booster, model = trained(objective)
    facts, outputs = given(booster, model)
    expected = booster.inplace_predict(ROWS)
    found = output_values("prediction", facts, outputs)
    assert found.shape == expected.shape
    assert found.tobytes() == expected.astype(np.float32).tobytes()


def test_probabilities_of_two_classes_are_those_of_scikit_learn() -> None:
    rows, labels = ROWS, np.array([0, 1, 0, 1, 1, 0, 1])
    classifier = xgboost.XGBClassifier(n_estimators=2, max_depth=1, n_jobs=1).fit(rows, labels)
    model = parse_model_json(Artifact("x_model.json", "x", bytes(classifier.get_booster().save_raw("json"))))
    facts, outputs = given(classifier.get_booster(), model)
    assert output_tensors(facts, {"prediction": 1, "margin": 1})[0].name == "probabilities"
    found = output_values("probabilities", facts, outputs)
    assert found.tobytes() == np.ascontiguousarray(classifier.predict_proba(rows)).tobytes()


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"binary:logistic", "multi:softprob"}))
def test_what_gives_no_probabilities_is_said_to_have_none(objective: str) -> None:
    facts = ModelFacts("xgboost", objective, 1)
    assert "probabilities" not in [tensor.name for tensor in output_tensors(facts, {"prediction": 1, "margin": 1})]


def test_several_labels_are_not_taken_for_classes_that_exclude_each_other() -> None:
    booster, model = trained("binary:logistic", n_labels=2)
    facts, outputs = given(booster, model)
    assert [tensor.name for tensor in output_tensors(facts, widths_from_facts(facts) or {})] == ["prediction", "margin"]
    assert output_values("prediction", facts, outputs).shape == (len(ROWS), 2)


def test_a_plugins_own_outputs_keep_their_names() -> None:
    facts = ModelFacts("other", "", 2)
    assert widths_from_facts(facts) is None
    found = output_tensors(facts, {"embedding": 8, "prediction": 1, "probabilities": 2})
    assert [(tensor.name, tensor.shape) for tensor in found] == [
        ("probabilities", (-1, 2)),
        ("prediction", (-1,)),
        ("embedding", (-1, 8)),
    ]
    values = {"probabilities": np.zeros((3, 2), np.float32), "prediction": np.zeros((3, 1), np.float32)}
    assert output_values("probabilities", facts, values).shape == (3, 2)
    assert output_values("prediction", facts, values).shape == (3,)
