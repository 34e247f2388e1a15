"""Order-size thresholds by venue: set from a file, watched like models, never overwritten by a bad one."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from mmserver.catalog.catalog import Actor, Catalog, Venue
from mmserver.catalog.ingest import INGEST_QUANTILES, SourceFile
from mmserver.catalog.roots import allowed_path
from mmserver.catalog.store import Store
from mmserver.catalog.symbols import comparable_symbol
from mmserver.errors import (
    ArtifactInvalid,
    ArtifactUnstable,
    DirectoryInvalid,
    Invalid,
    OutsideRoots,
    QuantilesInvalid,
    VenueNotFound,
    VenueSymbolNotFound,
    VenueUnknown,
    VersionChanged,
    WorkerCrashed,
)
from mmserver.formats import QuantileTable
from mmserver.storage.audit import record_audit
from mmserver.storage.tables import VenueQuantilesRow, VenueRow
from mmserver.storage.times import text_from_datetime
from mmserver.watching.beneath import open_root
from mmserver.watching.identities import FileIdentity
from mmserver.watching.reading import ReadFile, read_file

VENUES = tuple(
    f"{exchange}-{kind}"
    for exchange in ("binance", "okex", "bybit", "bitget", "gate")
    for kind in ("margin", "futures")
)
_MISSING = FileIdentity(0, 0, 0, 0, 0)
"""Stands for a file that is not there."""
log = logging.getLogger(__name__)


def find_venue(catalog: Catalog, venue: str) -> Venue:
    """The venue's thresholds.

    Raises:
        VenueNotFound: unknown, or nothing was ever set.
    """
    found = catalog.venues.get(venue)
    if found is None:
        raise VenueNotFound(venue=venue)
    return found


def venue_symbol(venue: Venue, symbol: str) -> tuple[str, float, float]:
    """(symbol, medium, large), whichever way the symbol is written; thresholds in quote notional.

    Raises:
        VenueSymbolNotFound
    """
    name = venue.symbol_by_comparable.get(comparable_symbol(symbol))
    if name is None:
        raise VenueSymbolNotFound(venue=venue.name, symbol=symbol)
    return (name, *venue.symbols[name])


def table_sha256(symbols: Mapping[str, tuple[float, float]]) -> str:
    """Names a table of thresholds: the same for the same content, whichever file it came from."""
    return hashlib.sha256(msgspec.json.encode(dict(symbols))).hexdigest()


def set_quantiles(
    store: Store, venue: str, pkl_path: str, by: Actor, only_if: Callable[[str | None], bool] | None = None
) -> Venue:
    """Read a venue's thresholds from a file, which is watched from now on.

    `only_if` is asked, before anything is read and again in the change's own transaction, about the `table_sha256` that is in
    force, None where there is none.

    Raises:
        VenueUnknown, OutsideRoots, ReadOnly
        VersionChanged: `only_if` said no; the venue keeps what it had.
        QuantilesInvalid: the file cannot be used; the venue keeps what it had.
    """
    store.check_writable()
    if venue not in VENUES:
        raise VenueUnknown(venue=venue, known=", ".join(VENUES))
    try:
        path = allowed_path(pkl_path, store.settings.artifact_roots)
    except DirectoryInvalid as error:
        raise QuantilesInvalid(file=f"pkl_path {pkl_path!r}", reason=error.values["reason"]) from error
    with store.changing(f"venue {venue}"):
        with store.database.read() as connection:
            _check_table(connection, venue, only_if)
        read = _read(store, path)
        table = _parsed(store, path, read)
        now = text_from_datetime(store.now())
        with store.database.write() as connection:
            _check_table(connection, venue, only_if)
            quantiles_id = _store_table(connection, venue, read, table, now)
            values = {
                "name": venue,
                "pkl_path": pkl_path,
                "quantiles_id": quantiles_id,
                "updated_at": now,
                "status": "ok",
                "error": None,
                "refused_sha256": None,
                "file_identity": _identity_text(read.identity),
            }
            connection.execute(
                upsert(VenueRow).values(values).on_conflict_do_update(index_elements=["name"], set_=values)
            )
            detail = {"pkl_path": pkl_path, "symbols": len(table.symbols), "sha256": read.sha256}
            record_audit(connection, at=now, actor=by.name, action="venue.set", target=venue, detail=detail,
                         request_id=by.request_id)  # fmt: skip
        store.reload_venues()
        return find_venue(store.catalog, venue)


def poll_venue(store: Store, venue: str, pending: dict[str, FileIdentity]) -> bool:
    """One look of the scheduler at a venue's file; True if new thresholds are served.

    `pending` is the caller's memory between polls: a changed file is read when two polls in a row see it the same.
    """
    with store.changing_if_free(f"venue {venue}") as is_free:
        if not is_free:
            return False
        with store.database.read() as connection:
            row = connection.execute(select(VenueRow.__table__).where(VenueRow.name == venue)).one_or_none()
        if row is None:
            return False
        known = FileIdentity(*msgspec.json.decode(row.file_identity, type=tuple[int, int, int, int, int]))
        try:
            path = allowed_path(row.pkl_path, store.settings.artifact_roots)
        except (DirectoryInvalid, OutsideRoots) as error:
            _note_refusal(store, row, str(error), known, None)
            return False
        identity = _identity(path) or _MISSING
        is_answered = row.status == "ok" or row.refused_sha256 is not None or identity == _MISSING
        if identity == known and is_answered:
            pending.pop(venue, None)
            return False
        if pending.get(venue) != identity:
            pending[venue] = identity
            return False
        return _take(store, row, path, identity)


def _check_table(connection: Connection, venue: str, only_if: Callable[[str | None], bool] | None) -> None:
    if only_if is None:
        return
    symbols = connection.execute(
        select(VenueQuantilesRow.symbols)
        .join(VenueRow, VenueRow.quantiles_id == VenueQuantilesRow.id)
        .where(VenueRow.name == venue)
    ).scalar()
    current = table_sha256(msgspec.json.decode(symbols, type=dict[str, tuple[float, float]])) if symbols else None
    if not only_if(current):
        raise VersionChanged(what=f"venue {venue}", current=current or "no table")


def _take(store: Store, row: Row[Any], path: Path, identity: FileIdentity) -> bool:
    """Read the changed file; True if its thresholds are served."""
    try:
        read = _read(store, path)
    except QuantilesInvalid as error:
        # What could not be read is tried again at each look; what is not there only when it is back.
        _note_refusal(store, row, str(error), identity if identity == _MISSING else None, None)
        return False
    if read.sha256 == row.refused_sha256:
        _note_refusal(store, row, row.error, read.identity, read.sha256)
        return False
    try:
        table = _parsed(store, path, read)
    except QuantilesInvalid as error:
        _note_refusal(store, row, str(error), read.identity, read.sha256)
        return False
    _serve(store, row.name, read, table)
    return True


def _read(store: Store, path: Path) -> ReadFile:
    try:
        with open_root(path.parent) as root:
            return read_file(root, path.name, store.settings.max_artifact_bytes)
    except OSError as error:
        raise QuantilesInvalid(file=path.name, reason=error.strerror or "it cannot be opened") from error
    except (ArtifactInvalid, ArtifactUnstable) as error:
        reason = "no such file" if error.values["reason"] == "vanished" else error.values["reason"]
        raise QuantilesInvalid(file=path.name, reason=f"{reason}: {error.values['detail']}") from error


def _parsed(store: Store, path: Path, read: ReadFile) -> QuantileTable:
    try:
        answer = store.sandbox.run(INGEST_QUANTILES, msgspec.msgpack.encode(SourceFile(path.name, read.data)))
        return msgspec.msgpack.decode(answer, type=QuantileTable)
    except QuantilesInvalid:
        raise
    except Invalid as error:
        raise QuantilesInvalid(file=path.name, reason=str(error)) from error
    except WorkerCrashed as error:
        raise QuantilesInvalid(file=path.name, reason=f"crashed({error.values['how']})") from error
    except msgspec.MsgspecError as error:
        raise QuantilesInvalid(file=path.name, reason="crashed(the worker's answer makes no sense)") from error


def _serve(store: Store, venue: str, read: ReadFile, table: QuantileTable) -> None:
    now = text_from_datetime(store.now())
    with store.database.write() as connection:
        quantiles_id = _store_table(connection, venue, read, table, now)
        connection.execute(
            update(VenueRow)
            .where(VenueRow.name == venue)
            .values(
                quantiles_id=quantiles_id,
                updated_at=now,
                status="ok",
                error=None,
                refused_sha256=None,
                file_identity=_identity_text(read.identity),
            )
        )
        detail = {"symbols": len(table.symbols), "sha256": read.sha256}
        record_audit(connection, at=now, actor="mmserver", action="venue.refreshed", target=venue, detail=detail,
                     request_id=None)  # fmt: skip
    store.reload_venues()
    log.info("venue %s: %d symbols", venue, len(table.symbols))


def _note_refusal(
    store: Store, row: Row[Any], error: str, identity: FileIdentity | None, refused_sha256: str | None
) -> None:
    """The venue keeps what it has; `identity` and `refused_sha256` are of what is not tried again until it changes."""
    file_identity = _identity_text(identity) if identity is not None else row.file_identity
    values = {
        "status": "stale",
        "error": error,
        "file_identity": file_identity,
        "refused_sha256": refused_sha256,
    }
    if all(getattr(row, name) == value for name, value in values.items()):
        return
    with store.database.write() as connection:
        connection.execute(update(VenueRow).where(VenueRow.name == row.name).values(values))
    store.reload_venues()
    if row.error != error:
        log.warning("venue %s: %s", row.name, error)


def _store_table(connection: Connection, venue: str, read: ReadFile, table: QuantileTable, now: str) -> int:
    """The id of the venue's table with these thresholds: the newest if it is the same, else a new row."""
    symbols = msgspec.json.encode(table.symbols).decode()
    newest = connection.execute(
        select(VenueQuantilesRow.id, VenueQuantilesRow.symbols)
        .where(VenueQuantilesRow.venue == venue)
        .order_by(VenueQuantilesRow.id.desc())
        .limit(1)
    ).one_or_none()
    if newest is not None and newest.symbols == symbols:
        return int(newest.id)
    values: Mapping[str, object] = {"venue": venue, "sha256": read.sha256, "since": now, "symbols": symbols}
    return int(
        connection.execute(insert(VenueQuantilesRow).values(values).returning(VenueQuantilesRow.id)).scalar_one()
    )


def _identity(path: Path) -> FileIdentity | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _identity_text(identity: FileIdentity) -> str:
    return msgspec.json.encode(list(identity)).decode()
