"""What the routes of optimising take and answer, as types."""

from datetime import datetime
from typing import Any, Literal

import msgspec

from mmserver.registry.versions import Optimization


class OptimizeVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST …/optimize`."""

    variants: tuple[str, ...] = ("fp32", "int8_dynamic", "int8_static")
    benchmark: bool = False
    register: bool = True
    rows: list[Any] | None = None


class FormTiming(msgspec.Struct, frozen=True, kw_only=True):
    """What one call for one row took, in turns with the source on one thread."""

    p50_ms: float
    p99_ms: float
    n_calls: int


class RegistryOptimization(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the last try to make one form of a version."""

    variant: Literal["fp32", "int8_dynamic", "int8_static"]
    accepted: bool
    version: str | None
    reasons: list[str]
    notes: list[str]
    size_bytes: int | None
    source_size_bytes: int
    timing: FormTiming | None
    source_timing: FormTiming | None
    parity: dict[str, Any] | None
    class_agreement: float | None
    boundary_agreement: float | None
    n_not_finite: int
    created_at: datetime


class RegistryOptimizations(msgspec.Struct, frozen=True):
    """What came of every form of a version that was tried."""

    items: list[RegistryOptimization]


def item_from_optimization(one: Optimization) -> RegistryOptimization:
    """A report as answers show it."""
    described = {**one.report, "version": one.label, "created_at": one.created_at}
    return msgspec.convert(described, RegistryOptimization)
