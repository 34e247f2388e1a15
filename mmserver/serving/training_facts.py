"""What info files and classifiers say that a decision rests on: the spread of the residuals, the meaning of the classes.

Only what is said is used. A name that is not known here means nothing, and two that contradict each other are refused.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmserver.formats import Direction

_SPREAD_NAMES = frozenset(
    ("residual_std", "residual_stdev", "residual_sigma", "residual_spread", "residuals_std", "resid_std", "std_residual",
     "std_residuals", "error_std")
)  # fmt: skip
_ACCURACY_NAMES = frozenset(("accuracy", "acc", "accuracy_score"))
_HELD_OUT = ("test", "valid", "validation", "val", "oos", "out_of_sample", "holdout", "held_out", "cv")
_SEEN = ("train", "training", "in_sample", "insample", "fit")
_CLASS_KEYS = frozenset(
    ("classes", "class_names", "class_labels", "class_map", "class_mapping", "label_names", "label_map", "label_mapping",
     "labels", "target_names", "idx_to_class", "class_to_idx", "index_to_label", "label_to_index")
)  # fmt: skip
_DIRECTION_BY_NAME: Mapping[str, Direction] = {
    **dict.fromkeys(("buy", "long", "up", "bull", "bullish", "rise", "increase", "positive", "pos"), "BUY"),
    **dict.fromkeys(("sell", "short", "down", "bear", "bearish", "fall", "decrease", "negative", "neg"), "SELL"),
    **dict.fromkeys(("hold", "neutral", "flat", "none", "unchanged", "stay", "zero", "no_trade", "notrade"), "HOLD"),
}
_DIRECTION_BY_SIGN: Mapping[float, Direction] = {-1.0: "SELL", 0.0: "HOLD", 1.0: "BUY"}
_DIRECTION_BY_CODE: Mapping[float, Direction] = {0: "HOLD", 1: "BUY", 2: "SELL"}
_DEFAULTS: Mapping[int, tuple[Direction, ...]] = {2: ("SELL", "BUY"), 3: ("HOLD", "BUY", "SELL")}


class ClassesUnclear(Exception):
    """No direction can be given to every class; the text says why."""


def residual_spread(info: Mapping[str, Any]) -> tuple[str, float] | None:
    """The standard deviation of the residuals on data that the model was not trained on, and the key that says so.

    A root mean square error is none (it counts the bias too), nor is anything that is said of the training data.
    """
    return _held_out_number(info, _SPREAD_NAMES, lambda value: value > 0)


def accuracy(info: Mapping[str, Any]) -> float | None:
    """The share of right answers, as the file has it. A hit rate of a regressor's signs is something else."""
    found = _held_out_number(info, _ACCURACY_NAMES, lambda value: value >= 0)
    return found[1] if found else None


def class_directions(n_classes: int, info: Mapping[str, Any], of_classifier: object) -> tuple[Direction, ...]:
    """Which direction each class is, as the info file or the classifier names it; without names SELL, BUY for two classes
    and HOLD, BUY, SELL for three.

    `of_classifier` is the pickled classifier's own `classes_`, if it has any.

    Raises:
        ClassesUnclear: names that are no directions, that contradict each other, or none for another number of classes.
    """
    said = [(key, names) for key, value in _entries(info) if (names := _class_names(key, value, n_classes)) is not None]
    if isinstance(of_classifier, list) and of_classifier:
        if len(of_classifier) != n_classes:
            raise ClassesUnclear(f"the classifier names {len(of_classifier)} classes, and its output has {n_classes}")
        said.append(("the classifier", of_classifier))
    read = [_directions(source, names) for source, names in said]
    if not read and n_classes not in _DEFAULTS:
        raise ClassesUnclear(f"it has {n_classes} classes, and nothing says which direction each of them is")
    if len(set(read)) > 1:
        sources = " and ".join(source for source, _ in said)
        raise ClassesUnclear(f"{sources} name the classes differently")
    return read[0] if read else _DEFAULTS[n_classes]


def has_class_names(info: Mapping[str, Any], n_classes: int) -> bool:
    """Whether the info file names that many classes."""
    return any(_class_names(key, value, n_classes) is not None for key, value in _entries(info))


def stated_texts(info: Mapping[str, Any], keys: frozenset[str]) -> list[str]:
    """What stands under one of the keys, itself or in a mapping: texts in the form of a key, whole numbers as text."""
    found = [value for key, value in _entries(info) if key.rpartition(".")[2] in keys]
    return [
        _key(value) if isinstance(value, str) else str(value)
        for value in found
        if isinstance(value, str) or type(value) is int
    ]


def _held_out_number(info: Mapping[str, Any], names: frozenset[str], fits: Any) -> tuple[str, float] | None:
    """What is said of held-out data by name comes before what does not say of which data it is."""
    found: dict[bool, tuple[str, float]] = {}
    for key, value in _entries(info):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not fits(value):
            continue
        outer, _, inner = key.rpartition(".")
        says_held_out, bare = _split_data_name(inner)
        if bare not in names or _says(outer, _SEEN):
            continue
        is_held_out = says_held_out or _says(outer, _HELD_OUT)
        found.setdefault(is_held_out, (key, float(value)))
    return found.get(True) or found.get(False)


def _split_data_name(key: str) -> tuple[bool, str]:
    """(`test_residual_std` is of held-out data, `residual_std`)."""
    for word in _HELD_OUT:
        if key.startswith(f"{word}_"):
            return True, key.removeprefix(f"{word}_")
        if key.endswith(f"_{word}"):
            return True, key.removesuffix(f"_{word}")
    return False, key


def _says(key: str, words: tuple[str, ...]) -> bool:
    parts = f"_{key.replace('.', '_')}_"
    return any(f"_{word}_" in parts for word in words)


def _entries(info: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Members of the file and of the mappings in it, two levels deep, as `outer.inner` in lower case."""
    for name, value in info.items():
        yield _key(name), value
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                yield f"{_key(name)}.{_key(inner)}", inner_value
                if isinstance(inner_value, dict):
                    for last, last_value in inner_value.items():
                        yield f"{_key(name)}.{_key(inner)}.{_key(last)}", last_value


def _key(name: object) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_")


def _class_names(key: str, value: object, n_classes: int) -> list[Any] | None:
    """The names in class order; None where this says nothing of classes.

    A list or mapping counts by its key, or because all that it names are directions.

    Raises:
        ClassesUnclear: it names as many classes as there are, but not which is which.
    """
    if not isinstance(value, list | dict) or len(value) != n_classes:
        return None
    is_meant = key.rpartition(".")[2] in _CLASS_KEYS
    if isinstance(value, list):
        return value if is_meant or _are_directions(value) else None
    names = _names_from_mapping(key, value)
    if names is None and (is_meant or _are_directions(list(value.values()))):
        raise ClassesUnclear(f"{key} does not say which number each class has")
    return names if names is not None and (is_meant or _are_directions(names)) else None


def _are_directions(names: list[Any]) -> bool:
    return all(isinstance(name, str) and _key(name) in _DIRECTION_BY_NAME for name in names)


def _names_from_mapping(key: str, value: Mapping[str, Any]) -> list[Any] | None:
    """`{"0": "SELL", …}` or `{"SELL": 0, …}` as names in class order.

    Raises:
        ClassesUnclear: both sides may be the class numbers, and they are not the same.
    """
    numbers = list(range(len(value)))
    keys, values = [_number_or_text(k) for k in value], [_number_or_text(v) for v in value.values()]
    by_key, by_value = (sorted(side, key=str) == numbers for side in (keys, values))
    if by_key and by_value and keys != values:
        raise ClassesUnclear(f"{key} maps numbers to numbers, and does not say which of them are the classes")
    if by_key:
        return [values[keys.index(number)] for number in numbers]
    if by_value:
        return [keys[values.index(number)] for number in numbers]
    return None


def _number_or_text(value: object) -> Any:
    """Keys of JSON objects are texts, also where they were numbers."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else number
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _directions(source: str, names: list[Any]) -> tuple[Direction, ...]:
    values = [_number_or_text(name) for name in names]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if values == list(range(len(values))) and len(values) in _DEFAULTS:
            return _DEFAULTS[len(values)]
        by_number = _DIRECTION_BY_CODE if sorted(values) == [0, 1, 2] else _DIRECTION_BY_SIGN
        found = [by_number.get(value) for value in values]
    else:
        found = [_DIRECTION_BY_NAME.get(_key(value)) for value in values]
    directions = tuple(direction for direction in found if direction is not None)
    if len(directions) < len(names) or len(set(directions)) < len(directions):
        raise ClassesUnclear(f"{source} names the classes {names}, which are not directions")
    return directions
