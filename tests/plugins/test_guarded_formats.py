"""Every library's model is read where no file can be opened and no thread started: in the guarded process that a server uses."""

import io
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.ingest import IngestedGroup
from mmserver.errors import ArtifactInvalid
from mmserver.settings import Settings

pytestmark = pytest.mark.slow
ROWS = np.random.default_rng(0).normal(size=(200, 4))
RETURNS = ROWS @ [1.0, 2.0, -1.0, 0.0]


@pytest.fixture
def read(read_guarded: Callable[..., IngestedGroup]) -> Callable[..., dict[str, Any]]:
    """The stored description of the model in a file, read as a server reads it."""

    def run(name: str, data: bytes, **options: Any) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(read_guarded(name, data, **options).detail)["model"]
        return described

    return run


def check_agrees(model: dict[str, Any]) -> None:
    parity = model["summary"]["parity"]
    assert (model["kind"], parity["passed"], parity["n_beyond"]) == ("onnx", True, 0)


def test_a_torch_network_is_exported_and_a_whole_one_refused(
    read: Callable[..., dict[str, Any]], guarded_settings: Settings
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra torch)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra torch)")
    assert guarded_settings.plugins_dir is not None
    namespace = runpy.run_path(str(guarded_settings.plugins_dir / "nets.py"))
    torch.manual_seed(0)
    network, file = namespace["Net"](), io.BytesIO()
    torch.save(network.state_dict(), file)
    check_agrees(
        read("a.pt", file.getvalue(), code="nets:Net", input_shape=[6, 4], output_names={"output": "probabilities"})
    )
    damaged = io.BytesIO()
    torch.save({"network": torch.nn.Linear(4, 1)}, damaged)
    with pytest.raises(ArtifactInvalid, match="forbidden_global"):
        read("a.pt", damaged.getvalue(), code="nets:Net", input_shape=[6, 4])


def test_a_forest_that_wants_all_cores_is_converted_on_one(read: Callable[..., dict[str, Any]]) -> None:
    skops = pytest.importorskip("skops.io", reason="skops is not installed (the extra sklearn)")
    pytest.importorskip("skl2onnx", reason="skl2onnx is not installed (the extra sklearn)")
    from sklearn import ensemble, linear_model, pipeline, preprocessing

    forest = ensemble.RandomForestClassifier(10, n_jobs=-1, random_state=0).fit(ROWS, RETURNS > 0)
    check_agrees(read("a.skops", skops.dumps(forest)))
    scaled = pipeline.make_pipeline(preprocessing.RobustScaler(), linear_model.ElasticNet()).fit(ROWS, RETURNS)
    check_agrees(read("a.skops", skops.dumps(scaled)))


def test_lightgbm_s_trees_are_converted(read: Callable[..., dict[str, Any]]) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="lightgbm is not installed (the extra lightgbm)")
    pytest.importorskip("onnx", reason="onnx is not installed (the extra lightgbm)")
    options = {"verbosity": -1, "num_threads": 1}
    model = lightgbm.train(options, lightgbm.Dataset(ROWS, RETURNS), 10).model_to_string().encode()
    described = read("a.txt", model)
    check_agrees(described)
    assert described["summary"]["accepts_missing"]


def test_catboost_s_trees_are_converted_and_a_wrong_conversion_refused(
    read: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    catboost = pytest.importorskip("catboost", reason="catboost is not installed (the extra catboost)")
    pytest.importorskip("onnx", reason="onnx is not installed (the extra catboost)")
    options = {"iterations": 10, "depth": 3, "verbose": False, "thread_count": 1, "allow_writing_files": False}
    path = tmp_path / "a.cbm"
    catboost.CatBoostRegressor(**options).fit(ROWS, RETURNS).save_model(str(path))
    check_agrees(read("a.cbm", path.read_bytes()))
    wrong = catboost.CatBoostClassifier(**options, loss_function="MultiClassOneVsAll")
    wrong.fit(ROWS, np.digitize(RETURNS, (-1, 1))).save_model(str(path))
    with pytest.raises(ArtifactInvalid, match="parity_failed"):
        read("a.cbm", path.read_bytes())


def test_where_no_file_can_be_opened_a_strange_one_is_called_what_it_is(read: Callable[..., dict[str, Any]]) -> None:
    for name in ("a.pkl", "a.onnx"):
        with pytest.raises(ArtifactInvalid, match="this is a PNG image"):
            read(name, b"\x89PNG" + bytes(99))
        with pytest.raises(ArtifactInvalid, match="model type lightgbm"):
            read(name, b"tree\nversion=v4\n")


def test_pipelines_of_which_some_steps_are_in_single_precision_are_converted(
    read: Callable[..., dict[str, Any]],
) -> None:
    skops = pytest.importorskip("skops.io", reason="skops is not installed (the extra sklearn)")
    pytest.importorskip("skl2onnx", reason="skl2onnx is not installed (the extra sklearn)")
    from sklearn import pipeline, preprocessing, svm

    for steps in (
        [preprocessing.MinMaxScaler(), svm.SVC()],
        [preprocessing.QuantileTransformer(n_quantiles=20), svm.SVC()],
    ):
        check_agrees(read("a.skops", skops.dumps(pipeline.make_pipeline(*steps).fit(50_000 + 5 * ROWS, RETURNS > 0))))
