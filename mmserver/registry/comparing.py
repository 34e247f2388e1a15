"""Two versions of a registered model side by side."""

import math
from typing import Any

import msgspec

from mmserver.catalog.catalog import Group
from mmserver.catalog.diffing import FactorMove, factor_changes
from mmserver.catalog.store import Store
from mmserver.registry.fields import Number
from mmserver.registry.versions import BYTES_A_MB, get_version


class MetricComparison(msgspec.Struct, frozen=True):
    """`diff` is the second less the first, `diff_pct` that in percent of the first's size; None where there is no such number."""

    version1: Number | None
    version2: Number | None
    diff: Number | None
    diff_pct: float | None


class SizeComparison(msgspec.Struct, frozen=True):
    """Of the files that were handed in. Units: MiB."""

    version1_mb: float
    version2_mb: float
    diff_mb: float


class ParameterComparison(msgspec.Struct, frozen=True):
    """One training parameter that differs; None where it was not given."""

    version1: Any
    version2: Any


class FactorComparison(msgspec.Struct, frozen=True):
    """How the inputs differ; moved are those that both have at different places."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    moved: tuple[FactorMove, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The second version against the first. Metrics are those of either; parameters only those that differ."""

    model_name: str
    version1: str
    version2: str
    metrics_comparison: dict[str, MetricComparison]
    size_comparison: SizeComparison
    parameters_comparison: dict[str, ParameterComparison]
    factors_comparison: FactorComparison
    is_same_content: bool


def compare(store: Store, model_name: str, reference1: str, reference2: str) -> Comparison:
    """What differs between two versions, each named by its label, a stage or `latest`.

    Raises:
        ModelNotFound, WrongModelKind, VersionNotFound
    """
    first, second = (get_version(store, model_name, reference) for reference in (reference1, reference2))
    sizes_mb = (first.size_bytes / BYTES_A_MB, second.size_bytes / BYTES_A_MB)
    metric_names = [*first.metrics, *(name for name in second.metrics if name not in first.metrics)]
    return Comparison(
        model_name=model_name,
        version1=first.label,
        version2=second.label,
        metrics_comparison={
            name: _compared_metric(first.metrics.get(name), second.metrics.get(name)) for name in metric_names
        },
        size_comparison=SizeComparison(*sizes_mb, sizes_mb[1] - sizes_mb[0]),
        parameters_comparison=_compared_parameters(first.training_params, second.training_params),
        factors_comparison=_compared_factors(first.group, second.group),
        is_same_content=first.sha256 == second.sha256,
    )


def _compared_metric(first: Number | None, second: Number | None) -> MetricComparison:
    if first is None or second is None:
        return MetricComparison(first, second, None, None)
    diff = second - first
    if not math.isfinite(diff):  # the largest against the smallest
        return MetricComparison(first, second, None, None)
    share = diff / abs(first) * 100 if first else math.nan
    return MetricComparison(first, second, diff, share if math.isfinite(share) else None)


def _compared_parameters(first: dict[str, Any], second: dict[str, Any]) -> dict[str, ParameterComparison]:
    names = [*first, *(name for name in second if name not in first)]
    return {
        name: ParameterComparison(first.get(name), second.get(name))
        for name in names
        if name not in first or name not in second or first[name] != second[name]
    }


def _compared_factors(first: Group, second: Group) -> FactorComparison:
    added, removed, moved = factor_changes(first.factors, second.factors)
    return FactorComparison(added, removed, moved)
