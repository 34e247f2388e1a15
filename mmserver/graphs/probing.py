"""Rows that models are tried on: usual ones, and for trees those on both sides of their splits."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmserver.formats import FloatRows
from mmserver.graphs.running import STEP

MAX_PROBE_ROWS = 64
MAX_PROBE_NUMBERS = 1 << 20
MAX_SPLITS = 64
_SIZES = (1e-4, 1.0, 1e5, 1e9)
"""Of the factors that models take as they are: returns, ratios, prices, volumes."""
_ROWS_OF_A_SIZE = 8
_MOVES = 0.01
"""How far a price or a volume moves, of itself."""
_LARGEST = 3e38
"""Thresholds beyond it are taken for it: no number of float32 lies on their other side."""


def probe_rows(n_features: int, center: Any = 0.0, scale: Any = 1.0, *, of_any_size: bool = False) -> FloatRows:
    """Rows to try a model with: usual ones, small and large ones, zeros, one input at a time.

    center, scale: of the features as the model was fitted with them, one number or one for each; rows lie around them.
    of_any_size: nobody says how large the features are; as many rows again as large as returns, prices and volumes, each alone and mixed.

    Shapes:
        returns: STEP to 104 rows × n_features, float32, always the same.
    """
    n_rows = max(STEP, min(MAX_PROBE_ROWS, MAX_PROBE_NUMBERS // n_features))
    random = np.random.default_rng(11)
    rows = random.normal(size=(n_rows, n_features)).astype(np.float32)
    rows[-8:-6] *= 1e-3
    rows[-6:-4] *= 100
    rows[-4:-2] = 0
    rows[-3, random.integers(n_features)] = 1
    rows[-2:] = random.choice(np.array([-1, 0, 1], np.float32), size=(2, n_features))
    placed = [np.clip(rows.astype(np.float64) * scale + center, -_LARGEST, _LARGEST)]
    if of_any_size:
        mixed = random.choice(_SIZES, size=(_ROWS_OF_A_SIZE, n_features))
        moves = 1 + _MOVES * random.normal(size=(len(_SIZES), _ROWS_OF_A_SIZE, n_features))
        placed += [
            *(size * moved for size, moved in zip(_SIZES, moves, strict=True)),
            mixed * random.normal(size=mixed.shape),
        ]
    return np.ascontiguousarray(np.concatenate(placed), dtype=np.float32)


def probe_rows_at_splits(
    n_features: int, splits: Sequence[tuple[int, float]], *, with_missing: bool = False
) -> FloatRows:
    """Rows around the thresholds of trees, and for each of the first splits three that differ there alone: at it, just below it and above.

    splits: (feature, threshold), the first trees first. with_missing: as many rows again with missing and infinite values.

    Shapes:
        returns: n_rows × n_features, float32, always the same.
    """
    center, scale = _spread(n_features, splits)
    usual = probe_rows(n_features, center, scale)
    random = np.random.default_rng(12)
    parts = [usual]
    if with_missing:
        values = random.choice([np.nan, np.inf, -np.inf, 0], usual.shape)
        holes = np.where(random.random(usual.shape) < 0.3, values, usual)
        holes[-1] = np.nan
        parts.append(holes)
    tried = splits[: min(MAX_SPLITS, max(1, MAX_PROBE_NUMBERS // (3 * n_features)))]
    at_splits = np.repeat(usual[np.arange(len(tried)) % (len(usual) // 2)], 3, axis=0)
    for number, (feature, threshold) in enumerate(tried):
        exact = np.float32(min(max(threshold, -_LARGEST), _LARGEST))
        near = (exact, np.nextafter(exact, np.float32(-math.inf)), np.nextafter(exact, np.float32(math.inf)))
        at_splits[3 * number : 3 * number + 3, feature] = near
    return np.ascontiguousarray(np.concatenate([*parts, at_splits]), dtype=np.float32)


def _spread(n_features: int, splits: Sequence[tuple[int, float]]) -> tuple[Any, Any]:
    """The middle of each feature's thresholds, and how far they reach from it; 0 and 1 for features without any."""
    found: dict[int, list[float]] = {}
    for feature, threshold in splits:
        if abs(threshold) < _LARGEST:
            found.setdefault(feature, []).append(threshold)
    center, scale = np.zeros(n_features), np.ones(n_features)
    for feature, thresholds in found.items():
        low, high = min(thresholds), max(thresholds)
        center[feature] = low / 2 + high / 2
        scale[feature] = (high / 2 - low / 2) or max(abs(low) / 100, 1.0)
    return center, scale
