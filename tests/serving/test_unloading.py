"""What was unloaded on purpose predicts no more, under whatever protocol; nothing else is touched by it."""

from typing import Any

import numpy as np
import pytest

from mmserver.errors import NotReady
from mmserver.serving.predictions import Asked, Prediction

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
