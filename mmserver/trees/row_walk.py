"""One row down all trees, three levels a step: for one row numpy's calls are the cost, so there are few.

Each tree is cut into pieces of three levels. A step decides all seven splits of a piece at once; packed into a byte, the
decisions say by which of the eight ways out the row leaves it.
"""

import numpy as np
from numpy.typing import NDArray

from mmserver.formats import FloatRows
from mmserver.trees.node_walk import LIMITS, NodeWalk

_LEVELS = 3
_SPLITS = 7
_WAYS = 8
"""Ways out of a piece; its splits too are kept eight wide (the first twice), because `packbits` fills whole bytes."""

_MAX_PIECES_A_NODE = 2
"""In thin, deep trees, where most rows end early, each end is carried through all later steps: no gain beyond this."""


class RowWalk:
    """The trees of a `NodeWalk` as pieces. Made by `row_walk_of`."""

    def __init__(self, nodes: NodeWalk, pieces: list[NDArray[np.intp]], ways_out: list[NDArray[np.intp]]) -> None:
        self._way_by_byte = _way_by_byte()
        self._n_ways = np.array(_WAYS, np.intp)  # an array is multiplied by sooner than a number is
        self._features = [nodes.feature[piece] for piece in pieces]
        self._thresholds = [nodes.threshold[piece] for piece in pieces]
        self._first_feature, self._first_threshold = self._features.pop(0).ravel(), self._thresholds.pop(0).ravel()
        self._first_way = np.arange(0, pieces[0].size, _WAYS, dtype=np.intp)
        self._pieces_after = ways_out[:-1]
        self._value = nodes.value[ways_out[-1]]
        self._steps = list(zip(self._pieces_after, self._features, self._thresholds, strict=True))

    @property
    def size_bytes(self) -> int:
        """Memory of the arrays."""
        arrays = [self._first_feature, self._first_threshold, self._first_way, self._value]
        return sum(array.nbytes for array in [*arrays, *self._pieces_after, *self._features, *self._thresholds])

    def leaf_values(self, row: FloatRows) -> FloatRows:
        """The value of the leaf that the row ends in, in each tree.

        Shapes:
            row: [n_features]. Returns [n_trees].
        """
        cells = np.where(np.isnan(row), LIMITS, row).ravel()  # `doubled`, in fewer calls
        way_by_byte = self._way_by_byte
        ways = way_by_byte.take(np.packbits(cells.take(self._first_feature) >= self._first_threshold))
        ways += self._first_way
        for pieces_after, feature, threshold in self._steps:
            pieces = pieces_after.take(ways)
            decided = np.packbits(cells.take(feature.take(pieces, 0)) >= threshold.take(pieces, 0))
            ways = way_by_byte.take(decided)
            pieces *= self._n_ways
            ways += pieces
        return self._value.take(ways)


def row_walk_of(nodes: NodeWalk) -> RowWalk | None:
    """The same trees as pieces; None where that does not pay: categorical splits, or trees that are thin and deep."""
    if nodes.categories is not None:
        return None
    limit = _MAX_PIECES_A_NODE * nodes.left.size
    entries = nodes.roots
    pieces: list[NDArray[np.intp]] = []
    ways_out: list[NDArray[np.intp]] = []
    n_levels = nodes.depth % _LEVELS or _LEVELS  # what is too few for a whole piece comes first: there are fewest there
    for _ in range(0, max(nodes.depth, 1), _LEVELS):
        limit -= entries.size
        if limit < 0:
            return None
        splits, ends = _pieces_at(nodes, entries, n_levels)
        pieces.append(splits)
        entries, numbers = np.unique(ends, return_inverse=True)
        ways_out.append(numbers.ravel())
        n_levels = _LEVELS
    ways_out[-1] = ends.ravel()
    return RowWalk(nodes, pieces, ways_out)


def _pieces_at(nodes: NodeWalk, entries: NDArray[np.intp], n_levels: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The splits of the pieces that begin at these nodes, in heap order, and where their ways out lead.

    Below `n_levels` whatever is decided leads nowhere.
    """
    members = [entries]
    for split in range(_SPLITS):
        parent = members[split]
        is_deeper = split + 1 >= 1 << n_levels
        left = parent if is_deeper else nodes.left[parent]
        members += [left, left + (left != parent)]
    return np.stack([*members[:_SPLITS], entries], axis=1), np.stack(members[_SPLITS:], axis=1)


def _way_by_byte() -> NDArray[np.intp]:
    """The way out for each byte of decisions: the bits are the splits in heap order, the first one the highest, 1 is right."""
    byte = np.arange(256)
    split = np.zeros(256, np.intp)
    for _ in range(_LEVELS):
        split = 2 * split + 1 + (byte >> (_SPLITS - split) & 1)
    return split - _SPLITS
