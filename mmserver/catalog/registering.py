"""Registering a directory of artifacts as a model, and removing a model."""

import re

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from mmserver.catalog.catalog import Actor, Model
from mmserver.catalog.history import PRODUCTION
from mmserver.catalog.roots import artifact_root
from mmserver.catalog.running import check_not_in_experiment
from mmserver.catalog.store import Store
from mmserver.catalog.updating import (
    Gathered,
    Progress,
    commit,
    gather,
    replace_problems,
    set_status,
    status_of_content,
)
from mmserver.errors import MmserverError, ModelNameTaken, ModelNotFound, NameInvalid, NothingParseable, VersionInUse
from mmserver.formats import Event
from mmserver.storage.audit import record_audit
from mmserver.storage.blobs import delete_orphan_blobs
from mmserver.storage.tables import MembershipRow, ModelRow, StageRow, VersionRow
from mmserver.storage.times import text_from_datetime
from mmserver.watching.beneath import open_root
from mmserver.watching.names import ArtifactNames
from mmserver.watching.scanning import Scan, scan_tree

_NAME = re.compile(r"\w[\w.\-]{0,127}", re.ASCII)
_MAX_NAMED_FAILURES = 20


def register_model(
    store: Store, model_name: str, root_path: str, by: Actor, *, progress: Progress | None = None
) -> Model:
    """Read a directory and serve what is in it, from now on watched. Files that cannot be used are kept as refusals.

    `progress` is told how many groups are done, of how many.

    Raises:
        NameInvalid, DirectoryInvalid, OutsideRoots
        ModelNameTaken: a model of that name exists, or is just being registered.
        AmbiguousSymbols: two groups have one symbol.
        NothingParseable: no group could be read; the message names the files and what is wrong with them.
        DiskFull, DatabaseBusy: nothing was registered.
    """
    store.check_writable()
    check_name(model_name)
    root = artifact_root(root_path, store.settings.artifact_roots)
    with store.changing(model_name):
        model_id = _reserve(store, model_name, root_path)
        try:
            scan = scan_tree(root, ArtifactNames(store.plugins.group_suffixes()), None, clock=store.watches.clock)
            with open_root(root) as handle:
                gathered = gather(
                    store, handle, list(scan.groups.values()), model_id=model_id, next_seq=1, progress=progress
                )
            _commit_first(store, model_id, model_name, root_path, scan=scan, gathered=gathered, by=by)
        except BaseException:
            _release(store, model_id)
            raise
        model = store.reload_model(model_name)
        store.plugins.notify(Event(kind="model_registered", model_name=model_name, version=model.serving.label))
        return model


def remove_model(store: Store, model_name: str, by: Actor) -> None:
    """Forget a model with all its versions; its directory is not touched.

    Raises:
        ModelNotFound, ReadOnly
        VersionInUse: it is registered and has a version in production, or one is in a running experiment.
    """
    store.check_writable()
    store.follow_commits()
    store.model(model_name)
    with store.changing(model_name):
        model = store.model(model_name)
        at = text_from_datetime(store.now())
        with store.database.write() as connection:
            if not model.is_watched:
                _check_nothing_in_production(connection, model)
            check_not_in_experiment(connection, model_name)
            if not connection.execute(delete(ModelRow).where(ModelRow.id == model.id)).rowcount:
                raise ModelNotFound(model_name=model_name)  # another process was quicker
            delete_orphan_blobs(connection)
            detail = {"root_path": model.root_path, "version": model.serving.label}
            record_audit(connection, at=at, actor=by.name, action="model.removed", target=model_name, detail=detail,
                         request_id=by.request_id)  # fmt: skip
        store.watches.forget(model.id)
        store.drop_model(model_name)
        store.plugins.notify(Event(kind="model_removed", model_name=model_name))


def check_name(model_name: str) -> None:
    """Raises NameInvalid for a name that could not stand in a URL, a file name or a metric."""
    if not _NAME.fullmatch(model_name):
        reason = "1 to 128 letters, digits, '_', '-' and '.', beginning with a letter, a digit or '_'"
        raise NameInvalid(model_name=model_name[:200], reason=reason)


def _check_nothing_in_production(connection: Connection, model: Model) -> None:
    """Asked in the transaction: another process may just have promoted a version."""
    query = select(VersionRow.label).join(StageRow, StageRow.version_id == VersionRow.id)
    label = connection.execute(query.where(StageRow.model_id == model.id, StageRow.stage == PRODUCTION)).scalar()
    if label is not None:
        instead = "take it out of production first (stage None)"
        raise VersionInUse(model_name=model.name, version=label, use="in production", instead=instead)


def _reserve(store: Store, model_name: str, root_path: str) -> int:
    """The model's row, without a version yet: readers do not see it, but the name is taken."""
    now = text_from_datetime(store.now())
    try:
        with store.database.write() as connection:
            model_id: int = connection.execute(
                insert(ModelRow)
                .values(
                    name=model_name,
                    kind="watched",
                    root_path=root_path,
                    status="ok",
                    error=None,
                    registered_at=now,
                    refreshed_at=now,
                )
                .returning(ModelRow.id)
            ).scalar_one()
    except IntegrityError as error:
        raise ModelNameTaken(model_name=model_name) from error
    return model_id


def _release(store: Store, model_id: int) -> None:
    try:
        with store.database.write() as connection:
            connection.execute(delete(MembershipRow).where(MembershipRow.model_id == model_id))
            connection.execute(delete(ModelRow).where(ModelRow.id == model_id))
            delete_orphan_blobs(connection)
    except MmserverError:
        # The first error is the one to report; the next start clears the row away.
        return


def _commit_first(
    store: Store, model_id: int, model_name: str, root_path: str, *, scan: Scan, gathered: Gathered, by: Actor
) -> None:
    if not gathered.contents:
        raise NothingParseable(root_path=root_path, detail=_failures(scan, gathered))
    now = store.now()
    with store.database.write() as connection:
        published = commit(
            connection, model_id=model_id, base=None, gathered=gathered, removed=(), now=now, reason="registered"
        )
        replace_problems(connection, model_id, scan.problems, now)
        connection.execute(update(ModelRow).where(ModelRow.id == model_id).values(root_dev=scan.root_dev))
        status = status_of_content(connection, model_id, ())
        set_status(connection, model_id, status=status, error=None, now=now)
        record_audit(
            connection,
            at=text_from_datetime(now),
            actor=by.name,
            action="model.registered",
            target=model_name,
            detail={"root_path": root_path, "version": published.label if published else None},
            request_id=by.request_id,
        )


def _failures(scan: Scan, gathered: Gathered) -> str:
    entries = [f"{r.file}: {r.reason}: {r.detail}" for r in (*gathered.refused, *gathered.unstable)]
    entries += [f"{p.path}: {p.reason}: {p.detail}" for p in scan.problems]
    if not entries:
        return f"no file name ends in {', '.join(sorted(scan.names.suffixes))}"
    more = f" … and {len(entries) - _MAX_NAMED_FAILURES} more" if len(entries) > _MAX_NAMED_FAILURES else ""
    return "; ".join(entries[:_MAX_NAMED_FAILURES]) + more
