"""Whichever engine runs a model, its margins are XGBoost's to the bit; XGBoost is loaded for many rows only."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mmserver.formats import Artifact, ModelFile
from mmserver.plugin_loading import Plugins, load_plugins
from mmserver.serving.engines import EXACT, LIBRARY_FROM_CELLS, ExactEngine, LibraryEngine, load_engine
from mmserver.trees.document import document_from_bytes
from mmserver.trees.model_file import model_file_from_document
from mmserver.trees.proving import engine_facts
from tests.counting import n_steps

N_FEATURES = 4
FEW, MANY = 5, 4000


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def _rows(n: int, seed: int) -> Any:
    random = np.random.RandomState(seed)
    rows = np.round(random.normal(size=(n, N_FEATURES)), 1).astype(np.float32)
    rows[random.random_sample(rows.shape) < 0.1] = np.nan
    rows[random.random_sample(rows.shape) < 0.05] = -999
    return rows


@pytest.fixture(scope="module")
def model_of(plugins: Plugins) -> Callable[..., ModelFile]:
    """A function: objective -> a proven model; trained once each."""
    import xgboost

    made: dict[tuple[str, float | None], ModelFile] = {}

    def of_objective(objective: str, *, missing: float | None = None, **parameters: Any) -> ModelFile:
        key = (objective + str(parameters), missing)
        if key not in made:
            rows = _rows(600, 1)
            target = np.nan_to_num(rows)[:, 0] + np.nan_to_num(rows)[:, 1] ** 2
            label = {"multi": np.digitize(target, [0, 100]), "binary": target > 0}.get(
                objective.split(":", maxsplit=1)[0], target
            )
            if objective.startswith("multi"):
                parameters["num_class"] = 3
            asked = {"objective": objective, "nthread": 1, "max_depth": 4, **parameters}
            matrix = xgboost.DMatrix(rows, label.astype(float), missing=np.nan if missing is None else missing)
            raw = bytes(xgboost.train(asked, matrix, 6).save_raw("ubj"))
            model = model_file_from_document(document_from_bytes(raw), uses_best_iteration=False, missing=missing)
            facts = engine_facts(model, plugins.load_predictor(model))
            made[key] = msgspec.structs.replace(model, summary={**model.summary, **facts})
        return made[key]

    return of_objective


def same_bits(left: Any, right: Any) -> bool:
    return left.dtype == right.dtype == np.float32 and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("missing", [None, -999.0])
@pytest.mark.parametrize("objective", ["reg:squarederror", "binary:logistic", "multi:softprob", "multi:softmax"])
def test_outputs_are_the_library_s_for_few_rows_and_for_many(
    model_of: Callable[..., ModelFile], plugins: Plugins, objective: str, missing: float | None
) -> None:
    model = model_of(objective, missing=missing)
    engine, library = load_engine(model, plugins), plugins.load_predictor(model)
    assert engine is not None
    assert library is not None
    assert (engine.name, engine.accepts_missing, engine.n_features) == (EXACT, True, N_FEATURES)
    rows = _rows(MANY, 2)
    rows[::50, 1], rows[1::50, 2] = np.inf, -np.inf
    assert FEW * model.n_trees < LIBRARY_FROM_CELLS
    assert MANY * model.n_trees > LIBRARY_FROM_CELLS
    expected = library.predict(rows)
    for n_rows in (1, 2, FEW, MANY):
        outputs = engine.predict(rows[:n_rows])
        assert list(outputs) == ["margin", "prediction"]
        for name, values in outputs.items():
            assert same_bits(values, expected[name][:n_rows]), (name, n_rows)


def test_a_row_s_outputs_do_not_depend_on_how_many_rows_come_with_it(
    model_of: Callable[..., ModelFile], plugins: Plugins
) -> None:
    engine = load_engine(model_of("multi:softprob"), plugins)
    assert engine is not None
    rows = _rows(MANY, 3)
    together = engine.predict(rows)
    for start, n_rows in ((0, 1), (1, 1), (7, 3), (100, 64), (2000, 2000)):
        alone = engine.predict(rows[start : start + n_rows])
        for name, values in alone.items():
            assert same_bits(values, together[name][start : start + n_rows])


def test_the_callers_rows_stay_as_they_are(model_of: Callable[..., ModelFile], plugins: Plugins) -> None:
    engine = load_engine(model_of("reg:squarederror", missing=-999.0), plugins)
    assert engine is not None
    for n_rows in (1, FEW, MANY):
        rows = _rows(n_rows, 4)
        before = rows.tobytes()
        rows.flags.writeable = False
        engine.predict(rows)
        engine.contributions(rows[:3])
        assert rows.tobytes() == before


def test_no_rows_have_no_outputs(model_of: Callable[..., ModelFile], plugins: Plugins) -> None:
    for objective in ("reg:squarederror", "multi:softprob"):
        engine = load_engine(model_of(objective), plugins)
        assert engine is not None
        assert {len(values) for values in engine.predict(np.empty((0, N_FEATURES), np.float32)).values()} == {0}


@pytest.mark.parametrize("shape", [(1, 3), (1, 5), (MANY, 5)])
def test_rows_of_another_width_are_refused(
    model_of: Callable[..., ModelFile], plugins: Plugins, shape: tuple[int, int]
) -> None:
    engine = load_engine(model_of("reg:squarederror"), plugins)
    assert engine is not None
    with pytest.raises(ValueError, match=r"features|float32"):
        engine.predict(np.zeros(shape, np.float32))


def test_few_rows_need_no_xgboost(model_of: Callable[..., ModelFile], tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(msgspec.msgpack.encode(model_of("multi:softprob")))
    program = """
import sys, msgspec, numpy
from mmserver.formats import ModelFile
from mmserver.plugin_loading import load_plugins
from mmserver.serving.engines import load_engine
engine = load_engine(msgspec.msgpack.decode(open(sys.argv[1], "rb").read(), type=ModelFile), load_plugins())
engine.predict(numpy.zeros((1, 4), numpy.float32)), engine.predict(numpy.zeros((5, 4), numpy.float32))
print(*[name for name in ("xgboost", "onnxruntime", "pandas", "scipy", "pyarrow") if name in sys.modules])
engine.predict(numpy.zeros((4000, 4), numpy.float32))
print("xgboost" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "True"], done.stderr


class Counting:
    """Plugins, counting and holding up the loading of predictors."""

    def __init__(self, plugins: Plugins, *, error: Exception | None = None) -> None:
        self.plugins = plugins
        self.error = error
        self.n_loaded = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def load_predictor(self, model: ModelFile) -> Any:
        self.n_loaded += 1
        assert self.may_go_on.wait(60)
        if self.error is not None:
            raise self.error
        return self.plugins.load_predictor(model)


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    found: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(index: int) -> None:
        start.wait()
        found[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_eight_threads_load_xgboost_once_and_get_what_one_gets(
    model_of: Callable[..., ModelFile], plugins: Plugins
) -> None:
    model, rows = model_of("multi:softprob"), _rows(MANY, 5)
    counting: Any = Counting(plugins)
    alone = ExactEngine(model, plugins)
    expected = [
        alone.predict(rows)["prediction"],
        alone.contributions(rows[:20]),
        alone.predict(rows[:1])["prediction"],
    ]
    engine = ExactEngine(model, counting)
    calls = [lambda: engine.predict(rows)["prediction"], lambda: engine.contributions(rows[:20]),
             lambda: engine.predict(rows[:1])["prediction"]]  # fmt: skip
    for _ in range(5):
        for index, found in enumerate(in_threads([calls[index % 3] for index in range(8)])):
            assert same_bits(found, expected[index % 3])
    assert counting.n_loaded == 1


def test_while_one_thread_loads_xgboost_the_others_are_answered(
    model_of: Callable[..., ModelFile], plugins: Plugins
) -> None:
    model, rows = model_of("reg:squarederror"), _rows(MANY, 6)
    counting: Any = Counting(plugins)
    counting.may_go_on.clear()
    engine = ExactEngine(model, counting)
    first: list[Any] = []
    loading = threading.Thread(target=lambda: first.append(engine.predict(rows)["margin"]))
    loading.start()
    try:
        while not counting.n_loaded:
            pass
        others = [engine.predict(rows)["margin"] for _ in range(2)]
        assert not first
    finally:
        counting.may_go_on.set()
        loading.join(60)
    assert same_bits(others[0], first[0])
    assert same_bits(others[1], first[0])
    assert counting.n_loaded == 1


def test_without_xgboost_an_exact_model_still_predicts_any_number_of_rows(
    model_of: Callable[..., ModelFile], plugins: Plugins, caplog: pytest.LogCaptureFixture
) -> None:
    model, rows = model_of("binary:logistic"), _rows(MANY, 7)
    failing: Any = Counting(plugins, error=ImportError("no xgboost here"))
    engine = ExactEngine(model, failing)
    for _ in range(3):
        found = engine.predict(rows)
    assert same_bits(found["prediction"], ExactEngine(model, plugins).predict(rows)["prediction"])
    assert failing.n_loaded == 1
    assert caplog.text.count("no xgboost here") == 1
    with pytest.raises(NotImplementedError, match="could load"):
        engine.contributions(rows[:1])


@pytest.mark.parametrize("objective", ["reg:squarederror", "binary:logistic", "multi:softprob"])
def test_contributions_add_up_to_the_margin(
    model_of: Callable[..., ModelFile], plugins: Plugins, objective: str
) -> None:
    model = model_of(objective, missing=-999.0)
    engine = load_engine(model, plugins)
    assert engine is not None
    rows = _rows(40, 8)
    contributions = engine.contributions(rows)
    assert contributions.shape == (40, model.n_outputs, N_FEATURES + 1)
    np.testing.assert_allclose(contributions.sum(axis=2), engine.predict(rows)["margin"], rtol=1e-5, atol=1e-5)
    assert (contributions[:, :, -1] == contributions[:1, :, -1]).all()


def test_what_was_stored_before_there_was_a_choice_is_exact_where_nothing_was_noted(
    model_of: Callable[..., ModelFile], plugins: Plugins
) -> None:
    model = model_of("reg:squarederror")

    def name_with(**summary: Any) -> str:
        engine = load_engine(msgspec.structs.replace(model, summary=summary), plugins)
        assert engine is not None
        return engine.name

    assert name_with(engine_note=None) == EXACT
    assert name_with(engine_note="dart weighs its trees") == "xgboost"
    assert name_with() == "xgboost"
    assert name_with(engine="xgboost", engine_note="exact evaluation differs on 3 of 48 probe rows") == "xgboost"


def test_dart_is_run_by_xgboost_and_says_why(model_of: Callable[..., ModelFile], plugins: Plugins) -> None:
    model = model_of("reg:squarederror", booster="dart", rate_drop=0.5)
    engine = load_engine(model, plugins)
    assert isinstance(engine, LibraryEngine)
    assert (model.summary["engine"], engine.name, engine.accepts_missing) == ("xgboost", "xgboost", True)
    assert "dart" in model.summary["engine_note"]
    rows, library = _rows(3, 9), plugins.load_predictor(model)
    assert library is not None
    assert same_bits(engine.predict(rows)["margin"], library.predict(rows)["margin"])
    np.testing.assert_allclose(engine.contributions(rows).sum(axis=2), engine.predict(rows)["margin"], rtol=1e-4)


PLUGIN = """
import numpy as np
from mmserver import hookimpl

class Sum:
    n_features, size_bytes = 2, 16
    def predict(self, rows):
        return {"prediction": rows.sum(axis=1, keepdims=True)}

@hookimpl
def mmserver_load_predictor(model):
    return Sum() if model.kind == "sum" else None
"""


def test_another_kind_is_run_by_its_plugin_and_takes_no_missing_values_unless_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(PLUGIN)
    plugins = load_plugins(tmp_path)
    model = ModelFile(kind="sum", content=b"", n_features=2, n_outputs=1, objective="", library_version="")
    engine = load_engine(model, plugins)
    assert engine is not None
    assert (engine.name, engine.n_features, engine.size_bytes, engine.accepts_missing) == ("sum", 2, 16, False)
    assert engine.predict(np.ones((1, 2), np.float32))["prediction"].tolist() == [[2.0]]
    with pytest.raises(NotImplementedError, match="sum"):
        engine.contributions(np.ones((1, 2), np.float32))
    assert load_engine(msgspec.structs.replace(model, kind="unknown"), plugins) is None


def test_content_that_is_no_model_does_not_load(model_of: Callable[..., ModelFile], plugins: Plugins) -> None:
    from mmserver.errors import Undecodable

    model = model_of("reg:squarederror")
    for content in (b"", model.content[:-10], model.content.replace(b'"left_children":[1', b'"left_children":[9', 1)):
        with pytest.raises(Undecodable):
            load_engine(msgspec.structs.replace(model, content=content), plugins)


def real_model(plugins: Plugins, path: Path) -> ModelFile:
    claim = plugins.format_for(path.name)
    assert claim is not None
    parsed = claim.parse(Artifact(name=path.name, group_key="", data=path.read_bytes()))
    assert isinstance(parsed, ModelFile)
    facts = engine_facts(parsed, plugins.load_predictor(parsed))
    return msgspec.structs.replace(parsed, summary={**parsed.summary, **facts})


def test_all_real_models_are_exact_and_predict_as_their_library(shared_artifacts: Path, plugins: Plugins) -> None:
    paths = sorted(shared_artifacts.glob("*/*_model.pkl"))
    assert len(paths) > 10
    for path in paths:
        model = real_model(plugins, path)
        assert (model.summary["engine"], model.summary["engine_note"]) == (EXACT, None), path.name
        engine, library = load_engine(model, plugins), plugins.load_predictor(model)
        assert engine is not None
        assert library is not None
        assert model.probes is not None
        rows = np.array([[np.nan if cell is None else cell for cell in row] for row in model.probes.rows], np.float32)
        rows = np.concatenate(
            [rows, np.random.RandomState(1).normal(size=(300, rows.shape[1])).astype(np.float32) / 50]
        )
        expected = library.predict(rows)
        for n_rows in (1, 8, len(rows)):
            for name, values in engine.predict(rows[:n_rows]).items():
                assert same_bits(values, expected[name][:n_rows]), (path.name, name)


def test_one_row_of_the_wide_model_takes_few_steps(shared_artifacts: Path, plugins: Plugins) -> None:
    model = real_model(plugins, shared_artifacts / "wide" / "SP500_mid_chg_1d_model.pkl")
    engine = ExactEngine(model, plugins)
    row = np.zeros((1, model.n_features), np.float32)
    engine.predict(row)
    assert n_steps(lambda: engine.predict(row)) < 2000
