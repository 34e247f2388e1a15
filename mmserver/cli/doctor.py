"""`mmserver doctor`: what is right and wrong with this machine, its libraries and the state, one line each."""

import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_rows
from mmserver.errors import DataDirLocked, MmserverError
from mmserver.setting_kinds import size_text
from mmserver.settings import Settings

LIBRARIES = ("flask", "waitress", "sqlalchemy", "alembic", "numpy", "msgspec", "pluggy", "onnxruntime")
LOW_SPACE_BYTES = 2**30  # a snapshot and a migration each need a second copy of the database
LEVELS = ("rlimits-only", "partial", "full")


class Check(msgspec.Struct, frozen=True):
    """One line of the report."""

    name: str
    level: Literal["ok", "warn", "fail"]
    detail: str


@click.command()
@json_option
@with_settings("plugins_dir")
def doctor(settings: Settings, as_json: bool) -> None:
    """Check this machine, its libraries and the state; exit code 1 when something fails."""
    checks = list(all_checks(settings))
    print_rows(checks, ("name", "level", "detail"), as_json=as_json)
    if any(check.level == "fail" for check in checks):
        click.get_current_context().exit(1)


def all_checks(settings: Settings) -> Iterator[Check]:
    """Every check, in the order of the report; what cannot even be looked at is a failed line."""
    parts: Sequence[tuple[str, Callable[[], Iterator[Check]]]] = (
        ("python", _machine),
        ("sqlite", _sqlite),
        ("libraries", _libraries),
        ("execution providers", lambda: _execution_providers(settings)),
        ("sandbox", lambda: _sandbox(settings)),
        ("plugins", lambda: _plugins(settings)),
        ("data directory", lambda: _data_dir(settings.data_dir)),
        ("database", lambda: _database(settings.data_dir)),
        ("access", lambda: _access(settings)),
    )
    for name, part in parts:
        try:
            yield from part()
        except (MmserverError, OSError) as error:
            yield Check(name, "fail", str(error))


def no_jobs(options: Mapping[str, Any]) -> dict[str, Callable[[bytes], bytes]]:
    """Handlers for a sandbox that is only tested."""
    return {}


def _machine() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")


def _sqlite() -> Iterator[Check]:
    from mmserver.storage.sqlite import SAFE_VERSION, is_safe_sqlite, sqlite_module, sqlite_version

    found = f"{sqlite_version()} ({sqlite_module().__name__})"
    if is_safe_sqlite():
        yield Check("sqlite", "ok", found)
    else:
        wanted = ".".join(map(str, SAFE_VERSION))
        yield Check(
            "sqlite", "warn", f"{found} can corrupt a database in rare races; {wanted} does not: install pysqlite3"
        )


def _libraries() -> Iterator[Check]:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES if _is_installed(name)]
    missing = [name for name in LIBRARIES if not _is_installed(name)]
    xgboost = next((name for name in ("xgboost-cpu", "xgboost") if _is_installed(name)), None)
    if xgboost is None:
        missing.append("xgboost")
    else:
        versions.append(f"{xgboost} {importlib.metadata.version(xgboost)}")
    yield Check("libraries", "ok", ", ".join(versions))
    if missing:
        yield Check("libraries", "fail", f"missing: {', '.join(missing)}; run setup.sh or pip install mmserver again")


def _is_installed(name: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=name))


def _execution_providers(settings: Settings) -> Iterator[Check]:
    if not _is_installed("onnxruntime"):
        return  # said above
    from mmserver.graphs.providers import KNOWN, provider_faults
    from mmserver.plugin_loading import PROVIDER_SUFFIX

    asked = [name + PROVIDER_SUFFIX for name in settings.execution_providers]
    faults = provider_faults(list(dict.fromkeys([*asked, *KNOWN])))
    said = [f"{name.removesuffix(PROVIDER_SUFFIX)}: {fault or 'runs models'}" for name, fault in faults.items()]
    unmet = [name.removesuffix(PROVIDER_SUFFIX) for name in asked if faults[name] is not None]
    if unmet:
        said.append(f"MMSERVER_EXECUTION_PROVIDERS asks for {', '.join(unmet)}, so what comes after it runs the models")
    yield Check("execution providers", "warn" if unmet else "ok", "; ".join(said))


def _sandbox(settings: Settings) -> Iterator[Check]:
    from mmserver.sandbox.pool import Sandbox

    with Sandbox(f"{__name__}:no_jobs", {}, n_workers=1) as sandbox:
        found = sandbox.level()
    lacking = [f"{step}: {outcome}" for step, outcome in found.steps.items() if outcome != "on"]
    detail = "; ".join([found.name, *lacking])
    if LEVELS.index(found.name) < LEVELS.index(settings.require_sandbox):
        yield Check("sandbox", "fail", f"{detail}; MMSERVER_REQUIRE_SANDBOX asks for {settings.require_sandbox}")
    else:
        yield Check("sandbox", "ok" if found.name == "full" else "warn", detail)


def _plugins(settings: Settings) -> Iterator[Check]:
    from mmserver.plugin_loading import load_plugins

    for status in load_plugins(settings.plugins_dir).statuses():
        detail = f"{status.name} ({status.source}): {status.error or 'ok'}"
        yield Check("plugin", "fail" if status.error else "ok", detail)


def _data_dir(path: Path) -> Iterator[Check]:
    from mmserver.storage.data_dir import DataDir

    if not path.exists():
        yield Check("data directory", "ok", f"{path} will be made at the first start")
        return
    try:
        DataDir(path).lock().release()
        use = "no server uses it"
    except DataDirLocked:
        use = "a server uses it"
    free_bytes = shutil.disk_usage(path).free
    free = f"{free_bytes / 2**30:.1f} GiB free"
    yield Check("data directory", "warn" if free_bytes < LOW_SPACE_BYTES else "ok", f"{path}: {use}, {free}")


def _database(data_dir: Path) -> Iterator[Check]:
    from mmserver.storage.audit import verify_audit
    from mmserver.storage.data_dir import DataDir
    from mmserver.storage.database import open_database
    from mmserver.storage.schema import check_schema
    from mmserver.storage.snapshots import list_snapshots

    names = DataDir(data_dir)
    if not names.database_path.exists():
        yield Check("database", "ok", "none yet")
        return
    size_bytes = names.database_path.stat().st_size
    database = open_database(names.database_path, read_only=True, n_readers=1)
    try:
        revision = check_schema(database).revision
        trail = verify_audit(database)
    finally:
        database.close()
    if trail.reason is None:
        yield Check("audit", "ok", f"{trail.n_rows} rows, chained to {trail.head.hash}")
    else:
        yield Check("audit", "fail", f"{trail.reason}; `mmserver audit verify` says the same")
    yield Check("database", "ok", f"{size_text(size_bytes)}, schema {revision}; `mmserver db check` reads all of it")
    snapshots = list_snapshots(names.snapshots_dir)
    damaged = [str(info.path) for info in snapshots if info.damage is not None]
    usable = [info for info in snapshots if info.damage is None]
    if usable:
        hours = (datetime.now(UTC) - usable[0].created_at).total_seconds() / 3600
        yield Check("snapshots", "ok", f"{len(usable)}; the last is {hours:.1f} hours old")
    else:
        yield Check("snapshots", "warn", "none; `mmserver snapshot create` makes one")
    if damaged:
        yield Check("snapshots", "warn", f"damaged: {', '.join(damaged)}")


def _access(settings: Settings) -> Iterator[Check]:
    if settings.artifact_roots:
        yield Check("artifact roots", "ok", ", ".join(map(str, settings.artifact_roots)))
    else:
        yield Check("artifact roots", "warn", "any directory may be registered; MMSERVER_ARTIFACT_ROOTS limits that")
    yield Check("API keys", "warn", "no API keys exist: everybody who can reach the port may change models")
