"""Every setting: its name, default, unit and meaning stand here once; the docs page is generated from this table.

A setting has one name everywhere: `watch_interval_s` is the field, the TOML key, `MMSERVER_WATCH_INTERVAL_S` in the
environment and, where a command offers it, `--watch-interval-s`. A flag beats the environment, that beats the TOML
file, the file beats the default.
"""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmserver.errors import SettingInvalid
from mmserver.setting_kinds import (
    BOOLEAN,
    HOST,
    NAMES,
    NUMBERS_BY_NAME,
    PATH,
    PATHS,
    TEXT,
    Kind,
    duration,
    number,
    one_of,
    size,
    size_text,
    whole,
    words_of,
)

PREFIX = "MMSERVER_"
CONFIG_FILE_NAME = "mmserver.toml"

OTHER_VARIABLES = {
    "MMSERVER_CONFIG": "The TOML file to read, as `--config` does.",
    "MMSERVER_URL": "Where the [client](client.md) finds the server.",
    "MMSERVER_API_KEY": "The key that the [client](client.md) sends.",
    "MMSERVER_VENV": "The virtual environment that setup.sh, start.sh and test.sh use instead of `.venv`.",
    "MMSERVER_TEST_KSERVE": "A Python with KServe's client, for the tests that ask with it.",
    "MMSERVER_TEST_SHARED": "Where the tests find real artifact directories.",
}
"""Variables with our prefix that are no settings; every other unknown one stops the start."""


# --- the table --------------------------------------------------------------------------------------------------------


def _setting(kind: Kind, default: Any, meaning: str, *, alias: str = "", default_text: str = "") -> Any:
    """One row of the table, as a dataclass field; a callable default is computed when the settings are made."""
    metadata = {"kind": kind, "meaning": meaning, "alias": alias, "default_text": default_text}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _sandbox_workers() -> int:
    return min(2, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one instance runs with; `load_settings` makes it, tests may make it directly.

    Units:
        names end in their unit: `_s` seconds, `_bytes` bytes; what has no unit is a count, a path or a word.
    """

    host: str = _setting(
        HOST, "0.0.0.0", "The address to listen on; every address by default.", alias="MODEL_MANAGER_HTTP_HOST"
    )
    port: int = _setting(
        whole(0, 65535), 6300, "The TCP port to listen on; 0 takes a free one.", alias="MODEL_MANAGER_HTTP_PORT"
    )
    workers: int = _setting(whole(1, 64), 1, "Server processes that share the port.")
    threads: int = _setting(whole(1, 256), 8, "Threads that answer requests, in each process.")
    max_body_bytes: int = _setting(size(1024), 8 * 2**20, "The largest request body that is read.")
    max_queue: int = _setting(
        whole(1, 1_000_000), 256, "Requests that may wait for a thread, in each process; one more is answered 503."
    )
    request_deadline_s: float = _setting(
        duration(0.1),
        30.0,
        "How long a client may take to send a request or to take its answer, and a request may wait.",
    )
    prediction_timeout_s: float = _setting(
        duration(0.1),
        10.0,
        "How long a graph whose cost depends on a row's numbers may run, as one with a loop, before it is stopped.",
    )
    connection_limit: int = _setting(
        whole(1, 100_000),
        1000,
        "Connections that are open at the same time, in each process; others wait to be let in.",
    )
    auth: str = _setting(
        one_of("auto", "required", "off"),
        "auto",
        "Whether [API keys](security.md) are asked for: `auto` as soon as one was made, `required` always, `off` never.",
    )
    public_reads: bool = _setting(BOOLEAN, False, "Ask nobody for a key who only reads.")
    trusted_hosts: tuple[str, ...] = _setting(
        NAMES, (), "Host names that requests may be addressed to, separated by commas; none named means any.",
        default_text="any",
    )  # fmt: skip
    probe_port: int = _setting(
        whole(0, 65535), 0, "A second port that answers `/livez` and `/readyz` only, whatever the load; 0 none."
    )
    inline: bool = _setting(
        BOOLEAN, True, "Answer predictions that take well under a millisecond without handing them to a thread."
    )
    pin_cpus: bool = _setting(
        BOOLEAN, True, "Keep each process on one CPU, where the platform allows; what it starts is free to use all."
    )
    max_waiters: int = _setting(whole(0, 100_000), 200, "Clients that may long-poll for a new model at the same time.")

    data_dir: Path = _setting(PATH, Path("data"), "Where all state is kept; one server at a time uses it.")
    plugins_dir: Path | None = _setting(PATH, None, "A directory of single-file plugins to load besides the installed.")
    artifact_roots: tuple[Path, ...] = _setting(
        PATHS, (), "The directories that artifacts and venue files may be read from; none named means any.",
        default_text="any",
    )  # fmt: skip
    read_only: bool = _setting(BOOLEAN, False, "Refuse every change over HTTP and watch nothing.")
    snapshot: Path | None = _setting(PATH, None, "Serve from this snapshot file, without a data directory.")

    watch_enabled: bool = _setting(
        BOOLEAN, True, "Watch registered directories and venue files for changes.", alias="MODEL_MANAGER_WATCH_ENABLED"
    )
    watch_interval_s: float = _setting(
        duration(0.05), 5.0, "How often directories are looked at.", alias="MODEL_MANAGER_WATCH_INTERVAL"
    )
    watch_debounce_s: float = _setting(
        duration(0), 2.0, "How long a file must be unchanged before it is read.", alias="MODEL_MANAGER_WATCH_DEBOUNCE"
    )
    watch_max_wait_s: float = _setting(
        duration(0), 300.0, "How long a directory may keep changing before that is reported."
    )
    rehash_interval_s: float = _setting(
        duration(0), 600.0, "How often files are read again although they look unchanged; 0 never."
    )
    gone_polls: int = _setting(whole(1, 1000), 3, "Looks in a row that must miss a file before it counts as deleted.")
    require_manifest: bool = _setting(BOOLEAN, False, "Serve only artifacts that a producer's manifest vouches for.")
    max_artifact_bytes: int = _setting(size(1), 2**30, "The largest artifact file that is read.")

    sandbox_workers: int = _setting(
        whole(1, 64), _sandbox_workers, "Guarded processes that read artifacts.", default_text="2, or 1 on one core"
    )
    sandbox_timeout_s: float = _setting(duration(0.1), 30.0, "How long reading one artifact may take.")
    sandbox_memory_bytes: int = _setting(size(64 * 2**20), 2 * 2**30, "The memory of one guarded process.")
    conversion_timeout_s: float = _setting(
        duration(0.1), 300.0, "How long reading and converting one registered model may take."
    )
    conversion_memory_bytes: int = _setting(
        size(64 * 2**20),
        8 * 2**30,
        "The memory of one guarded process that does it; heavy libraries reserve more than they use.",
    )
    allow_unpickling: tuple[str, ...] = _setting(
        words_of("sklearn"), (),
        "Types of models whose pickles are really unpickled when they are registered, which [runs what is in them]"
        "(operations.md#pickles) in the guarded process.", default_text="none",
    )  # fmt: skip
    require_sandbox: str = _setting(
        one_of("rlimits-only", "partial", "full"),
        "rlimits-only",
        "Do not start unless the guard of these processes reaches this level: `rlimits-only` limits memory, time and files; "
        "`partial` also filters system calls; `full` is every step, each proven by an attack at start.",
    )

    default_model: str = _setting(
        TEXT, "", "The model that predicts where a request names none and several have the symbol, and for `/invocations`.",
        default_text="none",
    )  # fmt: skip
    dead_band: float = _setting(
        number(0), 0.0, "An expected return of this size or smaller, up or down, is HOLD.", default_text="`0`"
    )
    dead_bands: Mapping[str, float] = _setting(
        NUMBERS_BY_NAME, dict, "The same for single models: `name=0.001, other=0`.", default_text="none"
    )
    max_rows: int = _setting(whole(1, 10_000_000), 65536, "Rows that one request may ask predictions for.")
    execution_providers: tuple[str, ...] = _setting(
        words_of("CPU", "CUDA", "Tensorrt", "MIGraphX", "OpenVINO", "CoreML", "Dml", "QNN"), (),
        "What runs ONNX models, the best first, separated by commas: " "`CUDA` and `Tensorrt` need another build of onnxruntime. "
        "What is not installed is left out, the CPU comes last.", default_text="`CPU`",
    )  # fmt: skip
    predictor_cache_bytes: int = _setting(
        size(0), 2**30, "Memory for loaded predictors; the least recently used go first."
    )
    warm: tuple[str, ...] = _setting(
        NAMES, (), "Models to load at start and after each change, separated by commas; `all` for all of them.",
        default_text="none",
    )  # fmt: skip

    payload_cache_bytes: int = _setting(size(0), 2**30, "Compressed model payloads held in memory.")
    keep_versions: int = _setting(whole(1, 1_000_000), 50, "Versions of a watched model that are always kept.")
    keep_days: int = _setting(whole(0, 36_500), 90, "Days that older versions are kept besides those.")
    registry_dir: Path | None = _setting(
        PATH,
        None,
        "A directory to keep [registered models as files](registry-directory.md) in, for programs that look for "
        "`{name}/production/`; none by default, because the database has them already and every model would be stored twice.",
        default_text="none",
    )
    snapshot_interval_s: float = _setting(duration(0), 900.0, "How often a snapshot is taken; 0 never.")
    snapshot_keep: int = _setting(whole(1, 10_000), 8, "Scheduled snapshots that are kept.")

    observations_sample: float = _setting(
        number(0, 1),
        0.0,
        "Share of the predictions outside experiments that are [observed](experiments.md#observing-what-is-served): logged with "
        "their features, so that outcomes can be given to them; 1 is every one, 0 none. Those of experiments always are.",
        default_text="`0`",
    )
    observations_horizon_s: float = _setting(
        duration(0),
        0.0,
        "How long after a prediction outside experiments its outcome is known: an earlier one is refused, and prices give it one. "
        "With 0 outcomes are taken at once, and prices give none.",
    )
    observations_days: int = _setting(
        whole(1, 36_500),
        90,
        "Days that single predictions that were observed and their outcomes are kept; their sums stay.",
    )
    observations_bytes: int = _setting(
        size(2**20),
        20 * 2**30,
        "Disk space for them; beyond it the oldest go, however young they are, those outside experiments first.",
    )
    observations_journal_bytes: int = _setting(
        size(2**20),
        2**30,
        "What may wait in journals to be moved to the observation file; beyond it, predictions of experiments are answered 503. "
        "What is observed outside experiments has half of it; beyond, it is dropped and counted.",
    )
    observations_grace_s: float = _setting(
        duration(0),
        3600.0,
        "How long after its horizon a prediction of an experiment counts as one without an outcome.",
    )

    log_level: str = _setting(one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO", "The least that is logged.")
    log_format: str = _setting(one_of("text", "json"), "text", "One line of text, or one JSON object, per event.")


@dataclass(frozen=True, slots=True)
class Definition:
    """One row of the settings table: what the docs page and the error messages are made from."""

    name: str
    kind: Kind
    default: Any
    default_text: str
    meaning: str
    alias: str

    @property
    def variable(self) -> str:
        """The environment variable of this setting."""
        return PREFIX + self.name.upper()


def definitions() -> tuple[Definition, ...]:
    """Every setting, in the order of the table."""
    defaults = Settings()
    return tuple(
        Definition(
            name=field.name,
            kind=field.metadata["kind"],
            default=getattr(defaults, field.name),
            default_text=field.metadata["default_text"],
            meaning=field.metadata["meaning"],
            alias=field.metadata["alias"],
        )
        for field in dataclasses.fields(Settings)
    )


# --- loading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """Settings, and for each name where its value came from (`--port`, `MMSERVER_PORT`, `port in FILE`, `default`)."""

    settings: Settings
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Given:
    """One value as somebody wrote it; relative paths in it start at `base`."""

    value: object
    source: str
    base: Path


def load_settings(flags: Mapping[str, Any], environ: Mapping[str, str], config_path: Path | None) -> Settings:
    """The settings of this start: a flag beats the environment, that beats the TOML file, that beats the default.

    A flag that is None or an empty tuple was not given; an empty environment variable is not set. Without `config_path`
    and MMSERVER_CONFIG, `mmserver.toml` in the data directory is read if it is there. Paths come out absolute.

    Raises:
        SettingInvalid: an unknown name, a bad value or an unreadable file; it names the setting and where it came from.
    """
    return resolve_settings(flags, environ, config_path).settings


def resolve_settings(
    flags: Mapping[str, Any], environ: Mapping[str, str], config_path: Path | None
) -> ResolvedSettings:
    """Like `load_settings`, and say where each value came from."""
    rows = {row.name: row for row in definitions()}
    given = {**_from_environment(rows, environ), **_from_flags(rows, flags)}
    if config_path is None and environ.get("MMSERVER_CONFIG"):
        config_path = Path(environ["MMSERVER_CONFIG"]).expanduser()
    if config_path is not None:
        given = {**_from_file(rows, config_path), **given}
    else:
        data_dir = _value(rows["data_dir"], given["data_dir"]) if "data_dir" in given else rows["data_dir"].default
        found = Path(data_dir) / CONFIG_FILE_NAME
        if found.is_file():
            given = {**_from_file(rows, found, inside_data_dir=True), **given}
    values = {name: _value(rows[name], entry) for name, entry in given.items()}
    values.setdefault("data_dir", Path.cwd() / rows["data_dir"].default)
    settings = Settings(**values)
    if settings.watch_max_wait_s < settings.watch_debounce_s:
        where = given.get("watch_max_wait_s") or given["watch_debounce_s"]
        raise SettingInvalid(setting=where.source, reason="watch_max_wait_s must not be less than watch_debounce_s")
    return ResolvedSettings(settings, {name: given[name].source if name in given else "default" for name in rows})


def _from_flags(rows: Mapping[str, Definition], flags: Mapping[str, Any]) -> dict[str, _Given]:
    given = {}
    for name, value in flags.items():
        if name not in rows:
            raise SettingInvalid(setting=f"--{name.replace('_', '-')}", reason=_unknown(name, rows))
        if value is not None and value != ():
            given[name] = _Given(value, f"--{name.replace('_', '-')}", Path.cwd())
    return given


def _from_environment(rows: Mapping[str, Definition], environ: Mapping[str, str]) -> dict[str, _Given]:
    names = {row.variable: row.name for row in rows.values()}
    given = {}
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in names and variable not in OTHER_VARIABLES:
            raise SettingInvalid(setting=f"{variable} (environment)", reason=_unknown(variable, names))
    for row in rows.values():
        for variable in (row.variable, row.alias):
            if variable and environ.get(variable):
                given[row.name] = _Given(environ[variable], variable, Path.cwd())
                break
    return given


def _from_file(rows: Mapping[str, Definition], path: Path, *, inside_data_dir: bool = False) -> dict[str, _Given]:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise SettingInvalid(setting=str(path), reason=f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingInvalid(setting=str(path), reason=f"is not TOML: {error}") from error
    given = {}
    for name, value in content.items():
        source = f"{name} in {path}"
        if name not in rows:
            raise SettingInvalid(setting=source, reason=_unknown(name, rows))
        if name == "data_dir" and inside_data_dir:
            raise SettingInvalid(setting=source, reason="cannot be set in the file that lies in the data directory")
        given[name] = _Given(value, source, path.absolute().parent)
    return given


def _unknown(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"no such setting; did you mean {close[0]}?" if close else "no such setting; see: mmserver settings"


def _value(row: Definition, given: _Given) -> Any:
    try:
        value = row.kind.parse(given.value)
    except ValueError as error:
        reason = f"{given.value!r} is not {row.kind.expects}"
        raise SettingInvalid(setting=given.source, reason=reason) from error
    if isinstance(value, Path):
        return given.base / value
    if isinstance(value, tuple):
        return tuple(given.base / part if isinstance(part, Path) else part for part in value)
    return value


# --- the docs page ----------------------------------------------------------------------------------------------------

_DOCS_HEAD = f"""# Settings

This page is generated from `mmserver/settings.py`: `mmserver settings --markdown > docs/settings.md`.

A setting can be given, strongest first, as a flag of the command that offers it, as an environment variable, in a
TOML file, or not at all. The file is `--config FILE`, or what `MMSERVER_CONFIG` names, or `{CONFIG_FILE_NAME}` in the
data directory; its keys are the names below, and relative paths in it start at its own directory. An empty variable is
not set. A variable that starts with `{PREFIX}` and is not listed here, an unknown key, and a bad value stop the start
and are named in the message. (Kubernetes adds such variables to every pod near a service named `mmserver`: give the
service another name or set `enableServiceLinks: false`.)

Times are in seconds or `500ms`, `5s`, `2m`, `1h`, `1d`; sizes in bytes or `64KiB`, `512MiB`, `2GiB` (`kB`, `MB`, `GB`
are powers of ten); switches are `true` or `false`.

| setting | variable | default | meaning |
|---|---|---|---|
"""


def settings_markdown() -> str:
    """The page docs/settings.md, whole."""
    settings = "\n".join(_setting_rows())
    others = "\n".join(f"| `{variable}` | {meaning} |" for variable, meaning in OTHER_VARIABLES.items())
    return f"{_DOCS_HEAD}{settings}\n\nOther variables:\n\n| variable | meaning |\n|---|---|\n{others}\n"


def _setting_rows() -> Iterator[str]:
    for row in definitions():
        variable = f"`{row.variable}`" + (f", or `{row.alias}`" if row.alias else "")
        yield f"| `{row.name}` | {variable} | {row.default_text or _shown(row)} | {row.meaning} |"


def _shown(row: Definition) -> str:
    """The default as somebody would write it."""
    value = row.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if row.name.endswith("_bytes"):
        return f"`{size_text(value)}`"
    if row.name.endswith("_s"):
        return f"`{value:g}s`"
    return f"`{value}`"
