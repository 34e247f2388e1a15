"""Logged predictions with what came of them, as a Parquet file. pyarrow is an extra, imported when the first export is asked for."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mmserver.errors import ExtraMissing
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.sums import ARMS
from mmserver.experiments.observations.values import LABELS
from mmserver.storage.files import disk_errors, fsync_file

_AT_ONCE = 5000

_SELECT = """
SELECT predictions.id, prediction_id, predictions.at_us, due_us - predictions.at_us AS horizon_us, experiment, phase, arm,
  unit, symbol, model_name, version, direction, confidence, expected_return, latency_us, error, is_washed_out,
  shadow_direction, shadow_expected_return, shadow_latency_us, shadow_error,
  label, realized_return, outcomes.at_us AS outcome_at_us, features
FROM predictions LEFT JOIN outcomes ON outcomes.prediction = predictions.id
WHERE predictions.id > ?1 AND (?2 IS NULL OR experiment = ?2) ORDER BY predictions.id LIMIT ?3
"""


def export_parquet(store: ObservationStore, target: Path, *, experiment_key: int | None = None) -> int:
    """Write predictions and outcomes, oldest first, some thousands at a time; the file is there when it is whole.

    Returns:
        how many rows

    Raises:
        ExtraMissing: pyarrow is not installed.
        DiskFull: of the disk that holds `target`.
        DatabaseBusy, ObservationsCorrupt
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ExtraMissing(what="writing Parquet", extra="parquet") from error
    building = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    schema = _schema(pyarrow)
    n_rows = 0
    try:
        with disk_errors():
            with pyarrow.parquet.ParquetWriter(building, schema, compression="zstd") as writer:
                for rows in _rows(store, experiment_key):
                    writer.write_batch(pyarrow.record_batch(_columns(pyarrow, schema, rows), schema=schema))
                    n_rows += len(rows)
            fsync_file(building)
            building.replace(target)
    finally:
        with suppress(OSError):
            building.unlink()
    return n_rows


def _rows(store: ObservationStore, experiment_key: int | None) -> Iterator[Sequence[Any]]:
    last = 0
    while True:
        with store.read() as raw:
            rows = raw.execute(_SELECT, (last, experiment_key, _AT_ONCE)).fetchall()
        if not rows:
            return
        yield rows
        last = rows[-1][0]


def _schema(pyarrow: Any) -> Any:
    moment, text, whole, number = (
        pyarrow.timestamp("us", tz="UTC"),
        pyarrow.string(),
        pyarrow.int64(),
        pyarrow.float64(),
    )
    return pyarrow.schema(
        [
            ("prediction_id", text), ("at", moment), ("horizon_us", whole), ("experiment", whole), ("phase", whole),
            ("arm", text), ("unit", text), ("symbol", text), ("model_name", text), ("version", text),
            ("direction", text), ("confidence", number), ("expected_return", number), ("latency_us", whole),
            ("error", text), ("is_washed_out", pyarrow.bool_()),
            ("shadow_direction", text), ("shadow_expected_return", number), ("shadow_latency_us", whole),
            ("shadow_error", text),
            ("label", text), ("realized_return", number), ("outcome_at", moment),
            ("features", pyarrow.list_(pyarrow.float32())),
        ]
    )  # fmt: skip


def _columns(pyarrow: Any, schema: Any, rows: Sequence[Any]) -> list[Any]:
    values = list(zip(*rows, strict=True))[1:]
    named = dict(zip(schema.names, values, strict=True))
    for name in ("direction", "shadow_direction", "label"):
        named[name] = tuple(None if code is None else LABELS[code] for code in named[name])
    named["arm"] = tuple(None if arm is None else ARMS[arm] for arm in named["arm"])
    named["is_washed_out"] = tuple(map(bool, named["is_washed_out"]))
    blobs = named.pop("features")
    columns = [pyarrow.array(column, type=schema.field(name).type) for name, column in named.items()]
    return [*columns, _features(pyarrow, blobs)]


def _features(pyarrow: Any, blobs: Sequence[bytes]) -> Any:
    sizes = [len(blob) // 4 for blob in blobs]
    numbers = np.frombuffer(b"".join(blob[: 4 * size] for blob, size in zip(blobs, sizes, strict=True)), "<f4")
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
    return pyarrow.ListArray.from_arrays(offsets, numbers)
