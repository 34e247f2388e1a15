"""`mmserver audit` as people and scripts use it."""

import csv
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mmserver.storage.audit import record_audit_alone
from mmserver.storage.data_dir import DataDir
from mmserver.storage.database import Database, open_database
from mmserver.storage.schema import create_database
from mmserver.storage.snapshots import create_snapshot
from tests.cli.commands import run


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    made = DataDir(tmp_path / "data")
    made.create()
    create_database(made.database_path, datetime.now(UTC))
    return made


@pytest.fixture
def database(data_dir: DataDir) -> Iterator[Database]:
    opened = open_database(data_dir.database_path)
    for i, actor in enumerate(("command line", "key:a", "key:b")):
        record_audit_alone(opened, at=f"2026-11-2{i}T00:00:00.000000Z", actor=actor, action="model.registered",
                           target=f"m{i}\n\u202e", detail={"n": i, "none": None}, request_id=None)  # fmt: skip
    yield opened
    opened.close()


@pytest.fixture
def audit(data_dir: DataDir, database: Database) -> Callable[..., Any]:
    return lambda command, *arguments, **expected: run(
        "audit", command, "--data-dir", data_dir.path, *arguments, **expected
    )


def tamper(data_dir: DataDir, statement: str) -> None:
    with closing(sqlite3.connect(data_dir.database_path)) as raw:
        raw.execute("DROP TRIGGER audit_no_delete")
        raw.execute("DROP TRIGGER audit_no_update")
        raw.execute(statement)
        raw.commit()


def test_entries_are_listed_newest_first_each_on_its_line(audit: Callable[..., Any]) -> None:
    lines = audit("list").output.splitlines()
    assert lines[0].split("\t") == ["id", "at", "actor", "action", "target", "detail", "request_id"]
    assert [line.split("\t")[4] for line in lines[1:]] == [rf"m{i}\n\u202e" for i in (2, 1, 0)]
    assert lines[1].split("\t")[5] == "n: 2"


def test_filters_and_a_limit_are_kept(audit: Callable[..., Any]) -> None:
    def found(*arguments: str) -> list[int]:
        return [item["id"] for item in json.loads(audit("list", "--json", *arguments).output)["items"]]

    assert found("--limit", "2") == [3, 2]
    assert found("--actor", "key:*") == [3, 2]
    assert found("--target", "m0*", "--action", "model.*") == [1]
    assert found("--since", "2026-11-21", "--until", "2026-11-22") == [2]
    assert "is no time" in audit("list", "--since", "yesterday", code=2).output


def test_a_whole_chain_gives_a_head_that_is_found_again_later(audit: Callable[..., Any], database: Database) -> None:
    first = json.loads(audit("verify", "--json").output)
    assert (first["is_whole"], first["rows"]) == (True, 3)
    assert first["head"] in audit("verify").output
    record_audit_alone(database, at="t", actor="a", action="b", target="c", detail={}, request_id=None)
    assert "4 rows" in audit("verify", "--head", first["head"]).output
    assert "no row has the hash" in audit("verify", "--head", "0" * 63 + "1", code=1).output


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        pytest.param("UPDATE audit SET actor = 'nobody' WHERE id = 2", "row 2", id="edited"),
        pytest.param("DELETE FROM audit WHERE id = 2", "row 3", id="deleted"),
        pytest.param("DELETE FROM audit WHERE id = 3", "row 3 is missing", id="truncated"),
        pytest.param("UPDATE meta SET key = 'x' WHERE key = 'audit_head'", "head", id="no-head"),
        pytest.param("SELECT 1", "audit_no_delete", id="only-the-triggers"),
    ],
)
def test_a_broken_chain_is_exit_code_one_and_says_where(
    audit: Callable[..., Any], data_dir: DataDir, statement: str, said: str
) -> None:
    tamper(data_dir, statement)
    assert said in audit("verify", code=1).output
    assert json.loads(audit("verify", "--json", code=1).output)["is_whole"] is False


def test_doctor_says_that_the_chain_is_broken(audit: Callable[..., Any], data_dir: DataDir) -> None:
    def checked() -> dict[str, str]:
        found = json.loads(run("doctor", "--data-dir", data_dir.path, "--json", code=code).output)["items"]
        return {item["level"]: item["detail"] for item in found if item["name"] == "audit"}

    code = 0
    assert "3 rows" in checked()["ok"]
    tamper(data_dir, "UPDATE audit SET actor = 'nobody' WHERE id = 2")
    code = 1
    assert "row 2" in checked()["fail"]


def test_the_chain_of_a_snapshot_is_verified_too(
    audit: Callable[..., Any], database: Database, data_dir: DataDir
) -> None:
    made = create_snapshot(database, data_dir.snapshots_dir, datetime.now(UTC))
    assert "3 rows" in audit("verify", "--file", made.path).output


def test_an_export_has_every_entry_with_its_hash(audit: Callable[..., Any], tmp_path: Path) -> None:
    lines = audit("export").output.splitlines()
    assert [json.loads(line)["target"] for line in lines] == [f"m{i}\n\u202e" for i in range(3)]
    assert all(line.isascii() for line in lines)
    said = audit("export", "--format", "csv", "--actor", "key:*", "--output", tmp_path / "a.csv").output
    assert said == f"2 entries: {tmp_path / 'a.csv'}\n"
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [(row["id"], row["target"], json.loads(row["detail"])["n"]) for row in rows] == [
        ("2", r"m1\n\u202e", 1),
        ("3", r"m2\n\u202e", 2),
    ]
    assert all(len(row["hash"]) == 64 for row in rows)


def test_without_a_database_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    assert "no database" in run("audit", "list", "--data-dir", tmp_path, code=4).output
