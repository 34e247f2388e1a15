"""Whether the trees of a document can be walked: every index in range, every node reached once, every number finite.

XGBoost checks none of this and dies by SIGSEGV, at load or at the first prediction. All trees are checked together as
flat arrays, so a large model costs milliseconds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmserver.errors import Undecodable
from mmserver.trees.document import TREE_ARRAYS, member_of

DELETED = 2147483647
"""What XGBoost writes as the split index of a node that pruning removed, and as the parent of a root."""

MAX_TREE_DEPTH = 1000
"""XGBoost computes a tree's depth by recursion."""

MAX_CATEGORY = 1 << 24
"""Categories are float32 codes; XGBoost takes them below this."""

MAX_CATEGORY_BITS = 1 << 29
"""Each categorical split becomes a bit set as wide as its largest category; this bounds all of them together: 64 MiB."""

_CATEGORICAL = ("split_type", "categories", "categories_nodes", "categories_segments", "categories_sizes")
"""All absent in documents from before categorical splits; never only some."""

_PER_NODE = tuple(key for key in TREE_ARRAYS if not key.startswith("categories"))
_STATISTICS = ("base_weights", "loss_changes", "sum_hessian")

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Forest:
    """The nodes of all trees, one after another; the fields are those of `TreeModel`."""

    node_offsets: NDArray[np.int64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    split_index: NDArray[np.int32]
    split_condition: NDArray[np.float32]
    default_left: NDArray[np.bool_]
    is_deleted: NDArray[np.bool_]
    depth: int
    category_nodes: NDArray[np.int64]
    category_offsets: NDArray[np.int64]
    category_values: NDArray[np.int32]


def forest_from_trees(trees: list[dict[str, Any]], n_features: int, path: str) -> Forest:
    """Check the trees and put them one after another.

    Raises:
        Undecodable: invalid_model with the path of the first node that is wrong; unsupported for vector leaves.
    """
    columns: dict[str, list[Array]] = {key: [] for key in TREE_ARRAYS}
    n_deleted = []
    for index, tree in enumerate(trees):
        n_deleted.append(_collect(tree, index, n_features, columns, f"{path}[{index}]"))
    counts = np.array([len(array) for array in columns["left_children"]], np.int64)
    flat = {key: _concatenate(arrays, TREE_ARRAYS[key]) for key, arrays in columns.items()}
    checks = _Checks(path, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), flat, columns)
    checks.children()
    checks.deleted(np.array(n_deleted, np.int64))
    checks.parents()
    checks.splits(n_features)
    checks.numbers()
    depth = checks.reach()
    category_nodes, category_offsets = checks.categories()
    return Forest(
        node_offsets=checks.offsets,
        left=flat["left_children"],
        right=flat["right_children"],
        split_index=flat["split_indices"],
        split_condition=flat["split_conditions"],
        default_left=flat["default_left"].astype(np.bool_),
        is_deleted=checks.is_deleted,
        depth=depth,
        category_nodes=category_nodes,
        category_offsets=category_offsets,
        category_values=flat["categories"],
    )


def count_from_text(value: Any, path: str, limit: int) -> int:
    """The number in a parameter, which XGBoost writes as decimal text."""
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 19:
        raise Undecodable("invalid_model", f"{path}: not a count, written as text")
    if int(value) > limit:
        raise Undecodable("invalid_model", f"{path}: {value} is more than {limit}")
    return int(value)


def _collect(tree: dict[str, Any], index: int, n_features: int, columns: dict[str, list[Array]], path: str) -> int:
    """Add one tree's arrays to `columns`; how many deleted nodes it declares."""
    parameters = member_of(tree, "tree_param", dict, path)
    if count_from_text(parameters.get("size_leaf_vector"), f"{path}.tree_param.size_leaf_vector", DELETED) > 1:
        raise Undecodable("unsupported", "multi_output_tree: leaves that are vectors")
    n_nodes = count_from_text(parameters.get("num_nodes"), f"{path}.tree_param.num_nodes", DELETED)
    count_from_text(parameters.get("num_feature"), f"{path}.tree_param.num_feature", n_features)
    if n_nodes == 0:
        raise Undecodable("invalid_model", f"{path}.tree_param.num_nodes: a tree without a root")
    if member_of(tree, "id", int, path) != index:
        raise Undecodable("invalid_model", f"{path}.id: {tree['id']} in place {index}")
    is_before_categories = not any(key in tree for key in _CATEGORICAL)
    for key, arrays in columns.items():
        array = tree.get(key)
        if is_before_categories and key in _CATEGORICAL:
            array = np.zeros(n_nodes if key == "split_type" else 0, TREE_ARRAYS[key])
        if not isinstance(array, np.ndarray):
            raise Undecodable("invalid_model", f"{path}.{key}: missing")
        if key in _PER_NODE and array.size != n_nodes:
            raise Undecodable("invalid_model", f"{path}.{key}: {array.size} entries for {n_nodes} nodes")
        arrays.append(array)
    return count_from_text(parameters.get("num_deleted"), f"{path}.tree_param.num_deleted", n_nodes)


def _concatenate(arrays: list[Array], dtype: np.dtype[Any]) -> Array:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)


class _Checks:
    """The flat arrays under check; each method is one property, and refuses with the path of the first offender."""

    def __init__(
        self, path: str, offsets: NDArray[np.int64], flat: dict[str, Array], columns: dict[str, list[Array]]
    ) -> None:
        self.path = path
        self.offsets = offsets
        self.flat = flat
        self.columns = columns
        counts = np.diff(offsets)
        self.n_nodes = int(offsets[-1])
        self.base = np.repeat(offsets[:-1], counts)
        self.count = np.repeat(counts, counts)
        self.local = np.arange(self.n_nodes) - self.base
        self.is_split = flat["left_children"] != -1
        self.is_deleted: NDArray[np.bool_] = flat["split_indices"] == DELETED

    def refuse_where(self, wrong: NDArray[np.bool_], key: str, what: str) -> None:
        if wrong.any():
            node = int(np.argmax(wrong))
            tree = int(np.searchsorted(self.offsets, node, "right")) - 1
            where = f"{self.path}[{tree}].{key}[{node - int(self.offsets[tree])}]"
            raise Undecodable("invalid_model", f"{where}: {what}")

    def children(self) -> None:
        left = self.flat["left_children"].astype(np.int64)
        right = self.flat["right_children"].astype(np.int64)
        self.refuse_where((left < -1) | (left == 0) | (left >= self.count), "left_children", "no such node")
        self.refuse_where(~self.is_split & (right != -1), "right_children", "a right child without a left one")
        self.refuse_where(self.is_split & (right != left + 1), "right_children", "not the node after the left child")
        self.refuse_where(right >= self.count, "right_children", "no such node")
        self.child = self.base + left

    def deleted(self, n_deleted: NDArray[np.int64]) -> None:
        self.refuse_where(
            self.is_deleted & (self.is_split | (self.local == 0)), "split_indices", "a deleted node in use"
        )
        lacks_mark = self.is_deleted & (self.flat["default_left"] != 1)
        self.refuse_where(lacks_mark, "default_left", "0 at a deleted node, which XGBoost marks by 1")
        found = np.bincount(self.tree_of(np.flatnonzero(self.is_deleted)), minlength=len(n_deleted))
        if (found != n_deleted).any():
            tree = int(np.argmax(found != n_deleted))
            where = f"{self.path}[{tree}].tree_param.num_deleted"
            raise Undecodable("invalid_model", f"{where}: {n_deleted[tree]}, but {found[tree]} nodes are deleted")

    def tree_of(self, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.offsets, nodes, "right") - 1

    def parents(self) -> None:
        parents = self.flat["parents"].astype(np.int64)
        is_root = self.local == 0
        self.refuse_where(is_root & (parents != DELETED) & (parents != -1), "parents", "a root with a parent")
        self.refuse_where(~is_root & ((parents < 0) | (parents >= self.count)), "parents", "no such node")
        child = self.child[self.is_split]
        references = np.bincount(child, minlength=self.n_nodes) + np.bincount(child + 1, minlength=self.n_nodes)
        self.refuse_where(references > 1, "parents", "a child of two nodes")
        due = (~is_root & ~self.is_deleted).astype(np.int64)
        self.refuse_where(references < due, "parents", "no node has it as a child")
        self.refuse_where(references > due, "parents", "a deleted node that is still a child")
        expected = parents.copy()
        expected[child] = expected[child + 1] = self.local[self.is_split]
        self.refuse_where(parents != expected, "parents", "not the node that has it as a child")

    def splits(self, n_features: int) -> None:
        index = self.flat["split_indices"]
        self.refuse_where(~self.is_deleted & ((index < 0) | (index >= n_features)), "split_indices", "no such feature")
        self.refuse_where(self.flat["default_left"] > 1, "default_left", "neither 0 nor 1")
        self.refuse_where(self.flat["split_type"] > 1, "split_type", "neither 0 nor 1")

    def numbers(self) -> None:
        for key in ("split_conditions", *_STATISTICS):
            self.refuse_where(~np.isfinite(self.flat[key]), key, "not a finite number")

    def reach(self) -> int:
        """Walk all trees level by level from their roots; how deep the deepest is."""
        frontier = self.offsets[:-1]
        n_reached = 0
        depth = 0
        while True:
            n_reached += frontier.size
            parents = frontier[self.is_split[frontier]]
            if not parents.size:
                break
            depth += 1
            if depth > MAX_TREE_DEPTH:
                raise Undecodable("too_complex", f"{self.path}: a tree deeper than {MAX_TREE_DEPTH}")
            frontier = np.concatenate([self.child[parents], self.child[parents] + 1])
        if n_reached != self.n_nodes - int(self.is_deleted.sum()):
            raise Undecodable("invalid_model", f"{self.path}: nodes that are not reached from their root")
        return depth

    def categories(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The categorical splits, numbered over all trees, and where the categories of each begin."""
        nodes = []
        for tree, in_tree in enumerate(self.columns["categories_nodes"]):
            if in_tree.size or self.columns["categories"][tree].size:
                self.tree_categories(tree)
                nodes.append(in_tree + self.offsets[tree])
        category_nodes = np.concatenate(nodes).astype(np.int64) if nodes else np.empty(0, np.int64)
        is_categorical = np.zeros(self.n_nodes, np.bool_)
        is_categorical[category_nodes] = True
        self.refuse_where(is_categorical & ~self.is_split, "categories_nodes", "categories at a node that is no split")
        self.refuse_where(
            is_categorical != (self.flat["split_type"] == 1), "split_type", "not what categories_nodes says"
        )
        sizes = self.flat["categories_sizes"]
        category_offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        if sizes.size:
            widest = np.maximum.reduceat(self.flat["categories"], category_offsets[:-1]).astype(np.int64)
            if int(widest.sum()) + widest.size > MAX_CATEGORY_BITS:
                raise Undecodable("too_complex", f"{self.path}: categories need more than {MAX_CATEGORY_BITS} bits")
        return category_nodes, category_offsets

    def tree_categories(self, tree: int) -> None:
        nodes, segments, sizes, values = (
            self.columns[key][tree]
            for key in ("categories_nodes", "categories_segments", "categories_sizes", "categories")
        )
        path = f"{self.path}[{tree}]"
        n_nodes = int(self.offsets[tree + 1] - self.offsets[tree])
        if not nodes.size == segments.size == sizes.size:
            raise Undecodable("invalid_model", f"{path}.categories_segments: not as many as categories_nodes")
        if (np.diff(nodes) <= 0).any() or nodes.min(initial=0) < 0 or nodes.max(initial=0) >= n_nodes:
            raise Undecodable("invalid_model", f"{path}.categories_nodes: not ascending nodes of the tree")
        if (sizes < 1).any() or (sizes > values.size).any():
            raise Undecodable("invalid_model", f"{path}.categories_sizes: no such segment")
        if (segments != np.cumsum(sizes) - sizes).any() or int(sizes.sum()) != values.size:
            raise Undecodable("invalid_model", f"{path}.categories_segments: not one after another through categories")
        if values.min(initial=0) < 0 or values.max(initial=0) >= MAX_CATEGORY:
            raise Undecodable("invalid_model", f"{path}.categories: not a category code")
