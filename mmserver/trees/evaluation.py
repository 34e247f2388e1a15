"""The exact evaluator: margins equal to XGBoost's own to the last bit, from the validated arrays and numpy alone."""

import math

import numpy as np
from numpy.typing import NDArray

from mmserver.formats import FloatRows
from mmserver.trees.links import c_float_function
from mmserver.trees.model import TreeModel
from mmserver.trees.node_walk import NodeWalk
from mmserver.trees.objectives import OBJECTIVES, Link
from mmserver.trees.row_walk import row_walk_of

_FLOAT32 = np.dtype(np.float32)

_BLOCK_CELLS = 1 << 22
"""Rows times trees whose leaves are held at once: 16 MiB."""


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
        self.n_trees = model.n_trees
        self._base = base_margins(model)
        self._n_trees_by_output = np.bincount(model.tree_output, minlength=model.n_outputs)
        self._is_even = bool((self._n_trees_by_output == self._n_trees_by_output[0]).all())
        trees = np.argsort(model.tree_output, kind="stable")
        first = trees[(np.cumsum(self._n_trees_by_output) - self._n_trees_by_output)[self._n_trees_by_output > 0]]
        self._may_overflow = _may_overflow(model, self._base)
        with np.errstate(over="ignore"):
            value = _values_with_base(model, first, self._base)
        self._nodes = NodeWalk(model, trees, value)
        self._row_walk = row_walk_of(self._nodes) if self._is_even else None

    @property
    def size_bytes(self) -> int:
        """Memory that it holds."""
        return self._nodes.size_bytes + (self._row_walk.size_bytes if self._row_walk is not None else 0)

    def margins(self, rows: FloatRows) -> FloatRows:
        """What `Booster.predict(output_margin=True)` gives for these rows; NaN is missing, infinities are values.

        Shapes:
            rows: [n, n_features]. Returns [n, n_outputs].
        """
        if rows.ndim != 2 or rows.shape[1] != self.n_features or rows.dtype != _FLOAT32:
            raise ValueError(f"rows are {rows.dtype} {rows.shape}, not float32 [n, {self.n_features}]")
        if self._may_overflow:
            with np.errstate(over="ignore", invalid="ignore"):
                return self._margins(rows)
        return self._margins(rows)

    def _margins(self, rows: FloatRows) -> FloatRows:
        if self._row_walk is not None and len(rows) == 1:
            leaves = self._row_walk.leaf_values(rows[0])
            if self.n_outputs == 1:
                return np.add.accumulate(leaves)[-1:, None]
            return np.ascontiguousarray(np.add.accumulate(leaves.reshape(self.n_outputs, -1), axis=1)[None, :, -1])
        result = np.empty((len(rows), self.n_outputs), np.float32)
        step = max(1, _BLOCK_CELLS // self.n_trees)
        for start in range(0, len(rows), step):
            result[start : start + step] = self._sums(self._nodes.leaf_values(rows[start : start + step]))
        return result

    def _sums(self, leaves: FloatRows) -> FloatRows:
        """Base margin plus leaves, one float32 addition after another in tree order, as XGBoost sums."""
        if self._is_even:
            return np.add.accumulate(leaves.reshape(len(leaves), self.n_outputs, -1), axis=2)[:, :, -1]
        result = np.empty((len(leaves), self.n_outputs), np.float32)
        end = 0
        for output, n_trees in enumerate(self._n_trees_by_output.tolist()):
            start, end = end, end + n_trees
            own = np.add.accumulate(leaves[:, start:end], axis=1)
            result[:, output] = own[:, -1] if n_trees else self._base[output]
        return result


def _values_with_base(model: TreeModel, first_trees: NDArray[np.intp], base: FloatRows) -> FloatRows:
    """The value of every leaf; those of each output's first tree have its base margin in them, where XGBoost adds it too."""
    value = model.split_condition.copy()
    for tree in first_trees.tolist():
        value[model.node_offsets[tree] : model.node_offsets[tree + 1]] += base[model.tree_output[tree]]
    return value


def _may_overflow(model: TreeModel, base: FloatRows) -> bool:
    """Whether any sum of leaves could leave the range of float32."""
    size = np.where(model.left == -1, np.abs(model.split_condition), 0).astype(np.float64)
    largest = np.maximum.reduceat(size, model.node_offsets[:-1])
    total = np.bincount(model.tree_output, largest, minlength=model.n_outputs) + np.abs(base)
    return bool(total.max() > np.finfo(np.float32).max / 2)


def _margin(score: np.float32, link: Link) -> np.float32:
    logf = c_float_function("logf", math.log)  # numpy's own differs from it in the last bit now and then
    if link is Link.LOGIT:
        return np.float32(-logf(float(np.float32(1.0) / score - np.float32(1.0))))
    return np.float32(logf(float(score))) if link is Link.LOG else score
