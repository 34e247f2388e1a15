"""From margins to what XGBoost's own predict returns: each objective's transformation, in float32 as there.

A float32 exponential has no one right last bit: the C library's is taken, which XGBoost calls too, and not numpy's own.
"""

import ctypes
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from mmserver.formats import FloatRows

LinkFunction: TypeAlias = Callable[[FloatRows], FloatRows]

_SIGMOID_MAX = np.float32(88.7)
"""XGBoost's `Sigmoid` takes no exponential of more, which would be infinite."""

_EXP_MAX = 88.722839
"""Beyond this an exponential is more than float32 holds."""


def link_of(objective: str) -> LinkFunction | None:
    """The function from margins [n, n_outputs] to predictions [n, width]; None where they are the margins themselves.

    Source:
        XGBoost 3.2, `PredTransform` of each objective; `Sigmoid`, `Softmax` and `FindMaxIndex` in src/common/math.h.
    """
    if objective in ("reg:logistic", "binary:logistic"):
        return _sigmoid_with(c_float_function("expf", _exp))
    if objective == "survival:aft":  # alone in taking the exponential in double
        return _exponential_with(_exp)
    if objective in ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox"):
        return _exponential_with(c_float_function("expf", _exp))
    if objective == "multi:softprob":
        return _softmax_with(c_float_function("expf", _exp))
    return {"multi:softmax": _class_number, "binary:hinge": _is_positive}.get(objective)


def c_float_function(name: str, otherwise: Callable[[float], float]) -> Callable[[float], float]:
    """A float32 function of the C library that this process already uses; `otherwise` where it has none of that name.

    To look for the library's file instead would start a process, which the guard kills.
    """
    try:
        function: Any = getattr(ctypes.PyDLL(None), name)  # PyDLL: letting other threads in takes longer than the call
    except AttributeError:
        return otherwise
    function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float
    called: Callable[[float], float] = function
    return called


def _exp(value: float) -> float:
    return math.inf if value > _EXP_MAX else math.exp(value)


def _mapped(function: Callable[[float], float], values: FloatRows) -> FloatRows:
    results = [function(value) for value in values.ravel().tolist()]
    return np.array(results, np.float32).reshape(values.shape)


def _exponential_with(expf: Callable[[float], float]) -> LinkFunction:
    return lambda margins: _mapped(expf, margins)


def _sigmoid_with(expf: Callable[[float], float]) -> LinkFunction:
    one = np.float32(1)  # XGBoost adds 1e-16 besides, which no float32 above 1 notices

    def sigmoid(margins: FloatRows) -> FloatRows:
        predictions: FloatRows = one / (_mapped(expf, np.minimum(-margins, _SIGMOID_MAX)) + one)
        return predictions

    return sigmoid


def _softmax_with(expf: Callable[[float], float]) -> LinkFunction:
    def softmax(margins: FloatRows) -> FloatRows:
        with np.errstate(over="ignore", invalid="ignore"):  # far below the largest is -inf, whose exponential is 0
            distances = margins - np.fmax.reduce(margins, axis=1, keepdims=True)
        terms = _mapped(expf, distances)
        sums = np.add.accumulate(terms.astype(np.float64), axis=1)  # one class after another, in double
        predictions: FloatRows = np.divide(terms, sums[:, -1:].astype(np.float32))
        return predictions

    return softmax


def _class_number(margins: FloatRows) -> FloatRows:
    """The first of the largest."""
    numbers: FloatRows = np.argmax(margins, axis=1, keepdims=True).astype(np.float32)
    return numbers


def _is_positive(margins: FloatRows) -> FloatRows:
    return (margins > 0).astype(np.float32)
