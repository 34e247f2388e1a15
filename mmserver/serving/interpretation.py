"""From raw output to a decision: direction, confidence, expected return. What there is no ground for stays null."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

Direction: TypeAlias = Literal["HOLD", "BUY", "SELL"]
DIRECTION_CODES: Mapping[str, int] = {"HOLD": 0, "BUY": 1, "SELL": 2}


class Decision(msgspec.Struct, frozen=True):
    """What one row of output means.

    Units:
        confidence: how likely the direction is right, in [0, 1]; probability: what the model itself gives the direction, in
        [0, 1], null for a regressor; expected_return: in the unit of the model's return, null for a pure classifier.
    """

    direction: Direction
    confidence: float | None
    probability: float | None
    expected_return: float | None
