"""The exact evaluator: margins equal to XGBoost's own to the last bit, from the validated arrays and numpy alone."""

import ctypes
import math

import numpy as np
from numpy.typing import NDArray

from mmserver.trees.model import TreeModel
from mmserver.trees.objectives import OBJECTIVES, Link

_BLOCK_CELLS = 1 << 17
"""Rows times trees that are walked at once: small enough to stay in the cache, large enough to pay for numpy's calls."""

_MAX_CATEGORY = float(1 << 24)


def supports_exactly(model: TreeModel) -> str | None:
    """Why the evaluator cannot promise XGBoost's bits for that model, or None where it can."""
    if model.booster == "dart":
        return "dart weighs its trees in another order of float32 operations"
    return None


def base_margins(model: TreeModel) -> NDArray[np.float32]:
    """What each output has before any tree.

    Shapes:
        [n_outputs]

    Source:
        XGBoost's ProbToMargin of each objective, in float32, with the C library's logf as there.
    """
    link = OBJECTIVES[model.objective].link
    margins = [_margin(np.float32(score), link) for score in model.base_score]
    return np.array(margins * (model.n_outputs // len(margins)), np.float32)


class Evaluator:
    """One model, ready to walk; shared by all threads, holds no state between calls.

    Raises:
        ValueError: the model is not one that `supports_exactly` allows.
    """

    def __init__(self, model: TreeModel) -> None:
        reason = supports_exactly(model)
        if reason is not None:
            raise ValueError(reason)
        self.n_features = model.n_features
        self.n_outputs = model.n_outputs
        self.depth = model.depth
        self.roots = model.node_offsets[:-1].astype(np.int64)
        self.base = base_margins(model)
        self.trees_of_output = [np.flatnonzero(model.tree_output == output) for output in range(model.n_outputs)]
        counts = np.diff(model.node_offsets)
        base = np.repeat(model.node_offsets[:-1], counts)
        own = np.arange(base.size)
        is_leaf = model.left == -1
        self.children = np.empty(2 * base.size, np.int64)
        self.children[0::2] = np.where(is_leaf, own, base + model.left)
        self.children[1::2] = np.where(is_leaf, own, base + model.right)
        self.split_index = np.where(is_leaf, 0, model.split_index).astype(np.int64)
        self.split_condition = model.split_condition
        self.default_right = ~model.default_left
        self.categories = _Categories(model) if model.has_categorical else None

    def margins(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """What `Booster.predict(output_margin=True)` gives for these rows; NaN is missing, infinities are values.

        Shapes:
            rows: [n, n_features]. Returns [n, n_outputs].
        """
        if rows.ndim != 2 or rows.shape[1] != self.n_features or rows.dtype != np.float32:
            raise ValueError(f"rows are {rows.dtype} {rows.shape}, not float32 [n, {self.n_features}]")
        n_rows = rows.shape[0]
        result = np.empty((n_rows, self.n_outputs), np.float32)
        step = max(1, _BLOCK_CELLS // max(1, self.roots.size))
        for start in range(0, n_rows, step):
            block = rows[start : start + step]
            leaves = self.split_condition[self._leaf_nodes(block)]
            result[start : start + step] = self._sums(leaves)
        return result

    def _leaf_nodes(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """The leaf that each row ends in, in each tree: [n, n_trees]. All trees go down one level at a time."""
        flat = np.ascontiguousarray(rows).reshape(-1)
        first = np.arange(rows.shape[0], dtype=np.int64)[:, None] * self.n_features
        nodes = np.broadcast_to(self.roots, (rows.shape[0], self.roots.size))
        missing_anywhere = bool(np.isnan(flat).any())
        for _ in range(self.depth):
            values = flat[first + self.split_index[nodes]]
            goes_right = ~(values < self.split_condition[nodes])
            if self.categories is not None:
                goes_right = self.categories.goes_right(nodes, values, goes_right)
            if missing_anywhere:
                goes_right = np.where(np.isnan(values), self.default_right[nodes], goes_right)
            nodes = self.children[2 * nodes + goes_right]
        return nodes

    def _sums(self, leaves: NDArray[np.float32]) -> NDArray[np.float32]:
        """Base margin plus leaves, one float32 addition after another in tree order, as XGBoost sums."""
        result = np.empty((leaves.shape[0], self.n_outputs), np.float32)
        for output, trees in enumerate(self.trees_of_output):
            terms = np.empty((leaves.shape[0], trees.size + 1), np.float32)
            terms[:, 0] = self.base[output]
            terms[:, 1:] = leaves[:, trees]
            result[:, output] = np.add.accumulate(terms, axis=1)[:, -1]
        return result


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
        self, nodes: NDArray[np.int64], values: NDArray[np.float32], otherwise: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """At categorical splits whether the value's category is in the set (an impossible code is not); else `otherwise`."""
        width = self.width[nodes]
        is_code = (values >= 0) & (values < _MAX_CATEGORY)
        code = np.where(is_code, values, 0).astype(np.int64)
        is_known = is_code & (code < width)
        in_set = is_known & self.bits[np.where(is_known, self.first[nodes] + code, 0)]
        return np.where(width > 0, in_set, otherwise)


def _margin(score: np.float32, link: Link) -> np.float32:
    if link is Link.LOGIT:
        return -_logf(np.float32(1.0) / score - np.float32(1.0))
    return _logf(score) if link is Link.LOG else score


def _logf(value: np.float32) -> np.float32:
    """The C library's float32 logarithm; numpy's own differs from it in the last bit now and then."""
    try:
        logf = ctypes.CDLL(
            None
        ).logf  # already loaded; to look for its file would start a process, which the guard kills
    except AttributeError:
        return np.float32(math.log(value))
    logf.argtypes, logf.restype = [ctypes.c_float], ctypes.c_float
    return np.float32(logf(float(value)))
