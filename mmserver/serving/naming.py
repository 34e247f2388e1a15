"""Names of single predictors, as protocols that know one flat list of models want them: `{model}.{symbol}`, or `{model}` alone.

Model names may hold dots, and so may symbols: the longest name of an existing model wins, what follows it is the symbol.
"""

from collections.abc import Container
from datetime import datetime

from mmserver.catalog.catalog import Catalog
from mmserver.errors import ModelNotFound, NoDefaultModel
from mmserver.serving.predictions import Resolved, Serving


def resolve_name(serving: Serving, name: str, version: str | None = None, as_of: datetime | None = None) -> Resolved:
    """The version and group that a name means; `{model}` alone means the model's only group.

    Raises:
        ModelNotFound: the name begins with no model's.
        VersionNotFound, SymbolNotFound, SymbolAmbiguous, GroupRefused, SymbolArchived: as `Serving.resolve` does.
    """
    model_name, symbol = split_name(serving.store.catalog.models, name)
    return serving.resolve(symbol, model_name, version, as_of)


def split_name(model_names: Container[str], name: str) -> tuple[str, str | None]:
    """The model and the symbol in a name; no symbol where the name is a model's.

    Raises:
        ModelNotFound: the name begins with no model's.
    """
    if name in model_names:
        return name, None
    end = len(name)
    while (end := name.rfind(".", 0, end)) > 0:
        if name[:end] in model_names and end + 1 < len(name):
            return name[:end], name[end + 1 :]
    raise ModelNotFound(model_name=name)


def resolve_default(serving: Serving, as_of: datetime | None = None) -> Resolved:
    """What is meant where a protocol names no model: `default_model`, else the only group that there is.

    Raises:
        NoDefaultModel: none is set, and there is not exactly one group.
        what `resolve_name` does, for the name that is set.
    """
    default = serving.store.settings.default_model
    if default:
        return resolve_name(serving, default, None, as_of)
    model_name, symbol = _only_group(serving.store.catalog)
    return serving.resolve(symbol, model_name, None, as_of)


def _only_group(catalog: Catalog) -> tuple[str, str]:
    found = [
        (model.name, group.symbol)
        for model in catalog.models.values()
        for group in model.serving.groups.values()
        if group.can_predict
    ]
    if len(found) != 1:
        raise NoDefaultModel(n_found=len(found))
    return found[0]
