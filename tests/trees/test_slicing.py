"""A sliced document is what XGBoost's own slice of the model is."""

import pytest
import xgboost

from mmserver.trees.canonical import ubjson_from_document
from mmserver.trees.document import document_from_bytes
from mmserver.trees.slicing import slice_iterations
from mmserver.trees.validation import validate


@pytest.mark.parametrize(
    "kind", ["regression", "multi", "softmax_forest", "forest", "quantiles", "categorical", "dart"]
)
@pytest.mark.parametrize("end", [1, 2])
def test_a_slice_is_xgboost_s_slice(booster, kind, end):
    document = document_from_bytes(bytes(booster(kind).save_raw("ubj")))
    sliced = slice_iterations(document, validate(document), end)
    assert ubjson_from_document(sliced) == bytes(booster(kind)[:end].save_raw("ubj"))
    assert validate(sliced).n_iterations == end


def test_an_early_stopped_model_keeps_the_trees_that_it_predicts_with(booster, predict, rows_to_predict):
    model = booster("early_stopped")
    document = document_from_bytes(bytes(model.save_raw("json")))
    best = validate(document).best_iteration
    assert best == model.best_iteration
    assert best + 1 < model.num_boosted_rounds()
    sliced = slice_iterations(document, validate(document), best + 1)
    assert ubjson_from_document(sliced) == bytes(model[: best + 1].save_raw("ubj"))
    assert validate(sliced).best_iteration is None


def test_other_attributes_are_kept_as_xgboost_keeps_them(booster):
    model = xgboost.Booster(model_file=bytearray(booster("early_stopped").save_raw("ubj")))
    model.set_attr(note="kept")
    document = document_from_bytes(bytes(model.save_raw("ubj")))
    sliced = slice_iterations(document, validate(document), 1)
    assert sliced["learner"]["attributes"] == model[:1].attributes()


def test_the_document_itself_is_left_as_it_is(booster):
    document = document_from_bytes(bytes(booster("dart").save_raw("ubj")))
    before = ubjson_from_document(document)
    slice_iterations(document, validate(document), 1)
    assert ubjson_from_document(document) == before


@pytest.mark.parametrize("kind", ["regression", "multi", "forest", "softmax_forest"])
def test_a_document_without_iteration_offsets_is_sliced_by_its_parallel_trees(booster, kind):
    document = document_from_bytes(bytes(booster(kind).save_raw("ubj")))
    del document["learner"]["gradient_booster"]["model"]["iteration_indptr"]
    sliced = slice_iterations(document, validate(document), 2)
    read_by_xgboost = xgboost.Booster(model_file=bytearray(ubjson_from_document(sliced)))
    assert bytes(read_by_xgboost.save_raw("ubj")) == bytes(booster(kind)[:2].save_raw("ubj"))


def test_a_whole_slice_is_the_whole_model(booster):
    document = document_from_bytes(bytes(booster("multi").save_raw("ubj")))
    assert ubjson_from_document(slice_iterations(document, validate(document), 6)) == ubjson_from_document(document)


@pytest.mark.parametrize("end", [0, -1, 7])
def test_an_end_outside_the_model_is_a_bug(booster, end):
    document = document_from_bytes(bytes(booster("regression").save_raw("ubj")))
    with pytest.raises(ValueError, match="6 iterations"):
        slice_iterations(document, validate(document), end)
