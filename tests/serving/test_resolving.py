"""A request means one version and one group, by the contract's rules; what it means is remembered only while it holds."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event

from mmserver.errors import (
    ArtifactInvalid,
    FieldsInvalid,
    GroupRefused,
    ModelAmbiguous,
    ModelNotFound,
    SymbolAmbiguous,
    SymbolArchived,
    SymbolNotFound,
    VersionNotFound,
)


@pytest.fixture
def two(open_desk: Callable[..., Any]) -> Any:
    """Models `alpha` (BTC, ETH) and `beta` (BTC, SOL)."""
    desk = open_desk()
    for name, symbols in (("alpha", ("BTC", "ETH")), ("beta", ("BTC", "SOL"))):
        for symbol in symbols:
            desk.write_weights(name, f"{symbol}_ret_1h")
        desk.register(name)
    return desk


def resolved_name(desk: Any, *arguments: Any, **more: Any) -> tuple[str, str]:
    found = desk.serving.resolve(*arguments, **more)
    return found.version.model_name, found.group.group_key


@pytest.mark.parametrize("written", ["BTC", "btc", "B/T-C", "b_t:c"])
def test_a_symbol_is_found_however_it_is_written(two: Any, written: str) -> None:
    assert resolved_name(two, written, "beta") == ("beta", "BTC_ret_1h")


def test_a_symbol_alone_means_the_only_model_that_has_it(two: Any) -> None:
    assert resolved_name(two, "eth", None) == ("alpha", "ETH_ret_1h")
    assert resolved_name(two, "SOL", None) == ("beta", "SOL_ret_1h")


def test_a_symbol_that_several_models_have_needs_a_model(two: Any) -> None:
    with pytest.raises(ModelAmbiguous, match="BTC is served by alpha, beta; name the model_name"):
        two.serving.resolve("BTC", None)


def test_the_default_model_decides_between_several(open_desk: Callable[..., Any], two: Any) -> None:
    assert resolved_name(open_desk(default_model="beta"), "BTC", None) == ("beta", "BTC_ret_1h")


def test_the_default_model_does_not_keep_a_symbol_from_the_only_model_that_has_it(
    open_desk: Callable[..., Any], two: Any
) -> None:
    assert resolved_name(open_desk(default_model="beta"), "ETH", None) == ("alpha", "ETH_ret_1h")


def test_a_default_model_without_the_symbol_decides_nothing(open_desk: Callable[..., Any], two: Any) -> None:
    two.write_weights("gamma", "XRP_ret_1h")
    two.register("gamma")
    with pytest.raises(ModelAmbiguous):
        open_desk(default_model="gamma").serving.resolve("BTC", None)


def test_ten_models_are_named_and_the_rest_counted(desk: Any) -> None:
    for number in range(12):
        desk.write_weights(f"m{number:02}", "BTC_ret_1h")
        desk.register(f"m{number:02}")
    with pytest.raises(ModelAmbiguous) as caught:
        desk.serving.resolve("BTC", None)
    assert caught.value.values["model_names"] == ", ".join(f"m{number:02}" for number in range(10)) + " and 2 more"


def test_a_model_that_only_lists_factors_is_not_in_the_way_of_one_that_predicts(desk: Any) -> None:
    desk.write_weights("alpha", "BTC_ret_1h")
    desk.register("alpha")
    (desk.directory("beta") / "BTC_ret_1h_factors.txt").write_text("momentum\n")
    desk.register("beta")
    assert resolved_name(desk, "BTC", None) == ("alpha", "BTC_ret_1h")


@pytest.mark.parametrize("reference", [None, "latest", "production"])
def test_what_is_served_now_is_the_latest_and_in_production(two: Any, reference: str | None) -> None:
    assert two.serving.resolve("BTC", "alpha", reference).version is two.store.model("alpha").serving


def test_a_label_means_that_version_for_good(two: Any) -> None:
    before = two.store.model("alpha").serving
    two.write_weights("alpha", "BTC_ret_1h", {"prediction": [[2.0, 0.0, 0.0]]})
    two.refresh("alpha")
    old, new = (two.serving.resolve("BTC", "alpha", label) for label in (before.label, None))
    assert (old.version.label, old.group.id) == (before.label, before.groups["BTC_ret_1h"].id)
    assert new.version.label != before.label
    assert new.group.id != old.group.id


def test_a_moment_means_what_was_served_then(two: Any) -> None:
    before = two.store.model("alpha").serving
    moment = two.store.now()
    two.write_weights("alpha", "BTC_ret_1h", {"prediction": [[2.0, 0.0, 0.0]]})
    two.refresh("alpha")
    assert two.serving.resolve("BTC", "alpha", None, moment).version.label == before.label
    assert two.serving.resolve("BTC", "alpha").version.label != before.label


def test_what_is_not_there_is_named(two: Any) -> None:
    with pytest.raises(ModelNotFound, match="'gamma'"):
        two.serving.resolve("BTC", "gamma")
    with pytest.raises(VersionNotFound, match=r"'1\.0'"):
        two.serving.resolve("BTC", "alpha", "1.0")
    with pytest.raises(SymbolNotFound, match="alpha has no symbol 'DOGE'"):
        two.serving.resolve("DOGE", "alpha")
    with pytest.raises(SymbolNotFound, match="'DOGE'"):
        two.serving.resolve("DOGE", None)
    with pytest.raises(FieldsInvalid):
        two.serving.resolve(None, None)


def test_a_model_alone_means_its_only_group(desk: Any) -> None:
    desk.write_weights("alpha", "BTC_ret_1h")
    desk.register()
    assert resolved_name(desk, None, "alpha") == ("alpha", "BTC_ret_1h")
    desk.write_weights("alpha", "ETH_ret_1h")
    desk.refresh()
    with pytest.raises(SymbolAmbiguous, match="BTC_ret_1h, ETH_ret_1h"):
        desk.serving.resolve(None, "alpha")


# --- symbols that went, or never came ---------------------------------------------------------------------------------


@pytest.fixture
def without_eth(two: Any) -> tuple[Any, str]:
    """(the desk after ETH was taken out of `alpha`, the label of the last version with it)."""
    for weight in (2.0, 3.0):
        last = two.store.model("alpha").serving.label
        two.write_weights("alpha", "BTC_ret_1h", {"prediction": [[weight, 0.0, 0.0]]})
        if weight == 3.0:
            two.delete("alpha", "ETH_ret_1h")
        two.refresh("alpha")
    return two, last


def test_a_symbol_that_was_taken_away_says_which_version_had_it(without_eth: tuple[Any, str]) -> None:
    desk, last = without_eth
    for symbol, model_name in (("eth", "alpha"), ("ETH", None)):
        with pytest.raises(SymbolArchived) as caught:
            desk.serving.resolve(symbol, model_name)
        assert caught.value.values["version"] == last
    assert desk.serving.resolve("ETH", "alpha", last).group.group_key == "ETH_ret_1h"


def test_a_version_that_never_had_the_symbol_does_not_know_it(without_eth: tuple[Any, str]) -> None:
    desk, _ = without_eth
    label = desk.store.model("alpha").serving.label
    desk.write_weights("alpha", "NEW_ret_1h")
    desk.refresh("alpha")
    with pytest.raises(SymbolNotFound):
        desk.serving.resolve("NEW", "alpha", label)


def test_a_symbol_that_comes_back_is_served_again(without_eth: tuple[Any, str]) -> None:
    desk, _ = without_eth
    desk.write_weights("alpha", "ETH_ret_1h")
    desk.refresh("alpha")
    assert resolved_name(desk, "ETH", "alpha") == ("alpha", "ETH_ret_1h")


def test_a_symbol_whose_files_were_refused_is_not_unknown(two: Any) -> None:
    (two.directory("alpha") / "BAD_ret_1h_weights.json").write_bytes(b"{")
    with pytest.raises(ArtifactInvalid):
        two.refresh("alpha")
    for model_name in ("alpha", None):
        with pytest.raises(GroupRefused, match=r"BAD_ret_1h_weights\.json"):
            two.serving.resolve("BAD", model_name)


def test_a_group_for_all_symbols_serves_those_that_have_no_own(desk: Any) -> None:
    desk.write_weights("alpha", "BTC_ret_1h")
    desk.write_weights("alpha", "*_ret_1h")
    desk.register()
    assert resolved_name(desk, "BTC", "alpha") == ("alpha", "BTC_ret_1h")
    assert resolved_name(desk, "anything", "alpha") == ("alpha", "*_ret_1h")
    assert resolved_name(desk, "anything", None) == ("alpha", "*_ret_1h")


def test_a_group_for_all_symbols_does_not_stand_in_for_a_symbols_own_refused_files(desk: Any) -> None:
    desk.write_weights("alpha", "*_ret_1h")
    desk.write_weights("alpha", "BAD_ret_1h")
    (desk.directory("alpha") / "BAD_ret_1h_weights.json").write_bytes(b"{")
    desk.register()
    assert resolved_name(desk, "anything", "alpha") == ("alpha", "*_ret_1h")
    for model_name in ("alpha", None):
        with pytest.raises(GroupRefused, match=r"BAD_ret_1h_weights\.json"):
            desk.serving.resolve("BAD", model_name)


# --- remembering ------------------------------------------------------------------------------------------------------


@pytest.fixture
def count_reads(two: Any) -> Any:
    """A function that runs something and counts the statements that the database saw."""

    def count(call: Any) -> int:
        seen: list[str] = []

        def on_statement(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            seen.append(statement)

        engine = two.store.database._readers
        event.listen(engine, "before_cursor_execute", on_statement)
        try:
            call()
        finally:
            event.remove(engine, "before_cursor_execute", on_statement)
        return len(seen)

    return count


def test_what_is_served_is_resolved_without_the_database(two: Any, count_reads: Any) -> None:
    assert count_reads(lambda: two.serving.resolve("BTC", "alpha")) == 0
    assert count_reads(lambda: two.serving.resolve("SOL", None)) == 0


def test_an_old_label_is_looked_up_once(two: Any, count_reads: Any) -> None:
    label = two.store.model("alpha").serving.label
    two.write_weights("alpha", "BTC_ret_1h", {"prediction": [[2.0, 0.0, 0.0]]})
    two.refresh("alpha")
    assert count_reads(lambda: two.serving.resolve("BTC", "alpha", label)) > 0
    assert count_reads(lambda: two.serving.resolve("BTC", "alpha", label)) == 0


def test_unknown_symbols_do_not_ask_the_database_again_and_again(two: Any, count_reads: Any) -> None:
    def ask() -> None:
        for number in range(20):
            with pytest.raises(SymbolNotFound):
                two.serving.resolve(f"X{number}", None)

    ask()
    assert count_reads(ask) == 0


def test_what_is_known_is_forgotten_when_the_catalog_changes(two: Any) -> None:
    assert two.serving.known("BTC", "alpha") is None
    first = two.serving.resolve("BTC", "alpha")
    assert two.serving.known("BTC", "alpha") is first
    two.write_weights("alpha", "BTC_ret_1h", {"prediction": [[2.0, 0.0, 0.0]]})
    two.refresh("alpha")
    assert two.serving.known("BTC", "alpha") is None
    assert two.serving.resolve("BTC", "alpha").group.id != first.group.id


def test_a_removed_model_is_gone_at_once(two: Any) -> None:
    two.serving.resolve("SOL", None)
    two.remove("beta")
    with pytest.raises(SymbolNotFound):
        two.serving.resolve("SOL", None)
    assert resolved_name(two, "BTC", None) == ("alpha", "BTC_ret_1h")
