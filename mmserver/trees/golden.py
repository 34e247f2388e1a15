"""Probe rows that tell two readers of one model apart: at, just below and just above its own thresholds, and with values missing."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from mmserver.trees.model import TreeModel

_HUGE = np.float32(1e30)
_INFINITY = np.float32(np.inf)

N_TIE_ROWS = 8
N_INFINITE_ROWS = 8


def golden_rows(model: TreeModel, n: int = 32) -> NDArray[np.float32]:
    """`n` rows drawn from the model's own split points, the same ones for the same trees.

    The first are all missing, all zero, all 1e30, all -1e30; the others mix values exactly at a threshold, the float32
    next to it on either side, values anywhere in the thresholds' range, and (in every third row) missing ones.
    Categorical features get codes that the model knows, and the next one.

    Shapes:
        [n, n_features]
    """
    random = np.random.RandomState(_seed(model))  # its stream is frozen by numpy, which the newer generators' are not
    rows = np.empty((n, model.n_features), np.float32)
    thresholds = _thresholds_by_feature(model)
    codes = _codes_by_feature(model)
    for feature in range(model.n_features):
        if feature in codes:
            rows[:, feature] = random.randint(0, codes[feature] + 2, n)
        else:
            rows[:, feature] = _column(thresholds.get(feature, np.zeros(1, np.float32)), n, random)
    is_numeric = np.array([feature not in codes for feature in range(model.n_features)])
    for index, value in enumerate((np.float32(np.nan), np.float32(0), _HUGE, -_HUGE)[:n]):
        rows[index, is_numeric if index > 1 else slice(None)] = value
    missing = random.random_sample(rows.shape) < 0.3
    missing[:4] = False
    missing[np.arange(n) % 3 != 0] = False
    rows[missing] = np.nan
    return rows


def hard_rows(model: TreeModel, missing: float | None) -> NDArray[np.float32]:
    """Rows that no one publishes, for two readers that must agree on everything.

    Half the ties have each value at a threshold of its feature, from the lowest to the highest; the others meet one threshold
    after another on their way down one tree. Then come infinities, alone and among ties, values that mean "missing" and NaN.

    Shapes:
        [N_TIE_ROWS + N_INFINITE_ROWS, n_features]
    """
    random = np.random.RandomState(_seed(model))
    ties = np.zeros((N_TIE_ROWS, model.n_features), np.float32)
    thresholds, codes = _thresholds_by_feature(model), _codes_by_feature(model)
    for feature in range(model.n_features):
        own = thresholds.get(feature, np.zeros(1, np.float32))
        ties[:, feature] = own[np.linspace(0, own.size - 1, N_TIE_ROWS).astype(np.intp)]
        if feature in codes:
            ties[:, feature] = np.arange(N_TIE_ROWS) % (codes[feature] + 2)
    half = N_TIE_ROWS // 2
    for row, tree in zip(ties[half:], np.linspace(0, model.n_trees - 1, half).astype(int).tolist(), strict=True):
        _meet_thresholds(model, tree, row)
    kinds = np.array([_INFINITY, -_INFINITY, np.nan, np.nan if missing is None else missing], np.float32)
    infinite = kinds[random.randint(0, kinds.size, (N_INFINITE_ROWS, model.n_features))]
    infinite[4:] = np.where(random.random_sample(infinite[4:].shape) < 0.5, infinite[4:], ties[:4])
    infinite[:2] = [[_INFINITY], [-_INFINITY]]
    infinite[2, 0::2], infinite[2, 1::2] = _INFINITY, -_INFINITY
    infinite[3] = kinds[3]
    for index in range(3, N_INFINITE_ROWS):
        infinite[index, index % model.n_features] = _INFINITY if index % 2 else -_INFINITY
    return np.concatenate([ties, infinite])


def _meet_thresholds(model: TreeModel, tree: int, row: NDArray[np.float32]) -> None:
    """Go down the tree, giving the row the threshold of each numeric split at which its feature stands for the first time."""
    start = int(model.node_offsets[tree])
    categorical = set(model.category_nodes.tolist())
    met: set[int] = set()
    node = start
    while model.left[node] != -1:
        feature = int(model.split_index[node])
        if feature not in met and node not in categorical:
            met.add(feature)
            row[feature] = model.split_condition[node]
        goes_right = node not in categorical and row[feature] >= model.split_condition[node]
        node = start + int(model.left[node]) + int(goes_right)


def _column(thresholds: NDArray[np.float32], n: int, random: np.random.RandomState) -> NDArray[np.float32]:
    exact = thresholds[random.randint(0, thresholds.size, n)]
    low, high = thresholds.min(), thresholds.max()
    with np.errstate(over="ignore"):
        between = (low + (np.float64(high) - low) * random.random_sample(n)).astype(np.float32)
        kinds = np.stack([exact, np.nextafter(exact, -_INFINITY), np.nextafter(exact, _INFINITY), between])
    picked = kinds[random.randint(0, len(kinds), n), np.arange(n)]
    return np.where(np.isfinite(picked), picked, exact).astype(np.float32)


def _thresholds_by_feature(model: TreeModel) -> dict[int, NDArray[np.float32]]:
    is_split = model.left != -1
    is_split[model.category_nodes] = False
    features, thresholds = model.split_index[is_split], model.split_condition[is_split]
    if not features.size:
        return {}
    order = np.lexsort((thresholds, features))
    found, starts = np.unique(features[order], return_index=True)
    return dict(zip(found.tolist(), np.split(thresholds[order], starts[1:]), strict=True))


def _codes_by_feature(model: TreeModel) -> dict[int, int]:
    """The largest category of each categorical feature."""
    largest: dict[int, int] = {}
    if model.category_nodes.size:
        widest = np.maximum.reduceat(model.category_values, model.category_offsets[:-1])
        for feature, code in zip(model.split_index[model.category_nodes].tolist(), widest.tolist(), strict=True):
            largest[feature] = max(code, largest.get(feature, 0))
    return largest


def _seed(model: TreeModel) -> int:
    digest = hashlib.sha256(np.int64(model.n_features).tobytes())
    digest.update(model.split_index.tobytes())
    digest.update(model.split_condition.tobytes())
    return int.from_bytes(digest.digest()[:4], "little")
