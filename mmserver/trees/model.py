"""A validated tree model as one frozen value: what the document says, and its trees as flat arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TreeModel:
    """The trees of a model, proven safe to walk. Made by `validation.validate` only.

    Shapes:
        node_offsets: n_trees + 1; tree t has the nodes node_offsets[t]:node_offsets[t + 1].
        left, right, split_index, split_condition, default_left, is_deleted: one entry per node. `left` and `right` are
            numbered within the tree, -1 at a leaf; right is left + 1 at every split, as XGBoost's own walk assumes.
        iteration_offsets: n_iterations + 1; iteration i has the trees iteration_offsets[i]:iteration_offsets[i + 1].
        tree_output, tree_weight: one entry per tree; the weight is 1 except with dart.
        category_nodes: the categorical splits, numbered over all trees, ascending; those of category_nodes[k] that go
            right are category_values[category_offsets[k]:category_offsets[k + 1]].

    Units:
        base_score: as the document has it, a probability for logistic objectives; one entry, or one per output.
        split_condition: the threshold of a split (`x < threshold` goes left), the value of a leaf.
    """

    objective: str
    booster: str
    version: tuple[int, int, int]
    n_features: int
    n_outputs: int
    n_trees: int
    n_iterations: int
    depth: int
    has_categorical: bool
    base_score: tuple[float, ...]
    best_iteration: int | None
    feature_names: tuple[str, ...] | None
    feature_types: tuple[str, ...] | None

    node_offsets: NDArray[np.int64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    split_index: NDArray[np.int32]
    split_condition: NDArray[np.float32]
    default_left: NDArray[np.bool_]
    is_deleted: NDArray[np.bool_]
    iteration_offsets: NDArray[np.int64]
    tree_output: NDArray[np.int32]
    tree_weight: NDArray[np.float32]
    category_nodes: NDArray[np.int64]
    category_offsets: NDArray[np.int64]
    category_values: NDArray[np.int32]
