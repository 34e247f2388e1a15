"""LightGBM's trees in ONNX: the same bits as LightGBM's where no link function follows, on splits, gaps and infinities too."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmserver.errors import NotConvertible, Undecodable

lightgbm = pytest.importorskip("lightgbm", reason="lightgbm is not installed (the extra lightgbm)")
pytest.importorskip("onnx", reason="onnx is not installed (the extra lightgbm)")

QUIET = {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 5}


@pytest.fixture(scope="module")
def rows() -> Any:
    rng = np.random.default_rng(0)
    found = rng.normal(size=(400, 4))
    found[rng.random(found.shape) < 0.05] = np.nan
    return found


@pytest.fixture(scope="module")
def returns(rows: Any) -> Any:
    return np.nan_to_num(rows) @ [1.0, 2.0, -1.0, 0.0]


def booster(rows: Any, labels: Any, n_trees: int = 12, **options: Any) -> Any:
    options = {**QUIET, **options}
    names = options.pop("names", "auto")
    categories = options.pop("categories", "auto")
    data = lightgbm.Dataset(rows, labels, params=options, feature_name=names, categorical_feature=categories)
    return lightgbm.train(options, data, n_trees)


def text(*arguments: Any, **options: Any) -> bytes:
    content: bytes = booster(*arguments, **options).model_to_string().encode()
    return content


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"objective": "regression"}, id="regression"),
        pytest.param({"objective": "quantile"}, id="quantile"),
        pytest.param({"objective": "regression", "boosting": "dart"}, id="dart"),
        pytest.param({"objective": "regression", "use_missing": False}, id="missing-is-zero"),
        pytest.param(
            {"objective": "regression", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
            id="random-forest",
        ),
    ],
)
def test_sums_of_leaves_are_lightgbm_s_to_the_bit(
    read_model: Callable[..., Any], parity: Callable[..., Any], rows: Any, returns: Any, options: dict[str, Any]
) -> None:
    model = read_model("lightgbm", text(rows, returns, 40, **options))
    report = parity(model)
    assert (report.max_abs_difference, report.n_beyond, report.passed) == (0.0, 0, True)
    assert list(model.probes.outputs) == ["prediction"]
    assert (model.kind, model.n_features, model.objective, model.n_trees) == ("onnx", 4, options["objective"], 40)


@pytest.mark.parametrize(
    ("options", "n_classes"),
    [
        pytest.param({"objective": "binary"}, 2, id="binary"),
        pytest.param({"objective": "binary", "sigmoid": 2.0}, 2, id="steep-binary"),
        pytest.param({"objective": "multiclass", "num_class": 3}, 3, id="multiclass"),
        pytest.param({"objective": "multiclassova", "num_class": 3}, 3, id="one-against-all"),
    ],
)
def test_classes_have_lightgbm_s_probabilities(
    read_model: Callable[..., Any],
    parity: Callable[..., Any],
    rows: Any,
    returns: Any,
    options: dict[str, Any],
    n_classes: int,
) -> None:
    labels = np.digitize(returns, (-1, 1)) if n_classes == 3 else returns > 0
    model = read_model("lightgbm", text(rows, labels, **options))
    report = parity(model)
    assert report.passed
    assert report.max_abs_difference < 1e-6
    assert np.shape(model.probes.outputs["probabilities"])[1] == n_classes


def test_counts_are_the_exponential_of_the_sums(
    read_model: Callable[..., Any], parity: Callable[..., Any], rows: Any, returns: Any
) -> None:
    assert parity(read_model("lightgbm", text(rows, np.abs(returns), objective="poisson"))).passed


def test_an_objective_of_the_user_s_own_gives_margins_without_a_meaning(
    read_model: Callable[..., Any], rows: Any, returns: Any
) -> None:
    own = text(rows, returns, objective=lambda found, data: (found - data.get_label(), np.ones(len(found))))
    assert list(read_model("lightgbm", own).probes.outputs) == ["margin"]


def test_a_model_of_one_leaf_is_read(read_model: Callable[..., Any], parity: Callable[..., Any], rows: Any) -> None:
    assert parity(read_model("lightgbm", text(rows, np.ones(len(rows)), objective="regression"))).passed


def test_features_keep_their_names_and_numbered_columns_have_none(
    read_model: Callable[..., Any], rows: Any, returns: Any
) -> None:
    assert read_model("lightgbm", text(rows, returns)).feature_names is None
    named = text(rows, returns, names=["w", "x", "y", "z"])
    assert read_model("lightgbm", named).feature_names == ("w", "x", "y", "z")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param({"linear_tree": True}, "linear", id="linear-leaves"),
        pytest.param({"zero_as_missing": True}, "zero_as_missing", id="zero-as-missing"),
        pytest.param({"reg_sqrt": True}, "sqrt", id="square-root"),
        pytest.param({"categories": [3], "min_data_per_group": 5, "cat_smooth": 0}, "categories", id="categories"),
    ],
)
def test_what_onnx_cannot_say_is_refused_by_name(
    read_model: Callable[..., Any], returns: Any, options: dict[str, Any], reason: str
) -> None:
    rng = np.random.default_rng(1)
    rows = np.column_stack([rng.normal(size=(400, 3)), np.repeat(np.arange(20), 20)])
    rows[::7, 0] = 0
    labels = rows[:, 0] + np.repeat(rng.normal(size=20), 20)
    with pytest.raises(NotConvertible, match=reason):
        read_model("lightgbm", text(rows, labels, objective="regression", **options))


def test_a_pickle_is_read_without_running_it(
    read_model: Callable[..., Any], parity: Callable[..., Any], rows: Any, returns: Any
) -> None:
    model = booster(rows, returns)
    from_pickle, from_text = (
        read_model("lightgbm", data) for data in (pickle.dumps(model), model.model_to_string().encode())
    )
    assert from_pickle.content == from_text.content
    assert parity(from_pickle).passed


def test_a_wrapper_s_pickle_has_its_classes_and_stops_at_the_best_iteration(
    read_model: Callable[..., Any], rows: Any, returns: Any
) -> None:
    labels = np.digitize(returns, (-1, 1)) + 10
    noise = np.random.default_rng(2).permutation(labels)
    stop = lightgbm.early_stopping(2, verbose=False)
    model = lightgbm.LGBMClassifier(n_estimators=40, n_jobs=1, verbosity=-1)
    model.fit(rows, labels, eval_X=rows, eval_y=noise, callbacks=[stop])
    assert model.best_iteration_ < 10
    read = read_model("lightgbm", pickle.dumps(model))
    assert (read.n_trees, read.summary["classes"]) == (3 * model.best_iteration_, [10, 11, 12])
    probes = np.array(read.probes.rows, dtype=np.float64)
    expected = model.predict_proba(probes, validate_features=False)
    assert np.abs(np.array(read.probes.outputs["probabilities"]) - expected).max() < 1e-7


def test_a_text_that_is_cut_anywhere_is_refused(read_model: Callable[..., Any], rows: Any, returns: Any) -> None:
    whole = text(rows, returns, 3, objective="regression").rstrip()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        with pytest.raises((Undecodable, ValueError, KeyError, lightgbm.basic.LightGBMError)):
            read_model("lightgbm", whole[:length])


def test_a_text_that_is_cut_in_its_last_line_or_goes_on_behind_it_is_refused(
    read_model: Callable[..., Any], rows: Any, returns: Any
) -> None:
    whole = text(rows, returns, 3, objective="regression").rstrip()
    end = whole.index(b"pandas_categorical")
    for length in range(end + 1, len(whole)):
        with pytest.raises(Undecodable, match="the text") as refusal:
            read_model("lightgbm", whole[:length])
        assert refusal.value.reason == "torn"
    with pytest.raises(Undecodable, match="goes on with"):
        read_model("lightgbm", whole + b"\nmore\n")


def test_a_text_without_that_line_is_one_that_r_or_the_command_wrote_and_predicts_the_same(
    read_model: Callable[..., Any], rows: Any, returns: Any
) -> None:
    whole = text(rows, returns, 3, objective="regression")
    short = whole[: whole.index(b"pandas_categorical")]
    assert read_model("lightgbm", short).content == read_model("lightgbm", whole).content


def test_a_pickle_of_something_else_is_refused(read_model: Callable[..., Any]) -> None:
    with pytest.raises(Undecodable, match="a LightGBM model is expected"):
        read_model("lightgbm", pickle.dumps({"a": 1}))
