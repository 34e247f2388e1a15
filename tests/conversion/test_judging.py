"""Verdicts from figures, and the rows that they are taken from."""

from typing import Any

import msgspec
import numpy as np
import pytest

from mmserver.conversion.benchmarking import Timing
from mmserver.conversion.graph_rewriting import opened
from mmserver.conversion.judging import (
    MAX_ROWS,
    MIN_ROWS,
    Gates,
    Optimised,
    classes_of,
    judged,
    judging_rows,
    measured,
)
from mmserver.conversion.parity import ParityReport
from mmserver.errors import Undecodable

networks: Any = pytest.importorskip("conversion.networks", reason="graphs are made with the onnx package")
GATES = Gates(max_size_ratio=1.0, max_latency_ratio=1.0, min_class_agreement=0.99)


def timing(p50_ms: float) -> Timing:
    return Timing(p50_ms=p50_ms, p99_ms=10 * p50_ms, n_calls=100)


def parity(**changed: Any) -> ParityReport:
    figures: dict[str, Any] = {
        "source": "onnx",
        "target": "int8_dynamic",
        "n_rows": 1000,
        "max_abs_difference": 0.01,
        "max_rel_difference": 0.1,
        "n_beyond": 0,
        "absolute": 0.1,
        "relative": 0.0,
        "max_share_beyond": 1.0,
        "class_agreement": 0.995,
        "passed": True,
    }
    return ParityReport(**{**figures, **changed})


def report(**changed: Any) -> Optimised:
    figures: dict[str, Any] = {
        "variant": "int8_dynamic",
        "size_bytes": 1000,
        "source_size_bytes": 1000,
        "parity": parity(),
        "class_agreement": 0.99,
        "timing": timing(1.0),
        "source_timing": timing(1.0),
    }
    return Optimised(**{**figures, **changed})


def test_a_form_that_just_meets_every_gate_is_accepted() -> None:
    found = judged(report(), GATES)
    assert (found.accepted, found.reasons) == (True, ())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        pytest.param(
            {"size_bytes": 1001}, "bigger: 1001 bytes are 1.00 times the source's 1000; at most 1", id="bigger"
        ),
        pytest.param(
            {"timing": timing(1.5)}, "slower: 1.5 ms are 1.50 times the source's 1 ms; at most 1", id="slower"
        ),
        pytest.param({"timing": timing(float("nan"))}, "slower: nan ms", id="time-not-measured"),
        pytest.param(
            {"parity": parity(passed=False, n_beyond=7, max_abs_difference=0.25)},
            "off: 7 of 1000 rows differ by more than 0.1 + 0 of the value; the largest difference is 0.25",
            id="off",
        ),
        pytest.param({"parity": parity(passed=False, note="no output y")}, "off: no output y", id="no-output"),
        pytest.param(
            {"class_agreement": 0.9899},
            "off: the same class for 98.99% of 1000 rows; at least 99.00%",
            id="other-classes",
        ),
        pytest.param({"class_agreement": float("nan")}, "off: the same class for nan%", id="classes-not-known"),
        pytest.param(
            {"n_not_finite": 1}, "off: no number for 1 of 1000 rows, for which the source has one", id="not-finite"
        ),
        pytest.param({"timing": None}, "not measured", id="not-measured"),
    ],
)
def test_a_form_is_kept_out_with_the_reason(changed: dict[str, Any], reason: str) -> None:
    found = judged(report(**changed), GATES)
    assert not found.accepted
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith(reason)


def test_every_reason_is_given() -> None:
    found = judged(report(size_bytes=3000, timing=timing(2.0), class_agreement=0.5), GATES)
    assert [reason.split(":")[0] for reason in found.reasons] == ["bigger", "slower", "off"]


def test_a_gate_that_is_not_set_keeps_nothing_out() -> None:
    loose = Gates(max_size_ratio=None, max_latency_ratio=None)
    assert judged(report(size_bytes=3000, timing=timing(2.0), class_agreement=0.5), loose).accepted


def test_a_report_survives_being_stored() -> None:
    found = judged(report(size_bytes=3000), GATES)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Optimised) == found


def test_a_form_that_gives_no_number_where_the_source_does_is_off() -> None:
    expected = {"prediction": np.eye(4, 3, dtype=np.float32)}
    found = {"prediction": expected["prediction"].copy()}
    found["prediction"][2] = np.nan
    assert measured(report(), expected, found, GATES).n_not_finite == 1
    assert measured(report(), found, found, GATES).n_not_finite == 0


def test_a_single_output_is_judged_by_its_distance_and_its_sign() -> None:
    values = np.linspace(-1, 1, 200, dtype=np.float32)[:, None]
    gates = Gates(min_class_agreement=0.99)
    near = judged(measured(report(), {"y": values}, {"y": values + np.float32(0.001)}, gates), gates)
    far = judged(measured(report(), {"y": values}, {"y": values * 2}, gates), gates)
    turned = judged(measured(report(), {"y": values}, {"y": values + np.float32(0.05)}, gates), gates)
    assert near.accepted
    assert [reason[:3] for reason in far.reasons] == ["off"]
    assert far.class_agreement == 1
    assert turned.parity is not None
    assert turned.parity.passed
    assert turned.reasons[0].startswith("off: the same class for 97")


def verdict(expected: dict[str, Any], found: dict[str, Any]) -> Optimised:
    gates = Gates(min_class_agreement=0.99)
    tables = [{name: np.float32(values) for name, values in outputs.items()} for outputs in (expected, found)]
    return judged(measured(report(), *tables, gates), gates)


RANDOM = np.random.default_rng(5)
SURE = RANDOM.dirichlet((0.3, 0.3, 0.3), size=1000)
RETURNS = RANDOM.normal(size=(1000, 1)) * 1e-3
HORIZONS = RANDOM.normal(size=(1000, 3)) * (1e-4, 1e-3, 1e-2)
NOISE = RANDOM.normal(size=(1000, 3))
LARGEST = np.eye(3)[SURE.argmax(axis=1)]


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        pytest.param(
            {"probabilities": SURE, "expected_return": RETURNS},
            {"probabilities": SURE, "expected_return": -RETURNS},
            id="return-of-the-other-sign",
        ),
        pytest.param({"returns": HORIZONS}, {"returns": HORIZONS + 5 * HORIZONS.std()}, id="shifted-returns"),
        pytest.param(
            {"output": HORIZONS - (1, 0, 0)},
            {"output": HORIZONS * (0, 1, 1) - (1, 0, 0)},
            id="lost-column-that-spreads-less",
        ),
        pytest.param({"probabilities": SURE}, {"probabilities": 0.3 * SURE + 0.7 * LARGEST}, id="surer-probabilities"),
        pytest.param({"probabilities": SURE}, {"probabilities": 0.4 * SURE + 0.2}, id="unsure-probabilities"),
        pytest.param({"logits": NOISE}, {"logits": NOISE * 4}, id="surer-logits"),
        pytest.param(
            {"weights": SURE * 0.01 + (0.3, 0.3, 0.39)},
            {"weights": np.full((1000, 3), (0.3, 0.3, 0.39)) + 0.01 * LARGEST},
            id="weights-that-sum-to-one",
        ),
    ],
)
def test_numbers_that_are_off_are_kept_out_though_the_largest_is_the_same(
    expected: dict[str, Any], found: dict[str, Any]
) -> None:
    made = verdict(expected, found)
    assert made.class_agreement == 1
    assert [reason.split(":")[0] for reason in made.reasons] == ["off"]


def test_each_of_several_outputs_has_to_decide_alike() -> None:
    near = SURE[:, :2] / SURE[:, :2].sum(axis=1, keepdims=True)
    steady = np.tile(np.float32([0.505, 0.495]), (1000, 1)) + NOISE[:, :1] * (0.2, -0.2)
    moved = steady + np.float32([-0.015, 0.015])
    made = verdict({"direction": near, "output": steady}, {"direction": near, "output": moved})
    assert [reason[:20] for reason in made.reasons] == ["off: the same class "]


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        pytest.param({"probabilities": SURE}, {"probabilities": 0.97 * SURE + 0.01}, id="probabilities"),
        pytest.param({"output": NOISE}, {"output": NOISE * 0.98}, id="logits"),
        pytest.param(
            {"probabilities": SURE, "expected_return": RETURNS},
            {"probabilities": SURE, "expected_return": RETURNS * 1.01},
            id="both",
        ),
    ],
)
def test_numbers_that_are_near_are_accepted(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert verdict(expected, found).reasons == ()


def test_where_one_class_wins_everywhere_the_distance_decides() -> None:
    random = np.random.default_rng(0)
    expected = {"y": random.normal(size=(300, 3)).astype(np.float32) * 0.01 + np.float32([0, 0, 9])}
    noise = {"y": random.normal(size=(300, 3)).astype(np.float32) * 0.01 + np.float32([0, 0, 9])}
    found = judged(measured(report(), expected, noise, GATES), GATES)
    assert found.class_agreement == 1
    assert not found.accepted


def test_the_boundary_is_where_another_class_is_near() -> None:
    values = np.stack([np.zeros(100), np.linspace(-1, 1, 100) ** 3], axis=1).astype(np.float32)
    flipped = values.copy()
    flipped[48:52, 1] *= -1
    found = measured(report(), {"y": values}, {"y": flipped}, GATES)
    assert found.class_agreement == pytest.approx(0.96)
    assert found.boundary_agreement == pytest.approx(0.6)


def test_the_rows_are_a_thousand_and_lie_between_classes_too() -> None:
    graph = opened(networks.dense())
    rows = np.random.default_rng(1).normal(size=(100, 8)).astype(np.float32)
    found = judging_rows(graph, rows)
    assert found.rows.shape == (MIN_ROWS, 8)
    assert found.rows[:100].tobytes() == rows.tobytes()
    assert found.notes == ("900 of the 1000 rows lie between two others",)
    assert judging_rows(graph, rows).rows.tobytes() == found.rows.tobytes()
    clearness = np.diff(np.sort(graph.run(found.rows)["prediction"], axis=1)[:, -2:], axis=1)[:, 0]
    assert np.median(clearness[100:]) < np.median(clearness[:100]), "between classes, the class is less clear"


def test_made_up_rows_are_said_to_be_made_up() -> None:
    found = judging_rows(opened(networks.recurrent()), None)
    assert found.rows.shape == (MIN_ROWS, 6, 16)
    assert "made-up" in found.notes[0]


def test_rows_that_cannot_be_used_are_left_out_and_counted() -> None:
    graph = opened(networks.dense())
    rows = np.random.default_rng(1).normal(size=(MAX_ROWS + 11, 8)).astype(np.float32)
    rows[5, 0] = np.nan
    found = judging_rows(graph, rows)
    assert np.isfinite(found.rows).all()
    assert found.notes[:2] == (
        "1 rows with numbers that are not finite were left out",
        f"{MAX_ROWS} of {MAX_ROWS + 10} rows were used",
    )
    with pytest.raises(Undecodable, match="finite"):
        judging_rows(graph, np.full((3, 8), np.nan, np.float32))
    with pytest.raises(Undecodable, match="takes"):
        judging_rows(graph, np.zeros((3, 7), np.float32))


def test_the_class_is_the_largest_output_or_the_sign() -> None:
    assert classes_of({"one": np.float32([[2], [-3], [0]])}).tolist() == [1, -1, 0]
    wide = {"label": np.float32([[9], [9]]), "p": np.float32([[0.2, 0.8], [0.6, 0.4]])}
    assert classes_of(wide).tolist() == [1, 0]
