"""What calls give: frozen values with the server's own field names. Fields that a later server adds are left out."""

from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Direction: TypeAlias = Literal["BUY", "SELL", "HOLD"]
Metrics: TypeAlias = dict[str, Any]
_CODES: dict[str, int] = {"HOLD": 0, "BUY": 1, "SELL": 2}


# --- prediction -------------------------------------------------------------------------------------------------------


class PredictedSignal(msgspec.Struct, frozen=True, kw_only=True):
    """What the model says. None: the model gives no ground for that number."""

    direction: Direction
    confidence: float | None = None
    probability: float | None = None
    expected_return: float | None = None

    @property
    def code(self) -> int:
        """0 HOLD, 1 BUY, 2 SELL."""
        return _CODES[self.direction]


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction, and which version of which model it is from. `contributions` only where it was asked to be explained.

    In an experiment `variant` is the arm that answers; `fallback` says why that is the control where the treatment was to.
    """

    symbol: str
    prediction: PredictedSignal
    model_name: str
    model_version: str
    model_info: dict[str, Any] = {}
    variant: str | None = None
    prediction_id: str
    latency_ms: float
    timestamp: datetime
    contributions: dict[str, Any] | None = None
    experiment_id: str | None = None
    fallback: str | None = None


class Problem(msgspec.Struct, frozen=True):
    """Why one item of a batch was refused."""

    code: str
    detail: str
    errors: tuple[dict[str, str], ...] = ()


class FailedPrediction(msgspec.Struct, frozen=True):
    """An item of a batch that has no prediction; the others are not touched by it."""

    symbol: str | None
    error: Problem


class BatchPrediction(msgspec.Struct, frozen=True):
    """The answers in the order asked."""

    predictions: tuple[Prediction | FailedPrediction, ...]
    timestamp: datetime


class Inference(msgspec.Struct, frozen=True):
    """Output tensors by name."""

    model_name: str
    model_version: str
    outputs: dict[str, npt.NDArray[np.generic]]
    id: str | None = None


# --- health and lists -------------------------------------------------------------------------------------------------


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`healthy`, `degraded` (models are served all the same) or `unhealthy`."""

    status: Literal["healthy", "degraded", "unhealthy"]
    timestamp: datetime | None = None
    loaded_models: tuple[str, ...] = ()
    active_experiments: int = 0
    uptime_seconds: float = 0.0


class ListedModel(msgspec.Struct, frozen=True, kw_only=True):
    """The served version of one model."""

    name: str
    version: str
    stage: str | None = None
    model_type: str | None = None
    metrics: Metrics = {}
    size_mb: float | None = None
    loaded: bool = False


class FailedGroup(msgspec.Struct, frozen=True):
    """A group that did not load."""

    group_key: str
    code: str
    detail: str


class Reload(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload loaded; `failed` if anything did not load: then the one before goes on answering."""

    status: Literal["reloaded", "failed"]
    model_name: str
    version: str
    loaded: tuple[str, ...] = ()
    failed: tuple[FailedGroup, ...] = ()


class TensorMetadata(msgspec.Struct, frozen=True):
    """One tensor of a model; -1 is the number of rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """A model by the Open Inference Protocol."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()
    properties: dict[str, Any] = {}


# --- watched models ---------------------------------------------------------------------------------------------------


class Refusal(msgspec.Struct, frozen=True):
    """An artifact that is not served, and why."""

    group_key: str
    file: str
    reason: str
    detail: str
    since: datetime
    attempts: int


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model; `newest_version` and `refusals` only where it was asked for by itself."""

    model_name: str
    root_path: str | None = None
    symbol_count: int
    group_count: int
    factor_count: int
    version: str
    stages: dict[str, str] = {}
    registered_at: datetime
    refreshed_at: datetime
    status: str
    error: str | None = None
    newest_version: str | None = None
    refusals: tuple[Refusal, ...] = ()


class Models(msgspec.Struct, frozen=True):
    """Every model, by name."""

    items: tuple[Model, ...]


class Refresh(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the directory found; group keys."""

    model_name: str
    changed: bool
    version: str
    previous_version: str | None = None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a watched model; group keys in what it changed."""

    version: str
    created_at: datetime
    reason: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    stages: tuple[str, ...] | dict[str, str] = ()


class Versions(msgspec.Struct, frozen=True):
    """One page of the history, newest first; `next_cursor` is None on the last."""

    items: tuple[Version, ...]
    next_cursor: str | None = None


class Symbol(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a version."""

    symbol: str
    group_key: str
    return_name: str
    dim: int
    has_model: bool
    train_samples: int | None = None
    ic_mean: float | None = None


class Symbols(msgspec.Struct, frozen=True):
    """The groups of one version."""

    model_name: str
    version: str
    symbols: tuple[Symbol, ...]


class Factors(msgspec.Struct, frozen=True):
    """Each factor once, in order of first appearance."""

    model_name: str
    symbol_count: int
    group_count: int
    factor_count: int
    factors: tuple[str, ...]


class DimFactor(msgspec.Struct, frozen=True):
    """What one input of the model means. `kendall_tau` in [-1, 1]; None where it is not known."""

    dim: int
    factor_name: str
    kendall_tau: float | None = None


class SymbolDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One group with its factors, statistics and files."""

    model_name: str
    version: str
    symbol: str
    group_key: str
    return_name: str
    dim: int
    factors: tuple[str, ...]
    ic_table: list[dict[str, Any]] | None = None
    info: Any = None
    dim_factors: tuple[DimFactor, ...] = ()
    artifacts: list[dict[str, Any]] = []
    model: dict[str, Any] | None = None


class GroupDiff(msgspec.Struct, frozen=True, kw_only=True):
    """How one group differs between two versions."""

    group_key: str
    change: Literal["added", "removed", "updated"]
    factors_added: tuple[str, ...] = ()
    factors_removed: tuple[str, ...] = ()
    factors_moved: list[dict[str, Any]] = []
    order_only: bool = False
    ic_shifts: list[dict[str, Any]] = []
    info_changes: list[dict[str, Any]] = []
    model_changed: bool = False


class VersionDiff(msgspec.Struct, frozen=True, rename={"from_version": "from", "to_version": "to"}):
    """What differs between two versions; equal groups are left out."""

    model_name: str
    from_version: str
    to_version: str
    groups: tuple[GroupDiff, ...]


class PayloadContent(msgspec.Struct, frozen=True):
    """`model_json` is the text of an XGBoost JSON model."""

    model_json: str
    metadata: dict[str, Any] = {}
    dim_factors: tuple[DimFactor, ...] = ()


class Payload(msgspec.Struct, frozen=True):
    """What bots download."""

    model_name: str
    symbol: str
    group_key: str
    version: str
    payload: PayloadContent


# --- venues -----------------------------------------------------------------------------------------------------------


class Venue(msgspec.Struct, frozen=True, kw_only=True):
    """One venue and the file that its thresholds are from."""

    venue: str
    pkl_path: str
    updated_at: datetime
    symbol_count: int | None = None
    status: str | None = None
    error: str | None = None


class Venues(msgspec.Struct, frozen=True):
    """Every venue that has thresholds."""

    items: tuple[Venue, ...]


class VenueUpdate(msgspec.Struct, frozen=True):
    """How many symbols the file has."""

    venue: str
    symbol_count: int


class Thresholds(msgspec.Struct, frozen=True):
    """In quote notional."""

    medium_notional_threshold: float
    large_notional_threshold: float


class Quantiles(msgspec.Struct, frozen=True):
    """A venue's thresholds by symbol. `etag` names this table, for `if_match`."""

    venue: str
    symbols: dict[str, Thresholds]
    etag: str | None = None


class SymbolQuantiles(msgspec.Struct, frozen=True):
    """One symbol's thresholds, in quote notional."""

    venue: str
    symbol: str
    medium_notional_threshold: float
    large_notional_threshold: float


# --- experiments ------------------------------------------------------------------------------------------------------


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """One A/B test."""

    experiment_id: str
    control_model: str | None = None
    control_version: str | None = None
    treatment_model: str | None = None
    treatment_version: str | None = None
    traffic_split: float | None = None
    unit: str | None = None
    status: str | None = None


class Recommendation(msgspec.Struct, frozen=True):
    """What to do, and why."""

    action: Literal["promote", "rollback", "continue"]
    reasons: tuple[str, ...] = ()


class OutcomeFault(msgspec.Struct, frozen=True, kw_only=True):
    """One outcome that was not added, by its place in the call."""

    index: int
    prediction_id: str
    code: str
    message: str


class OutcomeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the outcomes of one call; `errors` has the first of those that were not added."""

    n_accepted: int = 0
    n_duplicates: int = 0
    n_conflicts: int = 0
    n_unknown: int = 0
    n_premature: int = 0
    n_in_future: int = 0
    n_invalid: int = 0
    errors: tuple[OutcomeFault, ...] = ()


class ExperimentEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that was kept, with what it was made from."""

    id: int
    at: datetime
    reason: str
    decision: dict[str, Any]
    inputs: dict[str, Any] = {}
    code_version: str | None = None


class ExperimentEvaluations(msgspec.Struct, frozen=True):
    """The decisions that were kept, the newest first."""

    items: tuple[ExperimentEvaluation, ...]


class ExperimentAnalysis(msgspec.Struct, frozen=True, kw_only=True):
    """How the two variants do."""

    control: dict[str, Any]
    treatment: dict[str, Any]
    improvement: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    recommendation: Recommendation | None = None
