"""The bytes that are written mean to XGBoost exactly what the document means."""

import json

import numpy as np
import pytest
import xgboost

from mmserver.trees.canonical import float64_from_float32, json_from_document, ubjson_from_document
from mmserver.trees.document import document_from_bytes
from tests.counting import n_steps

KINDS = [
    "regression",
    "named",
    "binary",
    "multi",
    "forest",
    "pruned",
    "quantiles",
    "targets",
    "categorical",
    "dart",
    "empty",
]


def with_leaf_values(booster, values: np.ndarray) -> bytes:
    """A model of one-node trees, one for each value; as UBJSON, where floats are bits."""
    document = document_from_bytes(bytes(booster("constant").save_raw("ubj")))
    model = document["learner"]["gradient_booster"]["model"]
    tree = model["trees"][0]
    assert tree["split_conditions"].size == 1
    model["trees"] = [{**tree, "id": index, "split_conditions": values[[index]]} for index in range(values.size)]
    model["tree_info"] = [0] * values.size
    model["iteration_indptr"] = list(range(values.size + 1))
    model["gbtree_model_param"]["num_trees"] = str(values.size)
    return ubjson_from_document(document)


def leaf_values(raw: bytes) -> np.ndarray:
    trees = document_from_bytes(raw)["learner"]["gradient_booster"]["model"]["trees"]
    return np.concatenate([tree["split_conditions"] for tree in trees])


def awkward_floats() -> np.ndarray:
    random = np.random.RandomState(5)
    bits = random.randint(0, 1 << 32, 1500, np.uint64).astype(np.uint32)
    subnormal = random.randint(0, 1 << 23, 300, np.uint64).astype(np.uint32)
    powers = np.array([2.0**e for e in range(-149, 128)] + [10.0**e for e in range(-37, 38)], np.float32)
    usual = np.concatenate([random.normal(size=400), random.normal(size=400) * 1e-3, random.randint(0, 1 << 24, 300)])
    edges = np.array(
        [0.0, -0.0, 0.1, 0.5, 1.0, 16777216.0, 33554432.0, 8589973000.0, 3.4028235e38, 1.17549435e-38], np.float32
    )
    near = np.concatenate([np.nextafter(powers, np.float32(np.inf)), np.nextafter(powers, np.float32(0))])
    every = np.concatenate(
        [bits.view(np.float32), subnormal.view(np.float32), powers, usual.astype(np.float32), edges, near]
    )
    return every[np.isfinite(every)]


@pytest.mark.parametrize("kind", KINDS)
def test_xgboost_reads_both_forms_back_as_the_model_that_it_was(booster, kind):
    original = booster(kind)
    document = document_from_bytes(bytes(original.save_raw("ubj")))
    for raw in (json_from_document(document), ubjson_from_document(document)):
        assert bytes(xgboost.Booster(model_file=bytearray(raw)).save_raw("ubj")) == bytes(original.save_raw("ubj"))


@pytest.mark.parametrize("kind", KINDS)
def test_xgboost_predicts_the_same_from_a_json_made_of_a_json(booster, kind, predict, rows_to_predict):
    original = booster(kind)
    rows = rows_to_predict[50:]
    if kind == "categorical":
        rows = np.where(np.isnan(rows), rows, np.abs(rows))
    text = json_from_document(document_from_bytes(bytes(original.save_raw("json"))))
    assert np.array_equal(predict(text, rows), predict(original, rows))


def test_floats_survive_xgboost_s_own_reader_bit_for_bit(booster):
    values = awkward_floats()
    raw = with_leaf_values(booster, values)
    text = json_from_document(document_from_bytes(raw))
    read_by_xgboost = leaf_values(bytes(xgboost.Booster(model_file=bytearray(text)).save_raw("ubj")))
    assert np.array_equal(read_by_xgboost.view(np.uint32), values.view(np.uint32))
    assert np.array_equal(leaf_values(text).view(np.uint32), values.view(np.uint32))


def test_xgboost_s_own_text_is_read_bit_for_bit(booster):
    values = awkward_floats()
    text = bytes(xgboost.Booster(model_file=bytearray(with_leaf_values(booster, values))).save_raw("json"))
    assert np.array_equal(leaf_values(text).view(np.uint32), values.view(np.uint32))


def n_digits(text: str) -> int:
    return len(text.partition("e")[0].replace(".", "").replace("-", "").strip("0"))


def test_texts_are_the_shortest_that_read_back():
    values = awkward_floats()
    for wide, value in zip(float64_from_float32(values).tolist(), values, strict=True):
        shortest = np.format_float_scientific(value, unique=True, trim="-")
        with np.errstate(over="ignore"):
            other = np.nextafter(value, np.float32(np.inf if float(shortest) > float(value) else -np.inf))
        is_halfway = abs(float(shortest) - float(value)) == abs(float(shortest) - float(other))
        is_power_of_two = abs(np.frexp(value)[0]) == 0.5  # the nearest decimal can be the wrong side's
        assert n_digits(repr(wide)) <= n_digits(shortest) or is_halfway or is_power_of_two, (wide, value)


def test_no_float_is_written_as_an_integer(booster):
    text = json_from_document(document_from_bytes(bytes(booster("regression").save_raw("ubj"))))
    for tree in json.loads(text)["learner"]["gradient_booster"]["model"]["trees"]:
        assert all(isinstance(value, float) for value in tree["sum_hessian"])
        assert all(isinstance(value, int) for value in tree["left_children"])


@pytest.mark.parametrize("score", ["5E-1", "1.25E0", "[1.25E0]"])
def test_version_and_base_score_stay_as_they_were(booster, score):
    document = document_from_bytes(bytes(booster("regression").save_raw("json")))
    document["version"] = [1, 7, 6]
    document["learner"]["learner_model_param"]["base_score"] = score
    written = json.loads(json_from_document(document))
    assert written["version"] == [1, 7, 6]
    assert written["learner"]["learner_model_param"]["base_score"] == score


def test_the_order_of_keys_does_not_change_the_bytes(booster):
    document = document_from_bytes(bytes(booster("regression").save_raw("json")))
    turned = dict(reversed(document.items()))
    turned["learner"] = dict(reversed(document["learner"].items()))
    assert json_from_document(turned) == json_from_document(document)
    assert ubjson_from_document(turned) == ubjson_from_document(document)


def test_a_large_model_is_written_in_some_steps_for_each_node(golden_case):
    from mmserver.trees.document import document_from_snapshot

    document = document_from_snapshot(golden_case("wide__SP500_mid_chg_1d").handle)
    n_nodes = sum(len(tree["split_conditions"]) for tree in document["learner"]["gradient_booster"]["model"]["trees"])
    assert n_steps(lambda: json_from_document(document)) < 50 * n_nodes  # 21 of them
