"""Looking at a watched model's directory again, because somebody asked or because it was time."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, update

from mmserver.catalog.catalog import Actor, Model, ModelStatus, Version
from mmserver.catalog.history import resolve_version
from mmserver.catalog.publishing import Published
from mmserver.catalog.store import Store
from mmserver.catalog.updating import (
    Gathered,
    commit,
    file_hashes,
    gather,
    has_refusals,
    refusals_from_problems,
    replace_problems,
    set_status,
)
from mmserver.catalog.watches import Watch
from mmserver.errors import (
    AmbiguousSymbols,
    ArtifactInvalid,
    ArtifactUnstable,
    DirectoryInvalid,
    MmserverError,
    StillChanging,
)
from mmserver.formats import Event
from mmserver.storage.audit import record_audit
from mmserver.storage.tables import ModelRow, RefusalRow
from mmserver.storage.times import text_from_datetime
from mmserver.watching.beneath import RootHandle, open_root
from mmserver.watching.identities import GroupFiles
from mmserver.watching.reading import read_group
from mmserver.watching.refreshing import settle_now
from mmserver.watching.scanning import Scan
from mmserver.watching.settling import Observation

log = logging.getLogger(__name__)
SCHEDULER = Actor("mmserver")
_FROZEN = {
    "root_missing": "the directory is not there",
    "root_unreadable": "the directory cannot be read",
    "other_device": "another disk is mounted there",
    "mass_vanish": "most of its files vanished at once",
}


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """What a refresh did; added, removed and updated are group keys."""

    model_name: str
    changed: bool
    version: str
    previous_version: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()


def refresh_model(
    store: Store,
    model_name: str,
    by: Actor,
    *,
    accept_vanished: bool = False,
    wait: Callable[[float], None] = time.sleep,
) -> RefreshResult:
    """Look now, wait until what changed has settled, and serve it. `accept_vanished`: missing files are meant to be gone.

    Raises:
        ModelNotFound, ReadOnly
        StillChanging: files were being written all the time; nothing was changed.
        AmbiguousSymbols: two groups have one symbol; the last good version stays, the model's status is stale.
        DirectoryInvalid: the directory vanished, or most of it: the last good version stays, the status is frozen.
        ArtifactInvalid: nothing of what changed could be used; the last good content stays.
    """
    store.check_writable()
    with store.changing(model_name):
        model = store.model(model_name)
        watch = store.watches.watch(model)
        try:
            scan = store.watches.look(model, watch)
            scan, observation = settle_now(
                watch.watcher, scan, wait, store.watches.clock, accept_vanished=accept_vanished
            )
        except (DirectoryInvalid, StillChanging) as error:
            if isinstance(error, DirectoryInvalid):
                _set_stale(store, model, error)
            raise
        watch.scan = scan
        result, refused = _apply(store, model, watch, scan, observation, by=by)
        if observation.frozen is not None:
            raise DirectoryInvalid(root_path=model.root_path, reason=_frozen_error(observation))
        if refused.refused and not result.changed and not refused.loaded:
            first = refused.refused[0]
            raise ArtifactInvalid(file=first.file, reason=first.reason, detail=first.detail)
        return result


def poll_model(store: Store, model_name: str) -> RefreshResult | None:
    """One look of the scheduler; None when nothing was due."""
    with store.changing(model_name):
        model = store.model(model_name)
        watch = store.watches.watch(model)
        try:
            scan = store.watches.look(model, watch)
        except DirectoryInvalid as error:
            _set_stale(store, model, error)
            return None
        observation = watch.watcher.observe(scan)
        if not _is_anything_due(model, scan, observation):
            return None
        try:
            return _apply(store, model, watch, scan, observation, by=SCHEDULER)[0]
        except AmbiguousSymbols as error:
            log.warning("model %s: %s", model_name, error)
            return None


def _apply(
    store: Store, model: Model, watch: Watch, scan: Scan, observation: Observation, *, by: Actor
) -> tuple[RefreshResult, Gathered]:
    base = _newest_version(store, model)
    gathered = Gathered()
    if scan.root_state == "ok":
        with open_root(scan.root_path) as root:
            groups = [*observation.changed, *_really_changed(store, model, watch, root, observation)]
            gathered = gather(store, root, groups, model_id=model.id, next_seq=base.seq + 1)
    now = store.now()
    problems = refusals_from_problems(scan.problems)
    try:
        with store.database.write() as connection:
            published = commit(
                connection,
                model_id=model.id,
                base=base,
                gathered=gathered,
                removed=observation.gone,
                now=now,
                reason="refreshed",
            )
            replace_problems(connection, model.id, problems, now)
            if not scan.unknown and observation.frozen is None:
                _drop_vanished_refusals(connection, model, base, scan)
            connection.execute(update(ModelRow).where(ModelRow.id == model.id).values(root_dev=scan.root_dev))
            status: ModelStatus = "degraded" if has_refusals(connection, model.id) else "ok"
            error = _frozen_error(observation) if observation.frozen else None
            set_status(connection, model.id, status="frozen" if error else status, error=error, now=now)
            if published is not None:
                record_audit(
                    connection,
                    at=text_from_datetime(now),
                    actor=by.name,
                    action="model.refreshed",
                    target=model.name,
                    detail={
                        "version": published.label,
                        "previous_version": base.label,
                        "added": len(published.added),
                        "removed": len(published.removed),
                        "updated": len(published.updated),
                    },
                    request_id=by.request_id,
                )
    except AmbiguousSymbols as error:
        _set_stale(store, model, error)
        for loaded in gathered.loaded:
            watch.watcher.unstable(loaded.group.group_key, store.watches.clock())
        raise
    _tell_watcher(store, watch, gathered, observation)
    model = store.reload_model(model.name)
    watch.newest_label = model.newest_label
    _notify(store, model, published, gathered)
    if published is None:
        return RefreshResult(model.name, False, model.serving.label, base.label), gathered
    result = RefreshResult(
        model_name=model.name,
        changed=True,
        version=published.label,
        previous_version=base.label,
        added=published.added,
        removed=published.removed,
        updated=published.updated,
    )
    return result, gathered


def _newest_version(store: Store, model: Model) -> Version:
    """The state that the directory was last seen in, which after a rollback is not the one served."""
    return resolve_version(store, model.name, model.newest_label)


def _is_anything_due(model: Model, scan: Scan, observation: Observation) -> bool:
    """Whether the database has to hear of this look."""
    if observation.changed or observation.gone or observation.suspicious or observation.to_verify:
        return True
    if (observation.frozen is not None) != (model.status == "frozen"):
        return True
    if model.status == "stale" and not observation.pending:
        return True
    shown = {(refusal.group_key, refusal.reason) for refusal in model.refusals}
    return any((problem.group_key or problem.path, problem.reason) not in shown for problem in scan.problems)


def _really_changed(
    store: Store, model: Model, watch: Watch, root: RootHandle, observation: Observation
) -> list[GroupFiles]:
    """Of the groups that look unchanged but are hashed again, those whose bytes are not what was loaded."""
    changed = []
    for group in {group.group_key: group for group in (*observation.suspicious, *observation.to_verify)}.values():
        try:
            files = read_group(root, group, store.settings.max_artifact_bytes)
        except (ArtifactInvalid, ArtifactUnstable):
            continue
        with store.database.read() as connection:
            known = file_hashes(connection, model.id, group.group_key)
        if dict(zip(group.relpaths, (file.sha256 for file in files), strict=True)) == known:
            watch.watcher.verified(group.group_key)
        else:
            changed.append(group)
    return changed


def _tell_watcher(store: Store, watch: Watch, gathered: Gathered, observation: Observation) -> None:
    now = store.watches.clock()
    for loaded in gathered.loaded:
        watch.watcher.loaded(loaded.group, loaded.read_at_ns, now)
    for refused in gathered.refused:
        if refused.group is not None:
            watch.watcher.refused(refused.group)
    for group in gathered.known_refused:
        watch.watcher.refused(group)
    for unstable in gathered.unstable:
        watch.watcher.unstable(unstable.key, now)
    for group_key in observation.gone:
        watch.watcher.forget(group_key)


def _drop_vanished_refusals(connection: Connection, model: Model, base: Version, scan: Scan) -> None:
    """Refused files that are gone, of groups that were never served, need no mention any more."""
    present = scan.groups.keys() | base.groups.keys()
    vanished = [refusal.group_key for refusal in model.refusals if refusal.group_key not in present]
    connection.execute(
        delete(RefusalRow).where(
            RefusalRow.model_id == model.id, RefusalRow.group_key.in_(vanished), RefusalRow.files_sha256 != ""
        )
    )


def _notify(store: Store, model: Model, published: Published | None, gathered: Gathered) -> None:
    if published is not None:
        log.info(
            "model %s: version %s, %d added, %d removed, %d updated",
            model.name,
            published.label,
            len(published.added),
            len(published.removed),
            len(published.updated),
        )
        store.plugins.notify(Event(kind="version_published", model_name=model.name, version=published.label))
    for refused in gathered.refused:
        log.warning("model %s: %s: %s: %s", model.name, refused.file, refused.reason, refused.detail)
        detail = {"file": refused.file, "reason": refused.reason, "detail": refused.detail}
        store.plugins.notify(
            Event(kind="artifact_refused", model_name=model.name, group_key=refused.key, detail=detail)
        )


def _set_stale(store: Store, model: Model, error: MmserverError) -> None:
    if model.status == "stale" and model.error == str(error):
        return
    with store.database.write() as connection:
        set_status(connection, model.id, status="stale", error=str(error), now=model.refreshed_at)
    store.reload_model(model.name)


def _frozen_error(observation: Observation) -> str:
    cause = _FROZEN.get(str(observation.frozen), str(observation.frozen))
    return f"{cause}; the last good version is served, and a refresh with accept_vanished=true would take them away"
