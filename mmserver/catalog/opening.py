"""Opening the state of a data directory or a snapshot: for a server, or beside one that runs."""

from contextlib import ExitStack
from pathlib import Path

from mmserver.catalog.leftovers import drop_unfinished
from mmserver.catalog.store import Store
from mmserver.errors import SettingInvalid
from mmserver.plugin_loading import Plugins, load_plugins
from mmserver.sandbox.level import LevelName
from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.pool import Sandbox
from mmserver.settings import Settings
from mmserver.storage.data_dir import DataDir
from mmserver.storage.database import Database, open_database
from mmserver.storage.schema import check_schema, upgrade_database

LEVELS: tuple[LevelName, ...] = ("rlimits-only", "partial", "full")


class OpenStore:
    """A store as a context manager: opened on entering, closed with everything beneath it on leaving."""

    def __init__(self, settings: Settings, *, owns_data_dir: bool) -> None:
        self._settings = settings
        self._owns_data_dir = owns_data_dir
        self._opened = ExitStack()

    def __enter__(self) -> Store:
        with ExitStack() as opened:
            plugins = load_plugins(self._settings.plugins_dir, self._settings.execution_providers)
            database = self._database(opened)
            opened.callback(database.close)
            is_read_only = self._settings.read_only or self._settings.snapshot is not None
            store = Store(
                settings=self._settings,
                database=database,
                plugins=plugins,
                sandbox=_sandbox(self._settings, plugins),
                read_only=is_read_only,
            )
            opened.callback(store.close)
            _require_sandbox(store)
            if self._owns_data_dir and not is_read_only:
                drop_unfinished(store)
            self._opened = opened.pop_all()
            return store

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _database(self, opened: ExitStack) -> Database:
        settings = self._settings
        if settings.snapshot is not None:
            database = open_database(_existing(settings.snapshot), read_only=True, n_readers=settings.threads + 4)
            check_schema(database)
            return database
        data_dir = DataDir(settings.data_dir)
        data_dir.create()
        if self._owns_data_dir:
            opened.enter_context(data_dir.lock())
            data_dir.remove_leftovers()
            upgrade_database(data_dir.database_path, data_dir.snapshots_dir)
        elif not data_dir.database_path.exists():
            with data_dir.lock():
                upgrade_database(data_dir.database_path, data_dir.snapshots_dir)
        database = open_database(data_dir.database_path, n_readers=settings.threads + 4)
        check_schema(database)
        return database


def open_store(settings: Settings, *, owns_data_dir: bool = True) -> OpenStore:
    """The state, to be used in a `with` block; the command line works on it beside a running server with
    `owns_data_dir=False`.
    """
    return OpenStore(settings, owns_data_dir=owns_data_dir)


def _sandbox(settings: Settings, plugins: Plugins) -> Sandbox:
    return Sandbox(
        "mmserver.catalog.ingest:handlers",
        {"plugins_dir": str(settings.plugins_dir) if settings.plugins_dir else None},
        n_workers=settings.sandbox_workers,
        limits=JobLimits(
            memory_bytes=settings.sandbox_memory_bytes,
            cpu_s=max(1, int(settings.sandbox_timeout_s)),
            wall_s=settings.sandbox_timeout_s,
        ),
    )


def _require_sandbox(store: Store) -> None:
    """Test the sandbox now, not in the background, where the settings ask for more than limits."""
    wanted = store.settings.require_sandbox
    if store.read_only or wanted == LEVELS[0]:
        return
    store.tested_level = found = store.sandbox.level()
    if LEVELS.index(found.name) < LEVELS.index(wanted):
        lacking = "; ".join(f"{step}: {outcome}" for step, outcome in found.steps.items() if outcome != "on")
        reason = f"{wanted!r} is required, but this machine gives {found.name!r} ({lacking})"
        raise SettingInvalid(setting="MMSERVER_REQUIRE_SANDBOX", reason=reason)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise SettingInvalid(setting="--snapshot", reason=f"no file is at {path}")
    return path
