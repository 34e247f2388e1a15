"""The command line as a script sees it: a real process, its output, its exit code."""

import importlib.metadata
import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from mmserver import errors
from mmserver.cli.main import COMMANDS, EPILOG, EXIT_CODES, exit_code, main
from mmserver.cli.output import shown
from mmserver.settings import settings_markdown
from mmserver.storage.data_dir import DataDir

Run = Callable[..., "subprocess.CompletedProcess[str]"]
COMMAND = Path(sys.executable).with_name("mmserver")
HEAVY_IMPORTS = {
    "numpy",
    "sqlalchemy",
    "flask",
    "rich",
    "xgboost",
    "onnxruntime",
    "scipy",
    "pandas",
    "sklearn",
    "pluggy",
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`mmserver …` in a process of its own, in an empty working directory."""

    def call(*arguments: str | Path, **environ: str) -> "subprocess.CompletedProcess[str]":
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MMSERVER_")}
        return subprocess.run(
            [COMMAND, *map(str, arguments)],
            cwd=tmp_path,
            env={**inherited, **environ},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call


def items(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    """The rows of a listing printed with --json."""
    assert done.returncode in (0, 1), done.stderr
    listed: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return listed


def test_starting_the_command_imports_nothing_heavy() -> None:
    code = "import sys, mmserver.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY_IMPORTS.isdisjoint(done.stdout.split())


def test_help_names_every_command_and_every_exit_code(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", done.stdout, re.M)
    documented = {int(code) for code in re.findall(r"^  (\d)  ", EPILOG, re.M)}
    assert documented == {0, 1, *(code for _, code in EXIT_CODES)}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_takes_the_data_directory_and_the_config(name: str) -> None:
    module = COMMANDS[name][0]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not part of this checkout")
    command = main.get_command(click.Context(main), name)
    assert command is not None
    leaves = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    for leaf in leaves:
        assert {"--data-dir", "--config"} <= {flag for parameter in leaf.params for flag in parameter.opts}, leaf.name


def test_the_version_is_the_installed_one(run: Run) -> None:
    assert run("--version").stdout == f"mmserver {importlib.metadata.version('mmserver')}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SettingInvalid(setting="x", reason="y"), 2),
        (errors.DataDirLocked(data_dir="x"), 3),
        (errors.ReadOnly(), 3),
        (errors.DatabaseNotFound(data_dir="x"), 4),
        (errors.Gone(), 4),
        (errors.DatabaseBusy(), 5),
        (errors.DiskFull(), 5),
        (errors.DatabaseCorrupt(path="x", reason="y"), 5),
        (errors.MmserverError(), 1),
    ],
    ids=lambda value: value.code if isinstance(value, errors.MmserverError) else None,
)
def test_the_exit_code_follows_the_branch_of_the_error(error: errors.MmserverError, code: int) -> None:
    assert exit_code(error) == code


def test_a_refusal_is_one_line_on_stderr_and_no_traceback(run: Run) -> None:
    done = run("settings", "--port", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mmserver: --port: 'x' is not a whole number from 0 to 65535\n"


def test_an_unknown_command_is_a_usage_error(run: Run) -> None:
    done = run("nonsense")
    assert done.returncode == 2
    assert "No such command 'nonsense'" in done.stderr


def test_a_command_of_a_plugin_runs_like_a_built_in_one(run: Run, tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "greeting.py").write_text(
        "import click\nfrom mmserver import hookimpl\n\n\n"
        "@click.command()\ndef greet():\n    click.echo('hello')\n\n\n"
        "@hookimpl\ndef mmserver_commands():\n    return [greet]\n",
        encoding="utf-8",
    )
    assert run("greet", MMSERVER_PLUGINS_DIR=str(plugins)).stdout == "hello\n"


def test_what_cannot_be_written_out_is_an_error_of_the_disk() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([COMMAND, "settings"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (5, "mmserver: No space left on device\n")


def test_settings_are_listed_as_text_in_a_pipe_as_json_when_asked_and_singly(run: Run, tmp_path: Path) -> None:
    lines = run("settings", MMSERVER_PORT="7000").stdout.splitlines()
    assert lines[0] == "name\tvalue\tsource"
    assert "port\t7000\tMMSERVER_PORT" in lines
    listed = {row["name"]: row for row in items(run("settings", "--json", "--port", "7001"))}
    assert listed["port"] == {"name": "port", "value": 7001, "source": "--port"}
    single = run("settings", "--value", "data_dir", "--value", "read_only", "--value", "plugins_dir")
    assert single.stdout == f"{tmp_path / 'data'}\nfalse\n\n"
    assert run("settings", "--markdown").stdout == settings_markdown()


def test_control_characters_of_names_never_reach_the_terminal() -> None:
    assert shown("a\x1b[31mb\nc\td\u202e") == "a\\x1b[31mb\\nc\\td\\u202e"
    assert (shown(None), shown(True), shown(["BTC", 1.5])) == ("-", "yes", "BTC, 1.5")


def test_the_database_is_made_once_and_then_up_to_date(run: Run, tmp_path: Path) -> None:
    before = run("db", "check")
    assert before.returncode == 4
    assert before.stderr.startswith(f"mmserver: no database is in {tmp_path / 'data'} yet")
    assert run("db", "upgrade").stdout.startswith("created ")
    assert run("db", "upgrade").stdout.endswith("is up to date\n")
    checked = json.loads(run("db", "check", "--json").stdout)
    assert (checked["path"], len(checked["generation_id"])) == (str(tmp_path / "data/state.db"), 32)


def test_what_a_running_server_holds_can_be_backed_up_but_not_upgraded_or_replaced(run: Run, tmp_path: Path) -> None:
    run("db", "upgrade", "--data-dir", "state")
    with DataDir(tmp_path / "state").lock():
        made = run("snapshot", "create", "--data-dir", "state")
        assert made.returncode == 0, made.stderr
        snapshot = made.stdout.strip()
        for refused in (
            run("db", "upgrade", "--data-dir", "state"),
            run("snapshot", "restore", snapshot, "--data-dir", "state"),
        ):
            assert refused.returncode == 3
            assert refused.stderr.startswith("mmserver: another mmserver is using ")


def test_a_snapshot_is_listed_verified_and_restored(run: Run, tmp_path: Path) -> None:
    run("db", "upgrade")
    path = run("snapshot", "create").stdout.strip()
    assert Path(path).parent == tmp_path / "data/snapshots"
    (row,) = items(run("snapshot", "list", "--json"))
    assert (row["path"], row["n_models"], row["damage"]) == (path, 0, None)
    assert run("snapshot", "verify", path).stdout.startswith(f"{path} is whole")

    restored = json.loads(run("snapshot", "restore", path, "--json").stdout)
    assert Path(restored["broken_path"]).is_file()
    assert run("db", "check").returncode == 0

    absent = run("snapshot", "verify", tmp_path / "absent.snapshot")
    assert (absent.returncode, absent.stderr) == (4, f"mmserver: no snapshot is at {tmp_path / 'absent.snapshot'}\n")
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 0xFF
    Path(path).write_bytes(content)
    assert run("snapshot", "verify", path).returncode == 2


def test_snapshots_may_go_elsewhere(run: Run, tmp_path: Path) -> None:
    run("db", "upgrade")
    path = run("snapshot", "create", "--directory", tmp_path / "backup").stdout.strip()
    assert Path(path).parent == tmp_path / "backup"
    assert [row["path"] for row in items(run("snapshot", "list", "--json", "--directory", tmp_path / "backup"))] == [
        path
    ]
    assert items(run("snapshot", "list", "--json")) == []


def test_the_doctor_reports_each_part_and_fails_only_when_something_fails(run: Run, tmp_path: Path) -> None:
    healthy = run("doctor", "--json")
    checks = {row["name"]: row for row in items(healthy)}
    assert {"python", "sqlite", "libraries", "sandbox", "plugin", "data directory", "database", "API keys"} <= set(
        checks
    )
    assert healthy.returncode == (1 if any(row["level"] == "fail" for row in items(healthy)) else 0)
    assert not (tmp_path / "data").exists()

    run("db", "upgrade")
    assert {row["name"]: row["level"] for row in items(run("doctor", "--json"))}["snapshots"] == "warn"
    (tmp_path / "data/state.db").write_bytes(b"not a database" * 1000)
    broken = run("doctor", "--json")
    assert broken.returncode == 1
    assert {row["name"]: row["level"] for row in items(broken)}["database"] == "fail"


def test_the_doctor_says_which_execution_providers_run_models_and_warns_of_one_that_is_asked_for_in_vain(
    run: Run,
) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime has the providers")
    plain, asked = (
        next(row for row in items(run("doctor", "--json", **environ)) if row["name"] == "execution providers")
        for environ in ({}, {"MMSERVER_EXECUTION_PROVIDERS": "QNN,CPU"})
    )
    assert plain["level"] == "ok"
    assert "CPU: runs models" in plain["detail"]
    assert "CUDA: " in plain["detail"]
    assert asked["level"] == "warn"
    assert "QNN: not in the installed build of onnxruntime" in asked["detail"]


def test_the_doctor_names_a_database_of_a_newer_release(run: Run, tmp_path: Path) -> None:
    run("db", "upgrade")
    connection = sqlite3.connect(tmp_path / "data/state.db")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    (row,) = [row for row in items(run("doctor", "--json")) if row["name"] == "database"]
    assert row["level"] == "fail"
    assert "install a newer mmserver" in row["detail"]


def test_the_doctor_reports_limited_roots_and_a_plugin_that_cannot_be_loaded(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/torn.py").write_text("def", encoding="utf-8")
    environ = {"MMSERVER_PLUGINS_DIR": "plugins", "MMSERVER_ARTIFACT_ROOTS": "/srv/models"}
    done = run("doctor", "--json", **environ)
    assert done.returncode == 1
    rows = {row["name"]: row for row in items(done) if row["name"] != "plugin"}
    assert rows["artifact roots"] == {"name": "artifact roots", "level": "ok", "detail": "/srv/models"}
    (torn,) = [row for row in items(done) if row["detail"].startswith("torn ")]
    assert (torn["name"], torn["level"]) == ("plugin", "fail")
    assert "SyntaxError" in torn["detail"]
