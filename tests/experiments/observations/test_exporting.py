"""The Parquet file of an export holds what was observed, typed and whole."""

import datetime
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from mmserver.errors import DiskFull, ExtraMissing
from mmserver.experiments.observations import exporting
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.values import Observation, Outcome, ShadowAnswer


def test_an_export_holds_every_prediction_with_its_features_and_outcome(
    observations: ObservationLog, observe: Callable[..., Observation], clock: Any, tmp_path: Path
) -> None:
    features = struct.pack("<3f", 1.5, -2.0, float("inf"))
    observations.append(
        observe("a", arm="treatment", features=features, confidence=0.75, shadow=ShadowAnswer(2, -0.5, 100)),
        must_keep=True,
    )
    observations.append(observe("b", experiment_key=None, arm=None, direction=None, error="boom"), must_keep=False)
    observations.add_outcomes([Outcome(prediction_id="a", label="SELL", realized_return=-0.25)])
    target = tmp_path / "out.parquet"
    assert observations.export(target) == 2
    first, second = pyarrow.parquet.read_table(target).to_pylist()
    moment = datetime.datetime.fromtimestamp(clock.now_s, datetime.UTC)
    assert first == {
        "prediction_id": "a", "at": moment, "horizon_us": 0, "experiment": 1, "phase": 1, "arm": "treatment",
        "unit": "BTCUSDT|1", "symbol": "BTCUSDT", "model_name": "wide", "version": "v1", "direction": "BUY",
        "confidence": 0.75, "expected_return": None, "latency_us": 300, "error": None, "is_washed_out": False,
        "shadow_direction": "SELL", "shadow_expected_return": -0.5, "shadow_latency_us": 100, "shadow_error": None,
        "label": "SELL", "realized_return": -0.25, "outcome_at": moment, "features": [1.5, -2.0, float("inf")],
    }  # fmt: skip
    assert (second["arm"], second["direction"], second["error"], second["features"]) == (None, None, "boom", [])
    assert [path.name for path in tmp_path.glob("out*")] == ["out.parquet"]


def test_one_experiment_alone_can_be_exported_some_rows_at_a_time(
    observations: ObservationLog,
    observe: Callable[..., Observation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporting, "_AT_ONCE", 3)
    for number in range(20):
        observations.append(observe(f"p{number}", experiment_key=1 + number % 2), must_keep=True)
    assert observations.export(tmp_path / "out.parquet", experiment_key=2) == 10
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet").column("prediction_id").to_pylist()
    assert found == [f"p{number}" for number in range(1, 20, 2)]
    assert observations.export(tmp_path / "none.parquet", experiment_key=7) == 0
    assert pyarrow.parquet.read_table(tmp_path / "none.parquet").num_rows == 0


def test_without_pyarrow_it_is_said_what_to_install(
    observations: ObservationLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ExtraMissing, match=r"mmserver\[parquet\]"):
        observations.export(tmp_path / "out.parquet")


def test_an_export_that_fails_leaves_the_file_that_was_there(
    observations: ObservationLog, observe: Callable[..., Observation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.parquet").write_bytes(b"before")
    observations.append(observe("a"), must_keep=True)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "fsync_file", full)
    with pytest.raises(DiskFull):
        observations.export(tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.glob("out*")] == ["out.parquet"]
    assert (tmp_path / "out.parquet").read_bytes() == b"before"
