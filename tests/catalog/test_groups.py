"""Finding a group by its symbol."""

import hashlib
from typing import Any

import pytest

from mmserver.catalog.groups import find_group
from mmserver.errors import SymbolNotFound


@pytest.mark.parametrize("written", ["BTC", "btc", "B/T-C", "b_t:c"])
def test_a_symbol_is_found_however_it_is_written(registered: Any, written: str) -> None:
    assert find_group(registered.model.serving, written).group_key == "BTC_ret_1h"


@pytest.mark.parametrize(("symbol", "group_key"), [("DOGE", None), ("", None), ("BTC", "ETH_ret_1h"), ("BTC", "")])
def test_what_is_not_there_is_not_found(registered: Any, symbol: str, group_key: str | None) -> None:
    with pytest.raises(SymbolNotFound):
        find_group(registered.model.serving, symbol, group_key)


def test_a_group_key_chooses(registered: Any) -> None:
    assert find_group(registered.model.serving, "BTC", "BTC_ret_1h").symbol == "BTC"


def test_the_detail_has_the_table_the_info_and_the_files_as_they_were_read(registered: Any) -> None:
    detail = registered.detail("ETH")
    assert [row["factor"] for row in detail.record.ic_table] == ["momentum", "volume", "spread"]
    assert detail.record.ic_table[0] == {"factor": "momentum", "ic": 0.02, "kendall_tau": 0.01}
    assert detail.record.info == registered.artifacts.info(1)
    assert detail.record.model is not None
    assert detail.record.model["n_trees"] == 4
    files = {path.name: path.read_bytes() for path in registered.artifacts.path.glob("ETH_*")}
    assert {a.name: (a.role, a.size_bytes, a.sha256) for a in detail.artifacts} == {
        name: (name.split("_")[-1].split(".")[0], len(data), hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    }
