"""Symbols as traders write them: `BTC/USDT`, `btc-usdt` and `BTCUSDT` are one symbol."""

ALL_SYMBOLS = "*"
"""The symbol of a group that serves every symbol."""

_DROPPED = str.maketrans("", "", "/-_:")


def comparable_symbol(symbol: str) -> str:
    """The form in which symbols compare: without separators and case."""
    return symbol.translate(_DROPPED).casefold()


def split_group_key(group_key: str, declared_symbol: object = None) -> tuple[str, str]:
    """Symbol and return name: `SOLUSDT_mid_chg_1m` → (`SOLUSDT`, `mid_chg_1m`).

    A symbol that the info file declares decides where to cut, if the key begins with it; otherwise the first underscore
    does. A key with no underscore, or one at its start, is a symbol with an empty return name.
    """
    if isinstance(declared_symbol, str) and declared_symbol and group_key.startswith(declared_symbol + "_"):
        return declared_symbol, group_key[len(declared_symbol) + 1 :]
    symbol, _, return_name = group_key.partition("_")
    return (symbol, return_name) if symbol else (group_key, "")
