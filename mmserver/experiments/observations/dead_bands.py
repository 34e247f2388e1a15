"""Which returns are HOLD, when all that is known of a prediction's outcome is its return."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_HOLD, _BUY, _SELL = range(3)


@dataclass(frozen=True, slots=True)
class DeadBands:
    """The size up to which a return, up or down, is HOLD: each model's own, and one for all others.

    Fields:
        by_experiment: by `experiments.log_key`; both arms of an experiment are judged alike, whatever their models' own are.
    """

    default: float = 0.0
    by_model: Mapping[str, float] = field(default_factory=dict)
    by_experiment: Mapping[int, float] = field(default_factory=dict)

    def label(self, realized_return: float, model_name: str, experiment: int | None) -> int:
        """What would have been right: BUY above the dead band, SELL below its negative, else HOLD; as a direction code."""
        dead_band = self.by_model.get(model_name, self.default)
        if experiment is not None:
            dead_band = self.by_experiment.get(experiment, dead_band)
        return _BUY if realized_return > dead_band else _SELL if realized_return < -dead_band else _HOLD
