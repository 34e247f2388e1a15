"""Plugins are checked at start, and what they do wrong afterwards stays theirs."""

from pathlib import Path

import pytest

from mmserver.errors import PluginInvalid
from mmserver.formats import Event, ModelFile
from mmserver.plugin_loading import Plugins, PluginStatus, load_plugins

HEAD = "from mmserver import ArtifactFormat, Converter, ModelFile, PageLink, hookimpl\n"
EVENT = Event(kind="version_published", model_name="daily", version="20261120_140322")


def claim(name: str, suffix: str, role: str = "model") -> str:
    arguments = f"name={name!r}, suffix={suffix!r}, role={role!r}, parse=None"
    return f"@hookimpl\ndef mmserver_formats():\n    return [ArtifactFormat({arguments})]\n"


def load(directory: Path, **sources: str) -> Plugins:
    for name, source in sources.items():
        (directory / f"{name}.py").write_text(HEAD + source)
    return load_plugins(directory)


def status(plugins: Plugins, name: str) -> PluginStatus:
    return next(status for status in plugins.statuses() if status.name == name)


def claimed(plugins: Plugins, file_name: str, *, quantiles: bool = False) -> str | None:
    found = plugins.format_for(file_name, quantiles=quantiles)
    return found.name if found else None


def test_the_built_in_formats_come_through_the_entry_points_like_anybody_s() -> None:
    plugins = load_plugins()
    built_in = [s for s in plugins.statuses() if s.source.startswith("mmserver.plugins.")]
    assert {"pkl", "xgboost_json", "factors_txt", "ic_csv"} <= {s.name for s in built_in}
    assert [s.error for s in built_in] == [None] * len(built_in)
    for suffix in ("_factors.txt", "_ic.csv", "_info.pkl", "_model.pkl", "_model.json"):
        assert plugins.format_for(f"SOLUSDT_mid_chg_1m{suffix}") is not None


def test_a_file_in_the_plugins_directory_is_a_plugin_named_like_the_file(tmp_path: Path) -> None:
    plugins = load(tmp_path, trees=claim("trees", "_trees.csv"))
    assert status(plugins, "trees") == PluginStatus(name="trees", source="trees.py", hooks=("mmserver_formats",))
    assert claimed(plugins, "BTC_ret_1d_trees.csv") == "trees"
    assert "_trees.csv" in plugins.group_suffixes()


def test_the_longest_suffix_wins(tmp_path: Path) -> None:
    plugins = load(tmp_path, one=claim("one", ".csvx"), two=claim("two", "_trees.csvx"))
    assert claimed(plugins, "BTC_ret_1d_trees.csvx") == "two"
    assert claimed(plugins, "BTC_ret_1d_other.csvx") == "one"


def test_venue_files_and_group_files_are_claimed_apart(tmp_path: Path) -> None:
    plugins = load(tmp_path, one=claim("one", ".tab"), two=claim("two", ".tab", role="quantiles"))
    assert claimed(plugins, "x.tab") == "one"
    assert claimed(plugins, "x.tab", quantiles=True) == "two"
    assert ".tab" in plugins.group_suffixes()


# --- a broken contract stops the start ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "names"),
    [
        pytest.param(
            "@hookimpl\ndef mmserver_format():\n    return []\n", ["mine", "mmserver_format"], id="misspelt hook"
        ),
        pytest.param(
            "@hookimpl\ndef mmserver_event(happened):\n    pass\n", ["mine", "happened"], id="misspelt argument"
        ),
        pytest.param("def mmserver_formats():\n    return []\n", ["mine", "no hook", "hookimpl"], id="no hookimpl"),
        pytest.param("", ["mine", "no hook"], id="empty file"),
        pytest.param(claim("mine", "_model.pkl"), ["mine", "_model.pkl", "pkl_model"], id="suffix of a built-in"),
        pytest.param(claim("pkl_model", "_mine.pkl"), ["pkl_model"], id="name of a built-in"),
        pytest.param(
            "@hookimpl\ndef mmserver_converters():\n"
            "    return [Converter(kind='xgboost', target='json', media_type='x/y', convert=bytes)]\n",
            ["xgboost", "json"],
            id="conversion of a built-in",
        ),
    ],
)
def test_a_plugin_that_breaks_the_contract_stops_the_start_and_is_named(
    source: str, names: list[str], tmp_path: Path
) -> None:
    with pytest.raises(PluginInvalid) as raised:
        load(tmp_path, mine=source)
    assert all(name in str(raised.value) for name in names)


def test_two_plugins_that_claim_one_suffix_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(PluginInvalid, match=r"_trees\.csv.*(one|two)"):
        load(tmp_path, one=claim("one", "_trees.csv"), two=claim("two", "_trees.csv"))


def test_a_file_with_the_name_of_an_installed_plugin_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(PluginInvalid, match=r"pkl.*found twice.*pkl\.py"):
        load(tmp_path, pkl=claim("mine", "_mine.csv"))


def test_a_plugins_directory_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(PluginInvalid, match=r"nowhere.*does not exist"):
        load_plugins(tmp_path / "nowhere")


# --- a failing plugin does not ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "error"),
    [
        pytest.param("import a_module_that_is_not_there\n", "ModuleNotFoundError", id="import"),
        pytest.param("raise RuntimeError('no licence')\n", "RuntimeError: no licence", id="raises"),
        pytest.param("def (:\n", "SyntaxError", id="syntax"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_and_the_others_go_on(
    source: str, error: str, tmp_path: Path
) -> None:
    plugins = load(tmp_path, bad=source, good=claim("good", "_good.csv"))
    failed = status(plugins, "bad")
    assert error in str(failed.error)
    assert failed.hooks == ()
    assert claimed(plugins, "BTC_ret_1d_good.csv") == "good"
    assert status(plugins, "good").error is None


@pytest.mark.parametrize("body", ["raise RuntimeError('broken')", "return None", "return 7"])
@pytest.mark.parametrize("hook", ["formats", "converters", "blueprints", "pages", "commands"])
def test_a_plugin_whose_hook_fails_is_named_and_the_others_go_on(hook: str, body: str, tmp_path: Path) -> None:
    bad = f"@hookimpl\ndef mmserver_{hook}():\n    {body}\n"
    good = "@hookimpl\ndef mmserver_pages():\n    return [PageLink('Good', '/good')]\n" + claim("good", "_good.csv")
    plugins = load(tmp_path, bad=bad, good=good)
    assert plugins.blueprints() == []
    assert plugins.commands() == []
    assert [page.title for page in plugins.pages()] == ["Good"]
    assert claimed(plugins, "BTC_ret_1d_good.csv") == "good"
    assert status(plugins, "bad").error is not None
    assert status(plugins, "good").error is None


def test_every_plugin_hears_of_an_event_although_one_raises(tmp_path: Path) -> None:
    hears = "import pathlib\n@hookimpl\ndef mmserver_event(event):\n"
    hears += "    pathlib.Path({path!r}).write_text(event.model_name)\n"
    raises = "@hookimpl\ndef mmserver_event(event):\n    raise RuntimeError('deaf')\n"
    first, last = tmp_path / "a.log", tmp_path / "z.log"
    sources = {"a": hears.format(path=str(first)), "m": raises, "z": hears.format(path=str(last))}
    plugins = load(tmp_path, **sources)
    plugins.notify(EVENT)
    assert first.read_text() == last.read_text() == "daily"
    assert status(plugins, "m").error == "RuntimeError: deaf"


def test_what_a_predictor_s_loader_raises_reaches_the_caller(tmp_path: Path) -> None:
    plugins = load(tmp_path, bad="@hookimpl\ndef mmserver_load_predictor(model):\n    raise ValueError('not mine')\n")
    model = ModelFile(kind="x", content=b"", n_features=1, n_outputs=1, objective="", library_version="")
    with pytest.raises(ValueError, match="not mine"):
        plugins.load_predictor(model)


def test_nobody_predicts_with_a_kind_that_no_plugin_knows() -> None:
    model = ModelFile(kind="x", content=b"", n_features=1, n_outputs=1, objective="", library_version="")
    assert load_plugins().load_predictor(model) is None


def test_the_identity_is_that_of_what_the_plugins_are(tmp_path: Path) -> None:
    first = load(tmp_path, trees=claim("trees", "_trees.csv")).identity
    assert load(tmp_path, trees=claim("trees", "_trees.csv")).identity == first
    second = load(tmp_path, trees=claim("trees", "_trees.tsv")).identity
    broken = load(tmp_path, trees="import not_installed_here\n").identity
    assert len({load_plugins().identity, first, second, broken}) == 4
