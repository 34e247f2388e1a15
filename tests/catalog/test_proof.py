"""What is served exactly was proven to be; what was not is served by its library and says why; false claims are refused."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.proof import proven_model
from mmserver.errors import ArtifactInvalid
from mmserver.formats import Artifact, ModelFile
from mmserver.plugin_loading import Plugins, load_plugins

NAME = "BTC_ret_1h_model.pkl"

OTHER_LIBRARY = """
import sys
import numpy as np
from mmserver import hookimpl

class Other:
    def __init__(self, predictor):
        self.predictor = predictor
        self.n_features, self.size_bytes = predictor.n_features, predictor.size_bytes

    def predict(self, rows):
        outputs = {{name: values.copy() for name, values in self.predictor.predict(rows).items()}}
        {change}
        return outputs

@hookimpl(wrapper=True)
def mmserver_load_predictor(model):
    predictor = yield
    return {loaded}
"""

ONE_BIT_IN_THREE_ROWS = 'outputs["margin"][5:8] = np.nextafter(outputs["margin"][5:8], np.float32(np.inf))'
TWO_BITS_OF_A_PREDICTION = 'outputs["prediction"].view(np.int32)[4] += 2'
ONE_BIT_OF_A_PREDICTION = 'outputs["prediction"].view(np.int32)[:] += 1'
AT_INFINITY = 'outputs["margin"][np.isinf(rows).any(axis=1)] += 1'
NO_MARGIN = 'del outputs["margin"]'
ANOTHER_SHAPE = 'outputs["prediction"] = outputs["prediction"][:, 0]'


@pytest.fixture
def proven(model_pickles: dict[int, bytes], tmp_path: Path) -> Callable[..., ModelFile]:
    """The model of training 0 as proven beside a library that differs from XGBoost in that."""

    def run(change: str = "pass", *, loaded: str = "Other(predictor)", data: bytes | None = None) -> ModelFile:
        (tmp_path / "other.py").write_text(OTHER_LIBRARY.format(change=change, loaded=loaded))
        return proven_by(load_plugins(tmp_path), NAME, data or model_pickles[0])

    return run


def proven_by(plugins: Plugins, name: str, data: bytes) -> ModelFile:
    claim = plugins.format_for(name)
    assert claim is not None
    parsed = claim.parse(Artifact(name=name, group_key="BTC_ret_1h", data=data))
    _, model = proven_model({name: (claim, parsed)}, plugins)
    assert model is not None
    return model


def test_a_model_that_agrees_with_its_library_is_served_exactly(proven: Callable[..., ModelFile]) -> None:
    summary = proven().summary
    assert (summary["engine"], summary["engine_note"]) == ("exact", None)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        pytest.param(ONE_BIT_IN_THREE_ROWS, "exact evaluation differs on 3 of 48 probe rows", id="a bit of margins"),
        pytest.param(TWO_BITS_OF_A_PREDICTION, "exact evaluation differs on 1 of 48 probe rows", id="a prediction"),
        pytest.param(AT_INFINITY, "exact evaluation differs on 8 of 48 probe rows", id="at infinity only"),
        pytest.param(NO_MARGIN, "xgboost gives no margin to compare with", id="no margin"),
        pytest.param(ANOTHER_SHAPE, "exact evaluation gives prediction as (48, 1), xgboost as (48,)", id="a shape"),
    ],
)
def test_a_model_that_differs_from_its_library_is_served_by_it_and_says_so(
    proven: Callable[..., ModelFile], change: str, note: str
) -> None:
    model = proven(change)
    assert (model.summary["engine"], model.summary["engine_note"]) == ("xgboost", note)
    assert model.probes is not None
    assert len(model.probes.outputs["prediction"]) == 32


def test_a_prediction_may_differ_in_the_last_place(proven: Callable[..., ModelFile]) -> None:
    assert proven(ONE_BIT_OF_A_PREDICTION).summary["engine"] == "exact"


def test_without_a_library_to_compare_with_nothing_is_exact(proven: Callable[..., ModelFile]) -> None:
    summary = proven(loaded="None").summary
    assert summary["engine"] == "xgboost"
    assert "no plugin runs xgboost" in summary["engine_note"]


@pytest.mark.parametrize("missing", [None, -999.0, 0.0])
def test_the_estimator_s_missing_value_is_part_of_the_proof(
    proven: Callable[..., ModelFile], model_pickles: dict[int, bytes], missing: float | None
) -> None:
    estimator = pickle.loads(model_pickles[0])
    estimator.missing = np.nan if missing is None else missing
    model = proven(data=pickle.dumps(estimator))
    assert (model.missing, model.summary["engine"]) == (missing, "exact")


def test_what_a_plugin_never_saw_of_missing_values_shows(
    proven: Callable[..., ModelFile], model_pickles: dict[int, bytes]
) -> None:
    estimator = pickle.loads(model_pickles[0])
    estimator.missing = -999.0
    forgetful = "predictor if setattr(predictor, '_missing', None) is None else None"
    assert "differs" in str(proven(data=pickle.dumps(estimator), loaded=forgetful).summary["engine_note"])


def test_dart_is_served_by_its_library_and_says_why(plugins: Plugins) -> None:
    import xgboost

    rows = np.random.default_rng(1).normal(size=(100, 3)).astype(np.float32)
    booster = xgboost.train({"booster": "dart", "rate_drop": 0.5}, xgboost.DMatrix(rows, rows.sum(axis=1)), 4)
    summary = proven_by(plugins, NAME, pickle.dumps(booster)).summary
    assert summary["engine"] == "xgboost"
    assert "dart" in summary["engine_note"]


CLAIMING = """
import msgspec
from mmserver import ArtifactFormat, Probes, document_from_bytes, hookimpl, model_file_from_document

def parse(artifact):
    model = model_file_from_document(document_from_bytes(artifact.data), uses_best_iteration=False)
    return msgspec.structs.replace(model, probes=Probes(rows=[[0.0, 0.0, 0.0]], outputs={{"margin": [[{claim!r}]]}}))

@hookimpl
def mmserver_formats():
    return [ArtifactFormat(name="claiming", suffix="_claimed.json", role="model", parse=parse)]
"""


def test_what_another_plugin_claims_falsely_stays_a_refusal(model_pickles: dict[int, bytes], tmp_path: Path) -> None:
    booster = pickle.loads(model_pickles[0]).get_booster()
    text = bytes(booster.save_raw("json"))
    true_margin = float(booster.inplace_predict(np.zeros((1, 3), np.float32))[0])
    (tmp_path / "claiming.py").write_text(CLAIMING.format(claim=true_margin))
    assert proven_by(load_plugins(tmp_path), "BTC_ret_1h_claimed.json", text).summary["engine"] == "exact"
    (tmp_path / "claiming.py").write_text(
        CLAIMING.format(claim=float(np.nextafter(np.float32(true_margin), np.float32(9))))
    )
    with pytest.raises(ArtifactInvalid, match="1 of 1 probe rows predict something else") as refused:
        proven_by(load_plugins(tmp_path), "BTC_ret_1h_claimed.json", text)
    assert refused.value.values["reason"] == "self_check_failed"


def test_the_guarded_worker_proves_too(registered: Any) -> None:
    model = registered.detail("BTC").record.model
    assert (model["summary"]["engine"], model["summary"]["engine_note"]) == ("exact", None)
