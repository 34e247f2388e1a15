"""Who gets which arm. GrowthBook's own hash and bucket ranges are not ours, so their cases are not tried here."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mmserver.experiments.assignment import (
    N_BUCKETS,
    NamespaceSlice,
    TimeBlocks,
    arm_of,
    arm_of_bucket,
    bucket_of,
    n_treated_buckets,
    prefix_u64,
    salt_of,
    unit_of,
)

N_UNITS = 200_000


@pytest.fixture(scope="module")
def buckets() -> list[int]:
    return [bucket_of("exp:1", f"unit-{number}") for number in range(N_UNITS)]


def test_the_prefix_of_the_hash_is_as_others_compute_it(case: Callable[[str], dict[str, Any]]) -> None:
    found = case("sha256_prefix_u64")
    assert [f"{prefix_u64(text):016X}" for text in found["inputs"]["strings"]] == found["expected"]


def test_the_bucket_is_the_hash_of_salt_and_unit() -> None:
    whole = int(hashlib.sha256(b"exp:1.BTCUSDT|17").hexdigest()[:16], 16)
    assert bucket_of(salt_of("exp", 1), "BTCUSDT|17") == whole % 10_000


def test_another_process_puts_units_in_the_same_buckets() -> None:
    program = (
        "import json\n"
        "from mmserver.experiments.assignment import bucket_of\n"
        "print(json.dumps([bucket_of('e:2', f'u{n}') for n in range(50)]))\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(answer.stdout) == [bucket_of("e:2", f"u{number}") for number in range(50)]


@pytest.mark.parametrize("weight", [0.1, 0.2, 0.5, 0.9])
def test_the_split_lies_within_three_sigma(buckets: list[int], weight: float) -> None:
    treated = sum(arm_of_bucket(bucket, treatment_weight=weight) == "treatment" for bucket in set(buckets))
    assert treated == round(weight * N_BUCKETS), "every bucket is met, so this is the share exactly"
    below = n_treated_buckets(weight)
    n_treated = sum(bucket < below for bucket in buckets)
    assert abs(n_treated - weight * N_UNITS) <= 3.0 * math.sqrt(N_UNITS * weight * (1.0 - weight))


def test_a_ramp_never_moves_a_treated_unit_back(buckets: list[int]) -> None:
    steps = [0.0, 0.0001, 0.1, 0.2, 0.33, 0.5, 0.9999, 1.0]
    before = set[int]()
    for weight in steps:
        below = n_treated_buckets(weight)
        treated = {unit for unit, bucket in enumerate(buckets) if bucket < below}
        assert before <= treated
        before = treated
    assert len(before) == N_UNITS


def test_a_new_phase_draws_anew(buckets: list[int]) -> None:
    below = n_treated_buckets(0.5)
    again = [bucket_of(salt_of("exp", 2), f"unit-{number}") for number in range(20_000)]
    same = sum((bucket < below) == (other < below) for bucket, other in zip(buckets, again, strict=False))
    assert abs(same - 10_000) <= 4.0 * math.sqrt(5_000)


@pytest.mark.parametrize("hundredths", range(101))
def test_a_weight_treats_as_many_buckets_as_its_decimals_say(hundredths: int) -> None:
    assert n_treated_buckets(hundredths / 100) == hundredths * 100
    assert n_treated_buckets(1.0 - (100 - hundredths) / 100) == hundredths * 100


def test_the_ends_of_the_weight_treat_nobody_and_everybody() -> None:
    assert [arm_of(salt="e:1", unit=f"u{n}", treatment_weight=0.0) for n in range(100)] == ["control"] * 100
    assert [arm_of(salt="e:1", unit=f"u{n}", treatment_weight=1.0) for n in range(100)] == ["treatment"] * 100


@pytest.mark.parametrize("weight", [-0.01, 1.01, math.nan, math.inf, -math.inf])
def test_a_weight_outside_of_0_to_1_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="must lie within 0 and 1"):
        arm_of(salt="e:1", unit="u", treatment_weight=weight)


def test_the_unit_is_what_its_kind_says() -> None:
    given = {"prediction_id": "p-1", "symbol": "BTCUSDT", "unit_id": "desk-7", "epoch_s": 7_250.0}
    blocks = TimeBlocks(block_s=3_600.0)
    texts = [unit_of(kind, **given, blocks=blocks) for kind in ("prediction", "symbol", "unit_id", "symbol|time-block")]  # type: ignore[arg-type]
    assert texts == ["p-1", "BTCUSDT", "desk-7", "BTCUSDT|2"]


@pytest.mark.parametrize("kind", ["prediction", "symbol", "unit_id", "symbol|time-block"])
def test_a_unit_without_what_its_kind_needs_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="needs"):
        unit_of(kind)


def test_a_block_holds_its_symbol_until_it_ends() -> None:
    blocks = TimeBlocks(block_s=900.0, horizon_s=60.0)
    start = 1_900_000_800.0
    assert start % 900.0 == 0.0
    assert {blocks.index_at(start + s) for s in (0.0, 1.5, 899.9)} == {blocks.index_at(start)}
    assert [blocks.index_at(start - 0.5), blocks.index_at(start + 900.0)] == [
        blocks.index_at(start) - 1,
        blocks.index_at(start) + 1,
    ]


def test_the_first_horizon_of_a_block_is_washed_out() -> None:
    blocks = TimeBlocks(block_s=900.0, horizon_s=60.0)
    start = 1_900_000_800.0
    assert [blocks.is_washed_out(start + s) for s in (-0.5, 0.0, 59.9, 60.0, 899.0, 900.0)] == [
        False,
        True,
        True,
        False,
        False,
        True,
    ]
    assert not TimeBlocks(block_s=900.0).is_washed_out(start)


@pytest.mark.parametrize(
    ("block_s", "horizon_s"),
    [(0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (math.inf, 0.0), (60.0, 60.0), (60.0, -1.0), (60.0, math.nan)],
)
def test_blocks_that_leave_nothing_are_refused(block_s: float, horizon_s: float) -> None:
    with pytest.raises(ValueError, match="block of"):
        TimeBlocks(block_s=block_s, horizon_s=horizon_s)


def test_slices_of_a_namespace_that_are_apart_share_no_unit() -> None:
    slices = [NamespaceSlice("books", 0.0, 0.3), NamespaceSlice("books", 0.3, 0.7), NamespaceSlice("books", 0.7, 1.0)]
    owners = [[part.has(f"u{number}") for part in slices] for number in range(20_000)]
    assert {sum(row) for row in owners} == {1}
    for part, share in zip(zip(*owners, strict=True), (0.3, 0.4, 0.3), strict=True):
        assert abs(sum(part) - 20_000 * share) <= 4.0 * math.sqrt(20_000 * share * (1.0 - share))


def test_a_slice_of_a_namespace_says_nothing_about_the_arm() -> None:
    part = NamespaceSlice("books", 0.0, 0.5)
    units = [unit for unit in (f"u{number}" for number in range(20_000)) if part.has(unit)]
    treated = sum(arm_of(salt="e:1", unit=unit, treatment_weight=0.1) == "treatment" for unit in units)
    assert abs(treated - 0.1 * len(units)) <= 4.0 * math.sqrt(0.09 * len(units))


def test_slices_know_whether_they_overlap() -> None:
    part = NamespaceSlice("books", 0.2, 0.5)
    assert part.overlaps(NamespaceSlice("books", 0.49, 0.6))
    assert not part.overlaps(NamespaceSlice("books", 0.5, 0.6))
    assert not part.overlaps(NamespaceSlice("books", 0.0, 0.2))
    assert not part.overlaps(NamespaceSlice("other", 0.2, 0.5))


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (math.nan, 1.0)])
def test_a_slice_that_is_none_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="slice"):
        NamespaceSlice("books", start, end)
