"""One prediction as it is logged, and the outcome that somebody reports of it later."""

import sys
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec

from mmserver.experiments.assignment import Arm

LabelName = Literal["BUY", "SELL", "HOLD"]

LABELS: tuple[LabelName, ...] = ("HOLD", "BUY", "SELL")
"""In the order of the direction codes."""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def us_since_epoch(moment: datetime) -> int:
    """Microseconds since the epoch, exactly: as a float of seconds it would be off by one now and then."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


DirectionCode = Annotated[int, msgspec.Meta(ge=0, le=2)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""Whole numbers that a database holds, beside others of their kind."""


class ShadowAnswer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the other arm answered to the same rows, without anybody being told.

    Fields:
        direction: 0 HOLD, 1 BUY, 2 SELL; None where it gave none.
        error: the code of the error that it failed with.
    """

    direction: DirectionCode | None
    expected_return: float | None
    latency_us: Count
    error: str | None = None


class Observation(msgspec.Struct, array_like=True, frozen=True, gc=False, kw_only=True):
    """One prediction, with all that its experiment's analysis and a later look at its features need.

    In shadow mode the arm is "control" and `shadow` is the treatment's answer, which counts as the treatment's prediction.
    A `shadow` on a prediction of the arm "treatment" is the control's answer in split mode: it counts in the pairs only.
    Numbers out of their limits are not seen when it is appended: the record is left out, and told, when it is moved.

    Fields:
        prediction_id: unique for all times; of several with one id the first is kept.
        at_us: when it was made, in microseconds since the epoch, UTC.
        experiment_key: `experiments.id`; None, like `arm`, for a prediction that is logged without an experiment.
        unit: what was randomised.
        horizon_us: how long after `at_us` its outcome is known; an earlier outcome is refused.
        is_washed_out: it lies in the first horizon of its block, and counts in no comparison.
        direction: 0 HOLD, 1 BUY, 2 SELL; None where the model gave none or failed.
        error: the code of the error that it failed with.
        features: float32, little endian, row-major; empty where they are not kept.
    """

    prediction_id: str
    at_us: Count
    experiment_key: Count | None = None
    phase: Count = 1
    arm: Arm | None = None
    unit: str = ""
    symbol: str = ""
    model_name: str = ""
    version: str = ""
    direction: DirectionCode | None = None
    confidence: float | None = None
    expected_return: float | None = None
    latency_us: Count = 0
    error: str | None = None
    features: bytes = b""
    shadow: ShadowAnswer | None = None
    horizon_us: Count = 0
    is_washed_out: bool = False


class Outcome(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What came of one prediction; at least one of `realized_return` and `label` is there.

    Fields:
        realized_return: of the symbol over the horizon, whatever the position was.
        label: what would have been right.
        at: when it was known, seconds since the epoch; None is now.
    """

    prediction_id: str
    realized_return: float | None = None
    label: LabelName | Literal[0, 1, 2] | None = None
    at: float | None = None


class Price(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a symbol cost at a moment, `at` in seconds since the epoch."""

    symbol: str
    price: float
    at: float


def is_finite_number(value: object) -> bool:
    """Whether it is a number that can be counted with, whatever it was decoded from."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
