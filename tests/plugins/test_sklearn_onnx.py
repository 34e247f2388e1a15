"""scikit-learn models from skops files: what is converted agrees, what cannot be is refused by its step, nothing is run."""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmserver.errors import NotConvertible, Undecodable

skops = pytest.importorskip("skops.io", reason="skops is not installed (the extra sklearn)")
pytest.importorskip("skl2onnx", reason="skl2onnx is not installed (the extra sklearn)")

from sklearn import base, ensemble, linear_model, neighbors, neural_network, pipeline, preprocessing, svm, tree  # noqa: E402  after the skips

ROWS = np.random.default_rng(0).normal(size=(200, 4))
PRICES = 50_000 + 300 * ROWS
RETURNS = ROWS @ [1.0, 2.0, -1.0, 0.0]
CLASSES = np.array(["SELL", "HOLD", "BUY"])[np.digitize(RETURNS, (-1, 1))]


def saved(model: Any, labels: Any = RETURNS, rows: Any = ROWS) -> bytes:
    content: bytes = skops.dumps(model.fit(rows, labels))
    return content


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(linear_model.Ridge(), id="ridge"),
        pytest.param(ensemble.RandomForestRegressor(10, n_jobs=-1, random_state=0), id="forest"),
        pytest.param(svm.SVR(), id="svr"),
        pytest.param(
            pipeline.make_pipeline(
                preprocessing.StandardScaler(), ensemble.GradientBoostingRegressor(n_estimators=10, random_state=0)
            ),
            id="scaled-trees",
        ),
    ],
)
def test_a_regressor_agrees_with_its_source(
    read_model: Callable[..., Any], parity: Callable[..., Any], model: Any
) -> None:
    read = read_model("sklearn", saved(model))
    report = parity(read)
    assert (report.passed, report.n_beyond) == (True, 0)
    assert (read.kind, read.n_features, list(read.probes.outputs)) == ("onnx", 4, ["prediction"])


@pytest.mark.parametrize(
    ("model", "output"),
    [
        pytest.param(linear_model.LogisticRegression(), "probabilities", id="logistic"),
        pytest.param(ensemble.RandomForestClassifier(10, random_state=0), "probabilities", id="forest"),
        pytest.param(svm.LinearSVC(random_state=0), "scores", id="linear-svc"),
        pytest.param(linear_model.SGDClassifier(random_state=0), "scores", id="sgd"),
    ],
)
def test_a_classifier_gives_one_number_a_class_and_names_the_classes(
    read_model: Callable[..., Any], parity: Callable[..., Any], model: Any, output: str
) -> None:
    read = read_model("sklearn", saved(model, CLASSES))
    report = parity(read)
    assert (report.passed, report.class_agreement) == (True, 1.0)
    assert np.shape(read.probes.outputs[output])[1] == 3
    assert read.summary["classes"] == ["BUY", "HOLD", "SELL"]


def test_two_classes_without_probabilities_have_a_score_each(
    read_model: Callable[..., Any], parity: Callable[..., Any]
) -> None:
    assert parity(read_model("sklearn", saved(svm.LinearSVC(random_state=0), RETURNS > 0))).passed


def test_the_objective_says_that_a_quantile_is_no_return(read_model: Callable[..., Any]) -> None:
    model = ensemble.GradientBoostingRegressor(loss="quantile", n_estimators=3)
    assert read_model("sklearn", saved(model)).objective == "GradientBoostingRegressor quantile"


def test_features_keep_the_names_that_they_were_fitted_with(read_model: Callable[..., Any]) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (the extra test)")
    frame = pandas.DataFrame(ROWS, columns=["w", "x", "y", "z"])
    assert read_model("sklearn", saved(linear_model.Ridge(), rows=frame)).feature_names == ("w", "x", "y", "z")


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(ensemble.RandomForestRegressor(10, random_state=0), id="forest"),
        pytest.param(ensemble.GradientBoostingRegressor(n_estimators=10, random_state=0), id="boosting"),
        pytest.param(tree.DecisionTreeRegressor(max_depth=4, random_state=0), id="tree"),
    ],
)
@pytest.mark.parametrize(
    "scaler",
    [
        pytest.param(None, id="unscaled"),
        pytest.param(preprocessing.StandardScaler(), id="standard"),
        pytest.param(preprocessing.MinMaxScaler(), id="min-max"),
        pytest.param(preprocessing.RobustScaler(), id="robust"),
    ],
)
def test_trees_on_prices_are_tried_on_both_sides_of_their_splits(
    read_model: Callable[..., Any], parity: Callable[..., Any], model: Any, scaler: Any
) -> None:
    whole = base.clone(model) if scaler is None else pipeline.make_pipeline(scaler, base.clone(model))
    read = read_model("sklearn", saved(whole, rows=PRICES))
    assert parity(read).passed
    predictions = np.array(read.probes.outputs["prediction"])
    assert len(np.unique(predictions)) > 8
    assert predictions.min() < -1 < 1 < predictions.max()


def test_prices_that_a_robust_scaler_scales_keep_their_last_digits(
    read_model: Callable[..., Any], parity: Callable[..., Any]
) -> None:
    model = pipeline.make_pipeline(preprocessing.RobustScaler(), linear_model.LogisticRegression())
    report = parity(read_model("sklearn", saved(model, CLASSES, PRICES)))
    assert (report.passed, report.max_abs_difference < 1e-6) == (True, True)


MINUTES = 50_000 + 5 * ROWS
"""Prices that move by a ten-thousandth."""


@pytest.mark.parametrize(
    "last",
    [
        pytest.param(linear_model.Ridge(1e-6), id="ridge"),
        pytest.param(linear_model.PoissonRegressor(alpha=1e-6), id="poisson"),
        pytest.param(
            neural_network.MLPRegressor(hidden_layer_sizes=(8,), max_iter=20, random_state=0, solver="lbfgs"),
            id="network",
        ),
        pytest.param(neighbors.KNeighborsRegressor(), id="neighbours"),
        pytest.param(svm.SVR(), id="svr"),
        pytest.param(ensemble.RandomForestRegressor(5, random_state=0), id="forest"),
    ],
)
@pytest.mark.parametrize(
    "scaler",
    [
        pytest.param(preprocessing.StandardScaler(), id="standard"),
        pytest.param(preprocessing.MinMaxScaler(), id="min-max"),
        pytest.param(preprocessing.RobustScaler(), id="robust"),
        pytest.param(preprocessing.QuantileTransformer(n_quantiles=50), id="quantiles"),
    ],
)
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_prices_that_hardly_move_keep_their_last_digits_behind_any_scaler(
    read_model: Callable[..., Any], parity: Callable[..., Any], scaler: Any, last: Any
) -> None:
    model = pipeline.make_pipeline(base.clone(scaler), base.clone(last))
    read = read_model("sklearn", saved(model, np.exp(RETURNS / 10), MINUTES))
    report = parity(read)
    assert (report.passed, report.n_beyond) == (True, 0)
    assert len(np.unique(read.probes.outputs["prediction"])) > 5


def test_several_scalers_and_what_stands_for_none_are_each_computed_as_in_the_source(
    read_model: Callable[..., Any], parity: Callable[..., Any]
) -> None:
    steps = (
        preprocessing.StandardScaler(),
        "passthrough",
        preprocessing.MaxAbsScaler(),
        preprocessing.PolynomialFeatures(2),
    )
    model = pipeline.make_pipeline(*steps, linear_model.Ridge())
    assert parity(read_model("sklearn", saved(model, rows=MINUTES))).passed


def test_a_scaler_that_can_only_be_computed_in_single_precision_is_refused_where_that_loses_too_much(
    read_model: Callable[..., Any], parity: Callable[..., Any]
) -> None:
    model = pipeline.make_pipeline(preprocessing.PowerTransformer(), linear_model.Ridge())
    assert parity(read_model("sklearn", saved(model))).passed
    report = parity(read_model("sklearn", saved(model, rows=100 + ROWS)))
    assert (report.passed, report.n_beyond > 0) == (False, True)


def test_a_step_that_cannot_be_computed_at_all_in_single_precision_is_refused_with_the_figures(
    read_model: Callable[..., Any],
) -> None:
    model = pipeline.make_pipeline(preprocessing.PowerTransformer(), linear_model.Ridge())
    with pytest.raises(Undecodable, match=r"no finite number .* Pipeline gives one for 64 of 64") as refusal:
        read_model("sklearn", saved(model, rows=50_000 + 5 * ROWS))
    assert refusal.value.reason == "not_finite"


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_rows_of_zeros_have_no_norm_and_are_left_as_they_are(
    read_model: Callable[..., Any], parity: Callable[..., Any], norm: str
) -> None:
    within = pipeline.make_union(preprocessing.Normalizer(norm=norm), preprocessing.StandardScaler())
    for step in (preprocessing.Normalizer(norm=norm), within):
        read = read_model("sklearn", saved(pipeline.make_pipeline(step, linear_model.Ridge())))
        assert [0.0] * len(read.probes.rows[0]) in read.probes.rows
        assert parity(read).passed


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(linear_model.LinearRegression(), id="regression"),
        pytest.param(linear_model.Lasso(1e-9), id="lasso"),
        pytest.param(
            neural_network.MLPRegressor(hidden_layer_sizes=(4,), max_iter=5, random_state=0, solver="lbfgs"),
            id="network",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge", "ignore:Objective did not converge")
def test_a_model_without_a_scaler_is_tried_on_returns_prices_and_volumes(
    read_model: Callable[..., Any], parity: Callable[..., Any], model: Any
) -> None:
    sizes = np.array([1e-4, 1e9, 1e5, 1.0])
    rows = ROWS * sizes * (1, 0.3, 0.001, 1) + (0, 1e9, 1e5, 0)
    read = read_model("sklearn", saved(model, rows=rows))
    assert parity(read).passed
    tried = np.abs(np.array(read.probes.rows))
    for size in sizes:
        near = (tried > 0.9 * size) & (tried < 1.1 * size)
        assert near.any(axis=0).all(), f"no row has features of about {size}"
        assert near.all(axis=1).any(), f"no row has only features of about {size}"


def test_a_linear_model_is_tried_where_each_of_its_features_counts(read_model: Callable[..., Any]) -> None:
    sizes = np.array([0.01, 100, 10, 1.0])
    model = linear_model.LinearRegression()
    tried = np.array(read_model("sklearn", saved(model, ROWS @ np.ones(4), ROWS * sizes)).probes.rows)
    assert np.median(np.abs(tried[:40]), axis=0) == pytest.approx(sizes, rel=1.0)


def test_neighbours_are_tried_around_the_rows_that_they_keep(
    read_model: Callable[..., Any], parity: Callable[..., Any]
) -> None:
    read = read_model("sklearn", saved(neighbors.KNeighborsRegressor(), rows=PRICES))
    assert parity(read).passed
    assert len(np.unique(read.probes.outputs["prediction"])) > 30


@pytest.mark.parametrize("labels", [pytest.param(RETURNS > 0, id="two"), pytest.param(CLASSES, id="three")])
@pytest.mark.parametrize(
    "last",
    [
        pytest.param(svm.SVC(), id="svc"),
        pytest.param(svm.NuSVC(nu=0.1), id="nu-svc"),
        pytest.param(svm.LinearSVC(random_state=0), id="linear-svc"),
        pytest.param(linear_model.RidgeClassifier(), id="ridge"),
        pytest.param(linear_model.Perceptron(), id="perceptron"),
    ],
)
def test_a_pipeline_of_a_classifier_without_probabilities_gives_scores_whose_largest_is_the_class(
    read_model: Callable[..., Any], parity: Callable[..., Any], last: Any, labels: Any
) -> None:
    model = pipeline.make_pipeline(preprocessing.StandardScaler(), base.clone(last))
    read = read_model("sklearn", saved(model, labels, PRICES))
    report = parity(read)
    assert (report.passed, report.class_agreement) == (True, 1.0)
    scores = np.array(read.probes.outputs["scores"])
    said = model.predict(np.array(read.probes.rows))
    clear = np.diff(np.sort(scores, axis=1)[:, -2:], axis=1)[:, 0] > 1e-5
    assert (np.array(read.summary["classes"])[scores.argmax(axis=1)][clear] == said[clear]).all()


@pytest.mark.parametrize(
    "scaler",
    [
        pytest.param(preprocessing.StandardScaler(), id="standard"),
        pytest.param(preprocessing.MinMaxScaler(), id="min-max"),
        pytest.param(preprocessing.RobustScaler(), id="robust"),
        pytest.param(preprocessing.MaxAbsScaler(), id="max-abs"),
    ],
)
def test_rows_lie_around_what_the_scaler_was_fitted_with(read_model: Callable[..., Any], scaler: Any) -> None:
    model = pipeline.make_pipeline(scaler, linear_model.Ridge())
    scaled = scaler.fit(PRICES).transform(np.array(read_model("sklearn", saved(model, rows=PRICES)).probes.rows))
    assert np.abs(np.median(scaled, axis=0)).max() < 0.5
    assert np.all((scaled.std(axis=0) > 0.1) & (np.median(np.abs(scaled), axis=0) < 2))


def test_a_step_that_cannot_be_converted_is_refused_by_name(read_model: Callable[..., Any]) -> None:
    model = pipeline.make_pipeline(preprocessing.StandardScaler(), ensemble.HistGradientBoostingRegressor(max_iter=3))
    with pytest.raises(NotConvertible, match="StandardScaler → HistGradientBoostingRegressor"):
        read_model("sklearn", saved(model))


def test_what_predicts_nothing_is_refused(read_model: Callable[..., Any]) -> None:
    with pytest.raises(Undecodable, match="this is StandardScaler"):
        read_model("sklearn", saved(preprocessing.StandardScaler()))


def test_a_number_of_features_that_is_not_the_model_s_is_refused(read_model: Callable[..., Any]) -> None:
    with pytest.raises(Undecodable, match="n_features is 5"):
        read_model("sklearn", saved(linear_model.Ridge()), n_features=5)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle was run",))


def test_a_pickle_is_refused_with_what_to_do_and_never_run(read_model: Callable[..., Any]) -> None:
    with pytest.raises(Undecodable, match="save the model with skops"):
        read_model("sklearn", pickle.dumps(Payload()))


def test_a_file_that_names_a_function_of_somebody_else_is_refused_and_nothing_called(
    read_model: Callable[..., Any],
) -> None:
    source = io.BytesIO(saved(linear_model.Ridge()))
    with zipfile.ZipFile(source) as archive:
        schema = json.loads(archive.read("schema.json"))
        others = {name: archive.read(name) for name in archive.namelist() if name != "schema.json"}
    schema["__module__"], schema["__class__"] = "os", "system"
    forged = io.BytesIO()
    with zipfile.ZipFile(forged, "w") as archive:
        archive.writestr("schema.json", json.dumps(schema))
        for name, data in others.items():
            archive.writestr(name, data)
    with pytest.raises(Undecodable, match=r"os\.system"):
        read_model("sklearn", forged.getvalue())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("../evil.npy", "'../evil.npy' leads out of the archive", id="parent"),
        pytest.param("/tmp/evil.npy", "'/tmp/evil.npy' has an absolute path", id="absolute"),
        pytest.param("schema.json", "two entries named 'schema.json'", id="twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_an_entry_that_leads_out_or_hides_another_is_refused_by_its_name(
    read_model: Callable[..., Any], name: str, says: str
) -> None:
    file = io.BytesIO(saved(linear_model.Ridge()))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, b"{}")
    with pytest.raises(Undecodable, match=says):
        read_model("sklearn", file.getvalue())


def test_a_file_that_is_cut_or_has_a_flipped_bit_is_refused(read_model: Callable[..., Any]) -> None:
    whole = saved(linear_model.Ridge())
    for length in range(3, len(whole), len(whole) // 12):
        with pytest.raises(Undecodable):
            read_model("sklearn", whole[:length])
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = archive.infolist()
    for entry in entries:
        middle = entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        with pytest.raises(Undecodable, match=re.escape(entry.filename)):
            read_model("sklearn", flipped)
