"""mmserver's exact engine without mmserver around it, for the servers that are to differ from it in everything else."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from mmserver.formats import ModelFile
from mmserver.trees.exact import exact_from_model_file


def load(path: Path) -> Callable[[list[float]], float]:
    """From one row's features, unchecked, to its prediction."""
    engine = exact_from_model_file(msgspec.msgpack.decode(path.read_bytes(), type=ModelFile))
    predict, n_features = engine.predict, engine.n_features

    def predicted(features: list[float]) -> float:
        row = np.fromiter(features, np.float32, n_features).reshape(1, n_features)
        return float(predict(row)["prediction"][0, 0])

    return predicted
