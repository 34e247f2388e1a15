"""Facts found in info files of every style; what is odd in them stays a thing to show, never a reason to fail."""

from typing import Any

import pytest

from mmserver.catalog.info import facts_from_info

WINDOW = {"train_start": "2024-01-01", "train_end": "2024-06-30"}


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        pytest.param(
            {"dim": 27, **WINDOW, "train_samples": 900}, {"dim": 27, **WINDOW, "train_samples": 900}, id="plain"
        ),
        pytest.param({"n_features": 27, "n_train": 900}, {"dim": 27, "train_samples": 900}, id="n_"),
        pytest.param({"Train Start": "a", "TRAIN-END": "b"}, {"train_start": "a", "train_end": "b"}, id="spelling"),
        pytest.param({"time_window": ["a", "b"]}, {"train_start": "a", "train_end": "b"}, id="pair"),
        pytest.param({"window": {"start": "a", "end": "b"}}, {"train_start": "a", "train_end": "b"}, id="nested"),
        pytest.param(
            {"train": {"start": "a", "end": "b", "n": 5}}, {"train_start": "a", "train_samples": 5}, id="train"
        ),
        pytest.param({"samples": {"train": 5, "test": 6}}, {"train_samples": 5, "test_samples": 6}, id="samples"),
        pytest.param({"n_samples": 7}, {"train_samples": 7}, id="one count"),
        pytest.param({"train_start": 1700000000}, {"train_start": 1700000000}, id="epoch"),
        pytest.param({"dim": 27.0}, {"dim": 27}, id="whole float"),
        pytest.param(
            {"symbol": "BTC/USDT", "target": "ret_1h"}, {"symbol": "BTC/USDT", "return_name": "ret_1h"}, id="names"
        ),
        pytest.param({"trained_at": "2024-07-01"}, {"created_at": "2024-07-01"}, id="created"),
        pytest.param(
            {"metrics": {"ic": 0.1, "note": "x"}, "rmse": 2}, {"metrics": {"ic": 0.1, "rmse": 2.0}}, id="metrics"
        ),
        pytest.param({"feature_names": ["a", "b"]}, {"factors": ("a", "b")}, id="factors"),
    ],
)
def test_the_facts_are_found_under_their_many_names(info: dict[str, Any], expected: dict[str, Any]) -> None:
    facts = facts_from_info(info)
    assert {name: getattr(facts, name) for name in expected} == expected


@pytest.mark.parametrize(
    "info",
    [
        pytest.param({"dim": value, "train_samples": value, "symbol": value, "train_start": value}, id=repr(value)[:20])
        for value in (None, True, -1, 1.5, 1e300, 2**80, [], {}, [None, None], {"a": {"b": 1}}, "")
    ],
)
def test_what_does_not_fit_is_not_taken_for_a_fact(info: dict[str, Any]) -> None:
    facts = facts_from_info(info)
    assert facts.dim is None
    assert facts.train_samples is None
    assert facts.symbol is None


def test_the_better_name_wins_and_one_that_does_not_fit_is_passed_over() -> None:
    assert facts_from_info({"n_samples": 5, "train_samples": 7}).train_samples == 7
    assert facts_from_info({"n_samples": 5, "train_samples": "many"}).train_samples == 5


def test_no_facts_are_invented() -> None:
    facts = facts_from_info({})
    assert (facts.dim, facts.train_start, facts.train_samples, facts.factors, facts.metrics) == (None,) * 4 + ({},)
