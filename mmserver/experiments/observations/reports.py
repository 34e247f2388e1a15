"""What came of a call on the observation log, as counts, with the first of what was wrong."""

from dataclasses import dataclass, field
from typing import Literal

MAX_ERRORS = 100
"""Of one call; beyond, they are counted only."""
MAX_SHOWN_ID = 200
"""Characters of an id that a report repeats: none of ours is longer."""

OutcomeFault = Literal["invalid", "in_future", "premature", "unknown", "conflict"]


@dataclass(frozen=True, slots=True)
class OutcomeError:
    """One outcome that was not added, by its place in the call."""

    index: int
    prediction_id: str
    code: OutcomeFault
    message: str


@dataclass(slots=True)
class OutcomeReport:
    """What came of the outcomes of one call; each is in exactly one of the first seven counts.

    Fields:
        n_accepted: added, or completed by what was missing (a label beside a return that came before).
        n_duplicates: the same was there already; nothing changed.
        n_conflicts: another outcome was there already; that one stays.
        n_unknown: no such prediction: never made, of another experiment, or already deleted for its age.
        n_premature: its horizon is not over; send it again then.
        n_in_future: its own time is ahead of the clock; send it again then.
        n_invalid: no label or number, NaN, infinite, or no class.
        n_late: of the accepted, those that had counted as missing before.
        n_waiting: of all, those whose prediction still lay in a journal; it was moved first.
        errors: the first of those not added.
    """

    n_accepted: int = 0
    n_duplicates: int = 0
    n_conflicts: int = 0
    n_unknown: int = 0
    n_premature: int = 0
    n_in_future: int = 0
    n_invalid: int = 0
    n_late: int = 0
    n_waiting: int = 0
    errors: list[OutcomeError] = field(default_factory=list)

    @property
    def n_errors(self) -> int:
        """How many were not added and are no duplicates."""
        return self.n_conflicts + self.n_unknown + self.n_premature + self.n_in_future + self.n_invalid

    def refuse(self, index: int, prediction_id: object, code: OutcomeFault, message: str) -> None:
        """Count one that is not added."""
        match code:
            case "invalid":
                self.n_invalid += 1
            case "in_future":
                self.n_in_future += 1
            case "premature":
                self.n_premature += 1
            case "unknown":
                self.n_unknown += 1
            case "conflict":
                self.n_conflicts += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(OutcomeError(index, shown_id(prediction_id), code, message))


@dataclass(frozen=True, slots=True)
class PriceError:
    """One price that was not added, by its place in the call."""

    index: int
    symbol: str
    message: str


@dataclass(slots=True)
class PriceReport:
    """What came of the prices of one call.

    Fields:
        n_prices: added; one at the same symbol and time replaces the one before.
        n_outcomes: predictions that have an outcome now, from their prices.
        n_unpriced: predictions whose horizon is over, without a price near its start or its end.
        n_invalid: not positive, not finite, without a symbol, or ahead of the clock.
        errors: the first of those not added.
    """

    n_prices: int = 0
    n_outcomes: int = 0
    n_unpriced: int = 0
    n_invalid: int = 0
    errors: list[PriceError] = field(default_factory=list)

    def refuse(self, index: int, symbol: str, message: str) -> None:
        """Count one that is not added."""
        self.n_invalid += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(PriceError(index, symbol, message))


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was deleted: single predictions with their outcomes, and prices; never sums."""

    n_too_old: int = 0
    n_too_many: int = 0
    n_prices: int = 0


@dataclass(frozen=True, slots=True)
class LogStatus:
    """How the observation log of one process is doing.

    Fields:
        n_dropped: predictions outside experiments that were not kept, since the process began.
        n_unmoved_bytes: what lies in all processes' journals, as far as this one knows.
        n_damaged_bytes: parts of journals that could not be read, since the process began.
        problem: why the last attempt to move failed; None where it did not.
    """

    n_dropped: int
    n_unmoved_bytes: int
    n_damaged_bytes: int
    problem: str | None


def shown_id(prediction_id: object) -> str:
    """What was sent as an id, so that a report can repeat it: cut, and as characters that UTF-8 has."""
    return str(prediction_id)[:MAX_SHOWN_ID].encode(errors="backslashreplace").decode()
