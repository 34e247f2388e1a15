"""The formula of docs/client.md at its edges."""

import pytest

from mmserver.client import SignalValidator, SyncModelClient
from mmserver.client.answers import Direction
from mmserver.client.validation import hybrid


@pytest.mark.parametrize(
    ("strategy", "model", "weight", "expected"),
    [
        pytest.param(("BUY", 0.8), ("BUY", 0.9), 0.6, ("BUY", 0.86), id="they-agree"),
        pytest.param(("HOLD", 0.8), ("HOLD", 0.9), 0.6, ("HOLD", 0.86), id="they-agree-to-hold"),
        pytest.param(("BUY", 0.8), ("SELL", 0.9), 0.6, ("SELL", 0.22), id="the-model-is-surer"),
        pytest.param(("BUY", 1.0), ("SELL", 0.6), 0.6, ("BUY", 0.04), id="the-strategy-is-surer"),
        pytest.param(("BUY", 0.8), ("HOLD", 0.9), 0.6, ("HOLD", 0.22), id="the-model-holds"),
        pytest.param(("HOLD", 1.0), ("BUY", 0.6), 0.6, ("HOLD", 0.04), id="the-strategy-holds"),
        pytest.param(("BUY", 0.75), ("SELL", 0.5), 0.6, ("HOLD", 0.0), id="equal-but-for-the-last-bit"),
        pytest.param(("BUY", 0.0), ("BUY", 0.0), 0.6, ("BUY", 0.0), id="they-agree-without-confidence"),
        pytest.param(("BUY", 0.0), ("SELL", 0.0), 0.6, ("HOLD", 0.0), id="nobody-is-sure"),
        pytest.param(("BUY", 1.0), ("SELL", 0.7), 1.0, ("SELL", 0.7), id="only-the-model-counts"),
        pytest.param(("BUY", 0.3), ("SELL", 1.0), 0.0, ("BUY", 0.3), id="only-the-strategy-counts"),
        pytest.param(("BUY", 1.0), ("BUY", 1.0), 0.9, ("BUY", 1.0), id="never-above-one"),
    ],
)
def test_two_votes_make_one_decision(
    strategy: tuple[Direction, float],
    model: tuple[Direction, float],
    weight: float,
    expected: tuple[Direction, float],
) -> None:
    direction, confidence = hybrid(strategy, model, weight)
    assert direction == expected[0]
    assert confidence == pytest.approx(expected[1], abs=1e-12)
    assert 0.0 <= confidence <= 1.0


def test_weights_come_from_arguments_then_the_environment_then_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    client = SyncModelClient("http://127.0.0.1:1")
    assert (SignalValidator(client).ml_weight, SignalValidator(client).ml_min_confidence) == (0.6, 0.6)
    monkeypatch.setenv("ML_WEIGHT", "0.25")
    monkeypatch.setenv("ML_MIN_CONFIDENCE", "")
    assert (SignalValidator(client).ml_weight, SignalValidator(client).ml_min_confidence) == (0.25, 0.6)
    assert SignalValidator(client, ml_weight=0).ml_weight == 0


@pytest.mark.parametrize("value", ["1.01", "-0.1", "nan", "much"])
def test_a_weight_that_is_no_share_is_refused_by_the_name_of_its_variable(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_WEIGHT", value)
    with pytest.raises(ValueError, match="ML_WEIGHT"):
        SignalValidator(SyncModelClient("http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("direction", "confidence"), [("UP", 0.5), (3, 0.5), (True, 0.5), ("BUY", 1.5), ("BUY", float("nan"))]
)
def test_a_signal_that_is_none_is_refused(direction: str | int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"direction|confidence"):
        SignalValidator(SyncModelClient("http://127.0.0.1:1")).decide("BTCUSDT", direction, confidence, [1.0])


def test_deciding_with_a_client_whose_health_nobody_watches_is_refused() -> None:
    with pytest.raises(RuntimeError, match="initialize"):
        SignalValidator(SyncModelClient("http://127.0.0.1:1")).decide("BTCUSDT", "BUY", 0.5, [1.0])
