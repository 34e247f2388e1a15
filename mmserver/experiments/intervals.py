"""From where to where a number may lie."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """From lower to upper; an end that says nothing is infinite.

    Raises:
        ValueError: it ends before it begins, or an end is not a number.
    """

    lower: float
    upper: float

    def __post_init__(self) -> None:
        if not self.lower <= self.upper:
            raise ValueError(f"no interval goes from {self.lower} to {self.upper}")

    @property
    def halfwidth(self) -> float:
        """Half its length; infinite where an end is."""
        return (self.upper - self.lower) / 2.0 if math.isfinite(self.upper - self.lower) else math.inf

    def has(self, value: float) -> bool:
        """Whether the value lies within it; both ends do."""
        return self.lower <= value <= self.upper
