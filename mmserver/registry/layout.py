"""Registered models as a directory: `{name}/v{version}/` with files and `metadata.json`, `production` and `staging` as symlinks.

A projection: the database is the truth, what is here is made from it and never read back. Versions come whole by one rename, a
link is replaced in one step and after what it points at, and goes before it; so whoever follows a link finds a whole version,
whenever this process dies. What others put there is left alone, and named.
"""

import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select
from sqlalchemy.exc import NoResultFound

from mmserver.catalog.catalog import Model
from mmserver.catalog.history import PRODUCTION, STAGING
from mmserver.catalog.registering import check_name
from mmserver.catalog.store import Store
from mmserver.errors import BlobNotFound, MmserverError, NameInvalid, SettingInvalid, VersionInvalid
from mmserver.registry.finding import REGISTERED, stages_of_model
from mmserver.registry.owned_files import (
    TEMPORARY,
    files_beneath,
    locked_directory,
    names_in,
    opened_directory,
    opened_root,
    read_file,
    read_pointer,
    remove_files,
    remove_leftovers,
    temporary_name,
    write_file,
    write_pointer,
)
from mmserver.registry.semantic_versions import check_label, precedence
from mmserver.registry.stage_names import ModelStage, stage_name
from mmserver.registry.version_files import (
    MAX_METADATA_BYTES,
    METADATA,
    Identity,
    broken_files,
    identity_of_directory,
    version_files,
)
from mmserver.storage.tables import MetaRow, ModelRow, RegisteredVersionRow, VersionRow
from mmserver.storage.times import datetime_from_text

LINKS = (PRODUCTION, STAGING)
LOCK_TIMEOUT_S = 60.0
CHANGE_LOCK_TIMEOUT_S = 2.0
"""A change waits no longer for others that write; the job that follows commits, or the next sync, does what is missing then."""

RETRY_S = 30.0
"""How often what had problems is tried again, where nothing is committed meanwhile."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Synced:
    """What was done, each by its path beneath the directory, and what could not be, with the reason.

    `foreign` is what others put there.
    """

    written: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_changed(self) -> bool:
        """Whether anything was done."""
        return bool(self.written or self.updated or self.removed)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A version as the database has it."""

    version_id: int
    sha256: str
    stage: ModelStage
    updated_at: datetime

    def is_told_by(self, found: Identity) -> bool:
        return found.stage == self.stage and found.updated_at == self.updated_at


def sync_directory(
    store: Store,
    model_names: Iterable[str] | None = None,
    *,
    verifies: bool = False,
    takes_over: bool = False,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Synced:
    """Make the directory what the database says: all of it, or what is there of some models.

    Args:
        verifies: compare each file with its hash; otherwise its size has to do.
        takes_over: what was written for another database, as before a restore, is ours too.
        is_stopping: whether to end early, after the version that is being written.

    Raises:
        ReadOnly
        SettingInvalid: no directory is set.
        OSError: it cannot be opened.
    """
    store.check_writable()
    directory = store.settings.registry_dir
    if directory is None:
        raise SettingInvalid(setting="MMSERVER_REGISTRY_DIR", reason="no directory is set to write the models to")
    with opened_root(directory) as root_fd:
        done = Synced()
        with store.database.read() as connection:
            owner = connection.execute(select(MetaRow.value).where(MetaRow.key == "generation_id")).scalar_one()
            if model_names is None:
                of_registered = select(ModelRow.name).where(ModelRow.kind == REGISTERED)
                model_names = {*connection.execute(of_registered).scalars(), *_model_names(root_fd, done)}
        for model_name in sorted(model_names):
            if is_stopping():
                break
            with _noted(done, model_name):
                directory_of_model = _ModelDirectory(
                    store, model_name, owner, done, verifies=verifies, takes_over=takes_over, is_stopping=is_stopping
                )
                directory_of_model.sync(root_fd, lock_timeout_s)
        return done


def show_change(store: Store, model_name: str) -> None:
    """After a commit of this process: the model's directory follows. A failure is logged and spoils nothing."""
    if store.settings.registry_dir is None:
        return
    try:
        done = sync_directory(store, [model_name], lock_timeout_s=CHANGE_LOCK_TIMEOUT_S)
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
            return sync_directory(self._store, names, is_stopping=self._is_stopping).problems
        except OSError as error:
            return [str(error)]


@contextmanager
def _noted(done: Synced, what: str) -> Iterator[None]:
    """What hinders this step is a problem of it alone; the rest goes on."""
    try:
        yield
    except (OSError, MmserverError) as error:
        said = error.strerror if isinstance(error, OSError) else None
        done.problems.append(f"{what}: {said or error}")


class _ModelDirectory:
    """One model's directory on its way to what the database says."""

    def __init__(
        self,
        store: Store,
        model_name: str,
        owner: str,
        done: Synced,
        *,
        verifies: bool,
        takes_over: bool,
        is_stopping: Callable[[], bool],
    ) -> None:
        check_name(model_name)  # it becomes a file's name
        self._store = store
        self._name = model_name
        self._owner = owner
        self._done = done
        self._verifies = verifies
        self._takes_over = takes_over
        self._is_stopping = is_stopping

    def sync(self, root_fd: int, lock_timeout_s: float) -> None:
        """All steps, in the order that keeps every link on a whole version."""
        _, wanted = self._wanted()
        if wanted or _is_there(root_fd, self._name):
            with locked_directory(root_fd, self._name, lock_timeout_s, makes=bool(wanted)) as model_fd:
                model, wanted = self._wanted()  # what was committed while the lock was another's, too
                remove_leftovers(model_fd)
                for label in sorted(wanted, key=precedence):
                    if self._is_stopping():
                        return
                    with _noted(self._done, f"{self._name}/v{label}"):
                        self._put_version(model_fd, model, label, wanted[label])
                for link in LINKS:
                    with _noted(self._done, f"{self._name}/{link}"):
                        self._put_link(model_fd, link, wanted)
                for entry in names_in(model_fd):
                    with _noted(self._done, f"{self._name}/{entry}"):
                        self._remove_unwanted(model_fd, entry, wanted)
                if not wanted:
                    with suppress(OSError):  # not empty: others' files are in it
                        os.rmdir(self._name, dir_fd=root_fd)
                        self._done.removed.append(self._name)

    def _wanted(self) -> tuple[Row[Any], dict[str, _Wanted]]:
        with self._store.database.read() as connection:
            return _wanted(connection, self._name)

    # --- versions ---------------------------------------------------------------------------------------------------------

    def _put_version(self, model_fd: int, model: Row[Any], label: str, wanted: _Wanted) -> None:
        entry = f"v{label}"
        found, broken = self._looked_at(model_fd, entry)
        is_same = found is not None and found.sha256 == wanted.sha256 and not broken
        if is_same and found is not None and wanted.is_told_by(found) and not self._verifies:
            return
        try:
            with self._store.database.read() as connection:
                files = version_files(connection, model, wanted.version_id, self._owner)
        except (NoResultFound, BlobNotFound):
            return  # removed just now; whoever did that is waiting for the lock
        if found is not None and found.sha256 != wanted.sha256:  # removed, and registered again
            self._unlink(model_fd, entry)
            self._remove_version(model_fd, entry, found)
            found = None
        if found is None:
            self._write_version(model_fd, entry, {**files.contents, METADATA: files.metadata})
            self._done.written.append(f"{self._name}/{entry}")
            return
        with opened_directory(model_fd, entry) as version_fd:
            if is_same and read_file(version_fd, METADATA, MAX_METADATA_BYTES) == files.metadata:
                return
            for file in files.described.files:
                if file.path in broken or file not in found.files:
                    write_file(version_fd, file.path, files.contents[file.path])
            write_file(version_fd, METADATA, files.metadata)
        self._done.updated.append(f"{self._name}/{entry}")

    def _looked_at(self, model_fd: int, entry: str) -> tuple[Identity | None, list[str]]:
        """(what the version's directory is, paths in it that have to be written again); None where there is none.

        Raises:
            FileExistsError: something else is there.
        """
        try:
            with opened_directory(model_fd, entry) as version_fd:
                found = identity_of_directory(version_fd)
                if found is None or not self._is_ours(found):
                    if not names_in(version_fd):
                        return None, []
                    raise FileExistsError(0, self._foreign_reason(found))
                remove_leftovers(version_fd)
                return found, broken_files(version_fd, found.files, verifies=self._verifies)
        except FileNotFoundError:
            return None, []
        except NotADirectoryError as error:  # a symlink too
            raise FileExistsError(0, self._foreign_reason(None)) from error

    def _write_version(self, model_fd: int, entry: str, contents: Mapping[str, bytes]) -> None:
        temporary = temporary_name()
        try:
            with opened_directory(model_fd, temporary, makes=True) as version_fd:
                for path, content in contents.items():
                    write_file(version_fd, path, content)
                os.fsync(version_fd)
            os.rename(temporary, entry, src_dir_fd=model_fd, dst_dir_fd=model_fd)  # fails where anything is in it
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True, dir_fd=model_fd)
            raise
        os.fsync(model_fd)

    def _remove_version(self, model_fd: int, entry: str, found: Identity) -> None:
        """In one step, or, where others' files are in it, file by file, without those."""
        ours = [*(file.path for file in found.files), METADATA]  # the last one says that it is ours
        with opened_directory(model_fd, entry) as version_fd:
            paths = list(files_beneath(version_fd))
            others = [path for path in paths if path not in ours and not path.rpartition("/")[2].startswith(TEMPORARY)]
            if others:
                remove_files(version_fd, ours)
        if not others:
            temporary = temporary_name()
            os.rename(entry, temporary, src_dir_fd=model_fd, dst_dir_fd=model_fd)
            os.fsync(model_fd)
            shutil.rmtree(temporary, dir_fd=model_fd)
        self._done.removed.append(f"{self._name}/{entry}")
        self._done.foreign += [f"{self._name}/{entry}/{path}" for path in others]

    def _remove_unwanted(self, model_fd: int, entry: str, wanted: Mapping[str, _Wanted]) -> None:
        """A version that is not in the database any more; anything else that is not ours is named."""
        if entry in LINKS or (entry.startswith("v") and entry[1:] in wanted):
            return  # seen to before
        if _is_label(entry):
            try:
                with opened_directory(model_fd, entry) as version_fd:
                    found = identity_of_directory(version_fd)
            except NotADirectoryError:
                found = None
            if found is not None and self._is_ours(found):
                self._unlink(model_fd, entry)
                self._remove_version(model_fd, entry, found)
                return
        self._done.foreign.append(f"{self._name}/{entry}")

    def _is_ours(self, found: Identity) -> bool:
        return found.written_for == self._owner or self._takes_over

    def _foreign_reason(self, found: Identity | None) -> str:
        if found is None:
            return "something else is there, and is left alone; move it away"
        return "it was written for another database, and is left alone; move it away, or sync with --take-over"

    # --- links ------------------------------------------------------------------------------------------------------------

    def _put_link(self, model_fd: int, link: str, wanted: Mapping[str, _Wanted]) -> None:
        label = next((label for label, version in wanted.items() if version.stage.lower() == link), None)
        present = self._pointer(model_fd, link)
        target = f"v{label}" if label is not None and self._is_whole(model_fd, label, wanted) else None
        if target is None:
            is_last_good = label is not None and present is not None and self._is_whole(model_fd, present[1:], wanted)
            if present is not None and not is_last_good:
                os.unlink(link, dir_fd=model_fd)
                os.fsync(model_fd)
                self._done.removed.append(f"{self._name}/{link}")
        elif present != target:
            write_pointer(model_fd, link, target)
            self._done.updated.append(f"{self._name}/{link}")

    def _is_whole(self, model_fd: int, label: str, wanted: Mapping[str, _Wanted]) -> bool:
        """Whether a link may point there; where the right version could not be written, it stays on one that may."""
        if label not in wanted:
            return False
        try:
            found, broken = self._looked_at(model_fd, f"v{label}")
        except FileExistsError:
            return False
        return found is not None and found.sha256 == wanted[label].sha256 and not broken

    def _pointer(self, model_fd: int, link: str) -> str | None:
        """What the link points at.

        Raises:
            FileExistsError: it is nothing that we made, or may replace.
        """
        present = read_pointer(model_fd, link)
        is_ours = present is not None and _is_label(present)
        if not is_ours and _is_there(model_fd, link):
            raise FileExistsError(0, self._foreign_reason(None))
        return present

    def _unlink(self, model_fd: int, entry: str) -> None:
        """Let go of the links to a version that is about to go."""
        for link in LINKS:
            if read_pointer(model_fd, link) == entry:
                os.unlink(link, dir_fd=model_fd)
        os.fsync(model_fd)


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


def _wanted(connection: Connection, model_name: str) -> tuple[Row[Any], dict[str, _Wanted]]:
    """The model, and its versions by label; none of a model that is watched, or gone."""
    model = connection.execute(select(ModelRow.__table__).where(ModelRow.name == model_name)).one_or_none()
    if model is None or model.kind != REGISTERED:
        return model, {}  # type: ignore[return-value]
    stages = stages_of_model(connection, model.id)
    rows = connection.execute(
        select(VersionRow.id, VersionRow.label, RegisteredVersionRow.__table__)
        .join(RegisteredVersionRow, RegisteredVersionRow.version_id == VersionRow.id)
        .where(VersionRow.model_id == model.id)
    )
    return model, {
        row.label: _Wanted(
            version_id=row.id,
            sha256=row.content_sha256,
            stage=stage_name(stages.get(row.id) or ("archived" if row.archived_at is not None else None)),  # type: ignore[arg-type]
            updated_at=datetime_from_text(row.updated_at),
        )
        for row in rows
    }


def _is_label(entry: str) -> bool:
    try:
        check_label(entry.removeprefix("v"))
    except VersionInvalid:
        return False
    return entry.startswith("v")


def _is_there(within: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=within, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
