"""Which predictions are observed: a share of them, drawn from their ids alone."""

import math

import pytest

from mmserver.experiments.sampling import Sample, row_id

FIXED = [9, 20]
IDS = tuple(f"3dbbb4ae421809f2{n:08x}" for n in range(20_000))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.97])
def test_ids_in_a_row_are_drawn_at_their_share(share: float) -> None:
    sample = Sample(share)
    n_drawn = sum(map(sample.has, IDS))
    assert abs(n_drawn - share * len(IDS)) < 5 * math.sqrt(len(IDS) * share * (1 - share))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.97])
def test_rows_of_one_request_are_drawn_at_their_share(share: float) -> None:
    n_drawn = len(Sample(share).rows("3dbbb4ae421809f200000000", 50_000))
    assert abs(n_drawn - share * 50_000) < 5 * math.sqrt(50_000 * share * (1 - share))


def test_rows_drawn_together_are_those_drawn_one_by_one() -> None:
    for share in (0.0, 1e-9, 0.3, 1.0):
        sample = Sample(share)
        for prediction_id in IDS[:20]:
            assert sample.rows(prediction_id, 200).tolist() == [n for n in range(200) if sample.has(prediction_id, n)]


def test_none_and_every_one_are_exact() -> None:
    assert not any(map(Sample(0.0).has, IDS))
    assert all(map(Sample(1.0).has, IDS))


def test_a_larger_sample_has_all_of_a_smaller_one() -> None:
    small, large = Sample(0.1), Sample(0.2)
    assert all(large.has(name) for name in IDS if small.has(name))


def test_who_draws_again_draws_the_same() -> None:
    """Fixed, so that another release or language that draws otherwise is seen."""
    assert [n for n in range(40) if Sample(0.1).has(IDS[n])] == FIXED


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="must lie within 0 and 1"):
        Sample(share)


def test_a_single_row_has_the_id_of_its_request_and_several_have_their_own() -> None:
    assert row_id("a", 0, 1) == "a"
    assert [row_id("a", n, 3) for n in range(3)] == ["a.0", "a.1", "a.2"]
