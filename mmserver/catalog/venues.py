"""Order-size thresholds by venue: set from a file, watched like models, never overwritten by a bad one."""

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec
from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from mmserver.catalog.catalog import Actor, Catalog, Venue
from mmserver.catalog.ingest import INGEST_QUANTILES, SourceFile
from mmserver.catalog.roots import allowed_path
from mmserver.catalog.store import Store
from mmserver.catalog.symbols import comparable_symbol
from mmserver.errors import (
    ArtifactInvalid,
    ArtifactUnstable,
    QuantilesInvalid,
    VenueNotFound,
    VenueSymbolNotFound,
    VenueUnknown,
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


def set_quantiles(store: Store, venue: str, pkl_path: str, by: Actor) -> Venue:
    """Read a venue's thresholds from a file, which is watched from now on.

    Raises:
        VenueUnknown, OutsideRoots, ReadOnly
        QuantilesInvalid: the file cannot be used; the venue keeps what it had.
    """
    store.check_writable()
    if venue not in VENUES:
        raise VenueUnknown(venue=venue, known=", ".join(VENUES))
    path = allowed_path(pkl_path, store.settings.artifact_roots)
    with store.changing(f"venue {venue}"):
        read = _read(store, path)
        table = _parsed(store, path, read)
        now = text_from_datetime(store.now())
        with store.database.write() as connection:
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
    with store.changing(f"venue {venue}"):
        with store.database.read() as connection:
            row = connection.execute(select(VenueRow.__table__).where(VenueRow.name == venue)).one_or_none()
        if row is None:
            return False
        path = allowed_path(row.pkl_path, store.settings.artifact_roots)
        identity = _identity(path)
        loaded = FileIdentity(*msgspec.json.decode(row.file_identity, type=tuple[int, int, int, int, int]))
        is_known = identity == loaded and (row.status == "ok" or row.refused_sha256 is not None)
        if identity is None or is_known:
            pending.pop(venue, None)
            return False
        if pending.get(venue) != identity:
            pending[venue] = identity
            return False
        read: ReadFile | None = None
        try:
            read = _read(store, path)
            if read.sha256 == row.refused_sha256:
                return False
            table = _parsed(store, path, read)
        except QuantilesInvalid as error:
            _note_refusal(store, venue, identity, error, read.sha256 if read else None)
            return False
        _serve(store, venue, read, table)
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
    except WorkerCrashed as error:
        raise QuantilesInvalid(file=path.name, reason=f"crashed({error.values['how']})") from error
    return msgspec.msgpack.decode(answer, type=QuantileTable)


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
    store: Store, venue: str, identity: FileIdentity, error: QuantilesInvalid, sha256: str | None
) -> None:
    """The venue keeps what it has; the same file is not tried again until it changes."""
    if store.catalog.venues[venue].error == str(error):
        return
    with store.database.write() as connection:
        connection.execute(
            update(VenueRow)
            .where(VenueRow.name == venue)
            .values(status="stale", error=str(error), file_identity=_identity_text(identity), refused_sha256=sha256)
        )
    store.reload_venues()
    log.warning("venue %s: %s", venue, error)


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
