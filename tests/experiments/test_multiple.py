"""Many p-values at once, against the checked case and statsmodels."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mmserver.experiments.multiple import benjamini_hochberg, bonferroni, holm

Adjusting = Callable[[Sequence[float]], list[float]]
METHODS = {"bh": ("fdr_bh", benjamini_hochberg), "holm": ("holm", holm), "bonferroni": ("bonferroni", bonferroni)}


def test_as_many_are_rejected_as_published(case: Callable[[str], dict[str, Any]]) -> None:
    found = case("benjamini_hochberg_1995")
    ours = {name: sum(p <= 0.05 for p in adjust(found["inputs"]["pvalues"])) for name, (_, adjust) in METHODS.items()}
    assert ours == found["expected"]


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("n", [1, 2, 7, 200])
def test_the_adjusted_values_are_those_of_statsmodels(name: str, n: int) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    theirs, adjust = METHODS[name]
    p_values = np.random.default_rng(n).beta(0.4, 1.0, n).round(3).tolist()
    assert adjust(p_values) == pytest.approx(multitest.multipletests(p_values, method=theirs)[1].tolist(), rel=1e-12)


@pytest.mark.parametrize("name", list(METHODS))
def test_no_p_value_is_adjusted_below_itself_or_above_1(name: str) -> None:
    adjust = METHODS[name][1]
    assert adjust([]) == []
    assert adjust([1.0, 0.0, 1.0]) == [1.0, 0.0, 1.0]
    p_values = [0.9, 0.04, 0.2, 0.04]
    adjusted = adjust(p_values)
    assert all(before <= after <= 1.0 for before, after in zip(p_values, adjusted, strict=True))
    assert adjusted[1] == adjusted[3]


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1.1])
def test_what_is_no_p_value_is_refused_and_named(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match="p-value 1 is"):
        METHODS[name][1]([0.5, wrong])
