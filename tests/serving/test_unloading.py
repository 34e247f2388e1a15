"""What was unloaded on purpose predicts no more, under whatever protocol; nothing else is touched by it."""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mmserver.errors import NotReady
from mmserver.serving.predictions import Asked, Prediction, Serving
from mmserver.serving.siblings import Siblings

ROW = [1.0, 2.0, 3.0]


@pytest.fixture
def twins(desk: Any) -> Any:
    """Models `alpha` and `beta` with the same content, which is stored once."""
    for name in ("alpha", "beta"):
        desk.write_weights(name, "BTC_ret_1h")
        desk.write_weights(name, "ETH_ret_1h")
        desk.register(name)
    assert desk.group(model_name="alpha").id == desk.group(model_name="beta").id
    return desk


def is_loaded(desk: Any, symbol: str = "BTC") -> bool:
    return bool(desk.serving.predictors.is_loaded(desk.group(symbol)))


def test_an_unloaded_group_predicts_in_no_way_until_it_is_allowed_again(twins: Any) -> None:
    serving, resolved = twins.serving, twins.resolved()
    twins.predict(ROW)
    assert serving.held(resolved) is not None
    serving.unloading.unload(resolved)
    assert serving.held(resolved) is None
    with pytest.raises(NotReady, match="alpha: BTC_ret_1h was unloaded"):
        twins.predict(ROW)
    with pytest.raises(NotReady):
        serving.run(resolved, np.array([ROW]))
    with pytest.raises(NotReady):
        serving.loaded(resolved)
    answers = serving.predict_many([Asked("BTC", ROW, "alpha"), Asked("BTC", ROW, "beta")])
    assert isinstance(answers[0], NotReady)
    assert isinstance(answers[1], Prediction)
    serving.unloading.allow(resolved)
    twins.predict(ROW)


def test_another_model_with_the_same_content_goes_on_predicting(twins: Any) -> None:
    twins.predict(ROW)
    twins.serving.unloading.unload(twins.resolved())
    assert is_loaded(twins)
    twins.predict(ROW, model_name="beta")
    twins.serving.unloading.unload(twins.resolved(model_name="beta"))
    assert not is_loaded(twins)
    with pytest.raises(NotReady):
        twins.predict(ROW, model_name="beta")
    twins.serving.unloading.allow(twins.resolved())
    twins.predict(ROW)
    with pytest.raises(NotReady):
        twins.predict(ROW, model_name="beta")


def test_new_content_does_not_bring_an_unloaded_group_back(twins: Any) -> None:
    before = twins.group().id
    twins.serving.unloading.unload(twins.resolved())
    twins.write_weights("alpha", "BTC_ret_1h", {"prediction": [[2.0, 0.0, 0.0]]})
    twins.refresh()
    assert twins.group().id != before
    with pytest.raises(NotReady):
        twins.predict(ROW)
    twins.predict(ROW, "ETH")


def test_old_versions_of_an_unloaded_group_are_unloaded_too(twins: Any) -> None:
    label = twins.store.model("alpha").serving.label
    twins.write_weights("alpha", "BTC_ret_1h", {"prediction": [[2.0, 0.0, 0.0]]})
    twins.refresh()
    twins.predict(ROW, version=label)
    twins.serving.unloading.unload(twins.resolved())
    with pytest.raises(NotReady):
        twins.predict(ROW, version=label)


def test_a_model_that_is_registered_again_is_not_unloaded(twins: Any) -> None:
    twins.serving.unloading.unload(twins.resolved())
    twins.remove("alpha")
    twins.register("alpha")
    twins.predict(ROW)


def test_all_groups_of_a_model_can_be_allowed_at_once(twins: Any) -> None:
    for symbol in ("BTC", "ETH"):
        twins.serving.unloading.unload(twins.resolved(symbol))
    twins.serving.unloading.unload(twins.resolved(model_name="beta"))
    twins.serving.unloading.allow_all("alpha")
    twins.predict(ROW)
    twins.predict(ROW, "ETH")
    with pytest.raises(NotReady):
        twins.predict(ROW, model_name="beta")


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.fixture
def process(twins: Any) -> Iterator[Callable[[int], Serving]]:
    """The prediction service of each process of a server, made anew at each call."""
    with tempfile.TemporaryFile() as file:
        yield lambda slot: Serving(twins.store, Siblings.of_file(file.fileno(), 0, 2, slot))


def test_an_unload_reaches_a_process_that_looks_and_so_does_the_load(
    twins: Any, process: Callable[[int], Serving]
) -> None:
    first, second, resolved = process(0), process(1), twins.resolved()
    assert second.loaded(resolved)
    first.unloading.unload(resolved)
    assert second.held(resolved) is not None  # until it looks
    second.follow()
    assert second.held(resolved) is None
    with pytest.raises(NotReady, match="alpha: BTC_ret_1h was unloaded"):
        second.predict(Asked("BTC", ROW, "alpha"))
    second.predict(Asked("BTC", ROW, "beta"))
    second.unloading.allow(resolved)
    assert not second.unloading.is_unloaded("alpha", "BTC_ret_1h")
    first.follow()
    first.predict(Asked("BTC", ROW, "alpha"))


def test_a_process_that_takes_anothers_place_does_not_predict_with_what_is_unloaded(
    twins: Any, process: Callable[[int], Serving]
) -> None:
    process(1).unloading.unload(twins.resolved())
    with pytest.raises(NotReady):
        process(1).predict(Asked("BTC", ROW, "alpha"))
    with pytest.raises(NotReady):
        process(0).predict(Asked("BTC", ROW, "alpha"))


def test_what_two_processes_unload_at_once_is_unloaded_both(twins: Any, process: Callable[[int], Serving]) -> None:
    """Neither has seen the other's when it writes its own."""
    twins.remove("beta")  # which would hold on to the content
    first, second = process(0), process(1)
    for serving in (first, second):
        serving.loaded(twins.resolved())
        serving.loaded(twins.resolved("ETH"))
    first.unloading.unload(twins.resolved("BTC"))
    second.unloading.unload(twins.resolved("ETH"))
    assert not second.predictors.is_loaded(twins.group("BTC"))  # taken over while it wrote, memory and all
    assert first.predictors.is_loaded(twins.group("ETH"))
    first.follow()
    assert not first.predictors.is_loaded(twins.group("ETH"))
    for serving in (first, second, process(0)):
        assert serving.unloading.is_unloaded("alpha", "BTC_ret_1h")
        assert serving.unloading.is_unloaded("alpha", "ETH_ret_1h")
    first.unloading.allow_all("alpha")
    second.follow()
    second.predict(Asked("ETH", ROW, "alpha"))


def test_asking_whether_a_group_is_unloaded_reads_no_file(
    twins: Any, process: Callable[[int], Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, resolved = process(0), twins.resolved()
    serving.unloading.unload(resolved)
    monkeypatch.setattr("mmserver.serving.siblings.os.pread", None)
    assert serving.unloading.is_unloaded("alpha", "BTC_ret_1h")
    with pytest.raises(NotReady):
        serving.unloading.check(resolved)
