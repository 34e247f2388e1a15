"""Many rows down all trees, one level at a time: for trees of any shape, with categorical splits or without."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmserver.formats import FloatRows
from mmserver.trees.model import TreeModel

_BLOCK_CELLS = 1 << 14
"""Rows times trees that are walked at once: few enough to stay in the cache, enough to pay for numpy's calls."""

_MAX_CATEGORY = float(1 << 24)

LIMITS = np.array([[-np.inf], [np.inf]], np.float32)
"""Below and above every threshold."""


class NodeWalk:
    """The nodes of all trees, one after another.

    Shapes:
        feature, threshold, left, value: one entry a node. `feature` is a column of the doubled row; `left` is the left child,
            and the right one stands after it. A leaf is its own left child, and its threshold NaN, so that nothing goes right.
        roots: one a tree, in the order of `trees`.
    """

    def __init__(self, model: TreeModel, trees: NDArray[np.intp], value: FloatRows) -> None:
        is_leaf = model.left == -1
        counts = np.diff(model.node_offsets)
        base = np.repeat(model.node_offsets[:-1], counts)
        self.n_features = model.n_features
        self.depth = model.depth
        self.value = value
        self.roots = model.node_offsets[trees].astype(np.intp)
        self.left = np.where(is_leaf, np.arange(is_leaf.size), base + model.left).astype(np.intp)
        column = model.split_index + np.where(model.default_left, 0, model.n_features)
        self.feature = np.where(is_leaf, 0, column).astype(np.intp)
        self.threshold = np.where(is_leaf, np.float32(np.nan), model.split_condition)
        self.categories = _Categories(model) if model.has_categorical else None

    @property
    def size_bytes(self) -> int:
        """Memory of the arrays."""
        arrays: list[NDArray[Any]] = [self.value, self.roots, self.left, self.feature, self.threshold]
        if self.categories is not None:
            arrays += [self.categories.bits, self.categories.width, self.categories.first]
        return sum(array.nbytes for array in arrays)

    def leaf_values(self, rows: FloatRows) -> FloatRows:
        """The value of the leaf that each row ends in, in each tree.

        Shapes:
            rows: [n, n_features]. Returns [n, n_trees].
        """
        n_trees = self.roots.size
        step = max(1, _BLOCK_CELLS // n_trees)
        values = np.empty((len(rows), n_trees), np.float32)
        for start in range(0, len(rows), step):
            self.value.take(self._leaves(rows[start : start + step]), out=values[start : start + step], mode="clip")
        return values

    def _leaves(self, rows: FloatRows) -> NDArray[np.intp]:
        cells = doubled(rows).ravel()
        first = np.arange(len(rows), dtype=np.intp)[:, None] * (2 * self.n_features)
        nodes = np.repeat(self.roots[None], len(rows), axis=0)
        missing = None
        if self.categories is not None:
            missing = np.repeat(np.isnan(rows)[:, None], 2, axis=1).ravel()
        for _ in range(self.depth):
            cell = self.feature.take(nodes)
            cell += first
            found = cells.take(cell)
            goes_right = found >= self.threshold.take(nodes)
            if self.categories is not None and missing is not None:
                goes_right = self.categories.goes_right(nodes, found, missing.take(cell), goes_right)
            nodes = self.left.take(nodes)
            nodes += goes_right
        return nodes


def doubled(rows: FloatRows) -> FloatRows:
    """Each row twice, with -inf where a value is missing and with +inf: no step need ask for NaN again.

    A split that sends missing values left looks into the first half (thresholds are finite), another into the second.

    Shapes:
        rows: [..., n]. Returns [..., 2, n].
    """
    return np.where(np.isnan(rows)[..., None, :], LIMITS, rows[..., None, :])


class _Categories:
    """The sets of categories that go right, as bits."""

    def __init__(self, model: TreeModel) -> None:
        widths = np.maximum.reduceat(model.category_values, model.category_offsets[:-1]).astype(np.int64) + 1
        first = np.cumsum(widths) - widths
        self.bits = np.zeros(int(widths.sum()), np.bool_)
        self.bits[np.repeat(first, np.diff(model.category_offsets)) + model.category_values] = True
        n_nodes = int(model.node_offsets[-1])
        self.width = np.zeros(n_nodes, np.int64)
        self.width[model.category_nodes] = widths
        self.first = np.zeros(n_nodes, np.int64)
        self.first[model.category_nodes] = first

    def goes_right(
        self,
        nodes: NDArray[np.intp],
        values: FloatRows,
        is_missing: NDArray[np.bool_],
        otherwise: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """At categorical splits whether the value's category is in the set (an impossible code is not).

        `otherwise` holds where the split is by a threshold or the value is missing.
        """
        width = self.width[nodes]
        is_code = (values >= 0) & (values < _MAX_CATEGORY)
        code = np.where(is_code, values, 0).astype(np.int64)
        is_known = is_code & (code < width)
        in_set = is_known & self.bits[np.where(is_known, self.first[nodes] + code, 0)]
        return np.where((width > 0) & ~is_missing, in_set, otherwise)
