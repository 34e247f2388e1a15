"""Damaged models: whatever the validator lets through, XGBoost loads and predicts; the rest never reaches it."""

import os
import subprocess
import sys

import numpy as np
import pytest

N_DAMAGED = 300

_CHILD = """
import sys, time
import numpy as np
import xgboost
from mmserver.errors import Undecodable
from mmserver.trees.canonical import json_from_document, ubjson_from_document
from mmserver.trees.document import document_from_bytes
from mmserver.trees.evaluation import Evaluator, supports_exactly
from mmserver.trees.golden import golden_rows
from mmserver.trees.validation import validate

path, form, n_damaged = sys.argv[1], sys.argv[2], int(sys.argv[3])
raw = open(path, "rb").read()
random = np.random.RandomState(11)
n_accepted = n_refused = n_checked = 0
enough_at = time.monotonic() + 8
for attempt in range(n_damaged):
    if time.monotonic() > enough_at and n_accepted > 1 and n_refused > 10:
        break
    damaged = bytearray(raw)
    for _ in range(1 + attempt % 3):
        position = random.randint(0, len(raw))
        damaged[position] = random.randint(0, 256) if attempt % 2 else damaged[position] ^ (1 << random.randint(0, 8))
    try:
        document = document_from_bytes(bytes(damaged))
        model = validate(document)
    except Undecodable:
        n_refused += 1
        continue
    n_accepted += 1
    rows = golden_rows(model, 8)
    types = list(model.feature_types) if model.feature_types else None
    matrix = xgboost.DMatrix(rows, feature_types=types, enable_categorical=True, nthread=1)
    for write in (json_from_document, ubjson_from_document):
        native = xgboost.Booster(model_file=bytearray(write(document)))
        margins = native.predict(matrix, output_margin=True, validate_features=False)
        if supports_exactly(model) is None:
            np.testing.assert_array_equal(Evaluator(model).margins(rows), margins.reshape(8, -1), str(attempt))
            np.testing.assert_array_equal(Evaluator(model).margins(rows[:1]), margins.reshape(8, -1)[:1], str(attempt))
            n_checked += 1
print(n_accepted, n_refused, n_checked)
"""


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("stumps", "json"),
        ("categorical", "json"),
        ("stumps", "ubj"),
        ("categorical", "ubj"),
        ("multi", "ubj"),
        ("pruned", "ubj"),
        ("dart", "ubj"),
    ],
)
def test_damaged_models_are_refused_or_predict_as_xgboost_does(booster, kind, form, tmp_path):
    path = tmp_path / f"model.{form}"
    path.write_bytes(bytes(booster(kind)[:2].save_raw(form)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, str(path), form, str(N_DAMAGED if form == "ubj" else 200)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    n_accepted, n_refused, _ = map(int, child.stdout.split())
    assert n_accepted > 1
    assert n_refused > 10


@pytest.mark.parametrize("form", ["json", "ubj"])
def test_random_bytes_are_refused_as_what_they_are(form):
    from mmserver.errors import Undecodable
    from mmserver.trees.document import document_from_bytes

    random = np.random.RandomState(12)
    start = b'{"' if form == "json" else b"{L\x00\x00\x00\x00\x00\x00\x00\x01a"
    for _ in range(2000):
        with pytest.raises(Undecodable):
            document_from_bytes(start + random.bytes(random.randint(0, 200)))
