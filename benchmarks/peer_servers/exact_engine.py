"""mmserver's exact engine without mmserver around it, for the servers that are to differ from it in everything else."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from mmserver.formats import ModelFile
from mmserver.trees.document import document_from_bytes
from mmserver.trees.evaluation import Evaluator
from mmserver.trees.validation import validate


def load(path: Path) -> Callable[[list[float]], float]:
    """From one row's features, unchecked, to its prediction."""
    model = msgspec.msgpack.decode(path.read_bytes(), type=ModelFile)
    predict = Evaluator(validate(document_from_bytes(model.content))).margins
    n_features = model.n_features

    def predicted(features: list[float]) -> float:
        row = np.fromiter(features, np.float32, n_features).reshape(1, n_features)
        return float(predict(row)[0, 0])

    return predicted
