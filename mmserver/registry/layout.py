"""Registered models as a directory: `{name}/v{version}/` with files and `metadata.json`, `production` and `staging` as symlinks.

A projection: the database is the truth, what is here is made from it and never read back. What others put there is left alone,
and named.
"""

import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import select

from mmserver.catalog.catalog import Model
from mmserver.catalog.registering import check_name
from mmserver.catalog.store import Store
from mmserver.errors import MmserverError, NameInvalid, SettingInvalid
from mmserver.registry.finding import REGISTERED
from mmserver.registry.model_directory import ModelDirectory, Synced, noted
from mmserver.registry.owned_files import names_in, opened_root
from mmserver.storage.tables import ModelRow

LOCK_TIMEOUT_S = 60.0
CHANGE_LOCK_TIMEOUT_S = 2.0
"""A change waits no longer for others that write; the job that follows commits, or the next sync, does what is missing then."""

RETRY_S = 30.0
"""How often what had problems is tried again, where nothing is committed meanwhile."""

log = logging.getLogger(__name__)


def sync_directory(
    store: Store,
    model_names: Iterable[str] | None = None,
    *,
    verifies: bool = False,
    takes_over: bool = False,
    only_changes: bool = False,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Synced:
    """Make the directory what the database says: all of it, or what is there of some models.

    Args:
        verifies: compare each file with its hash; otherwise its size has to do.
        takes_over: what was written for another database, as before a restore, is ours too.
        only_changes: a version that this process saw as it should be is passed over unless it was changed since.
        is_stopping: whether to end early, after the version that is being written.

    Raises:
        ReadOnly
        SettingInvalid: no directory is set, or none can be at that path.
        OSError: it cannot be opened.
    """
    store.check_writable()
    directory = store.settings.registry_dir
    if directory is None:
        raise SettingInvalid(setting="MMSERVER_REGISTRY_DIR", reason="no directory is set to write the models to")
    with _opened(directory) as root_fd:
        done = Synced()
        if model_names is None:
            with store.database.read() as connection:
                registered = (
                    connection.execute(select(ModelRow.name).where(ModelRow.kind == REGISTERED)).scalars().all()
                )
            model_names = {*registered, *_model_names(root_fd, done)}
        for model_name in sorted(model_names):
            if is_stopping():
                break
            with noted(done, model_name):
                model_directory = ModelDirectory(
                    store,
                    model_name,
                    done,
                    verifies=verifies,
                    takes_over=takes_over,
                    only_changes=only_changes,
                    is_stopping=is_stopping,
                )
                model_directory.sync(root_fd, lock_timeout_s)
        return done


def show_change(store: Store, model_name: str) -> None:
    """After a commit of this process: the model's directory follows. A failure is logged and spoils nothing."""
    if store.settings.registry_dir is None:
        return
    try:
        done = sync_directory(store, [model_name], only_changes=True, lock_timeout_s=CHANGE_LOCK_TIMEOUT_S)
    except (OSError, MmserverError) as error:
        log.warning("registry directory: %s is not up to date: %s", model_name, error)
        return
    for problem in done.problems:
        log.warning("registry directory: %s", problem)


class Follower:
    """Keeps the directory up to date with what any process commits; cheap where nothing was changed."""

    def __init__(self, store: Store, is_stopping: Callable[[], bool] = lambda: False) -> None:
        """Everything is looked at the first time."""
        self._store = store
        self._is_stopping = is_stopping
        self._catalog: object = None
        self._models: Mapping[str, Model] | None = None
        self._problems: list[str] = []
        self._tried_at = time.monotonic()

    def follow(self) -> None:
        """Look at the models that were changed since the last time; at all, again and again, while there are problems."""
        catalog = self._store.catalog
        now = time.monotonic()
        is_due = bool(self._problems) and now - self._tried_at >= RETRY_S
        if catalog is self._catalog and not is_due:
            return
        models = {name: model for name, model in catalog.models.items() if not model.is_watched}
        names: set[str] | None = None
        if self._models is not None and not self._problems:
            before = self._models
            names = {name for name in {*models, *before} if models.get(name) != before.get(name)}
        problems = self._synced(names) if names is None or names else []
        for problem in problems:
            if problem not in self._problems:
                log.warning("registry directory: %s", problem)
        self._problems, self._tried_at = problems, now
        self._models, self._catalog = models, catalog

    def _synced(self, names: set[str] | None) -> list[str]:
        try:
            only_changes = self._models is not None
            done = sync_directory(self._store, names, only_changes=only_changes, is_stopping=self._is_stopping)
            return done.problems
        except (OSError, SettingInvalid) as error:
            return [str(error)]


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    with ExitStack() as stack:
        try:
            root_fd = stack.enter_context(opened_root(directory))
        except (FileExistsError, NotADirectoryError) as error:
            reason = f"{error.filename} is not a directory"
            raise SettingInvalid(setting="MMSERVER_REGISTRY_DIR", reason=reason) from error
        except PermissionError as error:
            reason = f"{error.filename}: {error.strerror}"
            raise SettingInvalid(setting="MMSERVER_REGISTRY_DIR", reason=reason) from error
        yield root_fd


def _model_names(root_fd: int, done: Synced) -> list[str]:
    """Directories that may be models'; anything else there is not ours."""
    names = []
    for entry in names_in(root_fd):
        try:
            check_name(entry)
            is_directory = stat.S_ISDIR(os.stat(entry, dir_fd=root_fd, follow_symlinks=False).st_mode)
        except NameInvalid:
            is_directory = False
        if is_directory:
            names.append(entry)
        else:
            done.foreign.append(entry)
    return names
