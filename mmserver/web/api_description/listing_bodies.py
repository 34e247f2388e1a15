"""The bodies of models and health in the words of earlier services."""

from datetime import datetime
from typing import Any, Literal

import msgspec

from mmserver.experiments.observations.reports import LogStatus

HealthWord = Literal["healthy", "degraded", "unhealthy"]


class Health(msgspec.Struct):
    """How the server is; `checks` as in `/readyz`."""

    status: HealthWord
    models_loaded: int
    uptime_seconds: float
    checks: dict[str, dict[str, Any]]


class MlHealth(msgspec.Struct):
    """How the server is, with the names of what is loaded."""

    status: HealthWord
    timestamp: datetime
    loaded_models: list[str]
    active_experiments: int
    observations: LogStatus | None
    uptime_seconds: float


class MlModel(msgspec.Struct):
    """The served version of one model."""

    name: str
    version: str
    stage: Literal["Production", "Staging", "Archived", "None"]
    model_type: str | None
    metrics: dict[str, Any]
    size_mb: float
    loaded: bool


class GatewayModel(msgspec.Struct):
    """The served version of one model, with the names of its features."""

    name: str
    version: str
    status: Literal["ok", "degraded", "stale", "frozen"]
    accuracy: float | None
    training_date: str | None
    features: list[str]


class GatewayModels(msgspec.Struct):
    """Every model."""

    models: list[GatewayModel]


class GatewayVersion(msgspec.Struct):
    """One version of a model."""

    version: str
    status: Literal["production", "staging", "archived", "none"]
    accuracy: float | None
    training_date: str | None


class GatewayVersions(msgspec.Struct):
    """The versions of one model, newest first."""

    model_name: str
    versions: list[GatewayVersion]


class FailedReload(msgspec.Struct):
    """A group whose model does not load; what was loaded before goes on answering."""

    group_key: str
    code: str
    detail: str


class Reloaded(msgspec.Struct):
    """What a reload did."""

    status: Literal["reloaded", "partly reloaded", "failed"]
    model_name: str
    version: str
    loaded: list[str]
    failed: list[FailedReload]
