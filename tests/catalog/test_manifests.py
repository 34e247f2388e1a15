"""The producer's manifest: what it vouches for is verified, what it contradicts is never served."""

import hashlib
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from mmserver.errors import NothingParseable


def write_manifest(opened: Any, *, directory: str = "", leave_out: str = "", wrong: str = "") -> None:
    folder = opened.artifacts.path / directory
    entries = [
        {
            "name": path.name,
            "size": path.stat().st_size,
            "sha256": "0" * 64 if path.name == wrong else hashlib.sha256(path.read_bytes()).hexdigest().upper(),
        }
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in ("manifest.json", leave_out)
    ]
    (folder / "manifest.json").write_text(json.dumps({"files": entries, "generation": 5}))


def test_what_the_manifest_vouches_for_is_verified(alpha: Any) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0)
    alpha.artifacts.write_group("sub/ETH_ret_1h", 1)
    write_manifest(alpha)
    alpha.register()
    assert (alpha.group("BTC").integrity, alpha.group("ETH").integrity) == ("verified", "unverified")


def test_a_file_that_the_manifest_does_not_name_leaves_its_group_unverified(alpha: Any) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0)
    write_manifest(alpha, leave_out="BTC_ret_1h_ic.csv")
    alpha.register()
    assert alpha.group("BTC").integrity == "unverified"


def test_every_flipped_byte_is_refused_where_a_manifest_is(alpha: Any) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0)
    write_manifest(alpha)
    alpha.register()
    path = alpha.artifacts.path / "BTC_ret_1h_model.pkl"
    data = path.read_bytes()
    for at in range(0, len(data), len(data) // 10):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        alpha.poll(100)
        alpha.poll(100)
        assert alpha.refusals() == {"BTC_ret_1h": "manifest_mismatch"}
    path.write_bytes(data)
    alpha.poll(100)
    alpha.poll(100)
    assert (alpha.refusals(), alpha.model.serving.seq) == ({}, 1)


def test_files_before_their_manifest_wait_for_it_and_are_then_served(alpha: Any) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0)
    write_manifest(alpha)
    alpha.register()
    alpha.artifacts.write_group("BTC_ret_1h", 1)
    alpha.settle()
    assert (alpha.refusals(), alpha.seed("BTC")) == ({"BTC_ret_1h": "manifest_mismatch"}, 0)
    write_manifest(alpha)
    alpha.poll(100)
    assert (alpha.refusals(), alpha.seed("BTC"), alpha.group("BTC").integrity) == ({}, 1, "verified")


def test_where_a_manifest_is_required_nothing_else_is_served_until_it_comes(open_alpha: Callable[..., Any]) -> None:
    opened = open_alpha(require_manifest=True)
    opened.artifacts.write_group("BTC_ret_1h", 0)
    opened.artifacts.write_group("ETH_ret_1h", 1)
    with pytest.raises(NothingParseable, match="no_manifest"):
        opened.register()
    write_manifest(opened, leave_out="ETH_ret_1h_model.pkl")
    opened.register()
    assert opened.refusals() == {"ETH_ret_1h": "not_in_manifest"}
    write_manifest(opened)
    opened.settle()
    opened.poll(100)
    assert (opened.refusals(), opened.seed("ETH"), opened.model.status) == ({}, 1, "ok")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"files": [{"name": 5}]}', b"\xff"])
def test_a_manifest_that_cannot_be_read_is_waited_for(alpha: Any, text: bytes) -> None:
    alpha.artifacts.write_group("sub/BTC_ret_1h", 0)
    alpha.artifacts.write_group("ETH_ret_1h", 1)
    manifest = alpha.artifacts.write("sub/manifest.json", text)
    alpha.register()
    assert alpha.refusals() == {"BTC_ret_1h": "manifest_invalid"}
    manifest.unlink()
    alpha.settle()
    alpha.poll(100)
    assert (alpha.refusals(), alpha.seed("BTC")) == ({}, 0)


def test_a_manifest_that_comes_later_is_believed_when_the_files_are_hashed_again(
    open_alpha: Callable[..., Any],
) -> None:
    opened = open_alpha(rehash_interval_s=20.0)
    opened.artifacts.write_group("BTC_ret_1h", 0)
    opened.register()
    opened.settle()
    write_manifest(opened, wrong="BTC_ret_1h_model.pkl")
    for _ in range(5):
        opened.poll(20)
    assert (opened.refusals(), opened.seed("BTC")) == ({"BTC_ret_1h": "manifest_mismatch"}, 0)
    write_manifest(opened)
    for _ in range(5):
        opened.poll(20)
    assert (opened.refusals(), opened.group("BTC").integrity) == ({}, "verified")


def test_other_files_beside_a_manifest_are_no_trouble(alpha: Any) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0)
    alpha.artifacts.write("notes.txt", pickle.dumps({}))
    write_manifest(alpha)
    alpha.artifacts.write("later.txt", b"extra")
    assert alpha.register().status == "ok"
