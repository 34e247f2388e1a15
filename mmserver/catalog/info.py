"""Finding the facts that everybody asks for in info files of any style; everything else is shown as it is."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

_NAMES: dict[str, tuple[str, ...]] = {
    "symbol": ("symbol", "sym", "instrument", "ticker", "asset"),
    "return_name": ("return_name", "return", "target", "target_name", "label", "label_name", "y_name"),
    "dim": ("dim", "n_features", "num_features", "feature_count", "n_factors", "num_factors", "factor_count",
            "input_dim", "n_dims", "n_features_in"),
    "train_start": ("train_start", "train_begin", "train_start_date", "train_start_time", "train_from", "train.start",
                    "window.start", "time_window.start", "train_window.start", "train_period.start", "period.start",
                    "window.begin", "window.from", "start", "start_date", "start_time", "date_from",
                    "time_window.0", "train_window.0", "train_period.0", "window.0", "period.0", "train_range.0"),
    "train_end": ("train_end", "train_end_date", "train_end_time", "train_to", "train.end", "window.end",
                  "time_window.end", "train_window.end", "train_period.end", "period.end", "window.to", "end",
                  "end_date", "end_time", "date_to", "time_window.1", "train_window.1", "train_period.1", "window.1",
                  "period.1", "train_range.1"),
    "train_samples": ("train_samples", "n_train", "num_train", "train_size", "n_train_samples", "num_train_samples",
                      "train_rows", "train_count", "samples.train", "n_samples.train", "train.samples", "train.n",
                      "sizes.train", "n_samples", "num_samples", "samples", "sample_count", "n_rows"),
    "test_samples": ("test_samples", "n_test", "num_test", "test_size", "n_test_samples", "num_test_samples",
                     "test_rows", "test_count", "samples.test", "n_samples.test", "test.samples", "test.n",
                     "samples.valid", "samples.validation", "n_valid", "valid_samples", "val_samples", "n_val"),
    "created_at": ("created_at", "created", "trained_at", "training_date", "timestamp", "saved_at", "train_date",
                   "date"),
}  # fmt: skip
_METRIC_HOLDERS = (
    "metrics",
    "metric",
    "scores",
    "score",
    "evaluation",
    "eval",
    "performance",
    "results",
    "test_metrics",
)
_METRIC_NAMES = ("ic", "rank_ic", "icir", "rmse", "mse", "mae", "r2", "hit_rate", "accuracy", "auc", "logloss", "precision",
                 "recall", "f1", "sharpe", "residual_std", "kendall_tau", "spearman", "pearson")  # fmt: skip
_MAX_COUNT = 1 << 53  # beyond it a float is no count, and SQLite and JSON readers hold no more exactly
_COLUMNS = ("factors", "factor_names", "columns", "features", "feature_names", "feature_list", "factor_list")


class InfoFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an info file says under one of the usual names; None where it does not say it.

    Units:
        train_start, train_end, created_at: as the file has them, usually ISO 8601 text.
    """

    symbol: str | None = None
    return_name: str | None = None
    dim: int | None = None
    train_start: str | int | float | None = None
    train_end: str | int | float | None = None
    train_samples: int | None = None
    test_samples: int | None = None
    created_at: str | int | float | None = None
    metrics: dict[str, float] = {}
    factors: tuple[str, ...] | None = None


def facts_from_info(info: dict[str, Any]) -> InfoFacts:
    """The facts in a JSON-able info mapping, whichever style it has; the first name of each list that fits wins."""
    flat = dict(_flattened(info))
    found: dict[str, Any] = {}
    for fact, names in _NAMES.items():
        fits = _FITS[fact]
        value = next((flat[name] for name in names if name in flat and fits(flat[name])), None)
        if value is not None:
            found[fact] = int(value) if fits is _is_count else value
    return InfoFacts(**found, metrics=_metrics(info, flat), factors=_factor_names(flat))


def _key(name: object) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_")


def _flattened(info: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Top-level members, and members of nested mappings and pairs one level down as `outer.inner`."""
    for name, value in info.items():
        yield _key(name), value
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                yield f"{_key(name)}.{_key(inner)}", inner_value
        elif isinstance(value, list) and len(value) == 2:
            yield f"{_key(name)}.0", value[0]
            yield f"{_key(name)}.1", value[1]


def _metrics(info: dict[str, Any], flat: dict[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, value in info.items():
        if _key(name) in _METRIC_HOLDERS and isinstance(value, dict):
            metrics.update({str(inner): float(v) for inner, v in value.items() if _is_number(v)})
    for name in _METRIC_NAMES:
        if name not in metrics and _is_number(flat.get(name)):
            metrics[name] = float(flat[name])
    return metrics


def _factor_names(flat: dict[str, Any]) -> tuple[str, ...] | None:
    for name in _COLUMNS:
        value = flat.get(name)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return tuple(value)
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value <= _MAX_COUNT and value == int(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_moment(value: object) -> bool:
    return _is_text(value) or _is_number(value)


_FITS = {
    "symbol": _is_text,
    "return_name": _is_text,
    "dim": _is_count,
    "train_start": _is_moment,
    "train_end": _is_moment,
    "train_samples": _is_count,
    "test_samples": _is_count,
    "created_at": _is_moment,
}
