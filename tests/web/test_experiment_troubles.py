"""What keeps an arm from answering is told of the experiment, not in the log alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from page_reading import page

from mmserver.catalog.catalog import Actor
from mmserver.catalog.refreshing import refresh_model
from mmserver.catalog.registering import register_model
from mmserver.catalog.stored_models import stored_content_sha256
from mmserver.errors import DirectoryInvalid
from mmserver.serving.crash_ledger import DIRECTORY_NAME, MAX_CRASHES
from mmserver.web.current import EXPERIMENTER_KEY

ROOT = "/api/ml/experiments"
PAGES = "/ui/experiments"
SYMBOL = "BTCUSDT_ret_1h"


def boosted(booster: str) -> str:
    rows = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    data = xgboost.DMatrix(rows, label=rows[:, 0])
    parameters = {"max_depth": 2, "nthread": 1, "booster": booster}
    return xgboost.train(parameters, data, num_boost_round=4).save_raw("json").decode()


def started(web: Any, directory: Path, group_writer: Callable[..., None]) -> None:
    """An experiment whose treatment, a watched model, gets every unit."""
    for name, booster in (("old", "gbtree"), ("new", "dart")):
        group_writer(directory / name, SYMBOL, has_model=False)
        (directory / name / f"{SYMBOL}_model.json").write_text(boosted(booster))
        register_model(web.store, name, str(directory / name), Actor("test"))
    versions = {"control_version": "latest", "treatment_version": "latest", "traffic_split": 0}
    arms = {"control_model": "old", "treatment_model": "new"}
    assert web.client.post(ROOT, json={"experiment_id": "x", **arms, **versions}).status_code == 201


def predicted(web: Any) -> dict[str, Any]:
    body = {"symbol": "BTCUSDT", "features": [0.25, -1.5, 0.75], "model_name": "old"}
    found: dict[str, Any] = web.client.post("/predict", json=body).json
    return found


def answers_as_before(web: Any, before: dict[str, Any]) -> None:
    after = predicted(web)
    assert (after["variant"], after.get("fallback")) == ("treatment", None)
    for name in ("prediction", "model_name", "model_version"):
        assert after[name] == before[name]


def test_a_treatment_that_does_not_load_is_told_of_the_experiment_and_on_its_pages(
    make_web: Callable[..., Any], group_writer: Callable[..., None], tmp_path: Path
) -> None:
    web = make_web(tmp_path / "data")
    started(web, tmp_path, group_writer)
    assert web.json(f"{ROOT}/x")["troubles"] == []
    (group,) = web.store.model("new").serving.groups.values()
    ledger = web.store.settings.data_dir / DIRECTORY_NAME
    ledger.mkdir(exist_ok=True)
    for number in range(MAX_CRASHES):  # what processes leave that die while they load it
        (ledger / f"{stored_content_sha256(web.store.database, group)}.{number}").touch()
    answer = predicted(web)
    assert (answer["model_name"], answer["variant"], answer["fallback"]) == ("old", "control", "predictor_unloadable")
    (trouble,) = web.json(f"{ROOT}/x")["troubles"]
    assert (trouble["arm"], trouble["code"], trouble["n_groups"]) == ("treatment", "predictor_unloadable", 1)
    assert trouble["group_keys"] == [SYMBOL]
    assert f"{SYMBOL} cannot be loaded: mmserver died" in trouble["detail"]
    for address in (f"{PAGES}/x", f"{PAGES}/x/report"):
        assert f"The treatment answers not for all symbols: {SYMBOL} cannot be loaded" in page(web, address).text
    assert web.client.post("/api/ml/models/new/reload").json["status"] == "reloaded"
    assert web.json(f"{ROOT}/x")["troubles"] == []
    assert predicted(web)["variant"] == "treatment"
    web.client.post(f"{ROOT}/x/stop")
    assert web.json(f"{ROOT}/x")["troubles"] == []
    web.app.extensions[EXPERIMENTER_KEY].close()


def test_an_arm_whose_directory_is_removed_goes_on_answering_with_its_version(
    make_web: Callable[..., Any], group_writer: Callable[..., None], tmp_path: Path
) -> None:
    web = make_web(tmp_path / "data")
    started(web, tmp_path, group_writer)
    before = predicted(web)
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(DirectoryInvalid):
        refresh_model(web.store, "new", Actor("test"))
    answers_as_before(web, before)
    refresh_model(web.store, "new", Actor("test"), accept_vanished=True)
    assert not web.store.model("new").serving.groups
    answers_as_before(web, before)
    assert web.json(f"{ROOT}/x")["troubles"] == []
    web.app.extensions[EXPERIMENTER_KEY].close()
