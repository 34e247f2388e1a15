"""The model that predictions are measured with, rows for it, and what XGBoost itself predicts for them.

The real wide model of the shared artifacts where they are (`MMSERVER_TEST_SHARED`, or `shared` beside the repository): 110 factors,
300 trees of depth 6. Else one of the same shape, trained here on noise.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.generate import generate
from mmserver.formats import Artifact, ModelFile
from mmserver.plugin_loading import load_plugins

MODEL_NAME = "bench"
N_ROWS = 256
NOISE = 0.1
HUGE = 1e20


@dataclass(frozen=True)
class Subject:
    """One group to register, as files in `artifacts`.

    Shapes:
        rows: N_ROWS × n_features, finite. expected: N_ROWS, what XGBoost predicts for them.
    """

    description: str
    artifacts: Path
    symbol: str
    model: ModelFile
    rows: npt.NDArray[np.float32]
    expected: npt.NDArray[np.float32]

    @property
    def features(self) -> list[float]:
        """One row, as a client would send it."""
        row: list[float] = self.rows[0].tolist()
        return row

    def write_for_peers(self, directory: Path) -> None:
        """`model.json`, which XGBoost loads, and `model.msgpack`, which the exact engine is made from."""
        (directory / "model.json").write_bytes(self.model.content)
        (directory / "model.msgpack").write_bytes(msgspec.msgpack.encode(self.model))


def shared_artifacts() -> Path | None:
    """The directory of real artifacts, where there is one."""
    root = os.environ.get("MMSERVER_TEST_SHARED")
    shared = Path(root) if root else Path(__file__).resolve().parents[2] / "shared"
    return shared / "artifacts" if (shared / "artifacts" / "wide").is_dir() else None


def make_subject(work: Path, *, is_small: bool = False) -> Subject:
    """The wide model; where it would have to be trained, `is_small` trains a smaller one."""
    shared = shared_artifacts()
    if shared:
        artifacts, origin = shared / "wide", "trained on daily market data"
        path = next(artifacts.glob("*_model.pkl"))
        rows = _rows_like(_finite_golden_rows(shared / "golden" / f"wide__{_key(path)}.json"))
    else:
        artifacts, origin = work / "artifacts", "trained on noise"
        generate(artifacts, 1, "daily_5d" if is_small else "wide")
        path = next(artifacts.glob("*_model.pkl"))
    model = model_from_file(path)
    if not shared:
        rows = np.random.default_rng(7).normal(size=(N_ROWS, model.n_features)).astype(np.float32)
    depth = model.summary["depth"]
    described = f"{model.n_features} factors, {model.n_trees} trees of depth {depth}, {origin}"
    symbol = _key(path).split("_")[0]
    return Subject(described, artifacts, symbol, model, rows, predicted_by_xgboost(model, rows))


def model_from_file(path: Path) -> ModelFile:
    """The model as mmserver reads it."""
    claim = load_plugins().format_for(path.name)
    assert claim
    parsed = claim.parse(Artifact(name=path.name, group_key=_key(path), data=path.read_bytes()))
    assert isinstance(parsed, ModelFile)
    return parsed


def predicted_by_xgboost(model: ModelFile, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What every server has to answer."""
    import xgboost

    booster = xgboost.Booster(params={"nthread": 1})
    booster.load_model(bytearray(model.content))
    predicted: npt.NDArray[np.float32] = booster.predict(xgboost.DMatrix(rows), validate_features=False)
    return predicted


def _key(path: Path) -> str:
    return path.name.removesuffix("_model.pkl")


def _finite_golden_rows(path: Path) -> Sequence[list[float]]:
    golden: dict[str, Any] = json.loads(path.read_bytes())
    return [row for row in golden["rows"] if all(cell is not None and abs(cell) < HUGE for cell in row)]


def _rows_like(found: Sequence[list[float]]) -> npt.NDArray[np.float32]:
    """The rows themselves, then variations of them: every tree is gone down on many ways."""
    random = np.random.default_rng(7)
    base = np.array(found, np.float32)
    picked = base[np.arange(N_ROWS) % len(base)]
    varied = picked * (1 + NOISE * random.normal(size=picked.shape)).astype(np.float32)
    varied[: len(base)] = base[:N_ROWS]
    return varied
