"""`mmserver registry`: every sub-command's output, its JSON, and what a script can tell from its exit code."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.commands import run

MODEL_COLUMNS = ["name", "versions", "latest_version", "production_version", "staging_version", "updated_at"]


@pytest.fixture(scope="module")
def texts() -> list[bytes]:
    """Two small regressors as XGBoost writes them."""
    import xgboost

    random = np.random.default_rng(1)
    rows = random.normal(size=(100, 2)).astype(np.float32)
    models = [xgboost.XGBRegressor(n_estimators=n, max_depth=2, n_jobs=1).fit(rows, rows[:, 0]) for n in (2, 3)]
    return [bytes(model.get_booster().save_raw("json")) for model in models]


@pytest.fixture
def files(tmp_path: Path, texts: list[bytes]) -> list[Path]:
    paths = [tmp_path / f"model{at}.json" for at in range(2)]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text)
    return paths


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Any]:
    """`mmserver registry …` on a data directory of this test's own."""

    def invoke(*arguments: str | Path, code: int = 0, stdin: str | None = None) -> Any:
        return run("registry", *arguments, "--data-dir", tmp_path / "data", code=code, stdin=stdin)

    return invoke


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, texts: list[bytes]) -> Path:
    """A data directory with versions 1.9.0 and 1.10.0 of `hybrid`."""
    place = tmp_path_factory.mktemp("prepared")
    for label, text, metric in (("1.10.0", texts[1], "ic=0.04"), ("1.9.0", texts[0], "ic=0.03")):
        (place / "model.json").write_bytes(text)
        command = ("register", "hybrid", label, place / "model.json", "--metric", metric)
        run("registry", *command, "--data-dir", place / "data")
    return place / "data"


@pytest.fixture
def two(call: Callable[..., Any], prepared: Path, tmp_path: Path) -> Callable[..., Any]:
    """`call` on a copy of `prepared`."""
    shutil.copytree(prepared, tmp_path / "data")
    return call


def version(done: Any) -> Any:
    return json.loads(done.stdout)


def test_a_file_is_registered_with_all_that_is_said_of_it(
    call: Callable[..., Any], files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "factors.txt").write_text("mom_1h\nvol_1d\n")
    (tmp_path / "params.json").write_text('{"eta": 0.1}')
    done = call(
        *("register", "hybrid", "1.0.0", files[0], "--json", "--description", "small", "--metrics", '{"n": 3}'),
        *("--metric", "ic=0.03", "--tag", "desk=fx=spot", "--params", f"@{tmp_path / 'params.json'}"),
        *("--factors", tmp_path / "factors.txt", "--model-type", "xgboost", "--info", '{"symbol": "BTC"}'),
    )
    item = version(done)
    assert (item["metrics"], item["tags"]) == ({"n": 3, "ic": 0.03}, {"desk": "fx=spot"})
    assert (item["training_params"], item["description"], item["factor_count"]) == ({"eta": 0.1}, "small", 2)
    assert item.pop("file_sha256") == hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert version(call("show", "hybrid", "latest", "--json")) == item


def test_listings_are_tab_separated_or_json(two: Callable[..., Any]) -> None:
    header, line = two("list").stdout.splitlines()
    assert header.split("\t") == MODEL_COLUMNS
    assert line.split("\t")[:5] == ["hybrid", "2", "1.10.0", "-", "-"]
    [item] = json.loads(two("list", "--json").stdout)["items"]
    assert list(item) == MODEL_COLUMNS
    lines = two("show", "hybrid").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["version", "1.10.0", "1.9.0"]
    assert "ic=0.04" in lines[1]
    items = json.loads(two("show", "hybrid", "--json").stdout)["items"]
    assert [item["version"] for item in items] == ["1.10.0", "1.9.0"]
    fields = dict(line.split("\t") for line in two("show", "hybrid", "1.9.0").stdout.splitlines())
    assert (fields["version"], fields["metrics"], fields["parity"]) == ("1.9.0", "ic=0.03", "-")


def test_a_version_goes_through_its_stages(two: Callable[..., Any]) -> None:
    assert version(two("stage", "hybrid", "1.10.0", "--json"))["stage"] == "Staging"
    assert version(two("promote", "hybrid", "1.9.0", "--json"))["stage"] == "Production"
    assert version(two("promote", "hybrid", "staging", "--json"))["version"] == "1.10.0"
    labels = [
        item["version"] for item in json.loads(two("show", "hybrid", "--stage", "archived", "--json").stdout)["items"]
    ]
    assert labels == ["1.9.0"]
    assert version(two("rollback", "hybrid", "--json"))["version"] == "1.9.0"
    assert version(two("stage", "hybrid", "1.10.0", "none", "--json"))["stage"] == "None"
    assert version(two("retire", "hybrid", "1.10.0", "--json"))["stage"] == "Archived"


def test_metrics_are_set_and_removed(two: Callable[..., Any]) -> None:
    assert version(two("metrics", "hybrid", "1.9.0", "sharpe=1.5", "n=3", "ic=", "--json"))["metrics"] == {
        "sharpe": 1.5, "n": 3
    }  # fmt: skip
    assert "'x' is not a number" in two("metrics", "hybrid", "1.9.0", "ic=x", code=2).stderr
    assert "is not NAME=VALUE" in two("metrics", "hybrid", "1.9.0", "ic", code=2).stderr


def test_a_description_and_tags_are_changed_afterwards(two: Callable[..., Any]) -> None:
    done = two("annotate", "hybrid", "1.9.0", "--description", "wide", "--tag", "desk=fx", "--tag", "old=a=b", "--json")
    item = version(done)
    assert (item["description"], item["tags"]) == ("wide", {"desk": "fx", "old": "a=b"})
    item = version(two("annotate", "hybrid", "1.9.0", "--tag", "desk=", "--remove-tag", "old", "--json"))
    assert (item["description"], item["tags"]) == ("wide", {"desk": ""})
    item = version(two("annotate", "hybrid", "1.9.0", "--description", "", "--json"))
    assert (item["description"], item["tags"]) == ("", {"desk": ""})
    assert version(two("show", "hybrid", "1.9.0", "--json")) == item


def test_a_version_says_which_one_it_was_made_of(two: Callable[..., Any], files: list[Path]) -> None:
    item = version(two("register", "hybrid", "1.9.0+small", files[1], "--derived-from", "1.9.0", "--json"))
    assert item["derived_from"] == "1.9.0"
    refused = two("register", "hybrid", "2.0.0", files[1], "--derived-from", "1.8.0", code=2)
    assert "derived_from: hybrid has no version '1.8.0'" in refused.stderr


def test_a_file_with_another_hash_than_was_said_is_not_registered(call: Callable[..., Any], files: list[Path]) -> None:
    expected, found = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    refused = call("register", "hybrid", "1.0.0", files[1], "--sha256", expected, code=2)
    assert f"sha256: model1.json has {found}; nothing was registered" in refused.stderr
    assert "64 hexadecimal digits" in call("register", "hybrid", "1.0.0", files[1], "--sha256", "ab", code=2).stderr
    assert json.loads(call("list", "--json").stdout) == {"items": []}
    done = call("register", "hybrid", "1.0.0", files[1], "--sha256", found.upper(), "--json")
    assert version(done)["file_sha256"] == found


def test_a_rollback_says_what_it_did_and_one_that_is_repeated_goes_back_once(
    two: Callable[..., Any], files: list[Path]
) -> None:
    two("register", "hybrid", "1.11.0", files[0], "--info", '{"n": 1}')
    for label in ("1.9.0", "1.10.0", "1.11.0"):
        two("promote", "hybrid", label)
    for _ in range(2):
        assert two("rollback", "hybrid", "--from", "1.11.0").stdout == "hybrid: 1.11.0 -> 1.10.0\n"
    refused = two("rollback", "hybrid", "--from", "1.9.0", code=3)
    assert "the production of hybrid is at 1.10.0 now; nothing was changed" in refused.stderr
    assert version(two("show", "hybrid", "production", "--json"))["version"] == "1.10.0"
    two("rollback", "hybrid", "--from", "", code=3)  # a script's variable that is empty
    assert two("rollback", "hybrid").stdout == "hybrid: 1.10.0 -> 1.9.0\n"


def test_two_versions_are_compared(two: Callable[..., Any]) -> None:
    lines = two("compare", "hybrid", "1.9.0").stdout.splitlines()
    assert [line.split("\t")[:3] for line in lines[:2]] == [["metric", "version1", "version2"], ["ic", "0.03", "0.04"]]
    found = json.loads(two("compare", "hybrid", "1.9.0", "1.10.0", "--json").stdout)
    assert list(found["metrics_comparison"]) == ["ic"]


def test_deleting_asks_and_takes_the_model_with_its_last_version(two: Callable[..., Any]) -> None:
    two("delete", "hybrid", "latest", code=1, stdin="n\n")
    assert len(json.loads(two("show", "hybrid", "--json").stdout)["items"]) == 2
    two("delete", "hybrid", "1.10.0", stdin="y\n")
    two("delete", "hybrid", "1.9.0", "--yes")
    assert json.loads(two("list", "--json").stdout) == {"items": []}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(("show", "none"), 4, "no model is named 'none'", id="no such model"),
        pytest.param(("show", "hybrid", "9.9.9"), 4, "hybrid has no version '9.9.9'", id="no such version"),
        pytest.param(("show", "hybrid", "--stage", "live"), 2, "Production, Staging", id="no such stage to show"),
        pytest.param(("stage", "hybrid", "1.9.0", "live"), 2, "Production, Staging", id="no such stage"),
        pytest.param(("rollback", "hybrid"), 3, "no version of hybrid is in production", id="nothing to go back from"),
        pytest.param(("register", "hybrid", "latest", "model0.json"), 2, "register a number", id="a reserved label"),
        pytest.param(("register", "hybrid", "1.9.0", "model1.json"), 3, "other content", id="a label that is taken"),
        pytest.param(("register", "hybrid", "2.0.0", "none.json"), 2, "no such file", id="no such file"),
        pytest.param(("register", "hybrid", "2.0.0", "torn.json"), 2, "torn.json", id="a torn file"),
        pytest.param(("annotate", "hybrid", "1.9.0"), 2, "nothing to say", id="no annotation"),
        pytest.param(
            ("annotate", "hybrid", "9.9.9", "--tag", "a=b"), 4, "no version '9.9.9'", id="nothing to annotate"
        ),
        pytest.param(
            ("annotate", "hybrid", "1.9.0", "--tag", "a=b", "--remove-tag", "a"),
            *(2, "tags.a: both set and removed"),
            id="a tag set and removed",
        ),
        pytest.param(
            ("annotate", "hybrid", "1.9.0", "--tag", "a=b", "--tag", "a=c"), 2, "tags.a: given twice", id="a tag twice"
        ),
        pytest.param(("metrics", "hybrid", "1.9.0", "a=1", "a=2"), 2, "metrics.a: given twice", id="a metric twice"),
        pytest.param(
            ("register", "hybrid", "2.0.0", "model0.json", "--metrics", "[1]"), 2, "not a JSON object", id="no object"
        ),
        pytest.param(
            ("register", "hybrid", "2.0.0", "model0.json", "--info", "@none"), 2, "No such file", id="no file of JSON"
        ),
    ],
)
def test_what_cannot_be_done_is_said_and_has_its_exit_code(
    two: Callable[..., Any],
    files: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(files[0].parent)
    Path("torn.json").write_bytes(files[0].read_bytes()[:50])
    done = two(*arguments, code=code)
    assert said in done.stderr
    assert len(json.loads(two("show", "hybrid", "--json").stdout)["items"]) == 2


def test_what_is_in_production_can_be_neither_retired_nor_deleted(two: Callable[..., Any]) -> None:
    two("promote", "hybrid", "1.9.0")
    for command in (("retire", "hybrid", "1.9.0"), ("delete", "hybrid", "production", "--yes")):
        assert "is in production" in two(*command, code=3).stderr
