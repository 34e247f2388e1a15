"""One model's directory in the registry's directory, on its way to what the database says.

Versions come whole by one rename, a link is replaced in one step and after what it points at, and goes before it; so whoever
follows a link finds a whole version, whenever this process dies.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, bindparam, select
from sqlalchemy.exc import NoResultFound

from mmserver.catalog.history import PRODUCTION, STAGING
from mmserver.catalog.registering import check_name
from mmserver.catalog.shown import ShownModel, ShownVersion
from mmserver.catalog.store import Store
from mmserver.errors import BlobNotFound, MmserverError, ModelNotFound, VersionInvalid
from mmserver.registry.finding import REGISTERED, find_model
from mmserver.registry.owned_files import (
    TEMPORARY,
    files_beneath,
    is_there,
    locked_directory,
    names_in,
    opened_directory,
    read_file,
    read_pointer,
    remove_files,
    remove_leftovers,
    temporary_name,
    write_file,
    write_pointer,
)
from mmserver.registry.semantic_versions import check_label, precedence
from mmserver.registry.stage_names import stage_name
from mmserver.registry.version_files import (
    MAX_METADATA_BYTES,
    METADATA,
    Identity,
    broken_files,
    described_version,
    identity_of_directory,
    metadata_told_again,
    read_contents,
)
from mmserver.registry.versions import stage_of
from mmserver.storage.tables import ModelRow, RegisteredVersionRow, StageRow, VersionRow
from mmserver.storage.times import datetime_from_text

LINKS = (PRODUCTION, STAGING)


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


@contextmanager
def noted(done: Synced, what: str) -> Iterator[None]:
    """What hinders this step is a problem of it alone; the rest goes on."""
    try:
        yield
    except (OSError, MmserverError) as error:
        said = error.strerror if isinstance(error, OSError) else None
        done.problems.append(f"{what}: {said or error}")


class ModelDirectory:
    """One model's directory on its way to what the database says."""

    def __init__(
        self,
        store: Store,
        model_name: str,
        done: Synced,
        *,
        verifies: bool,
        takes_over: bool,
        only_changes: bool,
        is_stopping: Callable[[], bool],
    ) -> None:
        check_name(model_name)  # it becomes a file's name
        self._store = store
        self._name = model_name
        self._owner = store.database.generation_id
        self._done = done
        self._verifies = verifies
        self._takes_over = takes_over
        self._only_changes = only_changes
        self._is_stopping = is_stopping
        self._seen: dict[str, ShownVersion] = {}

    def sync(self, root_fd: int, lock_timeout_s: float) -> None:
        """All steps, in the order that keeps every link on a whole version."""
        if is_there(root_fd, self._name) or self._wanted():
            with locked_directory(root_fd, self._name, lock_timeout_s, makes=True) as model_fd:
                wanted = self._wanted()  # what was committed while the lock was another's, too
                remove_leftovers(model_fd)
                if not self._put_versions(model_fd, wanted):
                    return
                for link in LINKS:
                    with noted(self._done, f"{self._name}/{link}"):
                        self._put_link(model_fd, link, wanted)
                for entry in names_in(model_fd):
                    if entry not in LINKS and not (entry.startswith("v") and entry[1:] in wanted):
                        with noted(self._done, f"{self._name}/{entry}"):
                            self._remove_unwanted(model_fd, entry)
                self._remember(model_fd)
                if not wanted:
                    with suppress(OSError):  # not empty: others' files are in it
                        os.rmdir(self._name, dir_fd=root_fd)
                        self._done.removed.append(self._name)

    def _wanted(self) -> dict[str, ShownVersion]:
        """The versions by label; none of a model that is watched, or gone."""
        with self._store.database.read() as connection:
            rows = connection.execute(_VERSIONS, {"model_name": self._name}).all()
        return {
            row.label: ShownVersion(
                version_id=row.id,
                sha256=row.content_sha256,
                stage=stage_name(stage_of(row.stage, row.archived_at)),
                updated_at=row.updated_at,
            )
            for row in rows
        }

    def _put_versions(self, model_fd: int, wanted: Mapping[str, ShownVersion]) -> bool:
        """Each version that is not known to be as it should be, from the oldest on; False if told to stop before the last."""
        self._seen = self._known(model_fd, wanted)
        for label in sorted(wanted.keys() - self._seen.keys(), key=precedence):
            if self._is_stopping():
                return False
            with noted(self._done, f"{self._name}/v{label}"):
                self._put_version(model_fd, label, wanted[label])
                self._seen[label] = wanted[label]
        return True

    def _known(self, model_fd: int, wanted: Mapping[str, ShownVersion]) -> dict[str, ShownVersion]:
        """The versions that this process saw here as they should be, and that nobody changed since or took away."""
        shown = self._store.shown.get(self._name)
        if not self._only_changes or shown is None or shown.directory != _identity(model_fd):
            return {}
        there = set(names_in(model_fd))
        return {
            label: version
            for label, version in shown.versions.items()
            if wanted.get(label) == version and f"v{label}" in there
        }

    def _remember(self, model_fd: int) -> None:
        if self._seen:
            self._store.shown[self._name] = ShownModel(_identity(model_fd), self._seen)
        else:
            self._store.shown.pop(self._name, None)

    # --- versions ---------------------------------------------------------------------------------------------------------

    def _put_version(self, model_fd: int, label: str, wanted: ShownVersion) -> None:
        entry = f"v{label}"
        found, broken = self._looked_at(model_fd, entry)
        is_same = found is not None and found.sha256 == wanted.sha256
        is_known = found is not None and is_same and not broken and not self._verifies
        if is_known and found is not None and (_is_told(found, wanted) or self._tell_again(model_fd, entry, wanted)):
            return
        try:
            with self._store.database.read() as connection:
                model = find_model(connection, self._name)
                described = described_version(connection, model, wanted.version_id, self._owner)
                whole = (
                    [file for file in found.files if file.path not in broken] if found is not None and is_same else []
                )
                contents = read_contents(connection, [file for file in described.files if file not in whole])
        except (NoResultFound, BlobNotFound, ModelNotFound):
            return  # removed just now; whoever did that is waiting for the lock
        if found is not None and not is_same:  # removed and registered again, or taken over
            self._unlink(model_fd, entry)
            self._remove_version(model_fd, entry, found)
            found = None
        if found is None:
            self._write_version(model_fd, entry, {**contents, METADATA: described.metadata})
            self._done.written.append(f"{self._name}/{entry}")
            return
        with opened_directory(model_fd, entry) as version_fd:
            if not contents and read_file(version_fd, METADATA, MAX_METADATA_BYTES) == described.metadata:
                return
            for path, content in contents.items():
                write_file(version_fd, path, content)
            write_file(version_fd, METADATA, described.metadata)
        self._done.updated.append(f"{self._name}/{entry}")

    def _tell_again(self, model_fd: int, entry: str, wanted: ShownVersion) -> bool:
        """Say in the metadata what was changed, without making all of it anew; False where that has to be done."""
        with opened_directory(model_fd, entry) as version_fd:
            content = read_file(version_fd, METADATA, MAX_METADATA_BYTES) or b""
            with self._store.database.read() as connection:
                metadata = metadata_told_again(connection, content, wanted)
            if metadata is None:
                return False
            write_file(version_fd, METADATA, metadata, syncs_directory=False)  # the next start sees an older one
        self._done.updated.append(f"{self._name}/{entry}")
        return True

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

    def _remove_unwanted(self, model_fd: int, entry: str) -> None:
        """A version that is not in the database any more; anything else that is not ours is named."""
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

    def _put_link(self, model_fd: int, link: str, wanted: Mapping[str, ShownVersion]) -> None:
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

    def _is_whole(self, model_fd: int, label: str, wanted: Mapping[str, ShownVersion]) -> bool:
        """Whether a link may point there; where the right version could not be written, it stays on one that may."""
        if label not in wanted:
            return False
        if label in self._seen:
            return True
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
        if not is_ours and is_there(model_fd, link):
            raise FileExistsError(0, self._foreign_reason(None))
        return present

    def _unlink(self, model_fd: int, entry: str) -> None:
        """Let go of the links to a version that is about to go."""
        for link in LINKS:
            if read_pointer(model_fd, link) == entry:
                os.unlink(link, dir_fd=model_fd)
        os.fsync(model_fd)


_VERSIONS: Select[*tuple[Any, ...]] = (
    select(
        VersionRow.id,
        VersionRow.label,
        RegisteredVersionRow.content_sha256,
        RegisteredVersionRow.archived_at,
        RegisteredVersionRow.updated_at,
        StageRow.stage,
    )
    .join(ModelRow, ModelRow.id == VersionRow.model_id)
    .join(RegisteredVersionRow, RegisteredVersionRow.version_id == VersionRow.id)
    .outerjoin(StageRow, StageRow.version_id == VersionRow.id)
    .where(ModelRow.kind == REGISTERED, ModelRow.name == bindparam("model_name"))
)


def _is_told(found: Identity, wanted: ShownVersion) -> bool:
    return found.stage == wanted.stage and found.updated_at == datetime_from_text(wanted.updated_at)


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _is_label(entry: str) -> bool:
    try:
        check_label(entry.removeprefix("v"))
    except VersionInvalid:
        return False
    return entry.startswith("v")
