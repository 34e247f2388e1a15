"""README and docs are true: links lead somewhere, commands parse, Python runs, and every route, command and reason is described."""

import ast
import json
import pickle
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import flask
import numpy as np
import pytest
from click.testing import CliRunner

from mmserver.app import RUNTIME_KEY, create_app
from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.cli.main import COMMANDS, EXIT_CODES, main
from mmserver.settings import OTHER_VARIABLES, Settings, definitions
from tests.served import served

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
EXECUTED_ELSEWHERE = {"plugins.md"}
"""Its blocks are run, in order, by test_plugin_guide.py."""

BLOCK = re.compile(r"^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
MACHINE_PATH = re.compile(r"(?<![\w.…])/(?:work|tmp|home|root|opt/venv)\b|\.\./shared")
VARIABLE = re.compile(r"\b(?:MMSERVER|MODEL_MANAGER)_[A-Z_]+\b")
ROUTE = re.compile(r"`(GET|POST|PUT|DELETE|PATCH) (/[^`?\s]*)`")
INTERNAL_REASONS = {"known"}
"""Never shown: the same content was refused before, with a reason that is."""

REASON_ARGUMENT = {"Undecodable": 0, "Problem": 0, "IngestError": 1, "_report": 1}
"""Which positional argument of a call is a reason word; for ArtifactInvalid and ArtifactUnstable it is `reason=`."""


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return BLOCK.sub("", page.read_text())


def blocks(page: Path, language: str) -> list[str]:
    return [match["text"] for match in BLOCK.finditer(page.read_text()) if match["language"] == language]


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_under(page: Path, heading: str) -> set[str]:
    """What stands in the first column, in backquotes, of the tables under a heading, up to the next heading."""
    section = re.split(r"^#+ ", page.read_text().split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    firsts = re.findall(r"^\|([^|]*)\|", section, re.MULTILINE)
    return {word for first in firsts for word in re.findall(r"`([^`]+)`", first)}


# --- links, paths, settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.finditer(prose(page)):
        target = (page.parent / link["target"]).resolve() if link["target"] else page
        assert target.exists(), link[0]
        assert ROOT in target.parents, link[0]
        if link["anchor"]:
            assert link["anchor"] in anchors(target), link[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_path_of_the_machine_that_it_was_written_on(page: Path) -> None:
    assert MACHINE_PATH.findall(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    known = {name for row in definitions() for name in (row.variable, row.alias) if name} | set(OTHER_VARIABLES)
    named = {name for name in VARIABLE.findall(page.read_text()) if not name.endswith("_")}
    assert named - known == set()


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {(ROOT / link["target"]).resolve() for link in LINK.finditer(prose(ROOT / "README.md"))}
    assert set(PAGES) - {ROOT / "README.md"} <= linked


def test_the_screenshot_is_small_enough_for_a_readme() -> None:
    for image in (ROOT / "docs" / "images").iterdir():
        assert image.stat().st_size <= 200_000


# --- commands ---------------------------------------------------------------------------------------------------------


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that does something."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name)


def shell_commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        if page.name in EXECUTED_ELSEWHERE:
            continue
        for block in blocks(page, "sh"):
            for line in (line.strip().removeprefix(".venv/bin/") for line in block.splitlines()):
                if line.startswith("mmserver "):
                    yield page.name, line


def parsed(line: str) -> None:
    """Parse one command line as `mmserver` would, and run nothing."""
    command: click.Command = main
    context = click.Context(main)
    words = shlex.split(line, comments=True)[1:]
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]}"
        command, words = found, words[1:]
    command.make_context("mmserver", words)


@pytest.mark.parametrize(("page", "line"), [pytest.param(*found, id=found[1]) for found in shell_commands()])
def test_every_command_line_shown_is_one_that_mmserver_takes(page: str, line: str) -> None:
    parsed(line)


@pytest.mark.parametrize("line", ["mmserver serve --prot 1", "mmserver models add one", "mmserver db chekc"])
def test_a_command_line_that_is_wrong_would_be_noticed(line: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parsed(line)


def test_every_command_is_described() -> None:
    assert set(COMMANDS) == {words[0] for words in commands(main)}
    rows = (ROOT / "docs" / "operations.md").read_text().split("## The command line\n", 1)[1].split("\n## ", 1)[0]
    described = {
        (*first.split()[:-1], name)
        for cell in re.findall(r"^\| (`mmserver [^|]*) \|", rows, re.MULTILINE)
        for first in [re.findall(r"`mmserver ([^`]+)`", cell)[0]]
        for name in [first.split()[-1], *re.findall(r", `([^`]+)`", cell)]
    }
    assert described == set(commands(main))


def test_every_exit_code_is_described() -> None:
    section = (ROOT / "docs" / "operations.md").read_text().split("Exit codes:", 1)[1]
    described = set(map(int, re.findall(r"^\| (\d) \|", section, re.MULTILINE)))
    assert described == {0, 1, *(code for _, code in EXIT_CODES)}


# --- routes, reasons, folders -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what the pages show is done; there is a `model.json`."""
    return tmp_path_factory.mktemp("docs")


@pytest.fixture(scope="module")
def app(place: Path) -> Iterator[flask.Flask]:
    """The application with a small model in the place of the demo's: model `demo`, symbol `SP500`."""
    import xgboost

    artifacts = place / "artifacts"
    artifacts.mkdir()
    random = np.random.default_rng(5)
    rows = random.normal(size=(300, 3)).astype(np.float32)
    model = xgboost.XGBRegressor(n_estimators=8, max_depth=3, n_jobs=1).fit(rows, rows[:, 0] * rows[:, 1])
    (artifacts / "SP500_ret_5d_model.pkl").write_bytes(pickle.dumps(model))
    model.save_model(place / "model.json")
    (artifacts / "SP500_ret_5d_factors.txt").write_text("mom_1d\nmom_2d\nvol_5d\n")
    made = create_app(Settings(data_dir=place / "data", watch_enabled=False, sandbox_workers=1))
    store = made.extensions[RUNTIME_KEY].store
    register_model(store, "demo", str(artifacts), Actor("docs"))
    yield made
    made.extensions[RUNTIME_KEY].close()


@pytest.fixture(scope="module")
def address(app: flask.Flask) -> Iterator[str]:
    """Where the application answers over HTTP."""
    with served(app, n_threads=2) as found:
        yield found


def test_every_route_is_described_with_its_methods_and_no_other_is(app: flask.Flask) -> None:
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert set(ROUTE.findall(prose(ROOT / "docs" / "http.md"))) == routes


def reason_words() -> set[str]:
    """Every reason word in the code, wherever a file is refused."""
    found: set[str] = set()
    for path in (*(ROOT / "mmserver").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")):
        module = ast.parse(path.read_text())
        constants = [node for node in module.body if isinstance(node, ast.Assign)]
        for function in ast.walk(module):
            if isinstance(function, ast.FunctionDef):
                assigned = [*constants, *(node for node in ast.walk(function) if isinstance(node, ast.Assign))]
                for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                    argument = reason_argument(call)
                    found |= words_of(argument, assigned) if argument else set()
    return {word.partition("(")[0] for word in found}


def reason_argument(call: ast.Call) -> ast.expr | None:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if name in ("ArtifactInvalid", "ArtifactUnstable"):
        return next((keyword.value for keyword in call.keywords if keyword.arg == "reason"), None)
    at = REASON_ARGUMENT.get(name)
    return call.args[at] if at is not None and len(call.args) > at else None


def words_of(value: ast.expr, assigned: list[ast.Assign]) -> set[str]:
    """The words that an expression can be; a name is looked up in what its function and its module assign."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return {value.value}
    if isinstance(value, ast.IfExp):
        return words_of(value.body, assigned) | words_of(value.orelse, assigned)
    if isinstance(value, ast.JoinedStr):
        return words_of(value.values[0], assigned)
    if isinstance(value, ast.FormattedValue):
        return words_of(value.value, assigned)
    if isinstance(value, ast.Name):
        return {
            word
            for node in assigned
            if any(isinstance(target, ast.Name) and target.id == value.id for target in node.targets)
            for word in words_of(node.value, assigned)
        }
    return set()


def test_every_reason_word_is_explained_and_no_other_is() -> None:
    words = reason_words()
    assert len(words) > 25
    assert table_under(ROOT / "docs" / "operations.md", "Reason words") == words - INTERNAL_REASONS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_status_is_named_with_a_code_that_has_it(page: Path) -> None:
    statuses_by_code: dict[str, set[str]] = {}
    for code, status in re.findall(
        r"^\| `(\w+)` \| (\d{3}) \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE
    ):
        statuses_by_code.setdefault(code, set()).add(status)
    for status, codes in re.findall(r"\b([45]\d\d) ((?:`[a-z_]+`(?:, | and )?)+)", prose(page)):
        for code in re.findall(r"`(\w+)`", codes):
            assert status in statuses_by_code.get(code, set()), f"{status} {code}"


def test_whatever_a_server_leaves_in_its_directory_is_described(demo_place: tuple[Path, str, str]) -> None:
    described = table_under(ROOT / "docs" / "operations.md", "Data directory")
    left = {path.name + "/" * path.is_dir() for path in (demo_place[0] / "data").iterdir()} - {"demo/"}
    assert "state.db" in left
    assert left <= described


def test_the_folders_described_are_the_folders_there_are() -> None:
    described = table_under(ROOT / "docs" / "architecture.md", "Folders")
    packages = {f"mmserver/{init.parent.name}" for init in (ROOT / "mmserver").glob("*/__init__.py")}
    assert {folder for folder in described if folder.startswith("mmserver/")} == packages
    assert all((ROOT / folder).is_dir() for folder in described)


# --- HTTP ------------------------------------------------------------------------------------------------------------


def asked_and_answered() -> Iterator[tuple[str, str, str]]:
    """Every curl command that a page shows whole, and the answer that stands beneath it, which may be shortened."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for match in BLOCK.finditer(page.read_text()):
            lines = [line.removeprefix("$ ") for line in match["text"].splitlines()]
            for line, following in zip(lines, [*lines[1:], ""], strict=True):
                if re.match(r"curl (?!.*(?:…|-si ))", line):
                    yield page.name, line, following.removeprefix("#").strip()


def outer_names(answer: str) -> list[str]:
    """The names of an object's own members, in order, although parts of it may be left out."""
    depth, names = 0, []
    for token in re.findall(r'"(?:[^"\\]|\\.)*"\s*:?|[{}\[\]]', answer):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token, 0)
        if depth == 1 and token.endswith(":"):
            names.append(token.rstrip(": ").strip('"'))
    return names


@pytest.fixture(scope="module")
def demo_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """The directory in which `./start.sh --demo` and a retraining were run, where the server answers, and its first version."""
    pytest.importorskip("arch", reason="arch is not installed (the extra demo)")
    place = tmp_path_factory.mktemp("demo")
    for more in ([], ["--retrain"]):
        command = ["demo", str(place / "data/demo"), "--register", *more, "--data-dir", str(place / "data")]
        assert CliRunner().invoke(main, command).exit_code == 0
    made = create_app(Settings(data_dir=place / "data", watch_enabled=False, sandbox_workers=1))
    listed = made.test_client().get("/api/models/demo/versions").get_json()
    with served(made, n_threads=2) as found:
        yield place, found, listed["items"][-1]["version"]
    made.extensions[RUNTIME_KEY].close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here (apt-get install curl)")
@pytest.mark.parametrize(
    ("page", "command", "answer"), [pytest.param(*found, id=found[1]) for found in asked_and_answered()]
)
def test_every_request_shown_gets_the_answer_shown(
    page: str, command: str, answer: str, demo_place: tuple[Path, str, str]
) -> None:
    place, address, first_version = demo_place
    line = re.sub(r"\b20\d{6}_\d{6}\b", first_version, command.replace("localhost:6300", address))
    done = subprocess.run(
        ["bash", "-c", f"set -f; {line}"], cwd=place, capture_output=True, text=True, timeout=300, check=True
    )
    if not answer.startswith("{"):
        assert answer == "the same", "an answer is shown for every request"
        return
    found = json.loads(done.stdout)
    shown = outer_names(answer)
    assert shown
    assert [name for name in found if name in shown] == shown
    assert ("code" in found) == ("code" in shown), found


# --- Python -----------------------------------------------------------------------------------------------------------


def python_blocks() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        if page.name not in EXECUTED_ELSEWHERE:
            yield from ((page.name, block) for block in blocks(page, "python"))


@pytest.mark.parametrize(("page", "block"), [pytest.param(*found, id=found[0]) for found in python_blocks()])
def test_every_python_block_runs_against_a_server(
    page: str, block: str, address: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if re.search(r"^import torch$", block, re.MULTILINE):
        for package in ("torch", "onnxscript"):
            pytest.importorskip(package, reason=f"{package} is not installed (the extra torch)")
    shutil.copy(place / "model.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block.replace("localhost:6300", address), page, "exec"), names)
    assert names


def test_the_readme_s_proof_notices_a_loader_that_is_wrong(address: str) -> None:
    [block] = blocks(ROOT / "README.md", "python")
    wrong = block.replace('predict_type="margin"', 'predict_type="margin", iteration_range=(0, 4)')
    assert wrong != block
    with pytest.raises(AssertionError, match="this loader is wrong"):
        exec(compile(wrong.replace("localhost:6300", address), "README.md", "exec"), {})
