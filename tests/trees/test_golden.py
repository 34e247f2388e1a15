"""Probe rows sit on the model's own edges and are the same ones for the same model."""

import numpy as np
import pytest

from mmserver.trees.document import document_from_bytes
from mmserver.trees.golden import golden_rows, hard_rows
from mmserver.trees.validation import validate


def model_of(booster):
    return validate(document_from_bytes(bytes(booster.save_raw("ubj"))))


def test_the_same_model_gives_the_same_rows(booster):
    first, second = (golden_rows(model_of(booster("regression"))) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != golden_rows(model_of(booster("forest"))).tobytes()


def test_rows_hit_thresholds_exactly_and_from_both_sides(booster):
    model = model_of(booster("lossguide"))
    rows = golden_rows(model, 200)
    at = below = above = 0
    for feature in range(model.n_features):
        thresholds = model.split_condition[(model.left != -1) & (model.split_index == feature)]
        at += np.isin(rows[:, feature], thresholds).sum()
        below += np.isin(rows[:, feature], np.nextafter(thresholds, np.float32(-np.inf))).sum()
        above += np.isin(rows[:, feature], np.nextafter(thresholds, np.float32(np.inf))).sum()
    assert min(at, below, above) > 100


def test_the_extremes_and_missing_values_are_among_them(booster):
    rows = golden_rows(model_of(booster("regression")), 32)
    assert rows.shape == (32, 5)
    assert rows.dtype == np.float32
    assert np.isnan(rows[0]).all()
    assert (rows[1] == 0).all()
    assert (rows[2] == np.float32(1e30)).all()
    assert (rows[3] == np.float32(-1e30)).all()
    mixed = np.isnan(rows[4:]).any(axis=1) & ~np.isnan(rows[4:]).all(axis=1)
    assert mixed.sum() > 3
    assert not np.isinf(rows).any()


def test_changing_any_split_condition_is_seen_by_the_rows(booster):
    document = document_from_bytes(bytes(booster("stumps").save_raw("ubj")))
    before = golden_rows(validate(document))
    tree = document["learner"]["gradient_booster"]["model"]["trees"][-1]
    tree["split_conditions"] = np.nextafter(tree["split_conditions"], np.float32(9))
    assert golden_rows(validate(document)).tobytes() != before.tobytes()


@pytest.mark.parametrize("kind", ["constant", "categorical"])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_models_without_numeric_splits_have_rows_too(booster, kind, n):
    assert golden_rows(model_of(booster(kind)), n).shape == (n, 5)


@pytest.mark.parametrize("kind", ["regression", "categorical", "stumps", "constant", "multi"])
def test_hard_rows_hold_ties_on_the_way_down_and_infinities(booster, kind):
    model = model_of(booster(kind))
    rows = hard_rows(model, -999.0)
    assert rows.shape == (16, model.n_features)
    assert np.isfinite(rows[:8]).all()
    assert np.isinf(rows[8:]).any(axis=1).all()
    assert np.isposinf(rows[8]).all()
    assert np.isneginf(rows[9]).all()
    assert (rows == -999).any()
    assert np.isnan(hard_rows(model, None)).any()
    assert rows.tobytes() == hard_rows(model, -999.0).tobytes()


def test_half_the_ties_meet_the_root_s_threshold_of_some_tree(booster):
    model = model_of(booster("lossguide"))
    roots = model.node_offsets[:-1][np.linspace(0, model.n_trees - 1, 4).astype(int)]
    rows = hard_rows(model, None)[4:8]
    assert (rows[np.arange(4), model.split_index[roots]] == model.split_condition[roots]).all()
