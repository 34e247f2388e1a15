"""What counts as the same prediction of a converted model, and what does not."""

import re
from typing import Any

import numpy as np
import pytest

from mmserver.conversion.parity import ParityReport, compared
from mmserver.formats import Conversion

INF, NAN = float("inf"), float("nan")


def report(theirs: list[list[float]], ours: list[list[float]], **tolerance: float) -> ParityReport:
    conversion = Conversion(source="torch 2.13", **{"absolute": 0.5, "relative": 0.0, **tolerance})
    expected, found = ({"out": np.array(rows, np.float32)} for rows in (theirs, ours))
    return compared(expected, found, conversion, "onnx")


def test_equal_numbers_pass_with_no_difference() -> None:
    found = report([[1.0, 2.0], [NAN, INF]], [[1.0, 2.0], [NAN, INF]])
    assert (found.passed, found.n_rows, found.n_beyond, found.max_abs_difference) == (True, 2, 0, 0.0)


def test_the_largest_differences_are_told_and_within_the_tolerance_they_pass() -> None:
    found = report([[1.0], [-4.0]], [[1.25], [-4.5]])
    assert (found.max_abs_difference, found.max_rel_difference, found.n_beyond, found.passed) == (0.5, 0.25, 0, True)


def test_one_row_beyond_fails_unless_a_share_may_be() -> None:
    rows = [[1.0], [1.0], [1.0], [1.0]], [[1.0], [2.0], [1.0], [1.0]]
    assert (report(*rows).n_beyond, report(*rows).passed) == (1, False)
    assert report(*rows, max_share_beyond=0.25).passed
    assert not report(*rows, max_share_beyond=0.2).passed


def test_the_relative_part_grows_with_the_distance_from_the_column_s_middle() -> None:
    assert report([[0.0], [0.0], [1000.0]], [[0.0], [0.0], [1001.0]], absolute=0.0, relative=0.01).passed
    assert not report([[0.0], [0.0], [10.0]], [[0.0], [0.0], [11.0]], absolute=0.0, relative=0.01).passed
    assert not report([[990.0], [990.0], [1000.0]], [[990.0], [990.0], [1001.0]], absolute=0.0, relative=0.01).passed


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        pytest.param(1.0, NAN, id="ours_nan"),
        pytest.param(NAN, 1.0, id="theirs_nan"),
        pytest.param(INF, 1.0, id="theirs_infinite"),
        pytest.param(1.0, INF, id="ours_infinite"),
        pytest.param(INF, -INF, id="other_infinity"),
    ],
)
def test_what_is_not_finite_on_one_side_only_is_beyond_any_tolerance(theirs: float, ours: float) -> None:
    found = report([[theirs]], [[ours]], absolute=1e30, relative=1e30)
    assert (found.passed, found.n_beyond, found.max_abs_difference) == (False, 1, None)


def test_class_agreement_is_the_share_of_rows_with_the_largest_number_in_the_same_place() -> None:
    found = report([[0.4, 0.6], [0.9, 0.1], [0.5, 0.4], [0.1, 0.8]], [[0.6, 0.4], [0.9, 0.1], [0.5, 0.4], [0.1, 0.8]])
    assert found.class_agreement == 0.75
    assert report([[1.0]], [[1.0]]).class_agreement is None


@pytest.mark.parametrize(
    ("found", "says"),
    [
        pytest.param({}, "out: the source gives .*, the converted model nothing", id="no_output"),
        pytest.param({"out": np.zeros((2, 3), np.float32)}, r"\(2, 2\).*\(2, 3\)", id="other_width"),
    ],
)
def test_what_cannot_be_compared_fails_and_is_said(found: dict[str, Any], says: str) -> None:
    result = compared({"out": np.zeros((2, 2), np.float32)}, found, Conversion(source="torch"), "onnx")
    assert (result.passed, result.n_beyond, result.max_abs_difference) == (False, 2, None)
    assert result.note is not None
    assert re.search(says, result.note)


def test_no_rows_prove_nothing() -> None:
    empty = {"out": np.zeros((0, 1), np.float32)}
    assert not compared(empty, empty, Conversion(source="torch"), "onnx").passed


def test_further_outputs_of_the_converted_model_do_not_matter() -> None:
    out = np.zeros((2, 1), np.float32)
    assert compared({"out": out}, {"out": out, "state": out}, Conversion(source="torch"), "onnx").passed


MINUTES = np.random.default_rng(2).normal(size=(500, 1)) * 3e-6
"""Returns of a minute."""
CLASSES = np.random.default_rng(3).dirichlet((1, 1, 1), size=500)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        pytest.param(MINUTES, MINUTES * 0, id="zeros"),
        pytest.param(MINUTES, -MINUTES, id="other-sign"),
        pytest.param(MINUTES, MINUTES * 1.001, id="a-thousandth-more"),
        pytest.param(np.hstack([CLASSES, MINUTES]), np.hstack([CLASSES, MINUTES * 0]), id="one-column-of-several"),
        pytest.param(MINUTES * 0 + 3e-6, MINUTES * 0, id="constant"),
        pytest.param(MINUTES * 0 + (3e-6, 0), MINUTES * 0 + (3e-6, 3e-6), id="constant-zero-beside-another"),
        pytest.param(MINUTES[:1], MINUTES[:1] * 2, id="one-row"),
    ],
)
def test_small_numbers_have_to_agree_as_far_as_large_ones(theirs: Any, ours: Any) -> None:
    for scale in (1.0, 1e4):
        assert not report(theirs * scale, ours * scale, absolute=1e-5, relative=1e-5).passed


def test_noise_of_float32_is_no_difference() -> None:
    column = np.float32(MINUTES * 500 + 1)
    noisy = column + 4 * np.finfo(np.float32).eps
    assert report(column.tolist(), noisy.tolist(), absolute=1e-5, relative=0.0).passed
    assert not report(column.tolist(), (column + 1e-5).tolist(), absolute=1e-5, relative=0.0).passed


PRICES = 50_000 + np.random.default_rng(4).normal(size=(500, 1)) * 300
HARDLY = 50_000 + np.random.default_rng(4).normal(size=(500, 1)) * 0.1


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        pytest.param(PRICES, PRICES + 0.4, id="all-shifted"),
        pytest.param(HARDLY, np.full_like(HARDLY, 50_000), id="one-number-for-all"),
        pytest.param(HARDLY, 100_000 - HARDLY, id="other-direction"),
        pytest.param(HARDLY, HARDLY + 0.02, id="noise-as-large-as-the-moves"),
        pytest.param(
            np.vstack([MINUTES, [[1.0]], [[-3.0]]]), np.vstack([MINUTES * 0, [[1.0]], [[-3.0]]]), id="two-large-rows"
        ),
    ],
)
def test_what_hardly_moves_is_judged_by_how_far_it_moves(theirs: Any, ours: Any) -> None:
    assert not report(theirs, ours, absolute=1e-5, relative=1e-5).passed


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        pytest.param(PRICES, np.float32(PRICES) + 2 * np.spacing(np.float32(PRICES)), id="prices"),
        pytest.param(HARDLY, np.float32(HARDLY) + np.spacing(np.float32(HARDLY)), id="the-next-float32"),
        pytest.param(PRICES * 0 + 50_000, PRICES * 0 + np.float32(50_000.004), id="constant"),
        pytest.param(CLASSES**40, CLASSES**40 + 6e-8, id="shares-that-are-nearly-all-0"),
        pytest.param(np.exp(MINUTES * 5e6), np.exp(MINUTES * 5e6) * (1 + 1e-6), id="many-sizes"),
        pytest.param(np.zeros((9, 2)), np.zeros((9, 2)), id="zeros"),
        pytest.param(np.full((9, 1), NAN), np.full((9, 1), NAN), id="nothing-finite"),
    ],
)
def test_what_float32_cannot_tell_apart_passes(theirs: Any, ours: Any) -> None:
    assert report(theirs, ours, absolute=1e-5, relative=1e-5).passed


def test_the_tolerance_is_never_more_than_what_was_said() -> None:
    large = [[1e6], [-1e6], [0.0]]
    assert report(large, [[1e6], [-1e6], [1e-5]], absolute=1e-5).absolute == 1e-5
    assert not report(large, [[1e6], [-1e6], [1e-3]], absolute=1e-5).passed
    assert not report([[1.0], [2.0]], [[1.0], [2.0000002]], absolute=0.0).passed
