"""Two versions side by side."""

from typing import Any

import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.diffing import FactorMove
from mmserver.errors import VersionNotFound, WrongModelKind
from mmserver.registry.comparing import MetricComparison, ParameterComparison, compare
from mmserver.registry.stages import promote

TEST = Actor("test")


def test_metrics_sizes_parameters_and_factors_are_compared(bench: Any) -> None:
    bench.register("1.0.0", 0, metrics={"sharpe": 2.0, "loss": -0.5}, training_params={"lr": 0.1, "n": 3, "old": None})
    bench.register(
        "1.1.0",
        1,
        metrics={"sharpe": 2.5, "loss": -0.25},
        training_params={"lr": 0.01, "n": 3, "new": [1]},
        factors=("volume", "momentum", "depth"),
        files={"more.bin": bytes(1 << 20)},
    )
    comparison = compare(bench.store, "hybrid", "1.0.0", "1.1.0")
    assert comparison.metrics_comparison == {
        "sharpe": MetricComparison(2.0, 2.5, 0.5, 25.0),
        "loss": MetricComparison(-0.5, -0.25, 0.25, 50.0),
    }
    sizes = comparison.size_comparison
    assert sizes.version1_mb == len(bench.contents[0]) / (1 << 20)
    assert sizes.version2_mb == len(bench.contents[1]) / (1 << 20) + 1
    assert sizes.diff_mb == sizes.version2_mb - sizes.version1_mb
    assert comparison.parameters_comparison == {
        "lr": ParameterComparison(0.1, 0.01),
        "old": ParameterComparison(None, None),
        "new": ParameterComparison(None, [1]),
    }
    factors = comparison.factors_comparison
    assert (factors.added, factors.removed) == (("depth",), ("spread",))
    assert factors.moved == (FactorMove("volume", 1, 0), FactorMove("momentum", 0, 1))
    assert not comparison.is_same_content


def test_a_metric_that_one_of_them_lacks_or_that_was_zero_has_no_percentage(bench: Any) -> None:
    bench.register("1.0.0", metrics={"zero": 0, "gone": 1.0, "least": -1.7e308, "tiny": 5e-324})
    bench.register("1.1.0", metrics={"zero": 3, "came": 1, "least": 1.7e308, "tiny": 1.0})
    assert compare(bench.store, "hybrid", "1.0.0", "1.1.0").metrics_comparison == {
        "zero": MetricComparison(0, 3, 3, None),
        "gone": MetricComparison(1.0, None, None, None),
        "least": MetricComparison(-1.7e308, 1.7e308, None, None),
        "tiny": MetricComparison(5e-324, 1.0, 1.0, None),
        "came": MetricComparison(None, 1, None, None),
    }


def test_versions_are_compared_by_stage_too_and_the_same_content_says_so(bench: Any) -> None:
    bench.register("1.0.0")
    bench.register("1.1.0")
    promote(bench.store, "hybrid", "1.0.0", TEST)
    comparison = compare(bench.store, "hybrid", "production", "1.1.0")
    assert (comparison.version1, comparison.version2, comparison.is_same_content) == ("1.0.0", "1.1.0", True)


def test_what_is_not_there_or_watched_is_not_compared(bench: Any) -> None:
    bench.register("1.0.0")
    with pytest.raises(VersionNotFound):
        compare(bench.store, "hybrid", "1.0.0", "1.1.0")
    bench.watch()
    with pytest.raises(WrongModelKind):
        compare(bench.store, "alpha", "latest", "latest")
