"""`mmserver keys` on a real data directory."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mmserver.cli.keys import keys
from mmserver.cli.main import LazyGroup
from mmserver.security.keys import parts_from_key


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The command in this process; errors as the whole program shows them."""
    monkeypatch.setenv("MMSERVER_DATA_DIR", str(tmp_path / "data"))
    program = LazyGroup()
    program.get_command = lambda _context, _name: keys  # type: ignore[method-assign]

    def call(*arguments: str, code: int = 0) -> Result:
        done = CliRunner().invoke(program, ["keys", *arguments])
        assert done.exit_code == code, done.output
        return done

    return call


def test_create_prints_the_key_alone_on_stdout(run) -> None:  # type: ignore[no-untyped-def]
    done = run(
        "create", "--scope", "read", "--scope", "predict", "--label", "bot", "--model", "btc-*", "--expires", "30d"
    )
    assert done.stdout.count("\n") == 1
    parts = parts_from_key(done.stdout.removesuffix("\n"))
    assert "first key" in done.stderr
    assert parts.secret not in done.stderr
    listed = run("list", "--json")
    assert parts.secret not in listed.output
    (item,) = json.loads(listed.stdout)["items"]
    assert (item["id"], item["status"], item["scopes"]) == (parts.key_id, "active", ["read", "predict"])
    assert (item["models"], item["venues"]) == (["btc-*"], None)
    assert "first key" not in run("create", "--scope", "admin", "--label", "me").stderr


def test_revoked_and_rotated_keys_are_listed_as_such(run) -> None:  # type: ignore[no-untyped-def]
    first = json.loads(run("create", "--scope", "read", "--label", "a", "--json").stdout)
    second = json.loads(run("rotate", first["id"], "--json").stdout)
    assert second["key"] != first["key"]
    run("revoke", second["id"])
    items = {item["id"]: item for item in json.loads(run("list", "--json").stdout)["items"]}
    assert items[first["id"]]["status"] == items[second["id"]]["status"] == "revoked"
    assert items[first["id"]]["replaced_by"] == second["id"]
    assert "revoked" in run("rotate", second["id"], code=3).stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("revoke", "aaaaaaaaaa"), 4),
        (("create", "--scope", "root", "--label", "x"), 2),
        (("create", "--label", "x"), 2),
        (("create", "--scope", "read"), 2),
        (("create", "--scope", "read", "--label", "x", "--expires", "soon"), 2),
        (("create", "--scope", "read", "--label", "x", "--expires", "0"), 2),
        (("create", "--scope", "read", "--label", "x", "--model", ""), 2),
    ],
    ids=["unknown id", "unknown scope", "no scope", "no label", "no time", "no time left", "empty pattern"],
)
def test_what_makes_no_sense_is_refused(run, arguments: tuple[str, ...], code: int) -> None:  # type: ignore[no-untyped-def]
    run(*arguments, code=code)
    assert json.loads(run("list", "--json").stdout) == {"items": []}
