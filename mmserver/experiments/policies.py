"""By which numbers an experiment is decided; each has its default, its meaning and its limits, and may be set for one experiment.

`sequential` is right however often it is looked at. `classic` is the earlier service's point rule, with its numbers: right
only if looked at once, at an end that was planned, and wrong about half the time where it is looked at every hour.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import msgspec

HOURS_PER_DAY = 24.0
_PART_IN_MESSAGE = re.compile(
    r"Object contains unknown field `(?P<unknown>[^`]*)`|.* - at `\$\.(?P<at>\w+)`", re.DOTALL
)


class PolicyInvalid(ValueError):
    """What is to be a policy is none; `part` names the number that does not fit, and is "" where none does."""

    def __init__(self, problem: str, part: str) -> None:
        super().__init__(problem)
        self.part = part


class _Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="policy"):
    """What both policies have.

    Units:
        accuracies and error rates are shares: 0.02 is two percentage points. The error rate's increase is relative: 0.5 is
        one and a half times the control's. Latencies are means, in milliseconds.

    Fields:
        alpha: the error rate, of a promotion and of a rollback each.
        min_accuracy_gain: what the treatment must be better by to be promoted.
        max_accuracy_loss: what it may be worse by.
        max_latency_increase_ms, max_error_rate_increase: what it may be worse by.
        min_samples: matured outcomes (for errors and latency: predictions) of each arm before anything is concluded.
        min_hours: since the start, before anything is concluded.
        max_hours, max_units: the end: without a difference by then there is none that matters; none where left out.
        srm_alpha, join_alpha: below this p-value the arms' shares of the units, or of outcomes that came, are not as they should be.
        max_both_arms_share: of all units, how many may have met both arms.
        periods_per_year: what daily Sharpe ratios are annualised by; 365 for markets that never close.
    """

    alpha: float = 0.05
    min_accuracy_gain: float = 0.02
    max_accuracy_loss: float = 0.05
    max_latency_increase_ms: float = 2.0
    max_error_rate_increase: float = 0.5
    min_samples: int = 100
    min_hours: float = HOURS_PER_DAY
    max_hours: float | None = None
    max_units: int | None = None
    srm_alpha: float = 0.001
    join_alpha: float = 0.001
    max_both_arms_share: float = 0.01
    periods_per_year: int = 365

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "alpha": (1e-6, 0.4999),
        "min_accuracy_gain": (0.0, 1.0),
        "max_accuracy_loss": (0.0, 1.0),
        "max_latency_increase_ms": (0.0, 1e6),
        "max_error_rate_increase": (0.0, 1e6),
        "min_samples": (2, 1e12),
        "min_hours": (0.0, 1e6),
        "max_hours": (1e-3, 1e6),
        "max_units": (4, 1e12),
        "srm_alpha": (0.0, 0.5),
        "join_alpha": (0.0, 0.5),
        "max_both_arms_share": (0.0, 1.0),
        "periods_per_year": (1, 1e6),
        "planned_units": (4, 1e12),
        "min_units": (2, 1e12),
        "max_error_rate_margin": (0.0, 1.0),
    }
    """From where to where each number may be set, both ends too; those of one policy only are last."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            least, most = self.LIMITS[name]
            if value is not None and not (_is_number(value) and least <= value <= most):
                raise PolicyInvalid(f"{name} is {value}; it must be a number from {least:g} to {most:g}", name)
        if self.max_hours is not None and self.max_hours < self.min_hours:
            raise PolicyInvalid(
                f"max_hours is {self.max_hours}; it must not be below min_hours, which is {self.min_hours}", "max_hours"
            )

    @property
    def name(self) -> str:
        """What the policy is called."""
        return str(self.__struct_config__.tag)


class SequentialPolicy(_Policy, tag="sequential", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Acts on what holds at all looks at once.

    Fields:
        planned_units: of both arms together, about when the decision is expected; there the bounds are tightest. A tenth or
            ten times of it cost little. It is fixed when the experiment starts.
        min_units: matured units of each arm; the bounds are asymptotic, and below about 30 they are not what they say.
        max_error_rate_margin: for a promotion, the treatment's error rate must be shown not to be higher than the control's
            by this many points (a share; absolute, so that a control without errors can be followed).
    """

    planned_units: int = 5000
    min_units: int = 30
    max_error_rate_margin: float = 0.01


class ClassicPolicy(_Policy, tag="classic", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Acts on the numbers of the moment and Welch's t-test; valid only at the planned end, looked at once."""


Policy: TypeAlias = SequentialPolicy | ClassicPolicy


def policy_from(value: Any) -> Policy:
    """The policy of a JSON object such as `{"policy": "classic", "min_hours": 48}`; `sequential` where it has no name.

    Raises:
        PolicyInvalid: a field is unknown, of the wrong kind or out of its limits; the message names it.
    """
    if isinstance(value, Mapping) and "policy" not in value:
        value = {"policy": "sequential", **value}
    try:
        policy: Policy = msgspec.convert(value, SequentialPolicy | ClassicPolicy)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, PolicyInvalid):
            raise error.__cause__ from None
        found = _PART_IN_MESSAGE.fullmatch(str(error))
        part = (found["unknown"] or found["at"]) if found else ""
        raise PolicyInvalid(str(error), "" if part == "policy" else part) from error
    return policy


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
