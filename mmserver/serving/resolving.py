"""Which version and group a request means: from memory for what is served now, and remembered for as long as that is served."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from mmserver.catalog.catalog import Catalog, Group, Model, Version
from mmserver.catalog.groups import find_group
from mmserver.catalog.history import CURRENT, check_current, resolve_version
from mmserver.catalog.store import Store
from mmserver.catalog.symbols import ALL_SYMBOLS, comparable_symbol
from mmserver.errors import (
    FieldsInvalid,
    GroupRefused,
    MmserverError,
    ModelAmbiguous,
    SymbolAmbiguous,
    SymbolArchived,
    SymbolNotFound,
)
from mmserver.storage.tables import GroupRow, MembershipRow, VersionRow

MAX_NAMED = 10
MAX_REMEMBERED = 20_000
MAX_SEARCHED = 100
"""Models that are asked what became of a symbol that none of them has."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a request means: it keeps this to its end, whatever is published meanwhile."""

    version: Version
    group: Group


class _Remembered:
    """What was resolved against one catalog; a new catalog begins a new one."""

    __slots__ = ("archived", "catalog", "resolved")

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.resolved: dict[tuple[str | None, str | None, str | None], Resolved] = {}
        self.archived: dict[int, Mapping[str, str]] = {}
        """By model id: the label of the last version that had it, by comparable symbol."""


class Resolver:
    """Resolves for all threads of one process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._remembered = _Remembered(store.catalog)

    def known(self, symbol: str | None, model_name: str | None, version: str | None) -> Resolved | None:
        """What the same question was answered with against the catalog of now; None where it has to be asked."""
        remembered = self._remembered
        if remembered.catalog is not self._store.catalog:
            return None
        return remembered.resolved.get((symbol, model_name, version))

    def resolve(
        self, symbol: str | None, model_name: str | None, version: str | None = None, as_of: datetime | None = None
    ) -> Resolved:
        """The version and group meant.

        Without `model_name`: the only model that has the symbol, else the default model if it has it. Without `symbol`: the
        model's only group.

        Raises:
            ModelNotFound, VersionNotFound, SymbolNotFound, SymbolAmbiguous, GroupRefused, SymbolArchived, ModelAmbiguous
            FieldsInvalid: neither a symbol nor a model is named.
        """
        remembered = self._remembered
        if remembered.catalog is not self._store.catalog:
            remembered = self._remembered = _Remembered(self._store.catalog)
        key = (symbol, model_name, version)
        if as_of is None and (known := remembered.resolved.get(key)) is not None:
            return known
        resolved = self._resolved(remembered, symbol, model_name, version, as_of)
        if as_of is None:
            if len(remembered.resolved) >= MAX_REMEMBERED:
                remembered.resolved.clear()
            remembered.resolved[key] = resolved
        return resolved

    def _resolved(
        self,
        remembered: _Remembered,
        symbol: str | None,
        model_name: str | None,
        label: str | None,
        as_of: datetime | None,
    ) -> Resolved:
        if model_name is None:
            model_name = self._model_with(remembered, symbol)
        model = self._store.model(model_name)
        is_current = as_of is None and (label in CURRENT or label == model.serving.label)
        if is_current and label in CURRENT:
            check_current(model, label)
        version = model.serving if is_current else resolve_version(self._store, model_name, label, as_of)
        if symbol is None:
            return Resolved(version, _only_group(version))
        try:
            group = find_group(version, symbol, refusals=model.refusals if is_current else ())
        except SymbolNotFound:
            if is_current and (last := self._archived(remembered, model).get(comparable_symbol(symbol))) is not None:
                raise SymbolArchived(model_name=model_name, symbol=symbol, version=last) from None
            raise
        return Resolved(version, group)

    def _model_with(self, remembered: _Remembered, symbol: str | None) -> str:
        if symbol is None:
            told = "name a symbol, a model or both"
            raise FieldsInvalid(reason=told, errors=[{"loc": "symbol", "msg": told}])
        comparable = comparable_symbol(symbol)
        models = [model for model in remembered.catalog.models.values() if not model.is_retired]
        having = [model for model in models if comparable in model.serving.group_keys_by_symbol]
        having = having or [model for model in models if _has(model.serving, comparable)]
        able = [model.name for model in having if _can_predict(model.serving, comparable)]
        names = able or [model.name for model in having]
        default = self._store.settings.default_model
        if len(names) == 1:
            return names[0]
        if names and default not in names:
            more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
            raise ModelAmbiguous(symbol=symbol, model_names=", ".join(names[:MAX_NAMED]) + more)
        if default and (names or default in remembered.catalog.models):
            return default
        raise self._unknown_everywhere(remembered, symbol)

    def _unknown_everywhere(self, remembered: _Remembered, symbol: str) -> MmserverError:
        """What the models themselves say of a symbol that none of them has, if it is more than that."""
        for model in list(remembered.catalog.models.values())[:MAX_SEARCHED]:
            try:
                self._resolved(remembered, symbol, model.name, None, None)
            except SymbolNotFound:
                continue
            except (SymbolArchived, GroupRefused) as error:
                return error
        return SymbolNotFound(model_name="the catalog", symbol=symbol)

    def _archived(self, remembered: _Remembered, model: Model) -> Mapping[str, str]:
        """Symbols that kept versions before the one that is served had; read once for each catalog."""
        found = remembered.archived.get(model.id)
        if found is None:
            found = remembered.archived[model.id] = self._read_archived(model)
        return found

    def _read_archived(self, model: Model) -> dict[str, str]:
        """The label of the last version with it, by comparable symbol."""
        with self._store.database.read() as connection:
            ended = connection.execute(
                select(GroupRow.symbol, func.max(MembershipRow.last_seq).label("seq"))
                .join(MembershipRow, MembershipRow.group_id == GroupRow.id)
                .where(MembershipRow.model_id == model.id, MembershipRow.last_seq < model.serving.seq)
                .group_by(GroupRow.symbol)
            ).all()
            kept = connection.execute(
                select(VersionRow.seq, VersionRow.label)
                .where(VersionRow.model_id == model.id, VersionRow.seq < model.serving.seq)
                .order_by(VersionRow.seq)
            ).all()
        last_seq: dict[str, int] = {}
        for row in ended:
            comparable = comparable_symbol(row.symbol)
            last_seq[comparable] = max(row.seq, last_seq.get(comparable, 0))
        kept_seqs = [row.seq for row in kept]
        newest_at = {symbol: bisect_right(kept_seqs, seq) - 1 for symbol, seq in last_seq.items()}
        return {symbol: kept[at].label for symbol, at in newest_at.items() if at >= 0}


def _has(version: Version, comparable: str) -> bool:
    return comparable in version.group_keys_by_symbol or ALL_SYMBOLS in version.group_keys_by_symbol


def _can_predict(version: Version, comparable: str) -> bool:
    keys = version.group_keys_by_symbol.get(comparable) or version.group_keys_by_symbol.get(ALL_SYMBOLS, ())
    return any(version.groups[key].can_predict for key in keys)


def _only_group(version: Version) -> Group:
    if len(version.groups) == 1:
        return next(iter(version.groups.values()))
    keys = list(version.groups)
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    named = ", ".join(keys[:MAX_NAMED]) + more
    raise SymbolAmbiguous(symbol="the name without a symbol", group_keys=named, model_name=version.model_name)
