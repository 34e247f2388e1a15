"""Symbols as traders write them, and how group keys fall apart."""

import pytest

from mmserver.catalog.symbols import comparable_symbol, split_group_key


@pytest.mark.parametrize("written", ["BTC/USDT", "BTC-USDT", "btc_usdt", "BtC:UsDt", "BTCUSDT", "b/t-c_u:sdt"])
def test_separators_and_case_do_not_count(written: str) -> None:
    assert comparable_symbol(written) == comparable_symbol("BTCUSDT")


def test_other_symbols_differ() -> None:
    assert comparable_symbol("BTCUSD") != comparable_symbol("BTCUSDT")


@pytest.mark.parametrize(
    ("group_key", "declared", "expected"),
    [
        ("SOLUSDT_mid_chg_1m", None, ("SOLUSDT", "mid_chg_1m")),
        ("BTC_USDT_mid_chg_1m", "BTC_USDT", ("BTC_USDT", "mid_chg_1m")),
        ("BTC_USDT_mid_chg_1m", "ETH", ("BTC", "USDT_mid_chg_1m")),
        ("BTC_USDT_mid_chg_1m", "BTC_US", ("BTC", "USDT_mid_chg_1m")),
        ("BTC", None, ("BTC", "")),
        ("BTC_", None, ("BTC", "")),
        ("BTC_x", "", ("BTC", "x")),
        ("BTC_x", 5, ("BTC", "x")),
        ("BTC_x", "BTC_x", ("BTC", "x")),
        ("_ret_1h", None, ("_ret_1h", "")),
    ],
)
def test_a_group_key_is_a_symbol_and_a_return(group_key: str, declared: object, expected: tuple[str, str]) -> None:
    assert split_group_key(group_key, declared) == expected
