"""Totals of experiments as a server would have kept them, from units that are made up here."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from mmserver.experiments.deciding import Design
from mmserver.experiments.totals import (
    ArmTotals,
    ExperimentTotals,
    PairedMoments,
    PairedTotals,
    PhaseTotals,
    RatioMoments,
)

START = datetime(2026, 1, 5, tzinfo=UTC)
SIZE = 5


def after(hours: float) -> datetime:
    """That long after the start."""
    return START + timedelta(hours=hours)


def design(**changes: Any) -> Design:
    """90/10, one phase."""
    return Design(**{"started_at": START, "treatment_weights": {1: 0.1}, **changes})


def arm(
    n_units: int,
    *,
    accuracy: float = 0.55,
    error_rate: float = 0.01,
    latency_ms: float = 5.0,
    joined: float = 1.0,
    seed: int = 0,
    size: int = SIZE,
) -> ArmTotals:
    """An arm whose shares are as near to those asked for as its counts allow, spread over its units at random."""
    generator = np.random.default_rng(seed)
    right = _spread(accuracy, n_units, size, generator)
    errors = _spread(error_rate, n_units, size, generator)
    came = _spread(joined, n_units, size, generator)
    ms = generator.normal(latency_ms, 1.0, (n_units, size))
    ms = (ms + latency_ms - ms.mean()).sum(axis=1) if n_units else np.zeros(0)
    return ArmTotals(
        n_units=n_units,
        n_predictions=n_units * size,
        accuracy=of_units([size] * n_units, right),
        errors=of_units([size] * n_units, errors),
        latency=of_units([size] * n_units, ms.tolist()),
        joins=of_units([size] * n_units, came),
    )


def of_units(x: Sequence[float], y: Sequence[float]) -> RatioMoments:
    """Units by their sums."""
    return RatioMoments.from_units(zip(map(float, x), map(float, y), strict=True))


def _spread(share: float, n_units: int, size: int, generator: np.random.Generator) -> list[float]:
    flat = np.zeros(n_units * size)
    flat[: round(share * flat.size)] = 1.0
    generator.shuffle(flat)
    sums: list[float] = flat.reshape(n_units, size).sum(axis=1).tolist() if n_units else []
    return sums


def split(control: ArmTotals, treatment: ArmTotals, **changes: Any) -> ExperimentTotals:
    """One phase of both."""
    return ExperimentTotals(phases={1: PhaseTotals(control=control, treatment=treatment, **changes)})


def shadow(
    n_units: int, *, only_control: float, only_treatment: float, both: float = 0.5, seed: int = 0
) -> ExperimentTotals:
    """Both models on the same predictions: the shares of them that one, the other, both predicted right."""
    generator = np.random.default_rng(seed)
    n = n_units * SIZE
    kinds = np.zeros(n, int)
    edges = np.round(np.cumsum([only_control, only_treatment, both]) * n).astype(int)
    kinds[: edges[2]], kinds[: edges[1]], kinds[: edges[0]] = 3, 2, 1
    generator.shuffle(kinds)
    control, treatment = np.isin(kinds, (1, 3)), np.isin(kinds, (2, 3))
    c, t = (flags.reshape(n_units, SIZE).sum(axis=1).astype(float) for flags in (control, treatment))
    x = np.full(n_units, float(SIZE))
    ms_c, ms_t = (generator.normal(ms, 0.5, (n_units, SIZE)).sum(axis=1) for ms in (5.0, 5.1))
    paired = PairedTotals(
        n_only_control=int((kinds == 1).sum()),
        n_only_treatment=int((kinds == 2).sum()),
        n_both_right=int((kinds == 3).sum()),
        n_both_wrong=int((kinds == 0).sum()),
        accuracy=PairedMoments.from_units(zip(x.tolist(), c.tolist(), t.tolist(), strict=True)),
        errors=PairedMoments.from_units((size, 0.0, 0.0) for size in x.tolist()),
        latency=PairedMoments.from_units(zip(x.tolist(), ms_c.tolist(), ms_t.tolist(), strict=True)),
    )
    arms = [
        ArmTotals(
            n_units=n_units,
            n_predictions=n,
            accuracy=getattr(paired.accuracy, name),
            errors=getattr(paired.errors, name),
            latency=getattr(paired.latency, name),
        )
        for name in ("control", "treatment")
    ]
    return ExperimentTotals(phases={1: PhaseTotals(control=arms[0], treatment=arms[1], paired=paired)})
