"""Experiments that never were: predictions of two arms whose truth is known, many runs at once, as sums over units at each look.

Runs stand side by side in arrays, so 2,000 runs of 72,000 predictions each take a minute. The same seed gives the same runs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from mmserver.experiments.distributions import normal_quantile
from mmserver.experiments.totals import ArmTotals, ExperimentTotals, PhaseTotals, RatioMoments

Array = NDArray[Any]
RUNS_AT_A_TIME = 500
"""So many fit in a processor's cache."""
METRICS = ("accuracy", "errors", "latency")


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is true in the simulated world.

    Units are symbols in blocks of time. Outcomes, errors and latencies of consecutive predictions of a symbol resemble each
    other by `autocorrelation` (AR(1) of what lies beneath them), within a unit and from one to the next.

    Units:
        accuracy, error_rate and what is added to the first are shares; error_factor multiplies the second.

    Fields:
        treatment_weight: the share of the units; of the first phase, if there are ramps.
        ramps: from which hour on which weight; each begins a phase.
        symbol_spread: the standard deviation of the symbols' own accuracies.
        accuracy_drift: by how much both arms' accuracy changes from the first to the last hour.
        latency_sd_ms: of single predictions; they are log-normal.
        return_sd: of single predictions' returns, which are normal, about zero in the control; there are none where it is 0.
    """

    days: float = 30.0
    predictions_per_hour: int = 100
    n_symbols: int = 20
    block_hours: int = 1
    look_every_hours: int = 1
    treatment_weight: float = 0.1
    ramps: tuple[tuple[int, float], ...] = ()
    accuracy: float = 0.55
    accuracy_gain: float = 0.0
    symbol_spread: float = 0.0
    accuracy_drift: float = 0.0
    error_rate: float = 0.01
    error_factor: float = 1.0
    latency_ms: float = 5.0
    latency_sd_ms: float = 3.0
    latency_increase_ms: float = 0.0
    return_sd: float = 0.0
    return_gain: float = 0.0
    autocorrelation: float = 0.0

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if not (isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most):
                raise ValueError(f"{name} is {value}; it must be a number from {least:g} to {most:g}")
        if self.predictions_per_hour < self.n_symbols:
            raise ValueError(
                f"predictions_per_hour is {self.predictions_per_hour}; each of n_symbols, {self.n_symbols}, needs one"
            )
        for name, value in (
            ("accuracy_gain", self.accuracy + self.accuracy_gain),
            ("accuracy_drift", self.accuracy + self.accuracy_drift),
            ("error_factor", self.error_rate * self.error_factor),
        ):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; with it the share would be {value:g}")
        if not self.latency_ms + self.latency_increase_ms > 0.0:
            raise ValueError(f"latency_increase_ms is {self.latency_increase_ms}; no latency would be left")
        if self.return_gain and not self.return_sd:
            raise ValueError("return_gain is of returns, and without a return_sd there are none")
        hours = [hour for hour, _ in self.ramps]
        if hours != sorted(set(hours)) or not all(0 < hour < self.n_hours for hour in hours):
            raise ValueError(f"ramps begin at {hours}; their hours must rise, within 0 and {self.n_hours}")
        if not all(0.0 < weight < 1.0 for _, weight in self.ramps):
            raise ValueError("ramps must have weights between 0 and 1")

    @property
    def n_hours(self) -> int:
        """How long each run is."""
        return round(24 * self.days)

    @property
    def weights(self) -> dict[int, float]:
        """The treatment's share of the units, by phase."""
        return {1: self.treatment_weight, **{number: weight for number, (_, weight) in enumerate(self.ramps, 2)}}


_LIMITS: dict[str, tuple[float, float]] = {
    "days": (1.0 / 24.0, 3650.0),
    "predictions_per_hour": (1, 100_000),
    "n_symbols": (1, 10_000),
    "block_hours": (1, 10_000),
    "look_every_hours": (1, 10_000),
    "treatment_weight": (1e-4, 1.0 - 1e-4),
    "accuracy": (0.0, 1.0),
    "accuracy_gain": (-1.0, 1.0),
    "symbol_spread": (0.0, 0.5),
    "accuracy_drift": (-1.0, 1.0),
    "error_rate": (0.0, 1.0),
    "error_factor": (0.0, 1e6),
    "latency_ms": (1e-3, 1e6),
    "latency_sd_ms": (0.0, 1e6),
    "latency_increase_ms": (-1e6, 1e6),
    "return_sd": (0.0, 1e6),
    "return_gain": (-1e6, 1e6),
    "autocorrelation": (0.0, 0.9999),
}


# --- sums of many runs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sums:
    """As `RatioMoments`, of each run: six rows (n, x, y, xx, xy, yy) of one number a run."""

    rows: Array

    @classmethod
    def of_units(cls, x: Array, y: Array, belongs: Array) -> Self:
        """Over the units (columns) of each run (row) that belong, as far as anything counts in them."""
        x, y = x * belongs, y * belongs
        return cls(
            np.stack([(x > 0.0).sum(axis=1), *(part.sum(axis=1) for part in (x, y, x * x, x * y, y * y))]).astype(float)
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(self.rows + other.rows)

    def of_run(self, run: int) -> RatioMoments:
        """One run's."""
        n, *sums = self.rows[:, run].tolist()
        return RatioMoments(int(n), *sums)


@dataclass(frozen=True, slots=True)
class ArmSums:
    """One arm in one phase, of each run."""

    n_units: Array
    accuracy: Sums
    errors: Sums
    latency: Sums
    returns: Sums

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.n_units + other.n_units,
            self.accuracy + other.accuracy,
            self.errors + other.errors,
            self.latency + other.latency,
            self.returns + other.returns,
        )

    def of_run(self, run: int) -> ArmTotals:
        """One run's, as a server would have kept it."""
        return ArmTotals(
            n_units=int(self.n_units[run]),
            n_predictions=int(self.errors.rows[1, run]),
            accuracy=self.accuracy.of_run(run),
            errors=self.errors.of_run(run),
            latency=self.latency.of_run(run),
            returns=self.returns.of_run(run),
        )


Phases = dict[int, tuple[ArmSums, ArmSums]]
"""Control and treatment of each phase."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of all runs after so many hours."""

    hour: int
    phases: Phases

    def totals_of_run(self, run: int) -> ExperimentTotals:
        """One run's, as a server would have kept them."""
        return ExperimentTotals(
            phases={
                number: PhaseTotals(control=control.of_run(run), treatment=treatment.of_run(run))
                for number, (control, treatment) in self.phases.items()
            }
        )


# --- the runs -----------------------------------------------------------------------------------------------------------


def looks_of(scenario: Scenario, *, n_runs: int, generator: np.random.Generator) -> Iterator[Look]:
    """All looks of n_runs runs, in the order of time."""
    world = _World(scenario, n_runs, generator)
    begins = {0: 1, **{hour: number for number, (hour, _) in enumerate(scenario.ramps, 2)}}
    closed: Phases = {}
    phase = 0
    for hour in range(scenario.n_hours):
        if hour in begins or hour % scenario.block_hours == 0:
            # A ramp ends the blocks, as a new block would: each unit belongs to one phase.
            closed = _with(closed, phase, world.sums()) if hour else closed
            phase = begins.get(hour, phase)
            world.begin_blocks(scenario.weights[phase])
        world.pass_hour(hour)
        if (hour + 1) % scenario.look_every_hours == 0:
            yield Look(hour + 1, _with(closed, phase, world.sums()))


def _with(phases: Phases, number: int, arms: tuple[ArmSums, ArmSums]) -> Phases:
    before = phases.get(number)
    return {**phases, number: (before[0] + arms[0], before[1] + arms[1]) if before else arms}


class _World:
    """The symbols of all runs, and the blocks that they are in."""

    def __init__(self, scenario: Scenario, n_runs: int, generator: np.random.Generator) -> None:
        self._scenario = scenario
        self._generator = generator
        self._sizes = predictions_of_symbols(scenario.predictions_per_hour, scenario.n_symbols)
        self._shape = (n_runs, scenario.n_symbols)
        spread = scenario.symbol_spread * generator.standard_normal(self._shape)
        self._symbol_accuracy = np.clip(scenario.accuracy + spread, 0.0, 1.0)
        # What lies beneath outcomes, errors, latencies and returns: standard normal at every prediction.
        n_beneath = 4 if scenario.return_sd else 3
        self._beneath = generator.standard_normal((n_beneath, *self._shape), np.float32)

    def begin_blocks(self, treatment_weight: float) -> None:
        """Assign the symbols anew."""
        self._is_treated = self._generator.random(self._shape) < treatment_weight
        self._calls, self._errors, self._right, self._ms, self._returns = (np.zeros(self._shape) for _ in range(5))

    def pass_hour(self, hour: int) -> None:
        """Let every symbol have its predictions of one hour."""
        scenario = self._scenario
        drift = scenario.accuracy_drift * hour / max(scenario.n_hours - 1, 1)
        accuracy = np.clip(self._symbol_accuracy + drift + scenario.accuracy_gain * self._is_treated, 0.0, 1.0)
        right_below = _quantiles(accuracy)
        error_rates = np.array([scenario.error_rate, min(scenario.error_rate * scenario.error_factor, 1.0)])
        error_below = _quantiles(error_rates)[self._is_treated.astype(int)]
        added_ms = (scenario.latency_increase_ms * self._is_treated).astype(np.float32)
        self._calls += self._sizes
        for n_before in range(int(self._sizes[0])):
            # Busy symbols are first: of these, each has one prediction more.
            active = slice(0, int(np.count_nonzero(self._sizes > n_before)))
            right, error, ms, *returns = self._next(active)
            has_failed = error < error_below[:, active]
            self._errors[:, active] += has_failed
            self._right[:, active] += ~has_failed & (right < right_below[:, active])
            self._ms[:, active] += np.where(has_failed, np.float32(0.0), _latencies(ms, scenario) + added_ms[:, active])
            for beneath in returns:
                gain = scenario.return_gain * self._is_treated[:, active]
                self._returns[:, active] += np.where(has_failed, 0.0, gain + scenario.return_sd * beneath)

    def _next(self, active: slice) -> Array:
        rho = np.float32(self._scenario.autocorrelation)
        own = self._beneath[:, :, active]
        fresh = self._generator.standard_normal(own.shape, np.float32)
        moved = rho * own + np.sqrt(np.float32(1.0) - rho * rho) * fresh if rho else fresh
        self._beneath[:, :, active] = moved
        return moved

    def sums(self) -> tuple[ArmSums, ArmSums]:
        """Of the blocks that are open."""
        return self._arm(~self._is_treated), self._arm(self._is_treated)

    def _arm(self, belongs: Array) -> ArmSums:
        answered = self._calls - self._errors
        return ArmSums(
            belongs.sum(axis=1).astype(float),
            Sums.of_units(answered, self._right, belongs),
            Sums.of_units(self._calls, self._errors, belongs),
            Sums.of_units(answered, self._ms, belongs),
            Sums.of_units(answered if self._scenario.return_sd else np.zeros(self._shape), self._returns, belongs),
        )


def predictions_of_symbols(n_predictions: int, n_symbols: int) -> Array:
    """How many predictions an hour each symbol has: three times as many at the busiest as at the quietest, one at least."""
    shares = np.linspace(1.5, 0.5, n_symbols) if n_symbols > 1 else np.ones(1)
    edges = np.round(np.cumsum(shares / shares.sum()) * (n_predictions - n_symbols))
    sizes: Array = 1 + np.diff(edges, prepend=0.0).astype(int)
    return np.sort(sizes)[::-1]


def _latencies(beneath: Array, scenario: Scenario) -> Array:
    """Log-normal, of the given mean and deviation."""
    variance = math.log1p((scenario.latency_sd_ms / scenario.latency_ms) ** 2)
    scale, middle = np.float32(math.sqrt(variance)), np.float32(math.log(scenario.latency_ms) - variance / 2.0)
    latencies: Array = np.exp(middle + scale * beneath)
    return latencies


def _quantiles(shares: Array) -> Array:
    """Below which standard normal numbers such a share lies."""
    found, places = np.unique(shares, return_inverse=True)
    quantiles = [_quantile(float(share)) for share in found]
    return np.array(quantiles, np.float32)[places].reshape(shares.shape)


def _quantile(share: float) -> float:
    if share in {0.0, 1.0}:
        return math.inf if share else -math.inf
    return normal_quantile(share)


def seeds_of(seed: int, n_runs: int) -> Sequence[tuple[int, np.random.Generator]]:
    """How the runs are cut into parts, and each part's generator; more runs leave those before them as they are."""
    starts = range(0, n_runs, RUNS_AT_A_TIME)
    return [
        (min(RUNS_AT_A_TIME, n_runs - start), np.random.default_rng([seed, number]))
        for number, start in enumerate(starts)
    ]
