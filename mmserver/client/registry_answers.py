"""What calls about registered versions give; as in `answers`, fields that a later server adds are left out."""

from datetime import datetime
from typing import Any

import msgspec


class FormTiming(msgspec.Struct, frozen=True, kw_only=True):
    """What one call for one row took on one thread: milliseconds."""

    p50_ms: float
    p99_ms: float
    n_calls: int


class Optimization(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the last try to make one form of a version.

    `version`: the label that it was registered under, None if it was kept out or only tried. `reasons`: why it was kept out.
    `source_size_bytes`, `source_timing`: of the version that it was made of.

    Units:
        class_agreement, boundary_agreement in [0, 1]: the share of rows that get the same class, of all and of those between two.
        n_not_finite: rows whose numbers are not finite.
    """

    variant: str
    accepted: bool
    version: str | None = None
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    size_bytes: int | None = None
    source_size_bytes: int | None = None
    timing: FormTiming | None = None
    source_timing: FormTiming | None = None
    parity: dict[str, Any] | None = None
    class_agreement: float | None = None
    boundary_agreement: float | None = None
    n_not_finite: int = 0
    created_at: datetime | None = None


class Optimizations(msgspec.Struct, frozen=True):
    """What came of each form of a version that was tried."""

    items: tuple[Optimization, ...]


class RegisteredVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version that was registered by itself. `input_shape`: of one row, None where it is flat.

    `parity`: how near it comes to what it was converted from. Of a watched model's version only `name`, `version`, `stage` and the
    times are known.
    """

    name: str
    version: str
    stage: str | None = None
    model_type: str | None = None
    description: str = ""
    metrics: dict[str, Any] = {}
    training_params: dict[str, Any] = {}
    tags: dict[str, str] = {}
    kind: str | None = None
    n_features: int | None = None
    input_shape: tuple[int, ...] | None = None
    factor_count: int | None = None
    size_mb: float | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    derived_from: str | None = None
    parity: dict[str, Any] | None = None
    optimizations: tuple[Optimization, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None


class RegisteredModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the registry; `versions` is how many."""

    name: str
    versions: int
    latest_version: str | None = None
    production_version: str | None = None
    staging_version: str | None = None
    updated_at: datetime | None = None


class RegisteredModels(msgspec.Struct, frozen=True):
    """One page of them, by name; `next_cursor` is None on the last."""

    items: tuple[RegisteredModel, ...]
    next_cursor: str | None = None


class RegisteredVersions(msgspec.Struct, frozen=True, kw_only=True):
    """One model with its versions, newest first."""

    name: str
    latest_version: str | None = None
    production_version: str | None = None
    staging_version: str | None = None
    versions: tuple[RegisteredVersion, ...] = ()


class MetricComparison(msgspec.Struct, frozen=True):
    """One metric of two versions; None where a version has none."""

    version1: Any = None
    version2: Any = None
    diff: float | None = None
    diff_pct: float | None = None


class SizeComparison(msgspec.Struct, frozen=True):
    """Mebibytes."""

    version1_mb: float | None = None
    version2_mb: float | None = None
    diff_mb: float | None = None


class ParameterComparison(msgspec.Struct, frozen=True):
    """One training parameter of two versions; None where a version has none."""

    version1: Any = None
    version2: Any = None


class FactorsComparison(msgspec.Struct, frozen=True):
    """How the second version's inputs differ from the first's."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    moved: list[dict[str, Any]] = []


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two versions of one model side by side."""

    model_name: str | None = None
    version1: str | None = None
    version2: str | None = None
    metrics_comparison: dict[str, MetricComparison] = {}
    size_comparison: SizeComparison = SizeComparison()
    parameters_comparison: dict[str, ParameterComparison] = {}
    factors_comparison: FactorsComparison = FactorsComparison()
    is_same_content: bool | None = None
