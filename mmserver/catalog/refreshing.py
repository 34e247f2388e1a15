"""Looking at a watched model's directory again, because somebody asked or because it was time."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import update

from mmserver.catalog.catalog import Actor, Model, Version
from mmserver.catalog.history import resolve_version
from mmserver.catalog.manifests import ManifestFile, integrity_of, read_manifest
from mmserver.catalog.publishing import Published
from mmserver.catalog.store import Store
from mmserver.catalog.updating import (
    Gathered,
    commit,
    file_hashes,
    forget_refusals,
    gather,
    refusals_from_problems,
    remember_all_refusals,
    replace_problems,
    set_status,
    status_of_content,
)
from mmserver.catalog.watches import Watch, watched_root
from mmserver.errors import (
    AmbiguousSymbols,
    ArtifactInvalid,
    ArtifactUnstable,
    DirectoryInvalid,
    MmserverError,
    ModelChanged,
    OutsideRoots,
)
from mmserver.formats import Event
from mmserver.storage.audit import record_audit
from mmserver.storage.tables import ModelRow
from mmserver.storage.times import text_from_datetime
from mmserver.watching.beneath import RootHandle, open_root
from mmserver.watching.identities import GroupFiles, Problem
from mmserver.watching.reading import ReadFile, read_group
from mmserver.watching.refreshing import settle_now
from mmserver.watching.scanning import Scan
from mmserver.watching.settling import Observation

log = logging.getLogger(__name__)
SCHEDULER = Actor("mmserver")
_MAX_CONFLICTS = 5
"""With other processes, before a refresh gives up."""
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

    Where another process, such as a server that watches, publishes a version meanwhile, it is looked again: what is served already
    is no change.

    Raises:
        ModelNotFound, ReadOnly, Overloaded
        ModelChanged: others publish all the time; nothing was changed.
        StillChanging: files were being written all the time; nothing was changed.
        AmbiguousSymbols: two groups have one symbol; the last good version stays, the model's status is stale.
        DirectoryInvalid: the directory vanished, or most of it: the last good version stays, the status is frozen.
        ArtifactInvalid: nothing of what changed could be used; the last good content stays.
    """
    store.check_writable()
    store.follow_commits()
    watched_root(store.model(model_name))
    with store.changing(model_name):
        for _ in range(_MAX_CONFLICTS):
            try:
                return _refresh(store, model_name, by, accept_vanished=accept_vanished, wait=wait)
            except ModelChanged:
                continue  # the watch is made anew, from what the other one published
        return _refresh(store, model_name, by, accept_vanished=accept_vanished, wait=wait)


def poll_model(store: Store, model_name: str) -> RefreshResult | None:
    """One look of the scheduler; None when nothing was due, or somebody is just changing the model."""
    with store.changing_if_free(model_name) as is_free:
        if not is_free:
            return None
        model = store.model(model_name)
        watch = store.watches.watch(model)
        try:
            scan = store.watches.look(model, watch)
        except (DirectoryInvalid, OutsideRoots) as error:
            _set_stale(store, model, error)
            return None
        observation = watch.watcher.observe(scan)
        watch.is_settling = "settling" in observation.pending.values()
        rewritten = _rewritten(store, model, watch, scan, observation)
        if not rewritten and not _is_anything_due(model, watch, scan, observation):
            return None
        try:
            return _apply(store, model, watch, scan, observation, rewritten=rewritten, by=SCHEDULER)[0]
        except AmbiguousSymbols:
            return None  # said in the model's status, and tried again


def _refresh(
    store: Store, model_name: str, by: Actor, *, accept_vanished: bool, wait: Callable[[float], None]
) -> RefreshResult:
    """As `refresh_model`, once; the caller holds the model's lock."""
    model = store.model(model_name)
    watch = store.watches.watch(model)
    try:
        scan = store.watches.look(model, watch)
    except (DirectoryInvalid, OutsideRoots) as error:
        _set_stale(store, model, error)
        raise
    scan, observation = settle_now(watch.watcher, scan, wait, store.watches.clock, accept_vanished=accept_vanished)
    watch.scan = scan
    rewritten = _rewritten(store, model, watch, scan, observation)
    result, gathered = _apply(store, model, watch, scan, observation, rewritten=rewritten, by=by)
    if observation.frozen is not None:
        raise DirectoryInvalid(root_path=watched_root(model), reason=_frozen_error(observation))
    if gathered.refused and not result.changed and not gathered.loaded:
        first = gathered.refused[0]
        raise ArtifactInvalid(file=first.file, reason=first.reason, detail=first.detail)
    return result


def _apply(
    store: Store,
    model: Model,
    watch: Watch,
    scan: Scan,
    observation: Observation,
    *,
    rewritten: Sequence[GroupFiles],
    by: Actor,
) -> tuple[RefreshResult, Gathered]:
    base = _newest_version(store, model)
    gathered = Gathered()
    if scan.root_state == "ok" and (observation.changed or rewritten):
        with open_root(scan.root_path) as root:
            groups = [*observation.changed, *rewritten]
            gathered = gather(store, root, groups, model_id=model.id, next_seq=base.seq + 1)
    now = store.now()
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
            forget_refusals(connection, model.id, _ended_refusals(model, watch, scan, observation, rewritten))
            replace_problems(connection, model.id, _problems(scan, observation), now)
            connection.execute(update(ModelRow).where(ModelRow.id == model.id).values(root_dev=scan.root_dev))
            status = status_of_content(connection, model.id, base.groups.keys() - set(observation.gone))
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
        _hold_back(store, model, watch, gathered, observation, error=error)
        raise
    except ModelChanged:
        store.follow_commits()
        raise
    _tell_watcher(store, watch, gathered, observation)
    model = store.reload_model(model.name)
    watch.newest_label = model.newest_label
    _notify(store, model, published, gathered)
    if published is None:
        return RefreshResult(model.name, False, model.serving.label, model.serving.label), gathered
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


def _problems(scan: Scan, observation: Observation) -> list[Problem]:
    """What the scan could not use, and the groups that are being written to without end."""
    detail = "its files have been written to for longer than watch_max_wait_s"
    return [*scan.problems, *(Problem("never_settles", key, detail, key) for key in observation.never_settles)]


def _newest_version(store: Store, model: Model) -> Version:
    """The state that the directory was last seen in, which after a rollback is not the one served."""
    return resolve_version(store, model.name, model.newest_label)


def _is_anything_due(model: Model, watch: Watch, scan: Scan, observation: Observation) -> bool:
    """Whether the database has to hear of this look."""
    if observation.changed or observation.gone or _ended_refusals(model, watch, scan, observation):
        return True
    if (observation.frozen is not None) != (model.status == "frozen"):
        return True
    if model.status == "stale" and model.error is not None and not observation.pending:
        return True
    content_keys = {refusal.group_key for refusal in model.refusals if refusal.is_content}
    shown = {refusal.group_key: (refusal.file, refusal.reason) for refusal in model.refusals if not refusal.is_content}
    found = refusals_from_problems(_problems(scan, observation), content_keys)
    return shown != {key: (entry.file, entry.reason) for key, entry in found.items()}


def _rewritten(store: Store, model: Model, watch: Watch, scan: Scan, observation: Observation) -> list[GroupFiles]:
    """Of the groups that look unchanged but are hashed again, those whose bytes are not what was loaded."""
    groups = {group.group_key: group for group in (*observation.suspicious, *observation.to_verify)}
    if not groups or scan.root_state != "ok":
        return []
    base = _newest_version(store, model)
    with store.database.read() as connection:
        known = file_hashes(connection, model.id, list(groups))
    manifests: dict[str, Mapping[str, ManifestFile] | None] = {}
    rewritten = []
    with open_root(scan.root_path) as root:
        for key, group in groups.items():
            try:
                files = read_group(root, group, store.settings.max_artifact_bytes)
            except (ArtifactInvalid, ArtifactUnstable):
                continue
            is_same = dict(zip(group.relpaths, (file.sha256 for file in files), strict=True)) == known[key]
            if is_same and _integrity(store, root, group, files, manifests) == base.groups[key].integrity:
                watch.watcher.verified(key)
            else:
                rewritten.append(group)
    return rewritten


def _integrity(
    store: Store,
    root: RootHandle,
    group: GroupFiles,
    files: Sequence[ReadFile],
    manifests: dict[str, Mapping[str, ManifestFile] | None],
) -> str | None:
    """What the producer's manifest, which may have come after the files, says of them now; None where it objects."""
    try:
        if group.directory not in manifests:
            manifests[group.directory] = read_manifest(root, group.directory)
        return integrity_of(files, manifests[group.directory], is_required=store.settings.require_manifest)
    except ArtifactUnstable:
        return None


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


def _ended_refusals(
    model: Model, watch: Watch, scan: Scan, observation: Observation, rewritten: Sequence[GroupFiles] = ()
) -> list[str]:
    """Groups that are said to be refused, but whose bad files are gone, or are again what is served."""
    if scan.unknown or observation.frozen is not None:
        return []
    offered = {group.group_key for group in (*observation.changed, *rewritten)}
    return [
        refusal.group_key
        for refusal in model.refusals
        if refusal.is_content
        and refusal.group_key not in observation.pending
        and refusal.group_key not in offered
        and not watch.watcher.has_trouble(refusal.group_key)
    ]


def _hold_back(
    store: Store, model: Model, watch: Watch, gathered: Gathered, observation: Observation, *, error: AmbiguousSymbols
) -> None:
    """Nothing of this look is served, but what was refused in it stays refused, and the rest is not tried at every look."""
    if "missing" in observation.pending.values():
        return  # a group that is about to go, such as one that was renamed, may be the other of the two
    now = store.now()
    with store.database.write() as connection:
        remember_all_refusals(connection, model.id, gathered, now)
        if observation.frozen is None:
            set_status(connection, model.id, status="stale", error=str(error), now=model.refreshed_at)
    held = Gathered(refused=gathered.refused, unstable=gathered.unstable, known_refused=gathered.known_refused)
    _tell_watcher(store, watch, held, Observation())
    for loaded in gathered.loaded:
        watch.watcher.unstable(loaded.group.group_key, store.watches.clock())
    model = store.reload_model(model.name)
    log.warning("model %s: %s", model.name, error)
    _notify(store, model, None, held)


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
