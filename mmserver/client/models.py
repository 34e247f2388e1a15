"""Models of watched directories, their versions and symbols; health, lists and reload; venues; the server's own description."""

from datetime import datetime
from typing import Any, Literal

import httpx
import msgspec

from mmserver.client.answers import (
    Factors,
    Health,
    ListedModel,
    Model,
    Models,
    Quantiles,
    Refresh,
    Reload,
    SymbolDetail,
    SymbolQuantiles,
    Symbols,
    Venues,
    VenueUpdate,
    VersionDiff,
    Versions,
)
from mmserver.client.calls import JSON, Call, changing, json_as, path, reading
from mmserver.client.errors import AnswerInvalid, error_from_answer
from mmserver.client.options import NO_RETRIES

# --- health, lists, reload --------------------------------------------------------------------------------------------


class _Status(msgspec.Struct, frozen=True):
    status: Literal["ok", "degraded", "failing"]


_decode_status = json_as(_Status)
_decode_health = json_as(Health)


def health_check(*, timeout_s: float | None = None) -> Call[Health]:
    """How the server is; an unhealthy one answers too, and raises nothing."""
    return Call(method="GET", path="/api/ml/health", decode=_health, is_repeatable=True, also=(503,), total_s=timeout_s)


def _health(answer: httpx.Response) -> Health:
    """503 is how an unhealthy server says so, and how one refuses the question because it is too busy."""
    try:
        return _decode_health(answer)
    except AnswerInvalid:
        if answer.status_code == 503:
            raise error_from_answer(answer) from None
        raise


def is_ready(*, timeout_s: float) -> Call[bool]:
    """Whether it serves models; needs no key, and is asked once."""

    def decode(answer: httpx.Response) -> bool:
        return answer.status_code == 200 and _decode_status(answer).status != "failing"

    return Call(method="GET", path="/readyz", decode=decode, also=(503,), total_s=timeout_s, retries=NO_RETRIES)


def list_models() -> Call[list[ListedModel]]:
    """The served version of every model."""
    return reading("/api/ml/models", list[ListedModel])


def reload_model(model_name: str, version: str | None = None) -> Call[Reload]:
    """Load a model anew; what was loaded answers until its successor is ready, and stays if that does not load."""
    body = {"model_name": model_name} | ({} if version is None else {"version": version})
    return changing("POST", "/api/ml/models/reload", Reload, body)


def openapi() -> Call[dict[str, Any]]:
    """The server's description of all its routes."""
    return reading("/openapi.json", dict[str, Any])


# --- watched models ---------------------------------------------------------------------------------------------------


def list_catalog() -> Call[Models]:
    """Every model with its directory and its state."""
    return reading("/api/models", Models)


def get_model(model_name: str) -> Call[Model]:
    """One model, and what of its directory is refused."""
    return reading(path("/api/models/{}", model_name), Model)


def add_model(model_name: str, root_path: str) -> Call[Model]:
    """Watch a directory on the server's machine; answered when its artifacts are served."""
    return changing("POST", "/api/models", Model, {"model_name": model_name, "root_path": str(root_path)})


def remove_model(model_name: str) -> Call[None]:
    """Serve it no more; the directory is not touched."""
    return changing("DELETE", path("/api/models/{}", model_name), type(None))


def refresh_model(model_name: str, *, accept_vanished: bool = False) -> Call[Refresh]:
    """Look at the directory now. `accept_vanished`: files that are missing are meant to be gone."""
    vanished = True if accept_vanished else None
    return changing("POST", path("/api/models/{}/refresh", model_name), Refresh, accept_vanished=vanished)


def list_versions(model_name: str, *, limit: int | None = None, cursor: str | None = None) -> Call[Versions]:
    """A page of the history, newest first."""
    return reading(path("/api/models/{}/versions", model_name), Versions, limit=limit, cursor=cursor)


def diff_versions(model_name: str, from_version: str, to_version: str = "latest") -> Call[VersionDiff]:
    """What differs between two versions, group by group."""
    return reading(path("/api/models/{}/diff", model_name), VersionDiff, from_=from_version, to=to_version)


def rollback_model(model_name: str, version: str) -> Call[Model]:
    """Serve that version until the files change again."""
    return changing("POST", path("/api/models/{}/rollback", model_name), Model, {"version": version})


def list_symbols(model_name: str, *, version: str | None = None, as_of: datetime | None = None) -> Call[Symbols]:
    """The groups of one version."""
    return reading(path("/api/models/{}/symbols", model_name), Symbols, version=version, as_of=as_of)


def list_factors(model_name: str, *, version: str | None = None, as_of: datetime | None = None) -> Call[Factors]:
    """The factors of all groups, each once."""
    return reading(path("/api/models/{}/factors", model_name), Factors, version=version, as_of=as_of)


def get_symbol(
    model_name: str,
    symbol: str,
    *,
    group_key: str | None = None,
    version: str | None = None,
    as_of: datetime | None = None,
) -> Call[SymbolDetail]:
    """One group with its factors, statistics and files."""
    where = path("/api/models/{}/symbols/{}", model_name, symbol)
    return reading(where, SymbolDetail, group_key=group_key, version=version, as_of=as_of)


# --- venues -----------------------------------------------------------------------------------------------------------


class _Table(msgspec.Struct, frozen=True):
    pkl_path: str


def list_venues() -> Call[Venues]:
    """Every venue that has thresholds."""
    return reading("/api/venues", Venues)


def get_quantiles(venue: str) -> Call[Quantiles]:
    """A venue's thresholds."""
    decode_table = json_as(Quantiles)

    def decode(answer: httpx.Response) -> Quantiles:
        table = decode_table(answer)
        return Quantiles(table.venue, table.symbols, answer.headers.get("ETag"))

    return Call(method="GET", path=path("/api/venues/{}/quantiles", venue), decode=decode, is_repeatable=True)


def get_symbol_quantiles(venue: str, symbol: str) -> Call[SymbolQuantiles]:
    """One symbol's thresholds at a venue."""
    return reading(path("/api/venues/{}/quantiles/{}", venue, symbol), SymbolQuantiles)


def set_quantiles(venue: str, pkl_path: str, *, if_match: str | None = None) -> Call[VenueUpdate]:
    """Take a venue's thresholds from a file on the server's machine. `if_match`: only if its table has that `etag` now."""
    return Call(
        method="PUT",
        path=path("/api/venues/{}/quantiles", venue),
        headers=JSON if if_match is None else (*JSON, ("If-Match", if_match)),
        content=msgspec.json.encode(_Table(str(pkl_path))),
        decode=json_as(VenueUpdate),
    )
