"""Pickle and joblib files, decoded without running them: `_info.pkl`, `_model.pkl`, venue quantiles, registered XGBoost models."""

import math
from typing import Any

import numpy as np

from mmserver import (
    Artifact,
    ArtifactFormat,
    InfoRecord,
    ModelFile,
    ModelFormat,
    ModelSource,
    QuantileTable,
    Undecodable,
    decode_pickle,
    document_from_bytes,
    document_from_snapshot,
    hookimpl,
    likeness,
    model_file_from_document,
    records,
    scikit_learn_attributes,
    to_jsonable,
)

BOOSTER = "xgboost.core.Booster"
_EXPECTED = "an XGBoost model is expected: JSON or UBJSON of save_model, or a pickle"
_OF_XGBOOST = "XGBoost's"
_PICKLES = (b"\x80", b"\x78", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\x00", b"\x04\x22\x4d\x18")
"""How pickles begin, and those that joblib compressed."""
_OF_CATBOOST = b'"features_info"'
QUANTILE_COLUMNS = ("symbol", "medium_notional_threshold", "large_notional_threshold")


def parse_info(artifact: Artifact) -> InfoRecord:
    """A mapping of any style; what is in it is rendered as JSON."""
    value = decode_pickle(artifact.data)
    if isinstance(value, records.Series):
        value = dict(zip(value.index.values, value.values, strict=True))
    if not isinstance(value, dict):
        raise Undecodable("wrong_type", f"a mapping is expected, this is {_named(value)}")
    return InfoRecord(values=to_jsonable(value))


def parse_model(artifact: Artifact) -> ModelFile:
    """A Booster or one of XGBoost's scikit-learn estimators."""
    value = decode_pickle(artifact.data)
    if not isinstance(value, records.Instance):
        raise Undecodable("wrong_type", f"an XGBoost model is expected, this is {_named(value)}")
    if value.global_name == BOOSTER:
        return model_file_from_document(document_from_snapshot(_handle(value)), uses_best_iteration=False)
    if not value.global_name.startswith("xgboost."):
        detail = f"{_named(value)}: only XGBoost models can be given as XGBoost JSON; what stands around the trees would be lost"
        raise Undecodable("unsupported", f"{detail}; this is {likeness(artifact.data)}")
    state = value.state if isinstance(value.state, dict) else {}
    booster = state.get("_Booster")
    if not isinstance(booster, records.Instance) or booster.global_name != BOOSTER:
        raise Undecodable("unsupported", f"{_named(value)} holds no trained Booster; was it fitted?")
    missing = state.get("missing")
    return model_file_from_document(
        document_from_snapshot(_handle(booster)),
        uses_best_iteration=True,
        missing=float(missing) if isinstance(missing, int | float | np.number) else None,
        summary={"estimator": value.global_name.rpartition(".")[2], **_classes(state)},
    )


def read_xgboost(source: ModelSource) -> ModelFile:
    """What XGBoost saved, as JSON or UBJSON, or a pickle of one of its models, told apart by how they begin."""
    data = source.content
    if not data.startswith((b"{", *_PICKLES)) or (
        data.startswith(b"{") and (b"learner" not in data or _OF_CATBOOST in data)
    ):
        raise Undecodable("wrong_type", f"{_EXPECTED}; this is {likeness(data)}")
    if not data.startswith(b"{"):
        return _read_pickle(source)
    document = document_from_bytes(data)
    return model_file_from_document(document, uses_best_iteration=scikit_learn_attributes(document) is not None)


def _read_pickle(source: ModelSource) -> ModelFile:
    try:
        return parse_model(Artifact(name=source.file_name, group_key="", data=source.content))
    except Undecodable as error:  # what stands in another library's pickle may stop the decoder before its name is seen
        like = likeness(source.content)
        if _OF_XGBOOST in like or like in error.detail:
            raise
        raise Undecodable(error.reason, f"{error.detail}; this is {like}") from error


def parse_quantiles(artifact: Artifact) -> QuantileTable:
    """A list of mappings, or a DataFrame, with a symbol and two thresholds a row."""
    value = decode_pickle(artifact.data)
    if isinstance(value, records.Frame):
        _check_columns(value.columns)
        rows: list[Any] = list(zip(*(list(value.column(name)) for name in QUANTILE_COLUMNS), strict=True))
    elif isinstance(value, list):
        rows = [_row_from_mapping(number, row) for number, row in enumerate(value)]
    else:
        raise Undecodable("wrong_type", f"a list of mappings or a DataFrame is expected, this is {_named(value)}")
    symbols: dict[str, tuple[float, float]] = {}
    for number, (symbol, medium, large) in enumerate(rows):
        if not isinstance(symbol, str) or not symbol:
            raise Undecodable("malformed", f"row {number}: the symbol is {symbol!r}")
        if symbol in symbols:
            raise Undecodable("malformed", f"symbol {symbol} stands there twice")
        symbols[symbol] = (_number(symbol, medium), _number(symbol, large))
    return QuantileTable(symbols=symbols)


def _handle(booster: records.Instance) -> bytes:
    handle = booster.state.get("handle") if isinstance(booster.state, dict) else None
    if not isinstance(handle, bytes | bytearray):
        raise Undecodable("malformed", "the Booster has no bytes")
    return bytes(handle)


def _classes(state: dict[Any, Any]) -> dict[str, Any]:
    classes = state.get("classes_", state.get("n_classes_"))
    return {} if classes is None else {"classes": to_jsonable(classes)}


def _check_columns(columns: list[Any]) -> None:
    missing = [name for name in QUANTILE_COLUMNS if name not in columns]
    if missing:
        raise Undecodable("malformed", f"it lacks {', '.join(missing)}; found {', '.join(map(str, columns[:20]))}")


def _row_from_mapping(number: int, row: Any) -> tuple[Any, ...]:
    if not isinstance(row, dict):
        raise Undecodable("malformed", f"row {number} is {_named(row)}, not a mapping")
    missing = [name for name in QUANTILE_COLUMNS if name not in row]
    if missing:
        raise Undecodable("malformed", f"row {number} lacks {', '.join(missing)}")
    return tuple(row[name] for name in QUANTILE_COLUMNS)


def _number(symbol: str, value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise Undecodable("malformed", f"{symbol}: the threshold {value!r} is not a number")
    number = float(value)
    if not math.isfinite(number):
        raise Undecodable("malformed", f"{symbol}: the threshold {value!r} is not finite")
    return number


def _named(value: Any) -> str:
    return value.global_name if isinstance(value, records.Instance) else type(value).__name__


@hookimpl
def mmserver_formats() -> list[ArtifactFormat]:
    """Claims `_info.pkl` and `_model.pkl` in artifact directories, and `.pkl` for venue quantiles."""
    return [
        ArtifactFormat(name="pkl_info", suffix="_info.pkl", role="info", parse=parse_info),
        ArtifactFormat(name="pkl_model", suffix="_model.pkl", role="model", parse=parse_model),
        ArtifactFormat(name="pkl_quantiles", suffix=".pkl", role="quantiles", parse=parse_quantiles),
    ]


@hookimpl
def mmserver_model_formats() -> list[ModelFormat]:
    """XGBoost models of every form; pickles of others have to be named."""
    return [
        ModelFormat(
            name="xgboost", suffixes=(".json", ".ubj", ".pkl", ".pickle"), read=read_xgboost, modules=("xgboost",)
        )
    ]
