"""Settings: precedence, the two old names, refusals that name themselves, and the page that documents them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mmserver.errors import SettingInvalid
from mmserver.setting_kinds import size_text
from mmserver.settings import Settings, definitions, load_settings, resolve_settings, settings_markdown

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that no data directory with a mmserver.toml is found by chance."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, toml: str = "") -> str:
    """What is said when these settings are refused."""
    config = Path("given.toml")
    config.write_text(toml, encoding="utf-8")
    with pytest.raises(SettingInvalid) as caught:
        load_settings(flags or {}, environ or {}, config)
    return str(caught.value)


def test_without_anything_given_the_old_defaults_stand(elsewhere: Path) -> None:
    settings = load_settings({}, {}, None)
    assert (settings.host, settings.port) == ("0.0.0.0", 6300)
    assert (settings.watch_enabled, settings.watch_interval_s, settings.watch_debounce_s) == (True, 5.0, 2.0)
    assert settings.data_dir == elsewhere / "data"
    assert dataclasses.replace(settings, data_dir=Path("data")) == Settings()


def test_a_flag_beats_the_environment_beats_the_old_name_beats_the_file_beats_the_default() -> None:
    config = Path("given.toml")
    config.write_text("port = 1\n", encoding="utf-8")
    old = {"MODEL_MANAGER_HTTP_PORT": "2"}
    new = {**old, "MMSERVER_PORT": "3"}
    assert load_settings({}, {}, config).port == 1
    assert load_settings({}, old, config).port == 2
    assert load_settings({}, new, config).port == 3
    assert load_settings({"port": 4}, new, config).port == 4
    assert load_settings({"port": None}, new, config).port == 3


def test_every_old_name_is_honoured() -> None:
    settings = load_settings(
        {},
        {
            "MODEL_MANAGER_HTTP_HOST": "127.0.0.1",
            "MODEL_MANAGER_HTTP_PORT": "7000",
            "MODEL_MANAGER_WATCH_ENABLED": "false",
            "MODEL_MANAGER_WATCH_INTERVAL": "10",
            "MODEL_MANAGER_WATCH_DEBOUNCE": "0.5",
            "MODEL_MANAGER_SOMETHING_ELSE": "not ours",
        },
        None,
    )
    assert (settings.host, settings.port, settings.watch_enabled) == ("127.0.0.1", 7000, False)
    assert (settings.watch_interval_s, settings.watch_debounce_s) == (10.0, 0.5)


def test_the_file_may_be_named_by_the_environment_or_lie_in_the_data_directory(elsewhere: Path) -> None:
    (elsewhere / "state").mkdir()
    (elsewhere / "state/mmserver.toml").write_text("threads = 3\nplugins_dir = 'mine'\n", encoding="utf-8")
    (elsewhere / "named.toml").write_text("threads = 4\ndata_dir = 'state'\n", encoding="utf-8")

    found = load_settings({"data_dir": "state"}, {}, None)
    assert (found.threads, found.plugins_dir) == (3, elsewhere / "state/mine")

    named = load_settings({}, {"MMSERVER_CONFIG": "named.toml"}, None)
    assert (named.threads, named.data_dir) == (4, elsewhere / "state")


def test_a_file_in_the_data_directory_cannot_move_the_data_directory(elsewhere: Path) -> None:
    (elsewhere / "data").mkdir()
    (elsewhere / "data/mmserver.toml").write_text("data_dir = 'elsewhere'\n", encoding="utf-8")
    with pytest.raises(SettingInvalid, match=r"data_dir in .*cannot be set in the file"):
        load_settings({}, {}, None)


def test_relative_paths_start_where_they_were_written(elsewhere: Path) -> None:
    (elsewhere / "etc").mkdir()
    config = elsewhere / "etc/mmserver.toml"
    config.write_text("artifact_roots = ['models', '/srv/models']\n", encoding="utf-8")
    settings = load_settings({"data_dir": "state"}, {"MMSERVER_PLUGINS_DIR": "plugins"}, Path("etc/mmserver.toml"))
    assert settings.artifact_roots == (elsewhere / "etc/models", Path("/srv/models"))
    assert (settings.data_dir, settings.plugins_dir) == (elsewhere / "state", elsewhere / "plugins")


def test_names_stay_names_wherever_they_are_written() -> None:
    config = Path("given.toml")
    config.write_text('warm = ["alpha", "beta"]\ntrusted_hosts = ["models.example"]\n', encoding="utf-8")
    environ = {"MMSERVER_WARM": "alpha, beta", "MMSERVER_TRUSTED_HOSTS": "models.example"}
    for settings in (load_settings({}, environ, None), load_settings({}, {}, config)):
        assert settings.warm == ("alpha", "beta")
        assert settings.trusted_hosts == ("models.example",)


def test_an_empty_variable_is_not_set_and_an_empty_multiple_flag_is_not_given() -> None:
    environ = {"MMSERVER_PORT": "", "MODEL_MANAGER_HTTP_PORT": "7001", "MMSERVER_ARTIFACT_ROOTS": "/a:/b"}
    settings = load_settings({"artifact_roots": ()}, environ, None)
    assert settings.port == 7001
    assert settings.artifact_roots == (Path("/a"), Path("/b"))


def test_where_each_value_came_from_is_known(elsewhere: Path) -> None:
    config = elsewhere / "given.toml"
    config.write_text("threads = 2\n", encoding="utf-8")
    sources = resolve_settings({"port": 1}, {"MODEL_MANAGER_HTTP_HOST": "::1"}, config).sources
    assert sources["port"] == "--port"
    assert sources["host"] == "MODEL_MANAGER_HTTP_HOST"
    assert sources["threads"] == f"threads in {config}"
    assert sources["workers"] == "default"


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("watch_interval_s", "5", 5.0),
        ("watch_interval_s", "500ms", 0.5),
        ("watch_interval_s", "5 s", 5.0),
        ("snapshot_interval_s", "2m", 120.0),
        ("snapshot_interval_s", "1.5h", 5400.0),
        ("snapshot_interval_s", "1d", 86400.0),
        ("max_artifact_bytes", "1024", 1024),
        ("max_artifact_bytes", "512MiB", 512 * 2**20),
        ("max_artifact_bytes", "1.5 gib", 1536 * 2**20),
        ("max_artifact_bytes", "2MB", 2_000_000),
        ("read_only", "YES", True),
        ("read_only", "off", False),
        ("log_level", "warning", "WARNING"),
        ("require_sandbox", "full", "full"),
        ("host", "::1", "::1"),
    ],
)
def test_values_are_read_as_people_write_them(name: str, written: str, meant: object) -> None:
    assert getattr(load_settings({}, {f"MMSERVER_{name.upper()}": written}, None), name) == meant


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("port", "6300.0"),
        ("port", "tcp://10.0.0.1:6300"),
        ("port", "٦٣٠٠"),
        ("workers", "0"),
        ("watch_interval_s", "0"),
        ("watch_interval_s", "-5"),
        ("watch_interval_s", "nan"),
        ("watch_interval_s", "1e3"),
        ("watch_interval_s", "5 weeks"),
        ("max_artifact_bytes", "0"),
        ("max_artifact_bytes", "1.5"),
        ("max_artifact_bytes", "5G"),
        ("read_only", "maybe"),
        ("artifact_roots", ":"),
        ("log_level", "chatty"),
        ("require_sandbox", "none"),
        ("host", "local host"),
    ],
)
def test_a_bad_value_names_the_variable_the_value_and_what_would_be_right(name: str, written: str) -> None:
    variable = f"MMSERVER_{name.upper()}"
    message = refusal(environ={variable: written})
    expected = next(row.kind.expects for row in definitions() if row.name == name)
    assert message == f"{variable}: {written!r} is not {expected}"


@pytest.mark.parametrize(
    "toml",
    ["port = true", "threads = []", "read_only = 2", "watch_interval_s = inf", "host = 1", "data_dir = ''"],
)
def test_a_toml_value_of_the_wrong_type_is_refused(toml: str) -> None:
    assert "given.toml: " in refusal(toml=toml)


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    assert refusal(environ={"MMSERVER_WATCH_INTERVAL": "5"}) == (
        "MMSERVER_WATCH_INTERVAL (environment): no such setting; did you mean MMSERVER_WATCH_INTERVAL_S?"
    )
    assert refusal(toml="prot = 1").endswith("no such setting; did you mean port?")
    assert refusal(toml="[server]\nport = 1").startswith("server in ")
    assert refusal(flags={"qqqqq": 1}) == "--qqqqq: no such setting; see: mmserver settings"


def test_an_old_name_with_a_bad_value_is_named_as_it_was_written() -> None:
    assert refusal(environ={"MODEL_MANAGER_HTTP_PORT": "http"}).startswith("MODEL_MANAGER_HTTP_PORT: 'http' is not")


def test_a_file_that_cannot_be_read_is_named(elsewhere: Path) -> None:
    with pytest.raises(SettingInvalid, match=r"absent\.toml: cannot be read: No such file"):
        load_settings({}, {}, Path("absent.toml"))
    (elsewhere / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingInvalid, match=r"binary\.toml: is not TOML"):
        load_settings({}, {}, Path("binary.toml"))


def test_a_longest_wait_below_the_debounce_is_refused() -> None:
    message = refusal(environ={"MMSERVER_WATCH_DEBOUNCE_S": "10m"})
    assert message == "MMSERVER_WATCH_DEBOUNCE_S: watch_max_wait_s must not be less than watch_debounce_s"


def test_every_default_is_accepted_when_it_is_written_out() -> None:
    for row in definitions():
        if row.default not in (None, (), {}):
            written = {f"MMSERVER_{row.name.upper()}": str(row.default)}
            assert getattr(load_settings({}, written, None), row.name) in (row.default, Path.cwd() / str(row.default))


def test_sizes_are_shown_as_they_may_be_written() -> None:
    for size_bytes in (0, 1, 1000, 1024, 1536, 2**30, 5 * 2**40):
        environ = {"MMSERVER_PAYLOAD_CACHE_BYTES": size_text(size_bytes)}
        assert load_settings({}, environ, None).payload_cache_bytes == size_bytes


def test_the_documented_settings_are_the_settings() -> None:
    page = (REPOSITORY / "docs/settings.md").read_text(encoding="utf-8")
    assert page == settings_markdown(), "run: mmserver settings --markdown > docs/settings.md"
