"""What is known of an experiment at one moment: sums per phase, arm and symbol, from which all of its analysis comes.

Their size does not grow with the predictions, so neither does what an analysis costs. Values, that merge: whoever keeps them
in a database adds up the fields of `RatioMoments` and `PairedMoments`, which are plain sums.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmserver.experiments.classification import ConfusionCounts
from mmserver.experiments.latencies import Latencies
from mmserver.experiments.moments import ROUNDING, CoMoments
from mmserver.experiments.rates import Rate

MOST_ROUNDING = 1e-9
"""What ten million additions leave of a spread that is none, as a share of the sum of squares; more than that is a mistake."""


@dataclass(frozen=True, slots=True)
class RatioMoments:
    """Sums over units of unequal size: `x` how many predictions of a unit count, `y` the sum of something over those.

    Units of which nothing counts (x = 0) are left out, of `n` too. Counts add up exactly, so a unit may grow as often as it
    likes (`replaced`); of returns the sums are good, because their mean is small beside their spread.

    Units:
        n: units. x, y: sums over units. xx, xy, yy: sums of squares and products of the units' own sums.
    """

    n: int = 0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0

    @classmethod
    def of_unit(cls, x: float, y: float) -> Self:
        """One unit's; nothing where x is zero."""
        return cls(1, x, y, x * x, x * y, y * y) if x else cls()

    @classmethod
    def from_units(cls, units: Iterable[tuple[float, float]]) -> Self:
        """Those of units, each its (x, y)."""
        x, y = _columns(units, 2)
        return cls(x.size, *(float(part.sum()) for part in (x, y, x * x, x * y, y * y)))

    def merge(self, other: Self) -> Self:
        """Both parts' units together; no unit may be in both."""
        return self._plus(other, 1)

    def replaced(self, before: tuple[float, float], after: tuple[float, float]) -> Self:
        """As it is once one unit's (x, y) became another; (0, 0) is a unit of which nothing counted yet."""
        return self._plus(self.of_unit(*after), 1)._plus(self.of_unit(*before), -1)

    def _plus(self, other: Self, sign: int) -> Self:
        return type(self)(
            self.n + sign * other.n,
            self.x + sign * other.x,
            self.y + sign * other.y,
            self.xx + sign * other.xx,
            self.xy + sign * other.xy,
            self.yy + sign * other.yy,
        )

    @property
    def ratio(self) -> float | None:
        """The sum of y by that of x, such as the accuracy; None where nothing counts."""
        return self.y / self.x if self.x else None

    @property
    def pairs(self) -> CoMoments:
        """The same as moments of (x, y) over units, for `ratio_difference`.

        Raises:
            ValueError: no units have such sums.
        """
        if not self.n:
            return CoMoments()
        m2_x, m2_y = _centred(self.n, self.x, self.x, self.xx), _centred(self.n, self.y, self.y, self.yy)
        if m2_x < -MOST_ROUNDING * self.xx or m2_y < -MOST_ROUNDING * self.yy:
            raise ValueError(f"no {self.n} units have these sums: {self}")
        # Sums that were added to ten million times are off by a little, and a spread is never below none.
        m2_x, m2_y = max(m2_x, 0.0), max(m2_y, 0.0)
        return CoMoments(
            self.n, self.x / self.n, self.y / self.n, m2_x, m2_y, _centred(self.n, self.x, self.y, self.xy)
        )


def _columns(units: Iterable[tuple[float, ...]], n_columns: int) -> NDArray[np.float64]:
    """The units of which something counts, a column each."""
    rows = np.array(list(units), np.float64).reshape(-1, n_columns)
    columns: NDArray[np.float64] = rows[rows[:, 0] != 0.0].T
    return columns


def _centred(n: int, a: float, b: float, products: float) -> float:
    """The sum of products of distances from the means; 0 where only rounding is left."""
    centred = products - a * b / n
    return centred if abs(centred) > 10.0 * ROUNDING * abs(products) else 0.0


@dataclass(frozen=True, slots=True)
class PairedMoments:
    """Sums over units of which both models scored the same predictions: `x` how many, `c` and `t` what each got there."""

    n: int = 0
    x: float = 0.0
    c: float = 0.0
    t: float = 0.0
    xx: float = 0.0
    xc: float = 0.0
    xt: float = 0.0
    cc: float = 0.0
    ct: float = 0.0
    tt: float = 0.0

    @classmethod
    def of_unit(cls, x: float, c: float, t: float) -> Self:
        """One unit's; nothing where x is zero."""
        return cls(1, x, c, t, x * x, x * c, x * t, c * c, c * t, t * t) if x else cls()

    @classmethod
    def from_units(cls, units: Iterable[tuple[float, float, float]]) -> Self:
        """Those of units, each its (x, c, t)."""
        x, c, t = _columns(units, 3)
        return cls(x.size, *(float(part.sum()) for part in (x, c, t, x * x, x * c, x * t, c * c, c * t, t * t)))

    def merge(self, other: Self) -> Self:
        """Both parts' units together; no unit may be in both."""
        return self._plus(other, 1)

    def replaced(self, before: tuple[float, float, float], after: tuple[float, float, float]) -> Self:
        """As it is once one unit's (x, c, t) became another; zeros are a unit of which nothing counted yet."""
        return self._plus(self.of_unit(*after), 1)._plus(self.of_unit(*before), -1)

    def _plus(self, other: Self, sign: int) -> Self:
        return type(self)(
            self.n + sign * other.n,
            self.x + sign * other.x,
            self.c + sign * other.c,
            self.t + sign * other.t,
            self.xx + sign * other.xx,
            self.xc + sign * other.xc,
            self.xt + sign * other.xt,
            self.cc + sign * other.cc,
            self.ct + sign * other.ct,
            self.tt + sign * other.tt,
        )

    @property
    def control(self) -> RatioMoments:
        """Of the control alone."""
        return RatioMoments(self.n, self.x, self.c, self.xx, self.xc, self.cc)

    @property
    def treatment(self) -> RatioMoments:
        """Of the treatment alone."""
        return RatioMoments(self.n, self.x, self.t, self.xx, self.xt, self.tt)

    def difference(self, control_factor: float = 1.0) -> RatioMoments:
        """Of treatment - control_factor × control, unit by unit."""
        f = control_factor
        return RatioMoments(
            self.n,
            self.x,
            self.t - f * self.c,
            self.xx,
            self.xt - f * self.xc,
            self.tt - 2 * f * self.ct + f * f * self.cc,
        )


@dataclass(frozen=True, slots=True)
class DaySums:
    """What one arm did in one day (UTC)."""

    n_predictions: int = 0
    n_errors: int = 0
    n_labelled: int = 0
    n_right: int = 0
    n_returns: int = 0
    total_return: float = 0.0

    def merge(self, other: Self) -> Self:
        """Both parts of the day together."""
        return type(self)(
            self.n_predictions + other.n_predictions,
            self.n_errors + other.n_errors,
            self.n_labelled + other.n_labelled,
            self.n_right + other.n_right,
            self.n_returns + other.n_returns,
            self.total_return + other.total_return,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTotals:
    """One arm in one phase. Predictions in a block's wash-out count in `n_predictions`, `n_units` and `days`' predictions only.

    In shadow mode the control's are of its answers, the treatment's of what it would have answered to the same.

    Fields:
        n_units: units that were randomised into the arm and served at least once: what the sample ratio is judged by.
        n_predictions: all, failed ones and those washed out too.
        errors: by unit, x predictions and y how many of them failed.
        latency: by unit, x answered predictions and y the sum of their milliseconds.
        joins: by unit, x predictions whose horizon is over long enough and y how many of them have an outcome.
        accuracy: by unit, x matured labels and y how many of them were predicted.
        returns: by unit, x matured returns and y their sum, each of the position the prediction calls for (BUY +r, SELL -r,
            HOLD 0).
        wins: of matured positions (BUY or SELL), how many had a return above zero.
        labels: what happened (rows) by what was predicted (columns), in the order of the direction codes.
        days: by whole days since the epoch, in UTC.
    """

    n_units: int = 0
    n_predictions: int = 0
    errors: RatioMoments = RatioMoments()
    latency: RatioMoments = RatioMoments()
    joins: RatioMoments = RatioMoments()
    accuracy: RatioMoments = RatioMoments()
    returns: RatioMoments = RatioMoments()
    wins: Rate = field(default_factory=Rate)
    labels: ConfusionCounts = field(default_factory=ConfusionCounts)
    latencies: Latencies = field(default_factory=Latencies)
    days: Mapping[int, DaySums] = field(default_factory=dict)
    first_at_us: int | None = None
    last_at_us: int | None = None

    def merge(self, other: Self) -> Self:
        """Both parts together; no unit may be in both."""
        return type(self)(
            n_units=self.n_units + other.n_units,
            n_predictions=self.n_predictions + other.n_predictions,
            errors=self.errors.merge(other.errors),
            latency=self.latency.merge(other.latency),
            joins=self.joins.merge(other.joins),
            accuracy=self.accuracy.merge(other.accuracy),
            returns=self.returns.merge(other.returns),
            wins=self.wins.merge(other.wins),
            labels=self.labels.merge(other.labels),
            latencies=self.latencies.merge(other.latencies),
            days=_merged_by_key(self.days, other.days, DaySums()),
            first_at_us=min((at for at in (self.first_at_us, other.first_at_us) if at is not None), default=None),
            last_at_us=max((at for at in (self.last_at_us, other.last_at_us) if at is not None), default=None),
        )

    @property
    def n_matured(self) -> int:
        """Predictions that have an outcome: those with a label, or those with a return if there are more."""
        return round(max(self.accuracy.x, self.returns.x))

    @property
    def n_units_matured(self) -> int:
        """Units with at least one such."""
        return max(self.accuracy.n, self.returns.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTotals:
    """Predictions of one phase that both models scored: all in shadow mode, else those where the other ran in the shadow.

    In split mode they are the treated units' only: the control's shadow there is what its answers are adjusted by.

    Fields:
        n_both_right … n_both_wrong: of matured labels, who predicted them.
        errors, latency, accuracy, returns: by unit as in `ArmTotals`, over predictions for which both count.
    """

    n_both_right: int = 0
    n_only_control: int = 0
    n_only_treatment: int = 0
    n_both_wrong: int = 0
    errors: PairedMoments = PairedMoments()
    latency: PairedMoments = PairedMoments()
    accuracy: PairedMoments = PairedMoments()
    returns: PairedMoments = PairedMoments()

    def merge(self, other: Self) -> Self:
        """Both parts together; no unit may be in both."""
        return type(self)(
            n_both_right=self.n_both_right + other.n_both_right,
            n_only_control=self.n_only_control + other.n_only_control,
            n_only_treatment=self.n_only_treatment + other.n_only_treatment,
            n_both_wrong=self.n_both_wrong + other.n_both_wrong,
            errors=self.errors.merge(other.errors),
            latency=self.latency.merge(other.latency),
            accuracy=self.accuracy.merge(other.accuracy),
            returns=self.returns.merge(other.returns),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolTotals:
    """Both arms on one symbol in one phase; `paired` in shadow mode."""

    control_accuracy: RatioMoments = RatioMoments()
    treatment_accuracy: RatioMoments = RatioMoments()
    control_returns: RatioMoments = RatioMoments()
    treatment_returns: RatioMoments = RatioMoments()
    paired_accuracy: PairedMoments = PairedMoments()

    def merge(self, other: Self) -> Self:
        """Both parts together; no unit may be in both."""
        return type(self)(
            control_accuracy=self.control_accuracy.merge(other.control_accuracy),
            treatment_accuracy=self.treatment_accuracy.merge(other.treatment_accuracy),
            control_returns=self.control_returns.merge(other.control_returns),
            treatment_returns=self.treatment_returns.merge(other.treatment_returns),
            paired_accuracy=self.paired_accuracy.merge(other.paired_accuracy),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTotals:
    """Both arms in one phase, in which the weights did not change.

    Fields:
        n_units_in_both_arms: units that were served by both arms within the phase; of a sound experiment, none.
    """

    control: ArmTotals = ArmTotals()
    treatment: ArmTotals = ArmTotals()
    paired: PairedTotals | None = None
    n_units_in_both_arms: int = 0
    by_symbol: Mapping[str, SymbolTotals] = field(default_factory=dict)

    def merge(self, other: Self) -> Self:
        """Both parts together; no unit may be in both."""
        paired = [part for part in (self.paired, other.paired) if part is not None]
        return type(self)(
            control=self.control.merge(other.control),
            treatment=self.treatment.merge(other.treatment),
            paired=(paired[0].merge(paired[1]) if len(paired) == 2 else paired[0]) if paired else None,
            n_units_in_both_arms=self.n_units_in_both_arms + other.n_units_in_both_arms,
            by_symbol=_merged_by_key(self.by_symbol, other.by_symbol, SymbolTotals()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentTotals:
    """All phases of an experiment, by their numbers.

    Phases are kept apart: pooled, arms of changing weights would differ by what differs between the times of the phases.

    Fields:
        has_lost_observations: a part is known to be missing, or to be of another course of events.
    """

    phases: Mapping[int, PhaseTotals] = field(default_factory=dict)
    has_lost_observations: bool = False

    def merge(self, other: Self) -> Self:
        """Both parts together; no unit may be in both."""
        return type(self)(
            phases=_merged_by_key(self.phases, other.phases, PhaseTotals()),
            has_lost_observations=self.has_lost_observations or other.has_lost_observations,
        )

    @property
    def control(self) -> ArmTotals:
        """All the control's phases as one; to be shown, not compared."""
        return _all_merged((phase.control for phase in self.phases.values()), ArmTotals())

    @property
    def treatment(self) -> ArmTotals:
        """All the treatment's phases as one; to be shown, not compared."""
        return _all_merged((phase.treatment for phase in self.phases.values()), ArmTotals())

    @property
    def for_deciding(self) -> Self:
        """Without what is only shown: what is stored beside a decision, so that it can be made again."""
        return replace(self, phases={number: _for_deciding(phase) for number, phase in self.phases.items()})


def _for_deciding(phase: PhaseTotals) -> PhaseTotals:
    control, treatment = (
        replace(arm, labels=ConfusionCounts(), latencies=Latencies(), days={})
        for arm in (phase.control, phase.treatment)
    )
    return replace(phase, control=control, treatment=treatment, by_symbol={})


class _Mergeable(Protocol):
    def merge(self, other: Self, /) -> Self:
        """Both together."""


Part = TypeVar("Part", bound=_Mergeable)
Key = TypeVar("Key", bound=int | str)


def _all_merged(parts: Iterable[Part], nothing: Part) -> Part:
    whole = nothing
    for part in parts:
        whole = whole.merge(part)
    return whole


def _merged_by_key(ours: Mapping[Key, Part], theirs: Mapping[Key, Part], nothing: Part) -> dict[Key, Part]:
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return {key: ours.get(key, nothing).merge(theirs.get(key, nothing)) for key in keys}
