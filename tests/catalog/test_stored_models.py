"""A model is whole again from what is stored, whether or not it can be downloaded."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model, remove_model
from mmserver.catalog.stored_models import stored_model
from mmserver.errors import BlobCorrupt, GroupHasNoModel
from mmserver.plugin_loading import load_plugins
from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.pool import Sandbox
from mmserver.storage.tables import BlobRow, GroupRow

TEST = Actor("test")
PLUGIN = '''
"""Weights as text: one kind that nothing converts, one whose download is not its content."""
from mmserver import ArtifactFormat, Converter, ModelFile, hookimpl


def parse(artifact):
    kind = artifact.name.rpartition("_")[2].partition(".")[0]
    return ModelFile(kind=kind, content=artifact.data, n_features=2, n_outputs=1, objective="", library_version="1")


@hookimpl
def mmserver_formats():
    return [ArtifactFormat(name=k, suffix=f"_{k}.txt", role="model", parse=parse) for k in ("bare", "shown")]


@hookimpl
def mmserver_converters():
    return [Converter(kind="shown", target="json", media_type="application/json", convert=lambda model: b"[0]"),
            Converter(kind="shown", target="raw", media_type="text/plain", convert=lambda model: model.content)]
'''


@pytest.fixture
def open_with_plugin(tmp_path: Path, open_stores: Callable[..., Any]) -> Any:
    """A store whose plugins know the kinds `bare` and `shown`, with one symbol of each; closed with its own worker."""
    directory = tmp_path / "plugins"
    directory.mkdir()
    (directory / "weights.py").write_text(PLUGIN)
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    (artifacts / "BTC_ret_1h_bare.txt").write_bytes(b"1 \xff 2")
    (artifacts / "ETH_ret_1h_shown.txt").write_bytes(b"3 4")
    limits = JobLimits(memory_bytes=1 << 30, cpu_s=10, wall_s=20.0)
    with Sandbox(
        "mmserver.catalog.ingest:handlers", {"plugins_dir": str(directory)}, n_workers=1, limits=limits
    ) as own:
        open_stores.plugins = load_plugins(directory)
        store = open_stores(sandbox=own)
        register_model(store, "weights", str(artifacts), TEST)
        yield store


def group_of(store: Any, model_name: str, key: str) -> Any:
    return store.model(model_name).serving.groups[key]


def test_a_model_without_a_download_is_stored_to_the_byte(open_with_plugin: Any) -> None:
    group = group_of(open_with_plugin, "weights", "BTC_ret_1h")
    assert (group.has_model, group.can_predict, group.payload_sha256) == (False, True, None)
    assert group.model_sha256 == hashlib.sha256(b"1 \xff 2").hexdigest()
    model = stored_model(open_with_plugin.database, group).model
    assert (model.kind, model.content, model.n_features) == ("bare", b"1 \xff 2", 2)


def test_a_download_that_is_not_the_content_leaves_the_content_to_predictors_and_converters(
    open_with_plugin: Any,
) -> None:
    store = open_with_plugin
    group = group_of(store, "weights", "ETH_ret_1h")
    assert stored_model(store.database, group).model.content == b"3 4"
    version = store.model("weights").serving
    assert (
        json.loads(store.payloads.body(version, group, "payload", "identity").content)["payload"]["model_json"] == "[0]"
    )
    assert store.payloads.body(version, group, "raw", "identity").content == b"3 4"


def test_a_model_that_the_payload_carries_is_not_stored_twice(registered: Any) -> None:
    group = registered.group("BTC")
    assert group.model_sha256 is None
    model = stored_model(registered.store.database, group).model
    assert json.loads(model.content)["learner"]["learner_model_param"]["num_feature"] == "3"
    assert (model.kind, model.n_trees, model.probes) == ("xgboost", 4, None)


def test_what_an_earlier_release_did_not_keep_is_refused_by_name(open_with_plugin: Any) -> None:
    with open_with_plugin.database.write() as connection:
        connection.execute(update(GroupRow).values(model_sha256=None))
    open_with_plugin.catalog = type(open_with_plugin.catalog)()
    open_with_plugin.reload()
    with pytest.raises(GroupHasNoModel, match="register it again"):
        stored_model(open_with_plugin.database, group_of(open_with_plugin, "weights", "ETH_ret_1h"))
    with pytest.raises(GroupHasNoModel, match="no plugin gives bare models as JSON"):
        stored_model(open_with_plugin.database, group_of(open_with_plugin, "weights", "BTC_ret_1h"))


def test_a_damaged_model_is_never_loaded(registered: Any) -> None:
    group = registered.group("BTC")
    with registered.store.database.write() as connection:
        connection.execute(update(BlobRow).where(BlobRow.sha256 == group.payload_sha256).values(content=b"damaged"))
    with pytest.raises(BlobCorrupt):
        stored_model(registered.store.database, group)


def test_removing_the_model_removes_its_content(open_with_plugin: Any) -> None:
    remove_model(open_with_plugin, "weights", TEST)
    with open_with_plugin.database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM blobs")).scalar() == 0
