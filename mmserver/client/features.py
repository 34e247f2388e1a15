"""Features as users have them, as the request's JSON: nothing is guessed, and nothing becomes "missing" by an accident.

The trap: a JSON encoder writes infinity as null, which a model takes for a missing value. Only NaN and None mean missing.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Row: TypeAlias = list[float | None]
Encodable: TypeAlias = Row | list[Row] | dict[str, float | None]
Features: TypeAlias = (
    npt.NDArray[Any] | Sequence[float | None] | Sequence[Sequence[float | None]] | Mapping[str, float | None]
)
"""A vector in the order of the model's factors, a matrix of timesteps × features, or numbers by factor name."""

MAX_NUMBER_BYTES = 8
"""Longer floats have no Python number of their own."""
_NUMBER_KINDS = "fiub"
_FLOATS = frozenset({float})
_NAMES = frozenset({str})


def encodable(features: Features) -> Encodable:
    """What the request carries.

    Leading axes of length 1 are a batch of one and are left out. Masked values are missing. A pandas Series with names goes by name.

    Raises:
        TypeError: no numbers, or a table, whose columns an array would not keep.
        ValueError: an infinite number, an empty or ragged list, or an array of several samples.
    """
    if isinstance(features, np.ndarray):
        return _from_array(features)
    if isinstance(features, list | tuple):
        return _from_list(features)
    if isinstance(features, Mapping):
        return _from_names(features)
    return _from_foreign(features)


def without_mask(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array with NaN where it is masked; `asarray` would let the hidden values through."""
    if not isinstance(array, np.ma.MaskedArray):
        return array
    filled: npt.NDArray[Any] = np.ma.filled(array.astype(np.float64), np.nan)
    return filled


def _from_list(features: Sequence[Any]) -> Encodable:
    if features and isinstance(features[0], list | tuple | np.ndarray):
        if len({len(row) if isinstance(row, list | tuple | np.ndarray) else -1 for row in features}) != 1:
            raise ValueError("features: the rows have different lengths")
        return _from_array(np.asarray([[_number(value, "features") for value in row] for row in features], np.float64))
    if not features:
        raise ValueError("features: there are none")
    if _are_finite_floats(features):
        return list(features)
    return [_number_or_none(value, f"features[{index}]") for index, value in enumerate(features)]


def _from_names(features: Mapping[Any, Any]) -> dict[str, float | None]:
    if not features:
        raise ValueError("features: there are none")
    if _are_finite_floats(features.values()) and _NAMES.issuperset(map(type, features)):
        return dict(features)
    found: dict[str, float | None] = {}
    for name, value in features.items():
        if not isinstance(name, str):
            raise TypeError(f"features: the factor name {name!r} is no text")
        found[name] = _number_or_none(value, f"features[{name!r}]")
    return found


def _are_finite_floats(values: Collection[Any]) -> bool:
    """The quick proof that there is nothing to convert."""
    return _FLOATS.issuperset(map(type, values)) and all(map(math.isfinite, values))


def _from_foreign(features: Any) -> Encodable:
    """Objects of other libraries, by what they can do: none is imported here."""
    if hasattr(features, "columns"):
        raise TypeError("features: a table; give one of its rows, as numbers by name: table.iloc[-1].to_dict()")
    if hasattr(features, "index") and hasattr(features, "to_dict"):
        names = list(features.index)
        if names and all(isinstance(name, str) for name in names):
            if len(set(names)) != len(names):
                raise ValueError("features: a name is there twice")
            return _from_names(features.to_dict())
    if isinstance(features, str | bytes | set | frozenset) or not hasattr(features, "__len__"):
        raise TypeError(f"features: {type(features).__name__} is no vector, matrix or mapping of names")
    return _from_array(np.asarray(features))


def _from_array(array: npt.NDArray[Any]) -> Row | list[Row]:
    if array.dtype.kind == "O":
        array = np.asarray([_number(value, "features") for value in array.ravel()], np.float64).reshape(array.shape)
    if array.dtype.kind not in _NUMBER_KINDS:
        raise TypeError(f"features: an array of {array.dtype} has no numbers")
    array = without_mask(array)
    if array.dtype.kind == "b" or array.dtype.itemsize > MAX_NUMBER_BYTES:
        array = array.astype(np.float64)
    if array.size == 0:
        raise ValueError(f"features: an array of shape {array.shape} is empty")
    shape = array.shape
    while array.ndim > 2 and len(array) == 1:
        array = array[0]
    if array.ndim > 2:
        raise ValueError(
            f"features: an array of shape {shape} is not one sample; ask for samples with infer() or batch_predict(), "
            "or give the one sample of a model with so many axes as a vector: array.reshape(-1)"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _with_missing(array)
    return array.tolist() if array.ndim else [array.item()]


def _with_missing(array: npt.NDArray[Any]) -> Row | list[Row]:
    infinite = np.argwhere(np.isinf(array))
    if len(infinite):
        place = "".join(f"[{index}]" for index in infinite[0])
        raise ValueError(f"features{place} is infinite; NaN and None mean missing")
    found = np.atleast_1d(array).astype(object)
    found[np.isnan(np.atleast_1d(array))] = None
    return found.tolist()  # type: ignore[no-any-return]


def _number(value: Any, place: str) -> float:
    """The number, NaN where there is none."""
    found = _number_or_none(value, place)
    return math.nan if found is None else found


def _number_or_none(value: Any, place: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"{place}: an array is no number")
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"{place}: {type(value).__name__} is no number")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{place}: {error}") from error
    if math.isinf(number):
        raise ValueError(f"{place} is infinite; NaN and None mean missing")
    return None if math.isnan(number) else number
