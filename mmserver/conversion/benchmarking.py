"""How long calls take, side by side: in turns on this thread, so that what else the machine does hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import msgspec
import numpy as np

from mmserver.conversion.graph_rewriting import opened_for
from mmserver.formats import FloatRows

N_ROUNDS = 200
N_WARM_UP = 20
"""Rounds that are not counted: kernels are chosen and buffers made in the first."""
_PLAIN: Mapping[str, Callable[[], object]] = MappingProxyType({})


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What one call took.

    Units:
        p50_ms, p99_ms: milliseconds; with fewer than a hundred calls, p99 is the longest.
    """

    p50_ms: float
    p99_ms: float
    n_calls: int


def timed(
    calls: Mapping[str, Callable[[], object]], *, n_rounds: int = N_ROUNDS, n_warm_up: int = N_WARM_UP
) -> dict[str, Timing]:
    """Every call once a round, by its name.

    Raises:
        ValueError: no rounds.
    """
    if n_rounds < 1:
        raise ValueError(f"{n_rounds} rounds measure nothing")
    taken_s: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(n_warm_up + n_rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            took_s = time.perf_counter() - began
            if turn >= n_warm_up:
                taken_s[name].append(took_s)
    return {name: timing_of(values) for name, values in taken_s.items()}


def timing_of(taken_s: list[float]) -> Timing:
    """The figures of some calls, each given in seconds."""
    ordered = sorted(taken_s)
    p99_s = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return Timing(p50_ms=statistics.median(ordered) * 1e3, p99_ms=p99_s * 1e3, n_calls=len(ordered))


def timed_models(
    models: Mapping[str, bytes],
    rows: FloatRows,
    *,
    beside: Mapping[str, Callable[[], object]] = _PLAIN,
    n_rounds: int = N_ROUNDS,
) -> dict[str, Timing]:
    """The first row through each ONNX model, in this process and on one thread; `beside` are other calls in the same rounds.

    Shapes:
        rows: at least one; n_rows × n_features, or n_rows × the shape of a row.

    Raises:
        Undecodable: a model that cannot be run, or not on such a row.
    """
    row = np.ascontiguousarray(rows[:1], np.float32)
    calls: dict[str, Callable[[], object]] = dict(beside)
    calls.update((name, partial(opened_for(content, row).run, row)) for name, content in models.items())
    return timed(calls, n_rounds=n_rounds)
