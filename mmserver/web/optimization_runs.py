"""Optimising that was started on a page, and goes on after the answer: what was asked for and how it ended, for any worker to show.

What becomes of each form is kept with the version. Here is only what nothing else knows: that it is under way, or why it ended
without a report.
"""

import fcntl
import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from mmserver.catalog.catalog import Actor
from mmserver.catalog.store import Store
from mmserver.errors import MmserverError, Overloaded
from mmserver.registry.optimizing import Readers, Wish, checked_variants, optimize_version
from mmserver.registry.versions import RegisteredVersion
from mmserver.storage.files import disk_errors
from mmserver.web.errors import problem_from_error

log = logging.getLogger(__name__)

DIRECTORY = "optimizing"
_LOCK, _RUNS = "lock", "runs.json"
_MAX_RUNS = 50
"""The latest are kept; of older ones the versions have the reports."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `reason`: why it made nothing; what it had made before that stays."""

    version_id: int
    variants: tuple[str, ...]
    benchmark: bool
    started_at: datetime
    state: Literal["running", "done", "refused", "failed", "broken_off"] = "running"
    reason: str = ""


def start_run(store: Store, readers: Readers, version: RegisteredVersion, wish: Wish, by: Actor) -> None:
    """Begin to make forms of the version, in a thread of this process.

    Raises:
        ReadOnly, DiskFull
        RequestInvalid: no such form.
        Overloaded: one that was started on a page is under way, in this process or beside it.
    """
    store.check_writable()
    run = Run(
        version_id=version.version_id,
        variants=tuple(checked_variants(wish.variants)),
        benchmark=wish.benchmark,
        started_at=store.now(),
    )
    directory = store.settings.data_dir / DIRECTORY
    with disk_errors():
        directory.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _keep(directory, run)
        except BlockingIOError as error:
            os.close(lock)
            raise Overloaded(what="optimising a model") from error
        except OSError:
            os.close(lock)
            raise
    job = _Job(store, readers, version, wish, by)
    threading.Thread(target=job.finish, args=(run, lock), name="optimizing", daemon=True).start()


def last_run(store: Store, version: RegisteredVersion) -> Run | None:
    """The last one of the version. One whose process ended before it is broken off."""
    directory = store.settings.data_dir / DIRECTORY
    found = _of_version(directory, version)
    if found is None or found.state != "running" or _is_locked(directory):
        return found
    found = _of_version(directory, version)  # it may have ended between the two looks
    if found is not None and found.state == "running":
        return msgspec.structs.replace(found, state="broken_off")
    return found


@dataclass(frozen=True)
class _Job:
    """What the thread works with after the request is gone."""

    store: Store
    readers: Readers
    version: RegisteredVersion
    wish: Wish
    by: Actor

    def finish(self, run: Run, lock: int) -> None:
        """Do it, and keep how it ended; then let others begin."""
        try:
            ended = self._ended(run)
            with suppress(OSError):  # a full disk: the reports are with the version, and this shows as broken off
                _keep(self.store.settings.data_dir / DIRECTORY, ended)
        finally:
            os.close(lock)

    def _ended(self, run: Run) -> Run:
        name, label = self.version.model_name, self.version.label
        try:
            optimize_version(self.store, self.readers, name, label, wish=self.wish, by=self.by)
        except MmserverError as error:
            log.warning("optimising %s %s: %s", name, label, error)
            return msgspec.structs.replace(run, state="refused", reason=problem_from_error(error).detail)
        except Exception:  # the last handler of this thread: nobody else hears of it
            log.exception("optimising %s %s failed [%s]", name, label, self.by.request_id)
            return msgspec.structs.replace(
                run, state="failed", reason=f"a bug; the log has it under {self.by.request_id}"
            )
        return msgspec.structs.replace(run, state="done")


# --- what is kept -----------------------------------------------------------------------------------------------------


def _keep(directory: Path, run: Run) -> None:
    """Who holds the lock is the only one that writes; whatever else says that it is under way broke off."""
    others = [
        msgspec.structs.replace(one, state="broken_off") if one.state == "running" else one
        for one in _runs(directory)
        if one.version_id != run.version_id
    ]
    part = directory / f"{_RUNS}.part"
    part.write_bytes(msgspec.json.encode([run, *others][:_MAX_RUNS]))
    part.replace(directory / _RUNS)


def _runs(directory: Path) -> list[Run]:
    """The latest first; none where there is no file, or one that a crash of the machine left torn."""
    try:
        return msgspec.json.decode((directory / _RUNS).read_bytes(), type=list[Run])
    except (FileNotFoundError, msgspec.DecodeError):
        return []


def _of_version(directory: Path, version: RegisteredVersion) -> Run | None:
    return next((run for run in _runs(directory) if run.version_id == version.version_id), None)


def _is_locked(directory: Path) -> bool:
    try:
        lock = os.open(directory / _LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
