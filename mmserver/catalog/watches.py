"""The watched roots of one process: each model's last scan and what its watcher remembers."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from mmserver.catalog.catalog import Model
from mmserver.catalog.roots import allowed_path
from mmserver.errors import WrongModelKind
from mmserver.plugin_loading import Plugins
from mmserver.settings import Settings
from mmserver.storage.database import Database
from mmserver.storage.tables import ModelRow, WatchedFileRow
from mmserver.watching.identities import FileIdentity, GroupFiles, LoadedGroup
from mmserver.watching.names import ArtifactNames
from mmserver.watching.scanning import Scan, scan_tree
from mmserver.watching.settling import Watcher


@dataclass(slots=True)
class Watch:
    """One model's root as this process last saw it; `newest_label` says which version the watcher believes is loaded."""

    names: ArtifactNames
    watcher: Watcher
    newest_label: str
    scan: Scan | None = None
    is_settling: bool = False
    """Whether files were seen to change lately, so that another look soon is worth it."""


class Watches:
    """All watches of one process; a watch is made anew when another process has loaded something since."""

    def __init__(
        self, database: Database, settings: Settings, plugins: Plugins, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._settings = settings
        self._plugins = plugins
        self._watches: dict[int, Watch] = {}
        self.clock = clock

    def watch(self, model: Model) -> Watch:
        """The model's watch; the caller holds the model's lock."""
        watch = self._watches.get(model.id)
        if watch is None or watch.newest_label != model.newest_label:
            watch = Watch(ArtifactNames(self._plugins.group_suffixes()), self._watcher(model), model.newest_label)
            self._watches[model.id] = watch
        return watch

    def look(self, model: Model, watch: Watch) -> Scan:
        """Scan the model's root.

        Raises:
            DirectoryInvalid, OutsideRoots: it may not, or cannot, be looked at any more.
        """
        watch.scan = scan_tree(self.root(model), watch.names, watch.scan, clock=self.clock)
        return watch.scan

    def root(self, model: Model) -> Path:
        """The directory behind the model, checked against the allowed roots; whether it exists is for the scan to say."""
        return allowed_path(watched_root(model), self._settings.artifact_roots)

    def settling(self) -> set[int]:
        """The ids of the models whose files were still changing at their last look."""
        return {model_id for model_id, watch in list(self._watches.items()) if watch.is_settling}

    def forget(self, model_id: int) -> None:
        """The model was removed, or what is known of its files cannot be trusted any more."""
        self._watches.pop(model_id, None)

    def _watcher(self, model: Model) -> Watcher:
        settings = self._settings
        with self._database.read() as connection:
            rows = connection.execute(
                select(WatchedFileRow.__table__)
                .where(WatchedFileRow.model_id == model.id)
                .order_by(WatchedFileRow.group_key, WatchedFileRow.path)
            ).all()
            root_dev = connection.execute(select(ModelRow.root_dev).where(ModelRow.id == model.id)).scalar()
        files: dict[str, list[tuple[str, FileIdentity]]] = {}
        directories: dict[str, str] = {}
        read_at_ns: dict[str, int] = {}
        for row in rows:
            directory, _, name = row.path.rpartition("/")
            identity = FileIdentity(row.dev, row.ino, row.size_bytes, row.mtime_ns, row.ctime_ns)
            files.setdefault(row.group_key, []).append((name, identity))
            directories[row.group_key] = directory
            read_at_ns[row.group_key] = min(row.read_at_ns, read_at_ns.get(row.group_key, row.read_at_ns))
        loaded = {
            key: LoadedGroup(GroupFiles(key, directories[key], tuple(sorted(entries))), read_at_ns[key])
            for key, entries in files.items()
        }
        return Watcher(
            loaded,
            settle_s=settings.watch_debounce_s,
            max_wait_s=settings.watch_max_wait_s,
            gone_polls=settings.gone_polls,
            rehash_s=settings.rehash_interval_s or math.inf,
            root_dev=root_dev,
        )


def watched_root(model: Model) -> str:
    """The directory behind the model.

    Raises:
        WrongModelKind: it is a registered one, without a directory.
    """
    if model.root_path is None:
        instead = "it has no directory to look at; register another version of it instead"
        raise WrongModelKind(model_name=model.name, kind=model.kind, instead=instead)
    return model.root_path
