"""Every call against a real server, by both clients."""

import asyncio
import inspect
import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.client import (
    Conflict,
    FailedPrediction,
    ModelClient,
    NotFound,
    Prediction,
    PredictionRequest,
    RequestRefused,
    ServerError,
    SyncModelClient,
    predicting,
)
from mmserver.client.methods import Calls
from mmserver.experiments.assignment import arm_of
from tests.client.conftest import Ask
from tests.e2e.conftest import FACTORS, Artifacts, Server, wait_until

NUMBERS = itertools.count()
ROW = np.array([0.25, -0.5, 0.125, np.nan, 2.0], np.float32)


@pytest.fixture
def beta(server: Server, artifacts: Artifacts, tmp_path: Path) -> Any:
    """A model that the test may change: its name and its directory."""
    name = f"beta-{next(NUMBERS)}"  # the server is the same for all tests
    artifacts.write(tmp_path / "beta", "BTCUSDT_mid_chg_1m", 0)
    server.register(name, tmp_path / "beta")
    return name, tmp_path / "beta"


def test_every_form_of_the_same_features_gives_the_same_prediction(server: Server, alpha: str, ask: Ask) -> None:
    names = dict(zip(FACTORS, ROW, strict=True))
    forms: list[Any] = [
        ROW,
        ROW.astype(np.float64),
        list(ROW),
        ROW[None],
        ROW[None, None],
        names,
        dict(reversed(names.items())),
    ]
    found = [ask(server.url, lambda c, form=form: c.predict("BTC/USDT", form, model_name=alpha)) for form in forms]
    assert {type(one) for one in found} == {Prediction}
    assert len({one.prediction.expected_return for one in found}) == 1
    prediction = found[0]
    assert (prediction.symbol, prediction.model_name) == ("BTC/USDT", alpha)
    assert prediction.prediction.code == {"HOLD": 0, "BUY": 1, "SELL": 2}[prediction.prediction.direction]
    exact = ask(server.url, lambda c: c.infer(f"{alpha}.BTCUSDT", ROW[None], outputs=["prediction"]))
    assert np.float32(prediction.prediction.expected_return) == exact.outputs["prediction"][0]


def test_a_prediction_can_be_explained_and_asked_of_a_version_and_a_time(server: Server, alpha: str, ask: Ask) -> None:
    version = server.item(alpha)["version"]
    found = ask(
        server.url,
        lambda c: c.predict(
            "BTCUSDT", ROW, model_name=alpha, model_version=version, explain=True, timestamp=datetime.now(UTC)
        ),
    )
    assert found.contributions is not None
    assert set(found.contributions["factors"]) == set(FACTORS)
    with pytest.raises(NotFound) as caught:
        ask(server.url, lambda c: c.predict("BTCUSDT", ROW, model_name=alpha, as_of=datetime(2020, 1, 1, tzinfo=UTC)))
    assert caught.value.code == "version_not_found"
    with pytest.raises(ValueError, match="no time zone"):
        ask(server.url, lambda c: c.predict("BTCUSDT", ROW, as_of=datetime(2020, 1, 1)))


def test_features_that_do_not_fit_the_model_are_refused_with_their_places(server: Server, alpha: str, ask: Ask) -> None:
    names = {**dict.fromkeys(FACTORS[1:], 0.0), "unknown": 1.0}
    with pytest.raises(RequestRefused) as caught:
        ask(server.url, lambda c: c.predict("BTCUSDT", names, model_name=alpha))
    assert (caught.value.status, caught.value.code) == (422, "features_invalid")
    assert {error["loc"].rpartition(".")[2] for error in caught.value.errors} >= {"unknown"}
    assert caught.value.request_id
    with pytest.raises(RequestRefused):
        ask(server.url, lambda c: c.predict("BTCUSDT", np.zeros((60, 110)), model_name=alpha))


def test_a_batch_is_answered_in_order_and_one_bad_item_spoils_no_other(server: Server, alpha: str, ask: Ask) -> None:
    requests = [
        PredictionRequest("BTCUSDT", ROW),
        {"symbol": "NONE", "features": [1.0]},
        {"symbol": "ETHUSDT", "features": ROW, "model_name": alpha},
        {"symbol": "BTCUSDT"},
    ]
    found = ask(server.url, lambda c: c.batch_predict(requests, model_name=alpha, max_batch_size=2)).predictions
    assert [type(one) for one in found] == [Prediction, FailedPrediction, Prediction, FailedPrediction]
    assert [one.symbol for one in found] == ["BTCUSDT", "NONE", "ETHUSDT", "BTCUSDT"]
    assert [found[1].error.code, found[3].error.code] == ["symbol_not_found", "features_invalid"]
    assert found[3].error.errors[0]["loc"] == "features"
    assert ask(server.url, lambda c: c.batch_predict([])).predictions == ()


def test_a_batch_with_a_field_that_is_not_there_or_an_infinite_number_is_not_sent(server: Server, ask: Ask) -> None:
    with pytest.raises(TypeError, match="'featurs'"):
        ask(server.url, lambda c: c.batch_predict([{"symbol": "BTCUSDT", "featurs": [1.0]}]))
    with pytest.raises(ValueError, match="infinite"):
        ask(server.url, lambda c: c.batch_predict([{"symbol": "BTCUSDT", "features": [np.inf]}]))


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_tensors_of_any_float_type_and_layout_are_the_rows_that_they_are(
    dtype: str, server: Server, alpha: str, ask: Ask
) -> None:
    rows = np.asfortranarray(np.random.default_rng(3).integers(-8, 8, (1000, len(FACTORS))) / 4).astype(dtype)
    found = ask(server.url, lambda c: c.infer(f"{alpha}.BTCUSDT", rows))
    plain = ask(server.url, lambda c: c.infer(f"{alpha}.BTCUSDT", np.ascontiguousarray(rows, "<f4")))
    assert list(found.outputs) == ["prediction", "margin"]
    assert found.outputs["prediction"].shape == (1000,)
    assert found.outputs["prediction"].tobytes() == plain.outputs["prediction"].tobytes()


def test_masked_rows_are_missing_and_other_arrays_are_refused(server: Server, alpha: str, ask: Ask) -> None:
    masked = np.ma.array(np.nan_to_num(ROW, nan=7.0), mask=np.isnan(ROW))[None]
    name = f"{alpha}.BTCUSDT"
    one, other = (ask(server.url, lambda c, rows=rows: c.infer(name, rows)) for rows in (masked, ROW[None]))
    assert one.outputs["prediction"].tobytes() == other.outputs["prediction"].tobytes()
    with pytest.raises(TypeError, match="cannot be sent"):
        ask(server.url, lambda c: c.infer(name, np.array([["1"]])))
    for wrong in (np.zeros((2, 4)), np.zeros((2, 5, 1)), np.full((1, 5), np.inf)):
        with pytest.raises(RequestRefused):
            ask(server.url, lambda c, wrong=wrong: c.infer(name, wrong))
    with pytest.raises(NotFound):
        ask(server.url, lambda c: c.infer(alpha + ".NONE", ROW[None]))


def test_a_model_is_unloaded_loaded_and_asked_whether_it_is_ready(server: Server, beta: Any, ask: Ask) -> None:
    name = f"{beta[0]}.BTCUSDT"
    assert ask(server.url, lambda c: c.is_model_ready(name))
    ask(server.url, lambda c: c.unload_model(name))
    assert not ask(server.url, lambda c: c.is_model_ready(name))
    ask(server.url, lambda c: c.load_model(name))
    assert ask(server.url, lambda c: c.is_model_ready(name))
    with pytest.raises(NotFound):
        ask(server.url, lambda c: c.is_model_ready("nobody"))


def test_health_lists_metadata_and_description(server: Server, alpha: str, ask: Ask) -> None:
    assert ask(server.url, lambda c: c.health_check()).status in ("healthy", "degraded")
    assert alpha in [model.name for model in ask(server.url, lambda c: c.list_models())]
    assert ask(server.url, lambda c: c.get_metadata(f"{alpha}.BTCUSDT")).inputs[0].shape == (-1, len(FACTORS))
    assert "/predict" in ask(server.url, lambda c: c.openapi())["paths"]
    assert ask(server.url, lambda c: c.reload_model(alpha)).status == "reloaded"


def test_a_watched_model_is_added_read_changed_rolled_back_and_removed(
    server: Server, artifacts: Artifacts, tmp_path: Path, ask: Ask, request: pytest.FixtureRequest
) -> None:
    name, directory = "gamma-" + request.node.callspec.id, tmp_path / "gamma"
    artifacts.write(directory, "BTCUSDT_mid_chg_1m", 0)
    added = ask(server.url, lambda c: c.add_model(name, directory))
    assert (added.model_name, added.group_count) == (name, 1)
    with pytest.raises(Conflict):
        ask(server.url, lambda c: c.add_model(name, directory))
    artifacts.write(directory, "BTCUSDT_mid_chg_1m", 1)
    wait_until(lambda: server.item(name)["version"] != added.version, "the new version")
    assert not ask(server.url, lambda c: c.refresh_model(name)).changed
    versions = ask(server.url, lambda c: c.list_versions(name, limit=1))
    assert versions.next_cursor
    older = ask(server.url, lambda c: c.list_versions(name, cursor=versions.next_cursor)).items
    assert [version.version for version in older] == [added.version]
    diff = ask(server.url, lambda c: c.diff_versions(name, added.version))
    assert (diff.from_version, diff.to_version, diff.groups[0].model_changed) == (
        added.version, versions.items[0].version, True,
    )  # fmt: skip
    assert ask(server.url, lambda c: c.rollback_model(name, added.version)).version == added.version
    assert ask(server.url, lambda c: c.get_model(name)).newest_version == versions.items[0].version
    assert ask(server.url, lambda c: c.list_symbols(name)).symbols[0].symbol == "BTCUSDT"
    assert ask(server.url, lambda c: c.list_factors(name)).factors == FACTORS
    assert ask(server.url, lambda c: c.get_symbol(name, "btc/usdt")).dim_factors[0].factor_name == FACTORS[0]
    assert ask(server.url, lambda c: c.remove_model(name)) is None
    assert name not in [model.model_name for model in ask(server.url, lambda c: c.list_catalog()).items]


def test_a_venue_is_set_read_and_kept_from_a_table_that_somebody_else_changed(
    server: Server, tmp_path: Path, ask: Ask
) -> None:
    import pickle

    rows = [{"symbol": "BTCUSDT", "medium_notional_threshold": 1.0, "large_notional_threshold": 2.0}]
    (tmp_path / "venue.pkl").write_bytes(pickle.dumps(rows))
    updated = ask(server.url, lambda c: c.set_quantiles("gate-margin", tmp_path / "venue.pkl"))
    assert updated.symbol_count == 1
    table = ask(server.url, lambda c: c.get_quantiles("gate-margin"))
    assert table.symbols["BTCUSDT"].large_notional_threshold == 2.0
    assert ask(server.url, lambda c: c.get_symbol_quantiles("gate-margin", "BTC/USDT")).medium_notional_threshold == 1.0
    assert "gate-margin" in [venue.venue for venue in ask(server.url, lambda c: c.list_venues()).items]
    ask(server.url, lambda c: c.set_quantiles("gate-margin", tmp_path / "venue.pkl", if_match=table.etag))
    with pytest.raises(Conflict) as caught:
        ask(server.url, lambda c: c.set_quantiles("gate-margin", tmp_path / "venue.pkl", if_match='"other"'))
    assert caught.value.code == "version_changed"


def test_an_ab_test_is_made_predicted_in_analysed_and_stopped(server: Server, alpha: str, beta: Any, ask: Ask) -> None:
    name, _ = beta
    test_id = f"test-{name}"
    made = ask(server.url, lambda c: c.create_ab_test(test_id, name, "latest", alpha, "latest", 0.5, unit="unit_id"))
    assert (made.experiment_id, made.status, made.traffic_split, made.unit) == (test_id, "running", 0.5, "unit_id")
    with pytest.raises(Conflict) as caught:
        ask(server.url, lambda c: c.create_ab_test(test_id, name, "latest", alpha, "latest"))
    assert caught.value.code == "experiment_taken"
    seen = {"control": 0, "treatment": 0}
    for n in range(12):
        answer = ask(server.url, lambda c, n=n: c.predict("BTCUSDT", ROW, model_name=name, unit_id=f"order-{n}"))
        assert answer.model_name == {"control": name, "treatment": alpha}[answer.variant]
        assert answer.variant == arm_of(salt=f"{test_id}:1", unit=f"order-{n}", treatment_weight=0.5)
        assert (answer.experiment_id, answer.fallback) == (test_id, None)
        seen[answer.variant] += 1
    analysis = ask(server.url, lambda c: c.get_ab_test_analysis(test_id))
    assert {arm: getattr(analysis, arm)["n_predictions"] for arm in seen} == seen
    assert (analysis.recommendation.action, bool(analysis.recommendation.reasons)) == ("continue", True)
    report = ask(server.url, lambda c: c.stop_ab_test(test_id))
    assert report.control["n_predictions"] == seen["control"]
    (kept,) = ask(server.url, lambda c: c.get_ab_test_evaluations(test_id, limit=1)).items
    assert (kept.reason, kept.decision["recommendation"]["action"]) == ("stopped", "continue")
    shadow = {"mode": "shadow", "policy": {"policy": "sequential", "alpha": 0.01}, "start": False}
    draft = ask(server.url, lambda c: c.create_ab_test(f"{test_id}-2", name, "latest", alpha, "latest", **shadow))
    assert draft.status == "draft"
    found = server.get(f"/api/ml/experiments/{test_id}-2")
    assert (found["mode"], found["policy"]["alpha"]) == ("shadow", 0.01)
    assert ask(server.url, lambda c: c.predict("BTCUSDT", ROW, model_name=name, unit_id="order-0")).variant is None
    with pytest.raises(NotFound) as missing:
        ask(server.url, lambda c: c.stop_ab_test("nobody"))
    assert missing.value.code == "experiment_not_found"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_leads_elsewhere_is_never_sent(name: str, ask: Ask) -> None:
    with pytest.raises(ValueError, match="is no name"):
        ask("http://127.0.0.1:1", lambda c: c.remove_model(name))


def test_a_name_with_anything_in_it_is_one_name(server: Server, alpha: str, ask: Ask) -> None:
    for name in (f"/{alpha}", f"x/../{alpha}", f"{alpha}?version=1", f"{alpha}#", f"{alpha}%2e", "{}", "ä\n"):
        with pytest.raises(ServerError):
            ask(server.url, lambda c, name=name: c.get_model(name))


def test_both_clients_have_each_call_with_its_own_signature_and_description() -> None:
    methods = {name: value for name, value in vars(Calls).items() if not name.startswith("_")}
    assert len(methods) > 40
    for client in (SyncModelClient("http://x"), ModelClient("http://x")):
        for name, method in methods.items():
            assert method.__doc__, name
            assert getattr(client, name).__doc__ == method.__doc__
        assert inspect.signature(client.predict) == inspect.signature(predicting.predict)


def test_several_predictions_run_at_once_in_one_event_loop(server: Server, alpha: str) -> None:
    async def run() -> list[Prediction]:
        async with ModelClient(server.url) as client:
            return await asyncio.gather(*(client.predict("BTCUSDT", ROW, model_name=alpha) for _ in range(60)))

    assert len({one.prediction_id for one in asyncio.run(run())}) == 60
