"""docs/plugins.md is true: its blocks run, its tables are the code's, and its example works as a file and installed."""

import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import format_contract
import msgspec
import numpy as np
import pytest

import mmserver
from mmserver import hookspecs
from mmserver.app import RUNTIME_KEY, create_app
from mmserver.catalog.ingest import INGEST_GROUPS, IngestOutcome, IngestRequest, SourceFile, ingest_group
from mmserver.errors import ArtifactInvalid
from mmserver.plugin_loading import load_plugins
from mmserver.sandbox.pool import Sandbox
from mmserver.serving.interpretation import load_interpreter
from mmserver.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "plugins.md"
EXAMPLE = ROOT / "examples" / "mmserver-linear"
BLOCK = re.compile(r"(?:^`(?P<file>[^`\n]+)`\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 300


def blocks(language: str) -> list[tuple[str | None, str]]:
    """(file name above the block, text) of every block in that language."""
    return [(b["file"], b["text"]) for b in BLOCK.finditer(GUIDE.read_text()) if b["language"] == language]


@pytest.fixture(scope="module")
def plugins_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("single") / "my-plugins"
    directory.mkdir()
    shutil.copy(EXAMPLE / "mmserver_linear.py", directory)
    return directory


@pytest.fixture
def fresh_venv(tmp_path: Path) -> Path:
    """An environment of its own that sees everything that is installed here, with `pip` and `mmserver` commands."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=TIMEOUT_S)
    here = sysconfig.get_path("purelib")
    there = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    (there / "everything.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    for name, command in {
        "pip": f'exec "{sys.executable}" -m pip --python "{venv}/bin/python" "$@"',
        "mmserver": f"""exec "{venv}/bin/python" -c 'from mmserver.cli.main import main; main(prog_name="mmserver")' "$@" """,
    }.items():
        (venv / "bin" / name).write_text(f"#!/bin/sh\n{command}\n")
        (venv / "bin" / name).chmod(0o755)
    return venv


def run(venv: Path, command: list[str], directory: Path) -> str:
    """Its output; the package index is never asked."""
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environ = {**os.environ, **pip, "PATH": f"{venv}/bin:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=directory, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_guide_shows_the_example_s_files_as_they_are() -> None:
    shown = {Path(name).name: text for language in ("python", "toml") for name, text in blocks(language) if name}
    for name in ("mmserver_linear.py", "pyproject.toml"):
        assert shown[name] == (EXAMPLE / name).read_text()


def test_the_hooks_table_is_what_hookspecs_says() -> None:
    rows = []
    for name, hook in vars(hookspecs).items():
        if not name.startswith("mmserver_"):
            continue
        signature = f"{name}{inspect.signature(hook)}".replace("'", "")
        signature = signature.replace("mmserver.formats.", "").replace("typing.", "")
        signature = signature.replace("|", r"\|")
        rows.append(f"| `{signature}` | {' '.join(str(inspect.getdoc(hook)).split())} |")
    assert len(rows) == 9
    start = GUIDE.read_text().index("| hook | what it gives |")
    assert GUIDE.read_text()[start:].split("\n\n")[0].splitlines()[2:] == rows


def test_every_name_that_plugins_may_import_is_named() -> None:
    text = GUIDE.read_text()
    assert [name for name in mmserver._HOMES if f"`{name}`" not in text] == []


def test_the_example_imports_from_mmserver_only() -> None:
    imported = re.findall(r"^\s*(?:from|import) (mmserver[\w.]*)", (EXAMPLE / "mmserver_linear.py").read_text(), re.M)
    assert imported == ["mmserver"]


def test_every_shell_block_runs_in_order(fresh_venv: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    single, installed = (run(fresh_venv, ["sh", "-eu", "-c", text], tmp_path) for _, text in blocks("sh"))
    assert re.search(r"^mmserver_linear\b.*mmserver_formats", single, re.M)
    assert re.search(r"^linear\b.*mmserver_formats", installed, re.M)


def test_the_guide_s_own_test_passes(plugins_dir: Path) -> None:
    (text,) = [text for name, text in blocks("python") if name == "test_linear.py"]
    (plugins_dir.parent / "test_linear.py").write_text(text)
    shutil.copy(format_contract.__file__, plugins_dir.parent)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_linear.py"]
    done = subprocess.run(
        command, cwd=plugins_dir.parent, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(format_contract.CHECKS)} passed" in done.stdout


def test_the_guide_s_interpreter_says_what_two_quantiles_mean(tmp_path: Path) -> None:
    (text,) = [text for name, text in blocks("python") if name == "quantile_band.py"]
    (tmp_path / "quantile_band.py").write_text(text)
    plugins = load_plugins(tmp_path)
    model = mmserver.ModelFile(
        kind="xgboost", content=b"", n_features=3, n_outputs=2, objective="reg:quantileerror", library_version="3.2.0"
    )
    assert plugins.load_interpreter(model, {"quantiles": [0.5]}) is None
    interpreter = load_interpreter(model, {"quantiles": [0.1, 0.9]}, {"margin": 2, "prediction": 2}, plugins)
    rows = np.array([[0.5, 2.0], [-2.0, -0.5], [-1.0, 1.0], [0.25, 1.0]], np.float32)
    decisions = interpreter.decide({"prediction": rows}, 0.25)
    assert [decision.direction for decision in decisions] == ["BUY", "SELL", "HOLD", "HOLD"]


def test_the_guide_s_model_format_reads_a_model_that_predicts(tmp_path: Path) -> None:
    (text,) = [text for name, text in blocks("python") if name == "polynomial.py"]
    (tmp_path / "polynomial.py").write_text(text)
    plugins = load_plugins(tmp_path)
    claim = plugins.model_format_for("trend.poly")
    assert claim is not None
    model = claim.read(mmserver.ModelSource(file_name="trend.poly", files={"trend.poly": b"1\n0\n2\n"}))
    predictor = plugins.load_predictor(model)
    assert predictor is not None
    assert predictor.predict(np.array([[3.0]], np.float32))["prediction"].tolist() == [[19.0]]


def test_the_guide_s_code_of_one_s_own_runs_a_file() -> None:
    (text,) = [text for name, text in blocks("python") if name == "desk_models.py"]
    module: dict[str, Any] = {}
    exec(compile(text, "desk_models.py", "exec"), module)
    predictor = module["line"](b"1 2 3", {"scale": 2})
    assert predictor.n_features == 3
    assert predictor.predict(np.array([[1, 1, 1], [0, 0, 1]], np.float32))["prediction"].tolist() == [[12.0], [6.0]]


def test_the_guide_s_network_is_trained_registered_and_predicts(tmp_path: Path) -> None:
    for package in ("torch", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed (the extra torch)")
    shown = {name: text for language in ("python", "json") for name, text in blocks(language) if name}
    (tmp_path / "my-plugins").mkdir()
    for name in ("my-plugins/nets.py", "train.py", "options.json"):
        (tmp_path / name).write_text(shown[name])
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=True, timeout=TIMEOUT_S * 5)
    settings = Settings(
        data_dir=tmp_path / "data", plugins_dir=tmp_path / "my-plugins", watch_enabled=False, artifact_roots=(tmp_path,)
    )
    app = create_app(settings)
    try:
        client = app.test_client()
        asked = {"name": "network", "version": "1.0.0", "path": str(tmp_path / "trend.pt")}
        asked |= {"options": json.loads(shown["options.json"])}
        registered = client.post("/api/ml/registry/models", json=asked)
        assert registered.status_code == 201, registered.text
        assert registered.get_json()["parity"]["passed"]
        features = [[0.1, 0.2, 0.3, 0.4]] * 10
        answer = client.post("/predict", json={"model_name": "network", "symbol": "ANY", "features": features})
        assert answer.status_code == 200, answer.text
        assert 1 / 3 <= answer.get_json()["prediction"]["confidence"] <= 1
    finally:
        app.extensions[RUNTIME_KEY].close()


# --- the example ------------------------------------------------------------------------------------------------------


def linear_file(name: str = "SOLUSDT_ret_5d_linear.json") -> SourceFile:
    (text,) = [text for shown, text in blocks("json") if shown == "artifacts/SOLUSDT_ret_5d_linear.json"]
    return SourceFile(name=name, data=text.encode())


def test_the_guide_s_json_becomes_a_group_with_factors_and_a_download(plugins_dir: Path) -> None:
    group = ingest_group(IngestRequest("SOLUSDT_ret_5d", (linear_file(),)), load_plugins(plugins_dir))
    assert (group.symbol, group.return_name, group.factors) == ("SOLUSDT", "ret_5d", ("mom_1d", "vol_5d"))
    assert group.no_model_reason is None
    assert group.payload_sha256 is not None


def test_the_guarded_worker_reads_the_example_s_files(plugins_dir: Path) -> None:
    options = {"plugins_dir": str(plugins_dir)}
    sandbox = Sandbox("mmserver.catalog.ingest:handlers", options, n_workers=1)
    try:
        request = msgspec.msgpack.encode([IngestRequest("SOLUSDT_ret_5d", (linear_file(),))])
        (outcome,) = msgspec.msgpack.decode(sandbox.run(INGEST_GROUPS, request), type=list[IngestOutcome])
    finally:
        sandbox.close()
    assert outcome.group is not None
    assert outcome.group.factors == ("mom_1d", "vol_5d")


def test_a_linear_model_whose_factors_are_in_another_order_is_refused(plugins_dir: Path) -> None:
    factors = SourceFile("SOLUSDT_ret_5d_factors.txt", b"vol_5d\nmom_1d\n")
    request = IngestRequest("SOLUSDT_ret_5d", (linear_file(), factors))
    with pytest.raises(ArtifactInvalid, match="another order"):
        ingest_group(request, load_plugins(plugins_dir))


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b'{"coef": {"a": 1}}', b'{"intercept": 0, "coef": {"a": NaN}}', b'{"intercept": 0, "coef": [1]}'],
)
def test_a_broken_linear_file_is_refused_by_name(data: bytes, plugins_dir: Path) -> None:
    request = IngestRequest("A_b", (SourceFile("A_b_linear.json", data),))
    with pytest.raises(ArtifactInvalid, match=r"A_b_linear\.json"):
        ingest_group(request, load_plugins(plugins_dir))


@pytest.mark.parametrize("n_factors", [1, 2, 9, 300])
@pytest.mark.parametrize("check", format_contract.CHECKS)
def test_linear_models_of_any_width_keep_the_contract(check: object, n_factors: int, plugins_dir: Path) -> None:
    plugins = load_plugins(plugins_dir)
    weights = np.random.default_rng(n_factors).normal(size=n_factors)
    document = {"intercept": 0.25, "coef": {f"factor_{i}": weight for i, weight in enumerate(weights)}}
    name = "A_b_linear.json"

    def load_json(converted: bytes) -> format_contract.PredictRows:
        parsed = format_contract.FormatCase(plugins, name, converted).loaded()
        assert parsed is not None
        return parsed[1].predict

    assert callable(check)
    check(format_contract.FormatCase(plugins, name, json.dumps(document).encode(), conversions={"json": load_json}))


# --- from the directory to the client ---------------------------------------------------------------------------------


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    directory = tmp_path / "artifacts"
    directory.mkdir()
    (directory / linear_file().name).write_bytes(linear_file().data)
    return directory


def test_a_registered_directory_of_linear_models_is_served_and_its_changes_are_heard_of(
    plugins_dir: Path, artifacts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path / "data", plugins_dir=plugins_dir, watch_debounce_s=0.01, watch_enabled=False)
    app = create_app(settings)
    runtime = app.extensions[RUNTIME_KEY]
    try:
        client = app.test_client()
        asked = {"model_name": "linear", "root_path": str(artifacts)}
        assert client.post("/api/models", json=asked).status_code == 201
        first = client.get("/api/models/linear/model/SOL-USDT").get_json()["payload"]
        assert json.loads(first["model_json"]) == json.loads(linear_file().data)
        assert [entry["factor_name"] for entry in first["dim_factors"]] == ["mom_1d", "vol_5d"]
        (artifacts / linear_file().name).write_text('{"intercept": 0, "coef": {"mom_1d": 1, "vol_5d": 2}}')
        with caplog.at_level(logging.INFO, logger="mmserver_plugin_mmserver_linear"):
            refreshed = client.post("/api/models/linear/refresh").get_json()
        assert refreshed["updated"] == ["SOLUSDT_ret_5d"]
        assert f"linear is now at {refreshed['version']}" in caplog.messages
        form = client.get("/api/models/linear/model/SOLUSDT?format=json")
        assert form.get_json() == {"intercept": 0.0, "coef": {"mom_1d": 1.0, "vol_5d": 2.0}}
    finally:
        runtime.close()


def test_the_installed_example_registers_a_directory_from_the_command_line(
    fresh_venv: Path, artifacts: Path, tmp_path: Path
) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "package", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    run(fresh_venv, ["pip", "install", "-q", "./package"], tmp_path)
    add = ["mmserver", "models", "add", "linear", str(artifacts), "--data-dir", "data", "--json"]
    (model,) = json.loads(run(fresh_venv, add, tmp_path))["items"]
    assert (model["status"], model["symbol_count"], model["factor_count"]) == ("ok", 1, 2)


@pytest.mark.parametrize("function", ["parse(artifact: Artifact)", "mmserver_load_predictor(model: ModelFile)"])
def test_what_a_plugin_raises_refuses_that_file_and_no_other(function: str, artifacts: Path, tmp_path: Path) -> None:
    plugins_dir = tmp_path / "my-plugins"
    plugins_dir.mkdir()
    source = (EXAMPLE / "mmserver_linear.py").read_text()
    faulty, n_replaced = re.subn(rf"(def {re.escape(function)} -> .*:\n)", r"\1    raise KeyError('a bug')\n", source)
    assert n_replaced == 1
    (plugins_dir / "faulty.py").write_text(faulty)
    (artifacts / "BTCUSDT_ret_5d_factors.txt").write_text("mom_1d\n")
    app = create_app(Settings(data_dir=tmp_path / "data", plugins_dir=plugins_dir, watch_enabled=False))
    try:
        client = app.test_client()
        added = client.post("/api/models", json={"model_name": "linear", "root_path": str(artifacts)})
        assert added.status_code == 201, added.get_data(as_text=True)
        assert added.get_json()["status"] == "degraded"
        (refusal,) = app.extensions[RUNTIME_KEY].store.catalog.models["linear"].refusals
        assert refusal.group_key == "SOLUSDT_ret_5d"
        assert "a bug" in refusal.detail
        symbols = client.get("/api/models/linear/symbols").get_json()["symbols"]
        assert [symbol["symbol"] for symbol in symbols] == ["BTCUSDT"]
    finally:
        app.extensions[RUNTIME_KEY].close()
