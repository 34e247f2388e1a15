"""The bodies of the catalog's answers, where the views build them from parts; what is a type elsewhere is used from there."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from mmserver.catalog.groups import StoredArtifact
from mmserver.catalog.payload import DimFactor, Payload
from mmserver.formats import Conversion, Probes
from mmserver.web.models import ModelItem
from mmserver.web.symbols import SymbolItem

NonNegative = Annotated[int, msgspec.Meta(ge=0)]


class ModelList(msgspec.Struct):
    """Every model, by name."""

    items: list[ModelItem]


class RefreshResult(msgspec.Struct):
    """What a refresh changed."""

    model_name: str
    changed: bool
    version: str
    previous_version: str
    added: list[str]
    removed: list[str]
    updated: list[str]


class SymbolList(msgspec.Struct):
    """Every group of one version."""

    model_name: str
    version: str
    symbols: list[SymbolItem]


class FactorUnion(msgspec.Struct):
    """Each factor of one version once, in order of first appearance."""

    model_name: str
    symbol_count: NonNegative
    group_count: NonNegative
    factor_count: NonNegative
    factors: list[str]


class ModelFacts(msgspec.Struct):
    """What is known of a group's model besides its trees; `content_sha256` is the hash of the model's own bytes."""

    kind: str
    content_sha256: str
    n_features: int
    n_outputs: int
    objective: str
    library_version: str
    n_trees: int
    feature_names: list[str] | None
    missing: float | None
    best_iteration: int | None
    summary: dict[str, Any]
    input_shape: list[int] | UnsetType | None = UNSET
    conversion: Conversion | UnsetType | None = UNSET


class SymbolDetail(msgspec.Struct):
    """One group: its factors, IC table, info, files and model."""

    model_name: str
    version: str
    symbol: str
    group_key: str
    return_name: str
    dim: int
    factors: list[str]
    ic_table: list[dict[str, Any]]
    info: dict[str, Any]
    dim_factors: list[DimFactor]
    artifacts: list[StoredArtifact]
    model: ModelFacts | None


class PayloadAnswer(msgspec.Struct):
    """What bots download."""

    model_name: str
    symbol: str
    group_key: str
    version: str
    payload: Payload


class MissingRule(msgspec.Struct):
    """Which input values mean missing."""

    nan: bool
    value: float | None


class TreeRules(msgspec.Struct):
    """How trees are evaluated, to the bit."""

    input: str
    split: str
    sum: str


class PayloadManifest(msgspec.Struct):
    """What a client in any language needs to prove its loader; the answer to `format=manifest`."""

    model_name: str
    version: str
    symbol: str
    group_key: str
    return_name: str
    sha256: dict[str, str | None]
    model: dict[str, Any]
    details: dict[str, Any]
    feature_order: list[str]
    missing: MissingRule
    rules: TreeRules | None
    golden: Probes | None


class XgboostModel(msgspec.Struct):
    """The model alone, as XGBoost writes it; the answer to `format=json`."""

    learner: dict[str, Any]
    version: list[int]


class VersionItem(msgspec.Struct):
    """One version in a model's history."""

    version: str
    created_at: datetime
    reason: Literal["registered", "refreshed"]
    added: list[str]
    removed: list[str]
    updated: list[str]
    stages: list[str]


class VersionList(msgspec.Struct):
    """A page of a model's history, newest first."""

    items: list[VersionItem]
    next_cursor: str | None


class Thresholds(msgspec.Struct):
    """One symbol's order sizes, in quote notional; 0 < medium < large."""

    medium_notional_threshold: float
    large_notional_threshold: float


class VenueItem(msgspec.Struct):
    """One venue in the list."""

    venue: str
    pkl_path: str
    updated_at: datetime
    symbol_count: NonNegative
    status: Literal["ok", "stale"]
    error: str | None


class VenueList(msgspec.Struct):
    """Every venue that has thresholds."""

    items: list[VenueItem]


class VenueUpdated(msgspec.Struct):
    """How many symbols the venue's file has."""

    venue: str
    symbol_count: NonNegative


class VenueTable(msgspec.Struct):
    """One venue's thresholds by symbol."""

    venue: str
    symbols: dict[str, Thresholds]


class VenueSymbol(Thresholds):
    """One symbol's thresholds at one venue."""

    venue: str
    symbol: str


class Readiness(msgspec.Struct):
    """Whether models can be served; `checks` maps each check to its own `status` and what it found."""

    status: Literal["ok", "degraded", "failing"]
    checks: dict[str, dict[str, Any]]
