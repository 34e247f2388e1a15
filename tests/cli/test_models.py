"""`mmserver models`: every sub-command's output, its JSON, and what a script can tell from its exit code."""

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
COLUMNS = [
    "model_name", "version", "status", "symbol_count", "group_count", "factor_count", "refreshed_at", "root_path", "error",
]  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path, write_group: Callable[..., None]) -> Path:
    """A directory with one group."""
    write_group(tmp_path / "artifacts", "BTCUSDT_ret_1h")
    return tmp_path / "artifacts"


def rows(done: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return found


def test_a_model_is_added_into_a_data_directory_that_is_not_there_yet(mmserver: Run, directory: Path) -> None:
    (row,) = rows(mmserver("models", "add", "alpha", directory, "--data-dir", "new/state", "--json"))
    assert list(row) == COLUMNS
    assert (row["model_name"], row["status"], row["symbol_count"], row["error"]) == ("alpha", "ok", 1, None)
    assert row["root_path"] == str(directory)
    assert (directory.parent / "new/state/state.db").is_file()
    assert rows(mmserver("models", "list", "--data-dir", "new/state", "--json")) == [row]


def test_a_relative_directory_is_taken_from_where_the_command_runs(mmserver: Run, directory: Path) -> None:
    (row,) = rows(mmserver("models", "add", "alpha", "artifacts", "--json"))
    assert row["root_path"] == str(directory)


def test_a_listing_in_a_pipe_is_a_header_and_tab_separated_lines(mmserver: Run, directory: Path) -> None:
    assert mmserver("models", "list").stdout == "\t".join(COLUMNS) + "\n"
    mmserver("models", "add", "alpha", directory)
    header, line = mmserver("models", "list").stdout.splitlines()
    assert header.split("\t") == COLUMNS
    assert line.split("\t")[::7] == ["alpha", str(directory)]


def test_a_refusal_is_named_in_the_listing(mmserver: Run, directory: Path) -> None:
    (directory / "ETHUSDT_ret_1h_model.pkl").write_bytes(b"torn")
    (row,) = rows(mmserver("models", "add", "alpha", directory, "--json"))
    assert row["status"] == "degraded"
    assert row["error"].startswith("ETHUSDT_ret_1h_model.pkl: ")


@pytest.mark.parametrize(
    ("name", "relpath", "code", "says"),
    [
        pytest.param("alpha", "absent", 2, "no such directory", id="no directory"),
        pytest.param("a/b", "artifacts", 2, "model_name 'a/b'", id="a bad name"),
        pytest.param("taken", "artifacts", 3, "a model named 'taken' exists; remove it first", id="a taken name"),
        pytest.param("alpha", "empty", 2, "no usable artifacts", id="nothing to serve"),
    ],
)
def test_what_cannot_be_added_is_one_line_and_a_code(
    mmserver: Run, directory: Path, name: str, relpath: str, code: int, says: str
) -> None:
    mmserver("models", "add", "taken", directory)
    (directory.parent / "empty").mkdir()
    refused = mmserver("models", "add", name, relpath, code=code)
    assert refused.stdout == ""
    assert says in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_two_groups_of_one_symbol_are_named(mmserver: Run, directory: Path, write_group: Callable[..., None]) -> None:
    write_group(directory, "BTCUSDT_ret_5d")
    assert "BTCUSDT_ret_1h and BTCUSDT_ret_5d" in mmserver("models", "add", "alpha", directory, code=2).stderr


def test_a_directory_outside_the_allowed_roots_is_refused(mmserver: Run, directory: Path, tmp_path: Path) -> None:
    refused = mmserver("models", "add", "alpha", directory, code=2, MMSERVER_ARTIFACT_ROOTS=str(tmp_path / "roots"))
    assert "MMSERVER_ARTIFACT_ROOTS" in refused.stderr


def test_a_model_is_refreshed_compared_rolled_back_and_removed(
    mmserver: Run, directory: Path, write_group: Callable[..., None]
) -> None:
    mmserver("models", "add", "alpha", directory)
    unchanged = mmserver("models", "refresh", "alpha").stdout
    assert unchanged.startswith("alpha: unchanged at ")
    first = unchanged.split()[-1]
    write_group(directory, "BTCUSDT_ret_1h", 1)
    write_group(directory, "ETHUSDT_ret_1h")
    refreshed = json.loads(mmserver("models", "refresh", "alpha", "--json").stdout)
    assert (refreshed["changed"], refreshed["previous_version"]) == (True, first)
    assert (refreshed["added"], refreshed["removed"]) == (["ETHUSDT_ret_1h"], [])

    history = rows(mmserver("models", "versions", "alpha", "--json"))
    assert [(row["version"], row["is_serving"]) for row in history] == [(refreshed["version"], True), (first, False)]

    assert mmserver("models", "diff", "alpha", "latest").stdout == "group_key\tchange\n"
    changed = mmserver("models", "diff", "alpha", first, code=1)
    assert [line.split("\t")[:2] for line in changed.stdout.splitlines()[1:]] == [
        ["BTCUSDT_ret_1h", "updated"],
        ["ETHUSDT_ret_1h", "added"],
    ]
    groups = json.loads(mmserver("models", "diff", "alpha", first, "--json", code=1).stdout)["groups"]
    assert {group["group_key"]: group["model_changed"] for group in groups}["BTCUSDT_ret_1h"]

    (row,) = rows(mmserver("models", "rollback", "alpha", first, "--json"))
    assert row["version"] == first
    assert "has no version 'nope'" in mmserver("models", "rollback", "alpha", "nope", code=4).stderr

    mmserver("models", "remove", "alpha", code=1)  # nobody answers the question
    assert len(rows(mmserver("models", "list", "--json"))) == 1
    assert mmserver("models", "remove", "alpha", "--yes").stdout == ""
    assert rows(mmserver("models", "list", "--json")) == []
    assert len(list(directory.iterdir())) == 8


@pytest.mark.parametrize(
    "arguments",
    [
        ("refresh", "absent"),
        ("versions", "absent"),
        ("rollback", "absent", "latest"),
        ("diff", "absent", "latest"),
        ("remove", "absent", "--yes"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_model_that_is_not_there_is_code_4(mmserver: Run, arguments: tuple[str, ...]) -> None:
    assert mmserver("models", *arguments, code=4).stderr == "mmserver: no model is named 'absent'\n"


def test_every_change_from_the_command_line_is_in_the_audit(mmserver: Run, directory: Path, tmp_path: Path) -> None:
    mmserver("models", "add", "alpha", directory)
    mmserver("models", "remove", "alpha", "--yes")
    with closing(sqlite3.connect(tmp_path / "data/state.db")) as connection:
        found = connection.execute("SELECT actor, action, target FROM audit ORDER BY id").fetchall()
    assert found == [("command line", "model.registered", "alpha"), ("command line", "model.removed", "alpha")]


@pytest.mark.e2e
def test_a_change_from_the_command_line_is_served_by_the_running_server_within_a_second(
    mmserver: Run, directory: Path, tmp_path: Path
) -> None:
    import os
    import re
    import subprocess
    import sys

    import httpx

    command = [Path(sys.executable).with_name("mmserver"), "serve", "--host", "127.0.0.1", "--port", "0"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MMSERVER_")}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "serving on" in line)
        (url,) = re.findall(r"http://[0-9.:]+", line)
        try:
            mmserver("models", "add", "alpha", directory)
            added_at = time.monotonic()
            while httpx.get(f"{url}/api/models/alpha", trust_env=False).status_code != 200:
                assert time.monotonic() - added_at < 60
            assert "a server uses it" in mmserver("doctor").stdout
            mmserver("models", "remove", "alpha", "--yes")
            removed_at = time.monotonic()
            while httpx.get(f"{url}/api/models/alpha", trust_env=False).status_code != 404:
                assert time.monotonic() - removed_at < 60
        finally:
            server.terminate()
            server.stderr.read()
        assert server.wait(60) == 0
