"""The project's frame: what is packaged is what is there, and the scripts say what they need."""

import configparser
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = ("setup.sh", "start.sh", "stop.sh", "test.sh")


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    """The parsed setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture
def bare_checkout(tmp_path: Path) -> Path:
    """The scripts and nothing installed, in a directory with a space in its name."""
    checkout = tmp_path / "a bare checkout"
    (checkout / "deploy").mkdir(parents=True)
    for name in (*SCRIPTS, "deploy/process.sh", "setup.cfg", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, checkout / name)
    return checkout


def call(script: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run a script from another directory, with no settings of whoever runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MMSERVER_", "TOX_"))}
    return subprocess.run(
        [script, *arguments],
        cwd="/",
        env={**inherited, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_every_package_is_packaged(setup_cfg: configparser.ConfigParser) -> None:
    folders = {"plugins": "mmserver.plugins", "migrations": "mmserver.migrations", "mmserver": "mmserver"}
    there = {
        ".".join((name, *init.parent.relative_to(REPOSITORY / folder).parts))
        for folder, name in folders.items()
        for init in (REPOSITORY / folder).rglob("__init__.py")
    }
    assert set(setup_cfg["options"]["packages"].split()) == there


def test_every_built_in_plugin_is_registered_as_anybody_would(setup_cfg: configparser.ConfigParser) -> None:
    registered = setup_cfg["options.entry_points"]["mmserver.plugins"].strip().splitlines()
    there = {path.stem for path in (REPOSITORY / "plugins").glob("*.py") if path.stem != "__init__"}
    assert set(registered) == {f"{name} = mmserver.plugins.{name}" for name in there}


@pytest.mark.parametrize("name", [*SCRIPTS, ".ci/run"])
def test_a_script_can_be_run_and_parsed(name: str) -> None:
    path = REPOSITORY / name
    assert path.stat().st_mode & stat.S_IXUSR
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_explains_itself_and_refuses_what_it_does_not_know(bare_checkout: Path, name: str) -> None:
    explained = call(bare_checkout / name, "--help")
    assert explained.returncode == 0
    assert f"./{name}" in explained.stdout
    if name != "start.sh":  # which hands what it does not know to the server
        assert call(bare_checkout / name, "--nonsense").returncode == 2


def test_stopping_what_was_never_set_up_does_nothing(bare_checkout: Path) -> None:
    stopped = call(bare_checkout / "stop.sh")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "", "")


def test_setup_names_a_python_that_is_too_old(bare_checkout: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    refused = call(bare_checkout / "setup.sh", PYTHON=str(old))
    assert refused.returncode == 1
    assert f"Python 3.11 or newer is needed; {old} is Python 3.9.2." in refused.stderr
    assert not (bare_checkout / ".venv").exists()


def test_setup_uses_another_environment_only_where_there_is_one(bare_checkout: Path, tmp_path: Path) -> None:
    refused = call(bare_checkout / "setup.sh", MMSERVER_VENV=str(tmp_path / "absent"))
    assert refused.returncode == 1
    assert "there is no virtual environment in" in refused.stderr


@pytest.mark.parametrize("content", ["", "no number", "-1", "{own}", "999999999"])
def test_a_pid_file_that_means_no_server_is_removed_and_nobody_is_stopped(tmp_path: Path, content: str) -> None:
    pid_file = tmp_path / "mmserver.pid"
    pid_file.write_text(content.format(own=os.getpid()), encoding="utf-8")
    process = REPOSITORY / "deploy/process.sh"
    stopped = subprocess.run(
        ["bash", "-c", '. "$1"; stop_running "$2" 1', "bash", process, pid_file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert not pid_file.exists()
