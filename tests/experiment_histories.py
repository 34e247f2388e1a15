"""Experiments that have already run for a while: predictions, outcomes and evaluations written as of the hours they are said to be of."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from mmserver.catalog.catalog import Actor
from mmserver.catalog.store import Store
from mmserver.experiments.assignment import arm_of
from mmserver.experiments.evaluating import evaluate_experiment, stop_and_report
from mmserver.experiments.experiments import Experiment
from mmserver.experiments.lifecycle import create_experiment, ramp_experiment
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.values import Observation, Outcome, ShadowAnswer
from mmserver.experiments.planning import checked_plan

DESK = Actor("desk")
BUY, SELL = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What happened. accuracy, latency_ms and error_rate are of control and treatment; `lost` is the treatment's share of outcomes
    that never came; `skew` moves so many of its units to the control.
    """

    hours: int = 30
    n_symbols: int = 6
    n_a_unit: int = 3
    accuracy: tuple[float, float] = (0.55, 0.55)
    latency_ms: tuple[float, float] = (1.0, 1.2)
    error_rate: tuple[float, float] = (0.01, 0.01)
    lost: float = 0.0
    skew: float = 0.0
    evaluate_every_h: int = 2
    ramp_at_h: int | None = None
    ramp_to: float = 0.5
    stops: bool = False
    seed: int = 7


def run_history(store: Store, experiment_id: str, plan: dict[str, Any], history: History) -> Experiment:
    """Create the experiment so many hours ago, and let it run until now; the store's clock is as it was in the end."""
    true_now = store.now
    begun = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=history.hours)
    clock = [begun]
    store.now = lambda: clock[-1]
    log = ObservationLog(store.settings.data_dir, now=lambda: clock[-1].timestamp())  # noqa: PLW0108
    try:
        experiment = create_experiment(store, checked_plan(experiment_id=experiment_id, **plan), DESK, start=True)
        generator = np.random.default_rng(history.seed)
        for hour in range(history.hours):
            clock[-1] = begun + timedelta(hours=hour)
            if hour == history.ramp_at_h:
                experiment = ramp_experiment(store, experiment_id, history.ramp_to, DESK)
            outcomes = _hour(log, experiment, history, hour, clock[-1], generator)
            clock[-1] = begun + timedelta(hours=hour, minutes=59)
            log.flush()
            log.add_outcomes(outcomes)
            if hour % history.evaluate_every_h == history.evaluate_every_h - 1:
                evaluate_experiment(store, log, experiment, "scheduled")
        if history.stops:
            experiment, _ = stop_and_report(store, log, experiment_id, DESK)
        return experiment
    finally:
        log.close()
        store.now = true_now


def _hour(
    log: ObservationLog,
    experiment: Experiment,
    history: History,
    hour: int,
    begun: datetime,
    generator: np.random.Generator,
) -> list[Outcome]:
    """Blocks are counted from the start, not from the epoch: the arms, and all that follows, must not depend on the hour of the test."""
    outcomes = []
    phase = experiment.phases[-1]
    begun_us = int(begun.timestamp()) * 1_000_000
    for symbol_at in range(history.n_symbols):
        symbol = f"S{symbol_at:02}/USDT"
        unit = f"{symbol}|{hour}"
        arm = (
            "control"
            if experiment.mode == "shadow"
            else arm_of(salt=phase.salt, unit=unit, treatment_weight=phase.treatment_weight)
        )
        if arm == "treatment" and generator.random() < history.skew:
            arm = "control"
        for number in range(history.n_a_unit):
            label = int(generator.integers(BUY, SELL + 1))
            answers = [_answer(history, side, label, generator) for side in (0, 1)]
            direction, latency_us, error = answers[arm == "treatment"]
            shadow = ShadowAnswer(answers[1][0], None, answers[1][1], answers[1][2])
            prediction_id = f"{experiment.experiment_id}-{begun_us}-{symbol_at}-{number}"
            log.append(
                Observation(
                    prediction_id=prediction_id,
                    at_us=begun_us + number * 60_000_000,
                    experiment_key=experiment.log_key,
                    phase=phase.number,
                    arm=arm,
                    unit=unit,
                    symbol=symbol,
                    model_name="m",
                    version="1",
                    direction=direction,
                    latency_us=latency_us,
                    error=error,
                    shadow=shadow if experiment.mode == "shadow" else None,
                ),
                must_keep=True,
            )
            is_lost = arm == "treatment" and generator.random() < history.lost
            if error is None and not is_lost:
                size = abs(generator.normal(0.0, 0.002))
                outcomes.append(
                    Outcome(
                        prediction_id=prediction_id,
                        label="BUY" if label == BUY else "SELL",
                        realized_return=float(size if label == BUY else -size),
                    )
                )
    return outcomes


def _answer(
    history: History, side: int, label: int, generator: np.random.Generator
) -> tuple[int | None, int, str | None]:
    latency_us = int(1000 * history.latency_ms[side] * generator.lognormal(0.0, 0.35))
    if generator.random() < history.error_rate[side]:
        return None, latency_us, "prediction_failed"
    is_right = generator.random() < history.accuracy[side]
    return (label if is_right else BUY + SELL - label), latency_us, None
