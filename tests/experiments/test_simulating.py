"""Simulated experiments: they are what they were asked to be, and are decided as real ones are."""

from typing import Any

import msgspec
import numpy as np
import pytest
from experiments.made_totals import START, after

from mmserver.experiments.deciding import Design, Looks, decide
from mmserver.experiments.error_rates import ErrorRates, Verdicts, error_rates, measures_of, point_measures_of
from mmserver.experiments.policies import ClassicPolicy, Policy, SequentialPolicy
from mmserver.experiments.simulating import Look, Scenario, looks_of, predictions_of_symbols

SHORT = Scenario(days=4, predictions_per_hour=40, n_symbols=8, look_every_hours=6)
RAMPED = msgspec.structs.replace(
    SHORT, treatment_weight=0.2, ramps=((30, 0.4), (60, 0.5)), block_hours=4, accuracy_gain=0.2
)


def looks(scenario: Scenario, *, n_runs: int = 20, seed: int = 5) -> list[Look]:
    return list(looks_of(scenario, n_runs=n_runs, generator=np.random.default_rng(seed)))


def pooled(look: Look, metric: str, arm: int) -> float:
    rows = sum(getattr(arms[arm], metric).rows.sum(axis=1) for arms in look.phases.values())
    return float(rows[2] / rows[1])


# --- the world ----------------------------------------------------------------------------------------------------------


def test_the_arms_have_the_shares_they_were_given() -> None:
    scenario = Scenario(
        return_sd=0.01,
        return_gain=0.002,
        days=2,
        treatment_weight=0.5,
        accuracy_gain=0.05,
        error_rate=0.05,
        error_factor=2.0,
        latency_increase_ms=1.5,
    )
    last = looks(scenario, n_runs=100)[-1]
    assert last.hour == 48
    assert pooled(last, "errors", 0) == pytest.approx(0.05, abs=0.002)
    assert pooled(last, "errors", 1) == pytest.approx(0.10, abs=0.002)
    assert pooled(last, "accuracy", 0) == pytest.approx(0.55, abs=0.005)
    assert pooled(last, "accuracy", 1) == pytest.approx(0.60, abs=0.005)
    assert pooled(last, "latency", 0) == pytest.approx(5.0, abs=0.05)
    assert pooled(last, "latency", 1) == pytest.approx(6.5, abs=0.05)
    assert pooled(last, "returns", 0) == pytest.approx(0.0, abs=1e-4)
    assert pooled(last, "returns", 1) == pytest.approx(0.002, abs=1e-4)
    control, treatment = last.phases[1]
    assert (control.n_units + treatment.n_units == 48 * 20).all()
    assert (control.errors.rows[1] + treatment.errors.rows[1] == 48 * 100).all()
    assert treatment.n_units.mean() == pytest.approx(480, abs=10)


def test_symbols_differ_in_how_busy_they_are() -> None:
    sizes = predictions_of_symbols(100, 20)
    assert sizes.sum() == 100
    assert sizes.min() >= 1
    assert sizes.max() > sizes.min()
    assert predictions_of_symbols(7, 7).tolist() == [1] * 7
    assert predictions_of_symbols(9, 1).tolist() == [9]


def variance_of_units(autocorrelation: float) -> float:
    scenario = Scenario(
        days=1, predictions_per_hour=80, n_symbols=8, treatment_weight=0.5, autocorrelation=autocorrelation
    )
    rows = looks(scenario, n_runs=60)[-1].phases[1][0].accuracy.rows.sum(axis=1)
    _, x, y, xx, xy, yy = rows
    return float((yy - 2 * y / x * xy + (y / x) ** 2 * xx) / x)


def test_autocorrelation_makes_units_differ_more_than_chance_would() -> None:
    assert variance_of_units(0.0) == pytest.approx(0.55 * 0.45, rel=0.05)
    assert variance_of_units(0.9) > 3 * variance_of_units(0.0)


def test_the_same_seed_gives_the_same_runs_and_another_others() -> None:
    first, again, other = (looks(SHORT, seed=seed)[-1].phases[1][1].accuracy.rows for seed in (5, 5, 6))
    assert (first == again).all()
    assert (first != other).any()


def test_each_ramp_begins_a_phase_of_its_own() -> None:
    last = looks(RAMPED, n_runs=50)[-1]
    assert list(last.phases) == [1, 2, 3]
    shares = [arms[1].n_units.sum() / (arms[0].n_units + arms[1].n_units).sum() for arms in last.phases.values()]
    assert shares == pytest.approx([0.2, 0.4, 0.5], abs=0.03)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        pytest.param({"accuracy": 1.2}, "accuracy", id="share above one"),
        pytest.param({"accuracy_gain": 0.5}, "accuracy_gain", id="gain beyond all"),
        pytest.param({"error_factor": 200.0}, "error_factor", id="more errors than calls"),
        pytest.param({"treatment_weight": 0.0}, "treatment_weight", id="no treatment"),
        pytest.param({"autocorrelation": 1.0}, "autocorrelation", id="no randomness"),
        pytest.param({"days": float("nan")}, "days", id="not a number"),
        pytest.param({"n_symbols": 200}, "n_symbols", id="more symbols than predictions"),
        pytest.param({"ramps": ((10, 0.2), (5, 0.5))}, "ramps", id="ramps out of order"),
        pytest.param({"ramps": ((10, 2.0),)}, "ramps", id="ramp above one"),
        pytest.param({"return_gain": 0.1}, "return_gain", id="gain of no returns"),
        pytest.param({"latency_increase_ms": -9.0}, "latency_increase_ms", id="no latency left"),
    ],
)
def test_a_world_that_cannot_be_is_refused_by_its_number(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Scenario(**changes)


# --- the same decisions as of real experiments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy", [SequentialPolicy(min_hours=12), ClassicPolicy(min_hours=12)], ids=["sequential", "classic"]
)
@pytest.mark.parametrize(
    ("scenario", "act"),
    [
        pytest.param(SHORT, False, id="equal"),
        pytest.param(RAMPED, True, id="ramps"),
        pytest.param(msgspec.structs.replace(SHORT, error_rate=0.0, accuracy_gain=0.3), True, id="without errors"),
        pytest.param(msgspec.structs.replace(SHORT, error_factor=9.0), True, id="many errors"),
        pytest.param(msgspec.structs.replace(SHORT, latency_increase_ms=3.0, latency_sd_ms=0.0), True, id="slower"),
        pytest.param(msgspec.structs.replace(SHORT, treatment_weight=0.02), False, id="few treated"),
    ],
)
def test_what_is_simulated_is_what_decides(scenario: Scenario, act: bool, policy: Policy) -> None:
    n_runs = 6
    verdicts = Verdicts(policy, scenario.weights, n_runs)
    past: list[Looks | None] = [None] * n_runs
    design = Design(started_at=START, treatment_weights=scenario.weights)
    seen = set()
    for look in looks(scenario, n_runs=n_runs):
        flags = zip(*(np.broadcast_to(flag, n_runs) for flag in verdicts.of_look(look)), strict=True)
        for run, (promote, rollback, invalid) in enumerate(flags):
            decision = decide(
                look.totals_of_run(run), policy=policy, design=design, now=after(look.hour), looks=past[run]
            )
            past[run] = decision.looks
            said = "promote" if promote else "rollback" if rollback else "invalid" if invalid else "continue"
            assert decision.recommendation.verdict == said
            seen.add(said)
    assert "continue" in seen
    assert not act or isinstance(policy, ClassicPolicy) or seen & {"promote", "rollback"}


def test_the_numbers_of_many_runs_are_those_of_each() -> None:
    look = looks(RAMPED, n_runs=8)[-1]
    policy = SequentialPolicy()
    measures, points = measures_of(look, policy, np.ones(8)), point_measures_of(look)
    design = Design(started_at=START, treatment_weights=RAMPED.weights)
    for run in range(8):
        found = decide(look.totals_of_run(run), policy=policy, design=design, now=after(look.hour))
        assert found.looks.least_p == pytest.approx(measures.least_p[run], rel=1e-9)
        for name in ("accuracy", "errors", "excess_errors", "latency"):
            exact, measured = getattr(found.effects, name), getattr(measures, name)
            assert measured.estimate[run] == pytest.approx(exact.estimate, rel=1e-9, abs=1e-12)
            assert measured.standard_error[run] == pytest.approx(exact.standard_error, rel=1e-6)
            assert measured.n[run] == exact.n
        classic = decide(look.totals_of_run(run), policy=ClassicPolicy(), design=design, now=after(look.hour))
        certain = next(one for one in classic.recommendation.findings if one.rule == "certainty")
        assert certain.p_value == pytest.approx(points.p_value[run], rel=1e-9)


# --- error rates --------------------------------------------------------------------------------------------------------


def rates(scenario: Scenario, *policies: Policy, n_runs: int = 120) -> list[ErrorRates]:
    return error_rates(scenario, policies, n_runs=n_runs, seed=2)


def test_equal_models_looked_at_every_hour_are_left_alone_by_sequential_and_not_by_classic() -> None:
    month = Scenario(days=10, look_every_hours=2)
    sequential, classic = rates(month, SequentialPolicy(), ClassicPolicy())
    assert sequential.ever_promote <= 0.05
    assert sequential.ever_rollback <= 0.05
    assert classic.ever_rollback > 0.3
    assert classic.ever_promote > 0.05


def test_equal_models_whose_outcomes_resemble_each_other_are_left_alone_too() -> None:
    (found,) = rates(Scenario(days=10, look_every_hours=2, autocorrelation=0.9), SequentialPolicy())
    assert found.ever_promote <= 0.05
    assert found.ever_rollback <= 0.05


def test_the_intervals_shown_hold_at_all_looks_at_once() -> None:
    month = Scenario(
        days=10, look_every_hours=2, accuracy_gain=0.01, return_sd=0.01, return_gain=0.001, autocorrelation=0.5
    )
    sequential, classic = rates(month, SequentialPolicy(), ClassicPolicy())
    assert sequential.ever_missed_accuracy <= 0.05
    assert sequential.ever_missed_return is not None
    assert sequential.ever_missed_return <= 0.05
    assert classic.ever_missed_return is not None
    assert min(classic.ever_missed_accuracy, classic.ever_missed_return) > 0.1
    assert rates(SHORT, ClassicPolicy(), n_runs=5)[0].ever_missed_return is None


def test_a_much_better_model_is_promoted_and_a_worse_one_rolled_back() -> None:
    (better,) = rates(Scenario(days=10, look_every_hours=6, accuracy_gain=0.08), SequentialPolicy(), n_runs=60)
    (worse,) = rates(Scenario(days=10, look_every_hours=6, accuracy_gain=-0.08), SequentialPolicy(), n_runs=60)
    assert better.first_promote >= 0.95
    assert worse.first_rollback >= 0.95
    assert better.median_hours is not None
    assert better.undecided + better.first_promote + better.first_rollback == pytest.approx(1.0)


def test_more_runs_leave_those_before_them_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmserver.experiments.simulating.RUNS_AT_A_TIME", 10)
    done: list[int] = []
    few = error_rates(SHORT, [ClassicPolicy()], n_runs=10, seed=3)
    many = error_rates(SHORT, [ClassicPolicy()], n_runs=25, seed=3, on_progress=done.append)
    assert done == [10, 20, 25]
    assert few[0].n_runs == 10
    assert many[0].n_runs == 25
    assert abs(many[0].ever_rollback * 25 - few[0].ever_rollback * 10) <= 15
