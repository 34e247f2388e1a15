"""What the outputs of a model are that is no XGBoost document: which of them holds classes, which a return.

The names of outputs say it, or the model's objective and info file do; where neither does, nothing is made of them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from mmserver.serving.training_facts import ClassesUnclear, has_class_names, stated_texts

Stated: TypeAlias = Literal["logits", "probabilities", "return"]
EXPECTED_RETURN = "expected_return"
PROBABILITIES = "probabilities"
PREDICTION = "prediction"

_SAYS_OUTPUT = frozenset(("output", "output_kind", "output_type"))
_STATED: Mapping[str, Stated] = {
    **dict.fromkeys(("logit", "logits", "log_probabilities", "log_softmax"), "logits"),
    **dict.fromkeys(("probability", "probabilities", "proba", "probs", "softmax"), "probabilities"),
    **dict.fromkeys(("return", "returns", "expected_return"), "return"),
}
_SAYS_TASK = frozenset(
    ("task", "task_type", "problem", "problem_type", "estimator_type", "model_type", "objective", "loss", "loss_function")
)  # fmt: skip
_SAYS_N_CLASSES = frozenset(("n_classes", "num_classes", "num_class"))
_CLASSIFIER_WORDS = ("bcewith", "binary", "classif", "crossentropy", "logistic", "logloss", "multiclass", "multinomial",
                     "nllloss", "softmax", "softprob")  # fmt: skip
_REGRESSOR_WORDS = ("huber", "meanabsolute", "meansquared", "regress", "rmse", "smoothl1", "squarederror")
_REGRESSOR_NAMES = frozenset(("l1", "l2", "mae", "mse"))
_NOT_A_RETURN_WORDS = ("bcewith", "binary", "class", "count", "crossentropy", "gamma", "label", "logistic", "logloss", "multi",
                       "poisson", "quantile", "rank", "softmax", "softprob", "survival", "tweedie")  # fmt: skip

_RETURN_WORDS = frozenset(("return", "returns"))
_PREDICTION_NAMES = frozenset((PREDICTION, "predictions", "regression", "regressor", "variable"))
"""Of a regressor's one output; `variable` is what skl2onnx and onnxmltools call it."""
_LABEL_WORDS = frozenset(("class", "label", "labels"))
_LOGIT_WORDS = frozenset(("logit", "logits", "logprob", "logprobs", "logsoftmax"))
_PROBABILITY_WORDS = frozenset(("prob", "proba", "probas", "probs", "probability", "probabilities", "softmax"))
_BESIDE = frozenset(
    ("", "class", "classes", "dense", "direction", "expected", "fc", "forecast", "head", "linear", "log", "mean", "model", "out", "output",
     "outputs", "pred", "predicted", "signal")
)  # fmt: skip
"""Words that change nothing beside the others; `probability_of_default`, `prob_down` and `return_volatility` are something else."""
_COUNTED = re.compile(r"\d+[a-z]{0,3}")
"""A number, or a horizon such as `5d`."""


class ClassOutput(NamedTuple):
    """The output that holds one number for each class, or one for the second of two.

    `is_logit`: whether softmax or the logistic function make probabilities of it; None where nothing says what it is.
    """

    name: str
    is_logit: bool | None


class Meanings(NamedTuple):
    """What is known of a model's outputs; a model may have both heads."""

    classes: ClassOutput | None
    expected_return: str | None


def meanings_of_outputs(
    objective: str, info: Mapping[str, Any], classes: object, widths: Mapping[str, int]
) -> Meanings:
    """Which output is what. `classes` is what the classifier itself calls its classes, `widths` the numbers a row of each output.

    Raises:
        ClassesUnclear: the info file and the names of the outputs contradict each other.
    """
    stated = _stated_output(info)
    returns = [name for name, width in widths.items() if width == 1 and _is_return(name)]
    head = EXPECTED_RETURN if EXPECTED_RETURN in returns else returns[0] if len(returns) == 1 else None
    others = [name for name in widths if name not in returns and (_kind_by_name(name) or not _is_label(name))]
    is_classifier = _says_classes(objective, info, classes, widths)
    found = _class_output(others, stated, is_classifier=is_classifier, widths=widths)
    if found is not None and widths[found.name] == 1 and head is not None:
        return Meanings(None, None)  # two heads of one number each: which of them decides?
    plain = PREDICTION if PREDICTION in others else others[0] if len(others) == 1 else None
    is_one_number = head is None and found is None and plain is not None and widths[plain] == 1
    if is_one_number and (stated == "return" or (not is_classifier and _is_regressor(str(plain), objective, info))):
        head = plain
    return Meanings(found, head)


def _class_output(
    names: list[str], stated: Stated | None, *, is_classifier: bool, widths: Mapping[str, int]
) -> ClassOutput | None:
    by_kind = {kind: [name for name in names if _kind_by_name(name) == kind] for kind in ("probabilities", "logits")}
    if stated in by_kind:
        other = "logits" if stated == "probabilities" else "probabilities"
        if not by_kind[stated] and by_kind[other]:
            raise ClassesUnclear(f"its info says that it gives {stated}, but its output is called {by_kind[other][0]}")
        candidates = by_kind[stated] or names
        return ClassOutput(candidates[0], stated == "logits") if len(candidates) == 1 else None
    if PROBABILITIES in names:
        return ClassOutput(PROBABILITIES, is_logit=False)
    for kind, named in by_kind.items():
        if named:
            return ClassOutput(named[0], kind == "logits") if len(named) == 1 else None
    if is_classifier and len(names) == 1 and widths[names[0]] > 1:
        return ClassOutput(names[0], None)
    return None


def _stated_output(info: Mapping[str, Any]) -> Stated | None:
    """What the info file says that the model gives.

    Raises:
        ClassesUnclear: two things.
    """
    said = {_STATED[text] for text in stated_texts(info, _SAYS_OUTPUT) if text in _STATED}
    if len(said) > 1:
        raise ClassesUnclear(f"its info says that it gives {' and '.join(sorted(said))}")
    return said.pop() if said else None


def _says_classes(objective: str, info: Mapping[str, Any], classes: object, widths: Mapping[str, int]) -> bool:
    """Whether the model is said to be a classifier."""
    if any(_has_word(text, _CLASSIFIER_WORDS) for text in (objective, *stated_texts(info, _SAYS_TASK))):
        return True
    n_classes = stated_texts(info, _SAYS_N_CLASSES)
    several = {width for width in widths.values() if width > 1}
    if isinstance(classes, list) and len(classes) in several:
        return True
    return any(str(width) in n_classes or has_class_names(info, width) for width in several)


def _is_regressor(name: str, objective: str, info: Mapping[str, Any]) -> bool:
    """Whether the one number of that name is said to be a plain prediction, and nothing says that it is of another kind."""
    said = (objective, *stated_texts(info, _SAYS_TASK))
    if any(_has_word(text, _NOT_A_RETURN_WORDS) for text in said):
        return False
    return name.lower() in _PREDICTION_NAMES or any(
        _has_word(text, _REGRESSOR_WORDS) or text.lower() in _REGRESSOR_NAMES for text in said
    )


def _has_word(text: str, words: Iterable[str]) -> bool:
    """Whether one of the words is in the text, however that joins them: `cross_entropy`, `CrossEntropyLoss`."""
    plain = re.sub(r"[^a-z0-9]+", "", text.lower())
    return any(word in plain for word in words)


def _kind_by_name(name: str) -> Literal["logits", "probabilities"] | None:
    words = _telling_words(name)
    if not words:
        return None
    if words <= _LOGIT_WORDS or ("log" in _words(name) and words <= _PROBABILITY_WORDS):
        return "logits"  # softmax gives back the probabilities of their logarithms, too
    return "probabilities" if words <= _PROBABILITY_WORDS else None


def _is_return(name: str) -> bool:
    words = _telling_words(name)
    return bool(words) and words <= _RETURN_WORDS


def _is_label(name: str) -> bool:
    return bool(_words(name) & _LABEL_WORDS)


def _telling_words(name: str) -> frozenset[str]:
    return frozenset(word for word in _words(name) if word not in _BESIDE and not _COUNTED.fullmatch(word))


def _words(name: str) -> frozenset[str]:
    return frozenset(re.split(r"[^a-z0-9]+", name.lower()))
