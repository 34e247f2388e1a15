"""What a model serves and why, and that what a rollback is said to bring is what it brings."""

from typing import Any

import pytest

from mmserver.catalog.catalog import Actor
from mmserver.errors import ModelNotFound, NothingBefore, VersionChanged
from mmserver.registry.removing import delete_version
from mmserver.registry.stages import promote, retire, rollback, set_stage
from mmserver.registry.standing import find_standing

TEST = Actor("test")


def test_nothing_is_in_production_before_the_first_promotion(three: Any) -> None:
    found = find_standing(three.store, "hybrid")
    assert (found.production, found.production_since, found.before) == (None, None, None)
    assert found.serving_reason == "registered"


def test_what_a_rollback_brings_is_what_was_said_at_every_step(three: Any) -> None:
    for label in ("1.0.0", "1.9.0", "1.10.0", "1.0.0"):
        promote(three.store, "hybrid", label, TEST)
    for expected in ("1.10.0", "1.9.0", "1.0.0"):
        found = find_standing(three.store, "hybrid")
        assert found.before == expected
        assert found.production_since == found.serving_since
        assert rollback(three.store, "hybrid", TEST, from_label=found.production).label == expected
    assert find_standing(three.store, "hybrid").before is None
    with pytest.raises(NothingBefore):
        rollback(three.store, "hybrid", TEST)


def test_a_version_that_was_removed_is_not_said_to_come_back(three: Any) -> None:
    for label in ("1.0.0", "1.9.0", "1.10.0"):
        promote(three.store, "hybrid", label, TEST)
    delete_version(three.store, "hybrid", "1.9.0", TEST)
    assert find_standing(three.store, "hybrid").before == "1.0.0"


def test_the_same_rollback_sent_twice_goes_back_one(three: Any) -> None:
    for label in ("1.0.0", "1.9.0", "1.10.0"):
        promote(three.store, "hybrid", label, TEST)
    first = rollback(three.store, "hybrid", TEST, from_label="1.10.0")
    n_actions = len(three.actions())
    assert rollback(three.store, "hybrid", TEST, from_label="1.10.0") == first
    assert (first.label, three.served, len(three.actions())) == ("1.9.0", "1.9.0", n_actions)
    assert rollback(three.store, "hybrid", TEST, from_label="1.9.0").label == "1.0.0"


@pytest.mark.parametrize("label", ["1.0.0", "1.10.0"])
def test_a_rollback_from_what_another_version_took_the_place_of_is_refused(three: Any, label: str) -> None:
    for promoted in ("1.10.0", "1.9.0", "1.0.0"):
        promote(three.store, "hybrid", promoted, TEST)
    if label == "1.0.0":  # two steps ago, and the last one was another's
        rollback(three.store, "hybrid", TEST, from_label="1.0.0")
        rollback(three.store, "hybrid", TEST, from_label="1.9.0")
    before = three.served, len(three.actions())
    with pytest.raises(VersionChanged, match=before[0].replace(".", r"\.")):
        rollback(three.store, "hybrid", TEST, from_label=label)
    assert (three.served, len(three.actions())) == before


def test_a_watched_model_stands_like_any_other(bench: Any) -> None:
    label = bench.watch(0).serving.label
    assert find_standing(bench.store, "alpha").production is None
    promote(bench.store, "alpha", label, TEST)
    assert find_standing(bench.store, "alpha").production == label
    set_stage(bench.store, "alpha", label, None, TEST)
    assert find_standing(bench.store, "alpha").production is None


def test_a_retired_model_and_none_at_all(three: Any) -> None:
    for label in ("1.0.0", "1.9.0", "1.10.0"):
        retire(three.store, "hybrid", label, TEST)
    assert find_standing(three.store, "hybrid").production is None
    with pytest.raises(ModelNotFound):
        find_standing(three.store, "nothing")
