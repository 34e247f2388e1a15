"""What keeps `mmserver serve` from starting, and which plugins `mmserver plugins` finds fault with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_plugins_are_listed_and_one_that_does_not_work_is_code_1(mmserver: Run, tmp_path: Path) -> None:
    built_in = json.loads(mmserver("plugins", "--json").stdout)["items"]
    assert {"factors_txt", "ic_csv", "xgboost_json", "pkl"} <= {row["name"] for row in built_in}
    assert all(row["hooks"] and row["error"] is None for row in built_in)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/torn.py").write_text("def")
    found = mmserver("plugins", "--plugins-dir", "more", "--json", code=1)
    (row,) = [row for row in json.loads(found.stdout)["items"] if row["error"]]
    assert row["name"] == "torn"
    assert "SyntaxError" in row["error"]


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "says"),
    [
        pytest.param(("--port", "x"), {}, 2, "--port", id="a bad port"),
        pytest.param(("--workers", "0"), {}, 2, "--workers", id="no worker"),
        pytest.param((), {"MMSERVER_PROT": "1"}, 2, "did you mean MMSERVER_PORT?", id="an unknown variable"),
        pytest.param(("--snapshot", "absent", "--read-only"), {}, 2, "no file is at", id="no snapshot"),
        pytest.param(("--host", "203.0.113.7"), {}, 2, "--host 203.0.113.7", id="an address of another machine"),
        pytest.param(("--data-dir", "/proc/x"), {}, 2, "--data-dir", id="a data directory that cannot be"),
        pytest.param(("--plugins-dir", "absent"), {}, 2, "absent", id="no plugins directory"),
    ],
)
def test_what_keeps_a_server_from_starting_is_one_line_and_a_code(
    mmserver: Run, arguments: tuple[str, ...], environ: dict[str, str], code: int, says: str
) -> None:
    port = () if "--port" in arguments else ("--port", "0")
    refused = mmserver("serve", *port, *arguments, code=code, **environ)
    assert says in refused.stderr
    assert "serving on" not in refused.stderr


@pytest.mark.parametrize(
    "command", [("plugins",), ("serve", "--port", "0"), ("models", "add", "alpha", ".")], ids=" ".join
)
def test_a_misspelt_hook_stops_every_command_and_is_named(
    mmserver: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/misspelt.py").write_text(
        "from mmserver import hookimpl\n\n\n@hookimpl\ndef mmserver_artefact_formats():\n    return []\n"
    )
    refused = mmserver(*command, "--plugins-dir", "more", code=2)
    assert "plugin misspelt: unknown hook 'mmserver_artefact_formats'" in refused.stderr
