"""What the tests of observations share: made predictions, and sums made again from the rows, as plainly as possible."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmserver.experiments.classification import ConfusionCounts
from mmserver.experiments.latencies import Latencies
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.values import Observation
from mmserver.experiments.rates import Rate
from mmserver.experiments.totals import (
    ArmTotals,
    DaySums,
    ExperimentTotals,
    PairedMoments,
    PairedTotals,
    PhaseTotals,
    RatioMoments,
    SymbolTotals,
)

START_S = 1_790_000_000.0
DAY_US = 86_400_000_000


class Clock:
    """A wall clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def observations(tmp_path: Path, clock: Clock) -> Iterator[ObservationLog]:
    """A log without a thread of its own."""
    log = ObservationLog(tmp_path, outcome_grace_s=60.0, now=clock)
    yield log
    log.close()


@pytest.fixture
def observe() -> Callable[..., Observation]:
    """Make one prediction of experiment 1; anything may be said otherwise."""

    def make(prediction_id: str, **changes: Any) -> Observation:
        known: dict[str, Any] = {
            "prediction_id": prediction_id,
            "at_us": int(START_S * 1e6),
            "experiment_key": 1,
            "arm": "control",
            "unit": "BTCUSDT|1",
            "symbol": "BTCUSDT",
            "model_name": "wide",
            "version": "v1",
            "direction": 1,
            "latency_us": 300,
        }
        return Observation(**(known | changes))

    return make


@pytest.fixture
def recompute() -> Callable[[ObservationStore, int], ExperimentTotals]:
    """The sums of an experiment from its rows alone."""
    return _recompute


def _recompute(store: ObservationStore, experiment: int) -> ExperimentTotals:
    with store.read() as raw:
        cursor = raw.execute(
            "SELECT predictions.*, o.label, o.realized_return, o.prediction AS outcome FROM predictions "
            "LEFT JOIN outcomes o ON o.prediction = predictions.id WHERE experiment = ? ORDER BY id",
            (experiment,),
        )
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        [due_until_us] = raw.execute("SELECT value FROM marks WHERE name = 'due_until_us'").fetchone() or [0]
    phases = {}
    for phase in sorted({row["phase"] for row in rows}):
        of_phase = [row for row in rows if row["phase"] == phase]
        phases[phase] = _phase(of_phase, due_until_us)
    return ExperimentTotals(phases=phases)


def _answers(rows: list[dict[str, Any]], arm: int) -> list[dict[str, Any]]:
    """What the arm answered: its own predictions, and for the treatment its shadows beside the control's."""
    answers = [row | {"has_failed": row["error"] is not None} for row in rows if row["arm"] == arm]
    for row in rows:
        if arm == 1 and row["arm"] == 0 and row["shadow_latency_us"] is not None:
            shadow = {name: row[f"shadow_{name}"] for name in ("direction", "latency_us", "error")}
            answers.append(row | shadow | {"has_failed": shadow["error"] is not None})
    return answers


def _gained(direction: int, realized_return: float) -> float:
    return {0: 0.0, 1: realized_return, 2: -realized_return}[direction]


def _by_unit(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> RatioMoments:
    units: dict[str, list[float]] = {}
    for row in rows:
        sums = units.setdefault(row["unit"], [0, 0.0])
        sums[0] += 1
        sums[1] += value(row)
    return RatioMoments.from_units((x, y) for x, y in units.values())


def _matured(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row[name] is not None and row["direction"] is not None]


def _arm(rows: list[dict[str, Any]], due_until_us: int) -> ArmTotals:
    counted = [row for row in rows if not row["is_washed_out"]]
    answered = [row for row in counted if not row["has_failed"]]
    labelled, returned = _matured(answered, "label"), _matured(answered, "realized_return")
    gains = [(row, _gained(row["direction"], row["realized_return"])) for row in returned]
    days: dict[int, DaySums] = {}
    for row in rows:
        day = row["at_us"] // DAY_US
        is_counted = not row["is_washed_out"]
        is_answered = is_counted and not row["has_failed"] and row["direction"] is not None
        has_label = is_answered and row["label"] is not None
        has_return = is_answered and row["realized_return"] is not None
        days[day] = days.get(day, DaySums()).merge(
            DaySums(
                1,
                is_counted and row["has_failed"],
                has_label,
                has_label and row["label"] == row["direction"],
                has_return,
                _gained(row["direction"], row["realized_return"]) if has_return else 0.0,
            )
        )
    return ArmTotals(
        n_units=len({row["unit"] for row in rows}),
        n_predictions=len(rows),
        errors=_by_unit(counted, lambda row: row["has_failed"]),
        latency=_by_unit(answered, lambda row: row["latency_us"] / 1000),
        joins=_by_unit(
            [row for row in answered if row["due_us"] <= due_until_us], lambda row: row["outcome"] is not None
        ),
        accuracy=_by_unit(labelled, lambda row: row["label"] == row["direction"]),
        returns=_by_unit(returned, lambda row: _gained(row["direction"], row["realized_return"])),
        wins=Rate(sum(gain > 0 for _, gain in gains), sum(row["direction"] != 0 for row, _ in gains)),
        labels=ConfusionCounts.from_labels(
            [row["label"] for row in labelled], [row["direction"] for row in labelled], classes=(0, 1, 2)
        ),
        latencies=Latencies.from_ms([row["latency_us"] / 1000 for row in answered]),
        days=days,
        first_at_us=min((row["at_us"] for row in rows), default=None),
        last_at_us=max((row["at_us"] for row in rows), default=None),
    )


def _pairs(rows: list[dict[str, Any]], values: Callable[[dict[str, Any]], tuple[float, float]]) -> PairedMoments:
    units: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        c, t = values(row)
        sums = units.setdefault((row["unit"], row["arm"]), [0, 0.0, 0.0])
        for place, value in enumerate((1, c, t)):
            sums[place] += value
    return PairedMoments.from_units((x, c, t) for x, c, t in units.values())


def _of_pair(row: dict[str, Any], name: str) -> tuple[Any, Any]:
    pair = row[name], row[f"shadow_{name}"]
    return pair if row["arm"] == 0 else pair[::-1]


def _paired(rows: list[dict[str, Any]]) -> PairedTotals:
    both = [row for row in rows if row["shadow_latency_us"] is not None and not row["is_washed_out"]]
    answered = [row for row in both if row["error"] is None and row["shadow_error"] is None]
    directed = [row for row in answered if row["direction"] is not None and row["shadow_direction"] is not None]
    labelled = [row for row in directed if row["label"] is not None]
    rights = [tuple(said == row["label"] for said in _of_pair(row, "direction")) for row in labelled]

    def failed(row: dict[str, Any]) -> tuple[float, float]:
        control, treatment = _of_pair(row, "error")
        return control is not None, treatment is not None

    def latency(row: dict[str, Any]) -> tuple[float, float]:
        control, treatment = _of_pair(row, "latency_us")
        return control / 1000, treatment / 1000

    def right(row: dict[str, Any]) -> tuple[float, float]:
        control, treatment = _of_pair(row, "direction")
        return control == row["label"], treatment == row["label"]

    def gained(row: dict[str, Any]) -> tuple[float, float]:
        control, treatment = _of_pair(row, "direction")
        return _gained(control, row["realized_return"]), _gained(treatment, row["realized_return"])

    return PairedTotals(
        n_both_right=rights.count((True, True)),
        n_only_control=rights.count((True, False)),
        n_only_treatment=rights.count((False, True)),
        n_both_wrong=rights.count((False, False)),
        errors=_pairs(both, failed),
        latency=_pairs(answered, latency),
        accuracy=_pairs(labelled, right),
        returns=_pairs([row for row in directed if row["realized_return"] is not None], gained),
    )


def _phase(rows: list[dict[str, Any]], due_until_us: int) -> PhaseTotals:
    control, treatment = (_arm(_answers(rows, arm), due_until_us) for arm in (0, 1))
    served = [{row["unit"] for row in rows if row["arm"] == arm} for arm in (0, 1)]
    paired = _paired(rows)
    by_symbol = {}
    for symbol in sorted({row["symbol"] for row in rows}):
        of_symbol = [row for row in rows if row["symbol"] == symbol]
        arms = [_arm(_answers(of_symbol, arm), due_until_us) for arm in (0, 1)]
        totals = SymbolTotals(
            control_accuracy=arms[0].accuracy,
            treatment_accuracy=arms[1].accuracy,
            control_returns=arms[0].returns,
            treatment_returns=arms[1].returns,
            paired_accuracy=_paired(of_symbol).accuracy,
        )
        if totals != SymbolTotals():
            by_symbol[symbol] = totals
    return PhaseTotals(
        control=control,
        treatment=treatment,
        paired=None if paired == PairedTotals() else paired,
        n_units_in_both_arms=len(served[0] & served[1]),
        by_symbol=by_symbol,
    )
