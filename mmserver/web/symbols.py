"""`/api/models/{model}/symbols`, `…/symbols/{symbol}`, `…/factors`: what a version knows about its groups."""

import flask
import msgspec

from mmserver.catalog import groups, history
from mmserver.catalog.catalog import Group, Version
from mmserver.security.scopes import needs
from mmserver.web.current import current_store
from mmserver.web.requests import query_text, query_time
from mmserver.web.responses import json_response

blueprint = flask.Blueprint("symbols", __name__)


class SymbolItem(msgspec.Struct, frozen=True, kw_only=True):
    """One group in a version's list."""

    symbol: str
    group_key: str
    return_name: str
    dim: int
    has_model: bool
    train_samples: int | None
    ic_mean: float | None


def item_from_group(group: Group) -> SymbolItem:
    """The group as lists show it."""
    return SymbolItem(
        symbol=group.symbol,
        group_key=group.group_key,
        return_name=group.return_name,
        dim=group.dim,
        has_model=group.can_predict,
        train_samples=group.train_samples,
        ic_mean=group.ic_mean,
    )


def asked_version(model_name: str) -> Version:
    """The version that `?version=` and `?as_of=` ask for; without them what is served."""
    request = flask.request
    return history.resolve_version(
        current_store(), model_name, query_text(request, "version"), query_time(request, "as_of")
    )


@blueprint.get("/api/models/<model_name>/symbols")
@needs("read", "model_name")
def list_symbols(model_name: str) -> flask.Response:
    """Every group of the version."""
    version = asked_version(model_name)
    items = [item_from_group(group) for group in version.groups.values()]
    return json_response({"model_name": version.model_name, "version": version.label, "symbols": items})


@blueprint.get("/api/models/<model_name>/factors")
@needs("read", "model_name")
def list_factors(model_name: str) -> flask.Response:
    """The deduplicated union of the version's factors."""
    version = asked_version(model_name)
    return json_response(
        {
            "model_name": version.model_name,
            "symbol_count": len(version.group_keys_by_symbol),
            "group_count": len(version.groups),
            "factor_count": len(version.factors),
            "factors": version.factors,
        }
    )


@blueprint.get("/api/models/<model_name>/symbols/<path:symbol>")
@needs("read", "model_name")
def get_symbol(model_name: str, symbol: str) -> flask.Response:
    """One group with its IC table, info and artifacts; symbols may be written with their slash."""
    store = current_store()
    version = asked_version(model_name)
    group = groups.find_group(version, symbol, query_text(flask.request, "group_key"), store.model(model_name).refusals)
    detail = groups.group_detail(current_store(), group)
    return json_response(
        {
            "model_name": version.model_name,
            "version": version.label,
            "symbol": group.symbol,
            "group_key": group.group_key,
            "return_name": group.return_name,
            "dim": group.dim,
            "factors": group.factors,
            "ic_table": detail.record.ic_table,
            "info": detail.record.info,
            "dim_factors": detail.record.dim_factors,
            "artifacts": detail.artifacts,
            "model": detail.record.model,
        }
    )
