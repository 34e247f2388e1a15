"""Models as the Open Inference Protocol knows them: one flat list of names, each of which is one group of one version."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from mmserver.catalog import history
from mmserver.catalog.catalog import Catalog, Group, Version
from mmserver.catalog.symbols import ALL_SYMBOLS, comparable_symbol
from mmserver.errors import GroupHasNoModel, ModelNotFound, SymbolAmbiguous, SymbolNotFound
from mmserver.serving.naming import resolve_name, split_name
from mmserver.serving.output_tensors import ModelFacts, OutputTensor, output_tensors
from mmserver.serving.predictions import Resolved, Serving
from mmserver.serving.predictors import LoadedModel


@dataclass(frozen=True, slots=True)
class TensorModel:
    """One group under the name by which the protocol knows it."""

    name: str
    resolved: Resolved

    @property
    def group(self) -> Group:
        """What predicts."""
        return self.resolved.group

    @property
    def version(self) -> Version:
        """What it is of."""
        return self.resolved.version


def find_tensor_model(
    serving: Serving, name: str, version: str | None = None, as_of: datetime | None = None
) -> TensorModel:
    """The group that a name means: `{model}.{symbol}`, `{model}` of one group, or `{model}.{group_key}`.

    The model that is found bears its own name: the symbol as the artifacts write it, and `{model}` only if that was asked.

    Raises:
        ModelNotFound, VersionNotFound, SymbolNotFound, SymbolAmbiguous, GroupRefused, SymbolArchived: as `resolve_name` does.
        GroupHasNoModel: there is nothing that could predict.
    """
    try:
        resolved = resolve_name(serving, name, version, as_of)
    except (SymbolNotFound, SymbolAmbiguous):
        model_name, group_key = split_name(serving.store.catalog.models, name)
        found = find_by_group_key(serving, model_name, group_key, version, as_of)
        if found is None:
            raise
        resolved = found
    if not resolved.group.can_predict:
        reason = resolved.group.no_model_reason or "no model was found"
        raise GroupHasNoModel(group_key=resolved.group.group_key, reason=reason)
    return TensorModel(_answered_name(name, resolved), resolved)


def find_by_group_key(
    serving: Serving, model_name: str, group_key: str | None, version: str | None = None, as_of: datetime | None = None
) -> Resolved | None:
    """The group of that key, exactly as it is written; None where the version has none.

    Raises:
        ModelNotFound, VersionNotFound
    """
    if group_key is None:
        return None
    found = history.resolve_version(serving.store, model_name, version, as_of)
    group = found.groups.get(group_key)
    return Resolved(found, group) if group is not None else None


def known_tensor_model(serving: Serving, name: str, version: str | None) -> TensorModel | None:
    """The same if memory alone can say it at once; None where it cannot, and for every name that is refused."""
    try:
        model_name, symbol = split_name(serving.store.catalog.models, name)
    except ModelNotFound:
        return None
    resolved = serving.known(symbol, model_name, version)
    if resolved is None or not resolved.group.can_predict:
        return None
    return TensorModel(_answered_name(name, resolved), resolved)


def tensor_models(catalog: Catalog) -> Iterator[TensorModel]:
    """Everything that is served now and could predict, by name of model and group key."""
    for model in catalog.models.values():
        for group in model.serving.groups.values():
            if group.can_predict and not model.is_retired:
                yield TensorModel(own_name(model.serving, group), Resolved(model.serving, group))


def own_name(version: Version, group: Group) -> str:
    """`{model}.{symbol}`; with the group key instead where several groups share the symbol; `{model}` if its only group is for
    all symbols.
    """
    if group.symbol == ALL_SYMBOLS and len(version.groups) == 1:
        return version.model_name
    keys = version.group_keys_by_symbol.get(comparable_symbol(group.symbol), ())
    return f"{version.model_name}.{group.symbol if len(keys) == 1 else group.group_key}"


def facts_of(loaded: LoadedModel) -> ModelFacts:
    """What of a loaded model decides about its outputs."""
    return ModelFacts(loaded.model.kind, loaded.model.objective, loaded.model.n_outputs)


def outputs_of(loaded: LoadedModel) -> tuple[OutputTensor, ...]:
    """The outputs of a loaded model."""
    return _output_tensors(facts_of(loaded), tuple(loaded.outputs.items()))


def _answered_name(asked: str, resolved: Resolved) -> str:
    is_models = asked == resolved.version.model_name
    return asked if is_models or resolved.group.symbol == ALL_SYMBOLS else own_name(resolved.version, resolved.group)


@lru_cache(maxsize=256)
def _output_tensors(facts: ModelFacts, widths: tuple[tuple[str, int], ...]) -> tuple[OutputTensor, ...]:
    return output_tensors(facts, dict(widths))
