"""The scripts in a copied checkout whose path has a space: from nothing to served demo models, and back."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = ("setup.sh", "start.sh", "stop.sh")
PARTS = ("mmserver", "plugins", "migrations", "deploy", "setup.cfg", "pyproject.toml", "LICENSE")

Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def call(tmp_path: Path) -> Iterator[Call]:
    """Runs a script of the copy, from another directory. The copy has a virtual environment of its own, which sees what is
    installed for the tests: nothing but mmserver itself is installed into it, and nothing into anybody else's."""
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    for name in (*SCRIPTS, *PARTS):
        if not (REPOSITORY / name).exists():
            pytest.skip(f"this is no checkout: {name} is missing")
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, checkout / name)
    (checkout / "README.md").touch()
    venv = tmp_path / "an environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site_packages,) = venv.glob("lib/python3*/site-packages")
    installed = sysconfig.get_paths()["purelib"]
    (site_packages / "zz_installed_for_the_tests.pth").write_text(f"import site; site.addsitedir({installed!r})\n")

    def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MMSERVER_", "TOX_"))}
        return subprocess.run(
            [checkout / script, *arguments],
            cwd="/",
            env={**inherited, "MMSERVER_VENV": str(venv)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )

    yield run
    assert run("stop.sh").returncode == 0


@pytest.mark.slow
def test_one_command_serves_demo_models_and_another_stops_them(
    call: Call, free_port: Callable[[], int], tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    start = ("start.sh", "--background", "--web-host", "127.0.0.1", f"--web-port={port}")

    def ask(path: str) -> Any:
        return httpx.get(url + path, trust_env=False, timeout=60).json()

    started = call(*start, "--demo")
    assert started.returncode == 0, started.stderr
    assert "mmserver is running (pid " in started.stdout
    assert started.stdout.rstrip().endswith(url)
    (demo,) = ask("/api/models")["items"]
    assert (demo["model_name"], demo["status"]) == ("demo", "ok")
    assert demo["root_path"].startswith(str(tmp_path / "a checkout"))
    symbol = ask("/api/models/demo/symbols")["symbols"][0]["symbol"]
    assert ask(f"/api/models/demo/model/{symbol}")["payload"]["model_json"]
    assert ask("/api/venues")["items"]
    [to_try] = re.findall(r"^to try:  (.+)$", started.stdout, re.MULTILINE)
    predicted = subprocess.run(["bash", "-c", to_try], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(predicted.stdout)["prediction"]["direction"] in {"BUY", "SELL"}

    again = call(*start, "--demo")
    assert (again.returncode, again.stderr) == (0, "")
    assert "already running" in again.stdout

    pid_file = tmp_path / "a checkout/data/mmserver.pid"
    assert pid_file.is_file()
    stopped = call("stop.sh")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "", "")
    assert not pid_file.exists()
    with pytest.raises(httpx.ConnectError):
        ask("/livez")
    assert call("stop.sh").returncode == 0

    # What was registered is still there, and nothing is set up or trained a second time.
    restarted = call(*start)
    assert (restarted.returncode, restarted.stderr) == (0, "")
    assert [item["version"] for item in ask("/api/models")["items"]] == [demo["version"]]

    elsewhere = call(
        "start.sh", "--background", "--web-host", "127.0.0.1", f"--web-port={port}", "--data-dir", str(tmp_path / "b")
    )
    assert elsewhere.returncode == 3
    assert "something else answers at" in elsewhere.stderr


@pytest.mark.slow
def test_a_start_that_fails_says_why_and_leaves_no_pid_file(
    call: Call, free_port: Callable[[], int], tmp_path: Path
) -> None:
    failed = call(
        "start.sh", "--background", "--web-host", "127.0.0.1", f"--web-port={free_port()}", "--snapshot", "absent"
    )
    assert failed.returncode == 1
    assert "no file is at" in failed.stderr
    assert not (tmp_path / "a checkout/data/mmserver.pid").exists()
