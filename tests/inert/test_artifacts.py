"""Real artifacts of three generations of XGBoost decode completely, and in few steps."""

import json
import sys
from pathlib import Path

import numpy as np

from mmserver.inert import decode, to_jsonable
from mmserver.inert.records import Frame, Instance
from tests.counting import n_steps


def test_every_real_pickle_decodes_and_can_be_shown(shared_artifacts: Path) -> None:
    paths = sorted(shared_artifacts.rglob("*.pkl"))
    assert len(paths) > 30
    for path in paths:
        value = decode(path.read_bytes())
        json.dumps(to_jsonable(value), allow_nan=False)
        if path.name.endswith("_info.pkl"):
            assert isinstance(value, dict)
        if path.name.endswith("_model.pkl"):
            assert isinstance(value, Instance)
            booster = value.state.get("_Booster", value)
            assert booster.global_name == "xgboost.core.Booster"
            assert type(booster.state["handle"]) is bytes
            assert booster.state["handle"][:1] == b"{"


def test_info_of_numpy_and_pandas_values(shared_artifacts: Path) -> None:
    info = decode((shared_artifacts / "kinds" / "WTI_ret_1d_info.pkl").read_bytes())
    assert info["samples"] == {"train": 6496, "valid": 1625}
    shown = to_jsonable(info)
    assert shown["window"] == {"start": "2001-01-01", "end": "2015-12-31"}


def test_venue_files_are_a_list_of_dicts_or_a_frame(shared_artifacts: Path) -> None:
    listed = decode((shared_artifacts / "venues" / "binance_futures_quantiles.pkl").read_bytes())
    assert listed[0]["symbol"] == "BTCUSDT"
    assert listed[0]["medium_notional_threshold"] == np.float64(14485.52)
    frame = decode((shared_artifacts / "venues" / "okex_margin_quantiles.pkl").read_bytes())
    assert isinstance(frame, Frame)
    assert frame.columns == ["symbol", "medium_notional_threshold", "large_notional_threshold"]
    assert (frame.column("symbol")[0], frame.column("large_notional_threshold")[0]) == ("BTCUSDT", 60637.5)


def test_a_large_model_is_decoded_without_a_step_for_each_byte(shared_artifacts: Path) -> None:
    data = (shared_artifacts / "wide" / "SP500_mid_chg_1d_model.pkl").read_bytes()
    decode(data)
    assert n_steps(lambda: decode(data)) < 200_000 < len(data)


def test_decoding_needs_neither_pandas_nor_xgboost() -> None:
    import subprocess

    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, mmserver.inert; print([m for m in ('pandas','xgboost','joblib') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert run.stdout.strip() == "[]"
