"""`mmserver optimize`: what it prints, what it registers, and what a script can tell from its exit code."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.commands import run
from tests.cli.conftest import COMMAND

networks: Any = pytest.importorskip("conversion.networks", reason="graphs are made with the onnx package")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`network` 1.0.0 is quicker in INT8, `small` 1.0.0 bigger."""
    place = tmp_path_factory.mktemp("optimizing")
    for name, content in (("network", networks.recurrent(hidden=512)), ("small", networks.dense())):
        (place / "network.onnx").write_bytes(content)
        run("registry", "register", name, "1.0.0", place / "network.onnx", "--data-dir", place / "data")
    return place / "data"


def optimize(data_dir: Path, *arguments: str | Path, code: int = 0) -> Any:
    return run("optimize", *arguments, "--data-dir", data_dir, code=code)


def table(done: Any) -> list[dict[str, str]]:
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def read_to_end(screen: Any) -> str:
    """What a program wrote to a terminal that it was the last to have open."""
    chunks = []
    with contextlib.suppress(OSError):  # how Linux says that nobody has it open any more
        while chunk := screen.read(4096):
            chunks.append(chunk)
    return b"".join(chunks).decode()


def test_forms_that_pass_are_registered_and_shown(data_dir: Path) -> None:
    exact, int8 = table(optimize(data_dir, "network", "1.0.0", "--int8"))
    assert (exact["form"], exact["version"], exact["verdict"]) == ("fp32", "1.0.0+fp32", "accepted")
    assert (int8["form"], int8["version"], int8["verdict"]) == ("int8_dynamic", "1.0.0+int8", "accepted")
    assert float(int8["times_as_fast"]) > 1
    assert float(int8["same_class"]) >= 0.99
    assert "p99_ms" not in int8
    shown = run("registry", "show", "network", "1.0.0+int8", "--data-dir", data_dir, "--json")
    assert json.loads(shown.stdout)["derived_from"] == "1.0.0"


def test_a_form_that_does_not_pass_is_said_with_the_reason(data_dir: Path) -> None:
    _, int8, static = table(optimize(data_dir, "small", "--int8", "--static", "--benchmark"))
    assert (int8["version"], static["version"]) == ("-", "-")
    assert int8["verdict"].startswith("bigger: ")
    assert float(int8["p99_ms"]) >= float(int8["p50_ms"])


def test_on_a_terminal_the_numbers_fit_and_the_verdicts_follow_as_sentences(data_dir: Path) -> None:
    terminal, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = ["optimize", "small", "--int8", "--benchmark", "--dry-run", "--data-dir", str(data_dir)]
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        child = subprocess.Popen([COMMAND, *command], stdout=ours, stdin=subprocess.DEVNULL)
        os.close(ours)
        text = read_to_end(screen)
    assert child.wait() == 0
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in text.splitlines()]
    [exact] = [line.split() for line in lines if line.startswith("fp32  ")]
    assert [len(exact), exact[1]] == [8, "-"]
    assert lines[-2] == "fp32: accepted"
    assert lines[-1].startswith("int8_dynamic: kept out, bigger: ")
    assert [line.split()[0] for line in lines[:-2]] == ["form", "fp32", "int8_dynamic"]  # none is folded


def test_json_is_what_the_api_gives(data_dir: Path) -> None:
    done = optimize(data_dir, "network", "1.0.0", "--dry-run", "--static", "--json")
    exact, static = json.loads(done.stdout)["items"]
    assert (exact["variant"], exact["accepted"], exact["version"]) == ("fp32", True, None)
    assert static["variant"] == "int8_static"


def test_real_rows_come_from_a_file(data_dir: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(40, 8))
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header=",".join(f"f{at}" for at in range(8)), comments="")
    done = optimize(data_dir, "small", "--rows", tmp_path / "rows.csv", "--dry-run", "--json")
    [report] = json.loads(done.stdout)["items"]
    assert report["notes"] == ["960 of the 1000 rows lie between two others"]
    windows = np.random.default_rng(1).normal(size=(5, 6, 16)).tolist()
    (tmp_path / "rows.json").write_text(json.dumps(windows))
    done = optimize(data_dir, "network", "1.0.0", "--rows", tmp_path / "rows.json", "--dry-run", "--json")
    [report] = json.loads(done.stdout)["items"]
    assert report["notes"] == ["995 of the 1000 rows lie between two others"]
    assert "No such file" in optimize(data_dir, "small", "--rows", tmp_path / "none.csv", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(("none",), 4, "no model is named 'none'", id="unknown model"),
        pytest.param(("small", "2.0.0"), 4, "small has no version '2.0.0'", id="unknown version"),
    ],
)
def test_what_is_not_there_is_said(data_dir: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    assert said in optimize(data_dir, *arguments, code=code).stderr


def test_a_missing_extra_is_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'mmserver[onnx]'" in optimize(data_dir, "small", code=2).stderr
