"""Building catalog values from rows; whatever is unchanged since the previous catalog is shared with it, not built again."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, or_, select

from mmserver.catalog.catalog import Catalog, Group, Model, Refusal, Venue, Version
from mmserver.catalog.running import load_running
from mmserver.catalog.symbols import comparable_symbol
from mmserver.storage.tables import (
    FactorListRow,
    GroupRow,
    MembershipRow,
    ModelRow,
    RefusalRow,
    RegisteredVersionRow,
    ServingRow,
    StageRow,
    VenueQuantilesRow,
    VenueRow,
    VersionRow,
)
from mmserver.storage.times import datetime_from_text

NO_STAGES: Mapping[str, str] = MappingProxyType({})
_IDS_A_QUERY = 5000  # below SQLite's limit of bound values in one statement


def load_catalog(connection: Connection, previous: Catalog) -> Catalog:
    """Everything that is served now; of a model that did not change, nothing is read but that."""
    stages = _all_stages(connection)
    refusals = _all_refusals(connection)
    models = {
        row.name: _model_from_row(
            connection, row, stages.get(row.id, NO_STAGES), refusals.get(row.id, ()), previous.models.get(row.name)
        )
        for row in connection.execute(_SERVED_MODELS)
    }
    venues = load_venues(connection, previous.venues)
    return Catalog(models=MappingProxyType(models), venues=venues, experiments=load_running(connection))


def load_model(connection: Connection, model_name: str, previous: Model | None) -> Model | None:
    """One model with the version it serves; None where there is none of that name, or it serves nothing yet."""
    row = connection.execute(_SERVED_MODELS.where(ModelRow.name == model_name)).one_or_none()
    if row is None:
        return None
    stages = _all_stages(connection, StageRow.model_id == row.id).get(row.id, NO_STAGES)
    refusals = _all_refusals(connection, RefusalRow.model_id == row.id).get(row.id, ())
    return _model_from_row(connection, row, stages, refusals, previous)


def _served_models() -> Select[*tuple[Any, ...]]:
    """Rows of models that serve something, with what they serve: one statement, however many models there are."""
    servings = ServingRow.__table__.alias()
    of_model = select(servings.c.id).where(servings.c.model_id == ModelRow.id)
    last = of_model.order_by(servings.c.id.desc()).limit(1).scalar_subquery()
    newest = (
        select(VersionRow.label)
        .where(VersionRow.model_id == ModelRow.id)
        .order_by(VersionRow.seq.desc())
        .limit(1)
        .scalar_subquery()
    )
    query: Select[*tuple[Any, ...]] = (
        select(
            ModelRow.__table__,
            ServingRow.version_id.label("serving_id"),
            newest.label("newest_label"),
            RegisteredVersionRow.archived_at,
        )
        .select_from(ModelRow)
        .join(ServingRow, ServingRow.id == last)
        .outerjoin(RegisteredVersionRow, RegisteredVersionRow.version_id == ServingRow.version_id)
        .order_by(ModelRow.name)
    )
    return query


_SERVED_MODELS = _served_models()


def _model_from_row(
    connection: Connection,
    row: Row[Any],
    stages: Mapping[str, str],
    refusals: tuple[Refusal, ...],
    previous: Model | None,
) -> Model:
    if previous is not None and previous.id != row.id:
        previous = None
    if row.serving_id is None:
        raise LookupError(f"the version that {row.name} serves was let go")  # retention never takes it
    if previous is not None and previous.serving.id == row.serving_id:
        serving = previous.serving
    else:
        near = previous.serving if previous is not None and row.kind == "watched" else None
        serving = load_version(connection, row.name, row.serving_id, near)
    return Model(
        id=row.id,
        name=row.name,
        kind=row.kind,
        root_path=row.root_path,
        status=row.status,
        error=row.error,
        registered_at=datetime_from_text(row.registered_at),
        refreshed_at=datetime_from_text(row.refreshed_at),
        serving=serving,
        newest_label=row.newest_label,
        refusals=refusals,
        stages=stages,
        is_retired=row.kind == "registered" and "production" not in stages and row.archived_at is not None,
    )


def _all_stages(connection: Connection, *which: ColumnElement[bool]) -> dict[int, Mapping[str, str]]:
    """The labels of the versions that are in a stage, by model id."""
    query = select(StageRow.model_id, StageRow.stage, VersionRow.label).join(
        VersionRow, VersionRow.id == StageRow.version_id
    )
    found: dict[int, dict[str, str]] = {}
    for row in connection.execute(query.where(*which)):
        found.setdefault(row.model_id, {})[row.stage] = row.label
    return {model_id: MappingProxyType(labels) for model_id, labels in found.items()}


def load_version(connection: Connection, model_name: str, version_id: int, near: Version | None = None) -> Version:
    """One version with all its groups; what `near`, another version of the model, has too is taken from it."""
    row = connection.execute(select(VersionRow.__table__).where(VersionRow.id == version_id)).one()
    if near is not None and not _is_kept(connection, near):
        near = None  # with it, retention took what tells of the groups that went after it
    if near is not None and near.seq <= row.seq:
        groups, group_keys = _groups_after(connection, row.model_id, near, row.seq)
    else:
        groups = _all_groups(connection, row.model_id, row.seq, near)
        group_keys = group_keys_by_symbol(groups.values())
    return Version(
        id=row.id,
        model_name=model_name,
        seq=row.seq,
        label=row.label,
        sha256=row.sha256,
        created_at=datetime_from_text(row.created_at),
        reason=row.reason,
        groups=MappingProxyType(groups),
        group_keys_by_symbol=MappingProxyType(group_keys),
        factors=union_of_factors(groups.values()),
    )


def _is_kept(connection: Connection, version: Version) -> bool:
    return connection.execute(select(VersionRow.id).where(VersionRow.id == version.id)).first() is not None


def changed_groups(
    before: Mapping[str, Group], removed: Iterable[str], changed: Mapping[str, Group]
) -> dict[str, Group]:
    """The groups after a change, by group key, in sorted order."""
    groups = dict(before)
    for key in removed:
        groups.pop(key, None)
    is_new = not groups.keys() >= changed.keys()
    groups.update(changed)
    return dict(sorted(groups.items())) if is_new else groups


def changed_group_keys(
    version: Version, removed: Iterable[str], changed: Mapping[str, Group]
) -> dict[str, tuple[str, ...]]:
    """`group_keys_by_symbol` after a change, without looking at the groups that stay."""
    by_symbol = dict(version.group_keys_by_symbol)
    for key in (*removed, *changed):
        if (before := version.groups.get(key)) is not None:
            symbol = comparable_symbol(before.symbol)
            by_symbol[symbol] = tuple(other for other in by_symbol[symbol] if other != key)
            if not by_symbol[symbol]:
                del by_symbol[symbol]
    for key, group in changed.items():
        symbol = comparable_symbol(group.symbol)
        by_symbol[symbol] = tuple(sorted((*by_symbol.get(symbol, ()), key)))
    return by_symbol


def _groups_after(
    connection: Connection, model_id: int, near: Version, seq: int
) -> tuple[dict[str, Group], dict[str, tuple[str, ...]]]:
    """The groups of a later version, reading only what came and went since `near`."""
    came = connection.execute(
        select(MembershipRow.group_id).where(
            MembershipRow.model_id == model_id,
            MembershipRow.first_seq > near.seq,
            MembershipRow.first_seq <= seq,
            or_(MembershipRow.last_seq.is_(None), MembershipRow.last_seq >= seq),
        )
    ).scalars().all()  # fmt: skip
    went = connection.execute(
        select(GroupRow.group_key)
        .join(MembershipRow, MembershipRow.group_id == GroupRow.id)
        .where(
            MembershipRow.model_id == model_id,
            MembershipRow.first_seq <= near.seq,
            MembershipRow.last_seq >= near.seq,
            MembershipRow.last_seq < seq,
        )
    ).scalars().all()  # fmt: skip
    changed = {group.group_key: group for group in load_groups(connection, came).values()}
    removed = [key for key in went if key not in changed]
    return changed_groups(near.groups, removed, changed), changed_group_keys(near, removed, changed)


def _all_groups(connection: Connection, model_id: int, seq: int, near: Version | None) -> dict[str, Group]:
    ids = group_ids(connection, model_id, seq)
    known = {group.id: group for group in near.groups.values()} if near else {}
    known.update(load_groups(connection, [group_id for group_id in ids if group_id not in known]))
    return {group.group_key: group for group in sorted((known[i] for i in ids), key=lambda group: group.group_key)}


def group_ids(connection: Connection, model_id: int, seq: int) -> Sequence[int]:
    """The ids of the groups that belonged to the model in its version `seq`."""
    return (
        connection.execute(
            select(MembershipRow.group_id).where(
                MembershipRow.model_id == model_id,
                MembershipRow.first_seq <= seq,
                or_(MembershipRow.last_seq.is_(None), MembershipRow.last_seq >= seq),
            )
        )
        .scalars()
        .all()
    )


def load_groups(connection: Connection, ids: Sequence[int]) -> dict[int, Group]:
    """Groups by id."""
    groups: dict[int, Group] = {}
    factor_lists: dict[str, tuple[str, ...]] = {}
    for start in range(0, len(ids), _IDS_A_QUERY):
        rows = connection.execute(
            select(GroupRow.__table__).where(GroupRow.id.in_(ids[start : start + _IDS_A_QUERY]))
        ).all()
        missing = {row.factors_sha256 for row in rows} - factor_lists.keys()
        factor_lists.update(_load_factor_lists(connection, missing))
        groups.update((row.id, _group_from_row(row, factor_lists[row.factors_sha256])) for row in rows)
    return groups


def group_keys_by_symbol(groups: Iterable[Group]) -> dict[str, tuple[str, ...]]:
    """Group keys by the comparison form of their symbol."""
    keys: dict[str, tuple[str, ...]] = {}
    for group in groups:
        symbol = comparable_symbol(group.symbol)
        keys[symbol] = (*keys.get(symbol, ()), group.group_key)
    return keys


def union_of_factors(groups: Iterable[Group]) -> tuple[str, ...]:
    """All factors, each once, in order of first appearance; groups that share a list are looked at once."""
    distinct = {id(group.factors): group.factors for group in groups}
    return tuple(dict.fromkeys(factor for factors in distinct.values() for factor in factors))


def load_venues(connection: Connection, previous: Mapping[str, Venue]) -> Mapping[str, Venue]:
    """All venues with the thresholds that are in force."""
    query = select(VenueRow.__table__, VenueQuantilesRow.symbols).join(
        VenueQuantilesRow, VenueQuantilesRow.id == VenueRow.quantiles_id
    )
    venues: dict[str, Venue] = {}
    for row in connection.execute(query.order_by(VenueRow.name)):
        symbols = msgspec.json.decode(row.symbols, type=dict[str, tuple[float, float]])
        venue = Venue(
            name=row.name,
            pkl_path=row.pkl_path,
            updated_at=datetime_from_text(row.updated_at),
            status=row.status,
            error=row.error,
            symbols=MappingProxyType(symbols),
            symbol_by_comparable=MappingProxyType({comparable_symbol(symbol): symbol for symbol in symbols}),
        )
        known = previous.get(venue.name)
        venues[venue.name] = known if known == venue else venue
    return MappingProxyType(venues)


def _load_factor_lists(connection: Connection, hashes: set[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    pending = list(hashes)
    for start in range(0, len(pending), _IDS_A_QUERY):
        rows = connection.execute(
            select(FactorListRow.__table__).where(FactorListRow.sha256.in_(pending[start : start + _IDS_A_QUERY]))
        )
        found.update((row.sha256, msgspec.json.decode(row.factors, type=tuple[str, ...])) for row in rows)
    return found


def _group_from_row(row: Row[Any], factors: tuple[str, ...]) -> Group:
    return Group(
        id=row.id,
        sha256=row.sha256,
        group_key=row.group_key,
        symbol=row.symbol,
        return_name=row.return_name,
        dim=row.dim,
        factors=factors,
        train_samples=row.train_samples,
        ic_mean=row.ic_mean,
        detail_sha256=row.detail_sha256,
        payload_sha256=row.payload_sha256,
        manifest_sha256=row.manifest_sha256,
        no_model_reason=row.no_model_reason,
        integrity=row.integrity,
        model_sha256=row.model_sha256,
    )


def _all_refusals(connection: Connection, *which: ColumnElement[bool]) -> dict[int, tuple[Refusal, ...]]:
    """What is refused, by model id."""
    query = select(RefusalRow.__table__).where(*which).order_by(RefusalRow.model_id, RefusalRow.group_key)
    found: dict[int, list[Refusal]] = {}
    for row in connection.execute(query):
        refusal = Refusal(
            group_key=row.group_key,
            file=row.file,
            reason=row.reason,
            detail=row.detail,
            since=datetime_from_text(row.since),
            attempts=row.attempts,
            is_content=row.files_sha256 != "",
        )
        found.setdefault(row.model_id, []).append(refusal)
    return {model_id: tuple(refusals) for model_id, refusals in found.items()}
