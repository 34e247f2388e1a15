"""From raw output to a decision: direction, confidence, expected return. What there is no ground for stays null.

A model whose outputs say no direction (a rank, a count, a class without a name) is refused here and goes on giving its raw
outputs; guessing would be an order in the wrong direction.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import msgspec
import numpy as np

from mmserver.errors import NotInterpretable, PredictionFailed
from mmserver.formats import Decision, Direction, FloatRows, Interpreter, ModelFile
from mmserver.plugin_loading import Plugins
from mmserver.serving.output_meanings import PREDICTION, meanings_of_outputs
from mmserver.serving.training_facts import ClassesUnclear, class_directions, residual_spread

__all__ = ["DIRECTION_CODES", "Decision", "Direction", "Interpreter", "decide", "load_interpreter"]

DIRECTION_CODES: Mapping[str, int] = {"HOLD": 0, "BUY": 1, "SELL": 2}
MARGIN = "margin"
XGBOOST = "xgboost"

_RETURN_OBJECTIVES = frozenset(
    ("reg:squarederror", "reg:linear", "reg:squaredlogerror", "reg:pseudohubererror", "reg:absoluteerror")
)
_NO_RETURN = {
    "reg:logistic": "a share between 0 and 1",
    "reg:gamma": "a positive amount",
    "reg:tweedie": "an amount that is never negative",
    "reg:quantileerror": "a quantile",
    "count:poisson": "a count",
    "survival:cox": "a hazard ratio",
    "survival:aft": "a survival time",
    "rank:pairwise": "a rank score, whose zero means nothing",
    "rank:ndcg": "a rank score, whose zero means nothing",
    "rank:map": "a rank score, whose zero means nothing",
}
_ASK_INFO = '; its info can say "output": "logits", "probabilities" or "return"'
_ASK_PLUGIN = "; a plugin's mmserver_load_interpreter can say what it means"
_SQRT2 = math.sqrt(2.0)
_ROUNDING = 1e-5  # how far above 1 float32 arithmetic takes a probability
_SUM_ROUNDING = 1e-3  # how far from 1 half precision and quantised weights take the sum of some
log = logging.getLogger(__name__)


class ReturnInterpreter:
    """An expected return: its sign is the direction."""

    direction_from = "the sign of expected_return outside the dead band"

    def __init__(self, output: str, spread: tuple[str, float] | None) -> None:
        self._output = output
        self._spread = spread[1] if spread else None
        self.confidence_from = f"expected_return against {spread[0]} of the info file" if spread else None

    def decide(self, outputs: Mapping[str, FloatRows], dead_band: float) -> list[Decision]:
        """With r normal around the expected return x: P(r has the sign of x), or P(|r| ≤ dead_band) for HOLD."""
        return [self._decision(x, dead_band) for (x,) in outputs[self._output].tolist()]

    def _decision(self, x: float, dead_band: float) -> Decision:
        spread = self._spread
        if -dead_band <= x <= dead_band:
            held = None if spread is None else _normal((dead_band - x) / spread) - _normal((-dead_band - x) / spread)
            return Decision("HOLD", held, None, x)
        return Decision("BUY" if x > 0 else "SELL", None if spread is None else _normal(abs(x) / spread), None, x)


class TwoClassInterpreter:
    """The probability of the second of two classes, or its log-odds."""

    def __init__(self, directions: Sequence[Direction], output: str, *, is_logit: bool = False) -> None:
        self._first, self._second = directions
        self._output = output
        self._is_logit = is_logit
        self.direction_from = f"the likelier class ({_named(directions)})"
        self.confidence_from = "the class probability, of the log-odds" if is_logit else "the class probability"

    def decide(self, outputs: Mapping[str, FloatRows], dead_band: float) -> list[Decision]:
        """Exactly one half says nothing: HOLD, and no number."""
        del dead_band
        return [self._decision(value) for (value,) in outputs[self._output].tolist()]

    def _decision(self, value: float) -> Decision:
        second = _logistic(value) if self._is_logit else _probability(value)
        if second > 0.5:
            return Decision(self._second, second, second, None)
        if second < 0.5:
            return Decision(self._first, 1.0 - second, 1.0 - second, None)
        return Decision("HOLD", None, None, None)


class TwoLabelInterpreter:
    """The number of one of two classes, without a probability."""

    confidence_from = None

    def __init__(self, directions: Sequence[Direction], output: str) -> None:
        self._directions = tuple(directions)
        self._output = output
        self.direction_from = f"the class that it gives ({_named(directions)})"

    def decide(self, outputs: Mapping[str, FloatRows], dead_band: float) -> list[Decision]:
        """One class or the other."""
        del dead_band
        return [
            Decision(self._directions[value > 0.5], None, None, None) for (value,) in outputs[self._output].tolist()
        ]


class ClassesInterpreter:
    """One number a class, and in some models an expected return beside them.

    Only what is known for probabilities, or for their margins, makes a confidence; otherwise the numbers say nothing but which class
    is the likeliest.
    """

    def __init__(
        self,
        directions: Sequence[Direction],
        output: str,
        *,
        is_margin: bool | None = False,
        expected_return: str | None = None,
    ) -> None:
        self._directions = tuple(directions)
        self._output = output
        self._is_margin = bool(is_margin)
        self._is_known = is_margin is not None
        self._expected_return = expected_return
        self._hold = self._directions.index("HOLD") if "HOLD" in self._directions else None
        self.direction_from = f"the likeliest class ({_named(directions)})"
        said = "the class probability, of the margins" if is_margin else "the class probability"
        self.confidence_from = said if self._is_known else None

    def decide(self, outputs: Mapping[str, FloatRows], dead_band: float) -> list[Decision]:
        """A draw between the likeliest classes is HOLD, with what the model gives that."""
        del dead_band
        rows = outputs[self._output].tolist()
        if self._expected_return is None:
            return [self._decision(row, None) for row in rows]
        returns = outputs[self._expected_return].tolist()
        return [self._decision(row, value) for row, (value,) in zip(rows, returns, strict=True)]

    def _decision(self, row: list[float], expected_return: float | None) -> Decision:
        probabilities = _softmax(row) if self._is_margin else row
        best = max(probabilities)
        if probabilities.count(best) > 1:
            given = _probability(probabilities[self._hold]) if self._hold is not None and self._is_known else None
            return Decision("HOLD", given, given, expected_return)
        given = _probability(best) if self._is_known else None
        return Decision(self._directions[probabilities.index(best)], given, given, expected_return)


class NoInterpreter:
    """Refuses: nothing says what the outputs mean."""

    confidence_from = None

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.direction_from = f"nothing: {reason}"

    def decide(self, outputs: Mapping[str, FloatRows], dead_band: float) -> NoReturn:
        """Raises NotInterpretable, always."""
        raise Meaningless(self.reason)


class Meaningless(Exception):
    """The outputs say no direction; the text says why."""


class OutputWrong(Exception):
    """The outputs are not what they are named for, such as a probability above 1."""


class PluginInterpreter:
    """A plugin's interpreter, with whatever it raises and whatever it makes up taken for a failure of that row."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self.direction_from = str(interpreter.direction_from)
        confidence_from = interpreter.confidence_from
        self.confidence_from = None if confidence_from is None else str(confidence_from)

    def decide(self, outputs: Mapping[str, FloatRows], dead_band: float) -> list[Decision]:
        """As the plugin says, checked."""
        n_rows = len(next(iter(outputs.values())))
        try:
            decisions = list(self._interpreter.decide(outputs, dead_band))
        except Exception as error:
            log.exception("a plugin's interpreter failed")
            raise OutputWrong(f"the plugin's interpreter failed: {type(error).__name__}") from error
        if len(decisions) != n_rows or not all(_is_decision(decision) for decision in decisions):
            raise OutputWrong("the plugin's interpreter gave something that is no decision")
        return decisions


def decide(
    interpreter: Interpreter, group_key: str, outputs: Mapping[str, FloatRows], dead_band: float
) -> Sequence[Decision]:
    """One decision a row.

    Raises:
        NotInterpretable: nothing says which direction the outputs mean.
        PredictionFailed: the outputs are not what they are named for, or a plugin's interpreter failed.
    """
    try:
        return interpreter.decide(outputs, dead_band)
    except Meaningless as error:
        raise NotInterpretable(group_key=group_key, reason=str(error)) from error
    except OutputWrong as error:
        raise PredictionFailed(group_key=group_key, reason=str(error)) from error


def load_interpreter(
    model: ModelFile,
    info: dict[str, Any],
    widths: Mapping[str, int],
    plugins: Plugins,
    sample: Callable[[], Mapping[str, FloatRows]] | None = None,
) -> Interpreter:
    """What the model's outputs mean: as a plugin says, else as its objective and its outputs' names say.

    `model` has its content, `info` is what the info file has, `widths` is how many numbers a row each output has, `sample` gives the
    outputs for some rows, where only these tell probabilities from other numbers. A plugin that fails here leaves the model
    without an interpreter: another's meaning might be the opposite.
    """
    try:
        given = plugins.load_interpreter(msgspec.structs.replace(model, probes=None), info)
        if given is not None:
            return PluginInterpreter(given)
    except Exception as error:
        log.exception("a plugin's mmserver_load_interpreter failed")
        return NoInterpreter(f"the plugin that should say what it means failed: {type(error).__name__}")
    try:
        if model.kind == XGBOOST:
            return _of_xgboost(model, info, widths)
        return _of_outputs(model, info, widths, sample)
    except ClassesUnclear as error:
        return NoInterpreter(f"{error}{_ASK_PLUGIN}")


# --- what mmserver knows itself -------------------------------------------------------------------------------------------


def _of_xgboost(model: ModelFile, info: dict[str, Any], widths: Mapping[str, int]) -> Interpreter:
    objective = model.objective
    if objective.startswith("multi:"):
        directions = class_directions(model.n_outputs, info, model.summary.get("classes"))
        is_number = widths[PREDICTION] < model.n_outputs  # multi:softmax predicts the class's number
        return ClassesInterpreter(directions, MARGIN if is_number else PREDICTION, is_margin=is_number)
    if model.n_outputs > 1:
        return NoInterpreter(f"it has {model.n_outputs} outputs{_ASK_PLUGIN}")
    if objective == "binary:hinge":
        return TwoLabelInterpreter(class_directions(2, info, model.summary.get("classes")), PREDICTION)
    if objective.startswith("binary:"):
        directions = class_directions(2, info, model.summary.get("classes"))
        return TwoClassInterpreter(directions, PREDICTION, is_logit=objective == "binary:logitraw")
    if objective in _RETURN_OBJECTIVES or (objective == "reg:quantileerror" and _is_median(model.content)):
        return ReturnInterpreter(PREDICTION, residual_spread(info))
    what = _NO_RETURN.get(objective, "something that mmserver does not know")
    return NoInterpreter(f"its objective is {objective}, which predicts {what}{_ASK_PLUGIN}")


def _of_outputs(
    model: ModelFile,
    info: dict[str, Any],
    widths: Mapping[str, int],
    sample: Callable[[], Mapping[str, FloatRows]] | None,
) -> Interpreter:
    """By the names of the outputs, which whoever made the model chose for what they are, and by what is said of the model."""
    classes = model.summary.get("classes")
    found, returns = meanings_of_outputs(model.objective, info, classes, widths)
    if found is not None and widths[found.name] > 1:
        is_margin = found.is_logit
        if is_margin is None and sample is not None and _are_probabilities(found.name, sample):
            is_margin = False
        directions = class_directions(widths[found.name], info, classes)
        return ClassesInterpreter(directions, found.name, is_margin=is_margin, expected_return=returns)
    if found is not None:
        return TwoClassInterpreter(class_directions(2, info, classes), found.name, is_logit=bool(found.is_logit))
    if returns is not None:
        return ReturnInterpreter(returns, residual_spread(info))
    shown = ", ".join(f"{name} ({width})" for name, width in list(widths.items())[:10])
    objective = f" of objective {model.objective}" if model.objective else ""
    return NoInterpreter(f"nothing says what the outputs {shown}{objective} mean{_ASK_INFO}{_ASK_PLUGIN}")


def _are_probabilities(name: str, sample: Callable[[], Mapping[str, FloatRows]]) -> bool:
    """Whether each row of a sample sums to 1, as no other numbers do; rows of nothing but 0 and 1 are labels."""
    try:
        rows = np.asarray(sample()[name], np.float64)
    except Exception as error:  # noqa: BLE001 (a plugin's; rows that nobody sent may be nothing to it)
        log.info("no sample of what %s holds: %s", name, error)
        return False
    in_range = bool(((rows >= 0.0) & (rows <= 1.0 + _ROUNDING)).all())
    return (
        in_range and bool((np.abs(rows.sum(axis=1) - 1.0) <= _SUM_ROUNDING).all()) and not np.isin(rows, (0, 1)).all()
    )


class _QuantileLoss(msgspec.Struct):
    quantile_alpha: str = ""


class _Objective(msgspec.Struct):
    quantile_loss_param: _QuantileLoss = msgspec.field(default_factory=_QuantileLoss)


class _Learner(msgspec.Struct):
    objective: _Objective


class _Document(msgspec.Struct):
    learner: _Learner


def _is_median(content: bytes) -> bool:
    """Whether the only quantile that an XGBoost document predicts is the middle one."""
    try:
        text = msgspec.json.decode(content, type=_Document).learner.objective.quantile_loss_param.quantile_alpha
        return float(text.strip("[]()")) == 0.5
    except (msgspec.MsgspecError, ValueError):
        return False


# --- arithmetic -----------------------------------------------------------------------------------------------------------


def _normal(z: float) -> float:
    """The share of a normal distribution below z standard deviations."""
    return 0.5 * (1.0 + math.erf(z / _SQRT2))


def _logistic(value: float) -> float:
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    odds = math.exp(value)
    return odds / (1.0 + odds)


def _softmax(margins: list[float]) -> list[float]:
    largest = max(margins)
    terms = [math.exp(margin - largest) for margin in margins]
    total = math.fsum(terms)
    return [term / total for term in terms]


def _probability(value: float) -> float:
    if 0.0 <= value <= 1.0:
        return value
    if 1.0 < value <= 1.0 + _ROUNDING:
        return 1.0
    raise OutputWrong(f"{value} is named a probability")


def _named(directions: Sequence[Direction]) -> str:
    return ", ".join(f"{number} {direction}" for number, direction in enumerate(directions))


def _is_decision(value: object) -> bool:
    if not isinstance(value, Decision) or value.direction not in DIRECTION_CODES:
        return False
    shares_fit = all(
        share is None or (_is_number(share) and 0.0 <= share <= 1.0) for share in (value.confidence, value.probability)
    )
    return shares_fit and (value.expected_return is None or _is_number(value.expected_return))


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
