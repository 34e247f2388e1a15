"""One flat list of names, each of which finds its own group again."""

from typing import Any

import pytest

from mmserver.errors import GroupHasNoModel, ModelNotFound, SymbolAmbiguous, SymbolArchived, SymbolNotFound
from mmserver.serving.tensor_models import (
    find_tensor_model,
    known_tensor_model,
    outputs_of,
    own_name,
    tensor_models,
)


@pytest.fixture
def named(desk: Any) -> Any:
    """`one` and `one.BTC`, both with BTC and ETH; `single` with BTC only; `all` with one group for every symbol."""
    for name in ("one", "one.BTC"):
        desk.write_weights(name, "BTC_ret_1h", {"prediction": [[float(len(name)), 0, 0]]})
        desk.write_weights(name, "ETH_ret_1h")
    desk.write_weights("single", "BTC_ret_1h")
    desk.write_weights("all", "*_ret_1h")
    for name in ("one", "one.BTC", "single", "all"):
        desk.register(name)
    return desk


def found(desk: Any, name: str) -> tuple[str, str, str]:
    model = find_tensor_model(desk.serving, name)
    return model.name, model.version.model_name, model.group.symbol


def test_every_listed_name_finds_its_own_group(named: Any) -> None:
    listed = list(tensor_models(named.store.catalog))
    assert [model.name for model in listed] == ["all", "one.BTC", "one.ETH", "one.BTC.BTC", "one.BTC.ETH", "single.BTC"]
    for model in listed:
        if model.name != "one.BTC":
            assert find_tensor_model(named.serving, model.name) == model


def test_the_longest_model_name_wins(named: Any) -> None:
    assert found(named, "one.BTC.ETH") == ("one.BTC.ETH", "one.BTC", "ETH")
    assert found(named, "one.ETH") == ("one.ETH", "one", "ETH")
    with pytest.raises(SymbolAmbiguous):
        found(named, "one.BTC")  # a model of that name is there, with two groups


def test_a_model_of_one_group_is_found_by_its_name_alone(named: Any) -> None:
    assert found(named, "single") == ("single", "single", "BTC")
    assert found(named, "single.btc") == ("single.BTC", "single", "BTC")
    with pytest.raises(SymbolAmbiguous):
        found(named, "one")


def test_a_group_key_is_a_name_too(named: Any) -> None:
    assert found(named, "one.ETH_ret_1h") == ("one.ETH", "one", "ETH")
    with pytest.raises(SymbolNotFound):
        found(named, "one.ETH_ret_2h")


def test_a_group_for_all_symbols_answers_by_the_name_that_was_asked(named: Any) -> None:
    assert found(named, "all") == ("all", "all", "*")
    assert found(named, "all.BTC") == ("all.BTC", "all", "*")


def test_a_group_that_shares_its_symbol_is_named_by_its_key(named: Any) -> None:
    import dataclasses

    version = named.store.model("one").serving
    shared = dataclasses.replace(version, group_keys_by_symbol={"btc": ("BTC_ret_1h", "BTC_ret_2h")})
    assert own_name(shared, version.groups["BTC_ret_1h"]) == "one.BTC_ret_1h"


@pytest.mark.parametrize("name", ["", ".", "nosuch", "nosuch.BTC", ".BTC", "on", "single."])
def test_a_name_that_begins_with_no_model_is_not_found(named: Any, name: str) -> None:
    with pytest.raises(ModelNotFound):
        find_tensor_model(named.serving, name)
    assert known_tensor_model(named.serving, name, None) is None


def test_what_cannot_predict_is_not_listed_and_says_why(desk: Any) -> None:
    desk.write_weights("alpha", "BTC_ret_1h")
    directory = desk.directory("alpha")
    (directory / "ETH_ret_1h_factors.txt").write_text("momentum\n")
    desk.register()
    assert [model.name for model in tensor_models(desk.store.catalog)] == ["alpha.BTC"]
    with pytest.raises(GroupHasNoModel):
        find_tensor_model(desk.serving, "alpha.ETH")


def test_a_symbol_that_was_taken_away_is_found_in_the_versions_that_have_it(desk: Any) -> None:
    for key in ("BTC_ret_1h", "ETH_ret_1h", "SOL_ret_1h"):
        desk.write_weights("alpha", key)
    desk.register()
    label = desk.store.model("alpha").serving.label
    desk.delete("alpha", "ETH_ret_1h")
    for _ in range(8):
        desk.refresh()
    with pytest.raises(SymbolArchived):
        find_tensor_model(desk.serving, "alpha.ETH")
    assert find_tensor_model(desk.serving, "alpha.ETH", label).version.label == label


def test_what_was_asked_before_is_known_without_waiting(named: Any) -> None:
    assert known_tensor_model(named.serving, "single.btc", None) is None
    model = find_tensor_model(named.serving, "single.btc")
    assert known_tensor_model(named.serving, "single.btc", None) == model


def test_a_plugins_model_has_the_outputs_that_it_gives(desk: Any) -> None:
    desk.write_weights("alpha", "BTC_ret_1h", {"score": [[1, 0, 0], [0, 1, 0]], "prediction": [[1, 1, 1]]})
    desk.register()
    loaded = desk.serving.loaded(desk.resolved())
    assert [(output.name, output.shape) for output in outputs_of(loaded)] == [("prediction", (-1,)), ("score", (-1, 2))]
