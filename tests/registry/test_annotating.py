"""What is said of a version may change; what it predicts may not."""

from typing import Any

import pytest

from mmserver.catalog.catalog import Actor
from mmserver.errors import RequestInvalid, VersionNotFound, WrongModelKind
from mmserver.registry.annotating import annotate_version, update_metrics
from mmserver.registry.fields import MAX_FIELD_BYTES
from mmserver.registry.versions import get_version

TEST = Actor("test")


@pytest.fixture
def said(bench: Any) -> Any:
    bench.register("1.0.0", metrics={"sharpe": 1.5, "loss": 0.2}, tags={"team": "a", "run": "7"}, description="first")
    bench.events.clear()
    return bench


def test_metrics_are_merged_and_null_removes(said: Any) -> None:
    before = get_version(said.store, "hybrid", "1.0.0")
    after = update_metrics(said.store, "hybrid", "latest", {"sharpe": 2, "loss": None, "ic": 0.03, "no": None}, TEST)
    assert after.metrics == {"sharpe": 2, "ic": 0.03}
    assert after == get_version(said.store, "hybrid", "1.0.0")
    assert (after.sha256, after.group) == (before.sha256, before.group)
    assert after.updated_at > before.updated_at
    assert said.audit()[-1].action == "version.measured"
    assert said.audit()[-1].detail == {
        "version": "1.0.0",
        "metrics": {"sharpe": 2, "ic": 0.03, "loss": None, "no": None},
    }
    assert [(event.kind, event.version) for event in said.events] == [("version_described", "1.0.0")]


def test_description_and_tags_are_changed_in_one_step(said: Any) -> None:
    after = annotate_version(said.store, "hybrid", "1.0.0", TEST, description="second", tags={"team": "b", "run": None})
    assert (after.description, after.tags) == ("second", {"team": "b"})
    assert said.actions() == ["version.registered", "version.described"]


def test_what_is_not_named_stays(said: Any) -> None:
    assert annotate_version(said.store, "hybrid", "1.0.0", TEST, tags={"x": "y"}).description == "first"
    assert annotate_version(said.store, "hybrid", "1.0.0", TEST, description="").tags == {
        "team": "a", "run": "7", "x": "y"
    }  # fmt: skip
    assert get_version(said.store, "hybrid", "1.0.0").description == ""


def test_saying_the_same_again_is_no_change(said: Any) -> None:
    update_metrics(said.store, "hybrid", "1.0.0", {"sharpe": 1.5, "no": None}, TEST)
    annotate_version(said.store, "hybrid", "1.0.0", TEST, description="first", tags={"team": "a"})
    assert (said.actions(), said.events) == (["version.registered"], [])


@pytest.mark.parametrize(
    ("metrics", "where"),
    [
        pytest.param({"ic": 0.1, "sharpe": float("inf")}, "metrics.sharpe", id="infinite"),
        pytest.param({"sharpe": [1]}, "metrics.sharpe", id="list"),
        pytest.param({f"m{number:0200}": 0.1 for number in range(700)}, "metrics", id="too much with what is there"),
        pytest.param([], "metrics", id="no object"),
    ],
)
def test_a_metric_that_cannot_be_kept_is_named_and_none_is_changed(said: Any, metrics: Any, where: str) -> None:
    update_metrics(said.store, "hybrid", "1.0.0", {f"n{number:0200}": 0.1 for number in range(700)}, TEST)
    before = get_version(said.store, "hybrid", "1.0.0")
    with pytest.raises(RequestInvalid) as caught:
        update_metrics(said.store, "hybrid", "1.0.0", metrics, TEST)
    assert caught.value.values["errors"][0]["loc"] == where
    assert get_version(said.store, "hybrid", "1.0.0") == before


def test_tags_and_descriptions_that_cannot_be_kept_are_refused(said: Any) -> None:
    for more in ({"tags": {"a": 1}}, {"tags": {"a": "x" * MAX_FIELD_BYTES}}, {"description": 7}):
        with pytest.raises(RequestInvalid):
            annotate_version(said.store, "hybrid", "1.0.0", TEST, **more)
    assert said.actions() == ["version.registered"]


def test_what_is_not_there_and_what_is_watched_is_not_described(said: Any) -> None:
    with pytest.raises(VersionNotFound):
        update_metrics(said.store, "hybrid", "2.0.0", {}, TEST)
    said.watch()
    with pytest.raises(WrongModelKind):
        update_metrics(said.store, "alpha", "latest", {}, TEST)
