"""Snapshots, migrations and restarts keep what was registered, and the first schemas keep what was watched."""

from typing import Any

import pytest
from alembic import command

from mmserver.catalog.catalog import Actor
from mmserver.catalog.history import resolve_version
from mmserver.catalog.leftovers import drop_unfinished
from mmserver.registry.stages import promote, rollback, set_stage
from mmserver.registry.versions import get_version, list_versions
from mmserver.serving.predictions import Asked, Serving
from mmserver.storage.data_dir import DataDir
from mmserver.storage.database import open_database
from mmserver.storage.schema import migrate
from mmserver.storage.snapshots import create_snapshot, restore_snapshot
from mmserver.storage.tables import PromotionRow

TEST = Actor("test")
ROW = [0.3, -1.2, 0.7]


def staged(bench: Any) -> None:
    promote(bench.store, "hybrid", "1.0.0", TEST)
    promote(bench.store, "hybrid", "1.9.0", TEST)
    set_stage(bench.store, "hybrid", "1.10.0", "staging", TEST)


def predicted(bench: Any) -> dict[str, float | None]:
    """What every version expects."""
    serving = Serving(bench.store)
    return {
        label: serving.predict(Asked("BTC", ROW, "hybrid", version=label)).decision.expected_return
        for label in (version.label for version in list_versions(bench.store, "hybrid"))
    }


def test_a_restored_snapshot_has_every_version_stage_and_promotion(three: Any, open_bench: Any, tmp_path: Any) -> None:
    staged(three)
    before = (list_versions(three.store, "hybrid"), predicted(three), three.model.serving, three.actions())
    moment = three.calendar()
    snapshot = create_snapshot(three.store.database, tmp_path / "snapshots", moment)
    promote(three.store, "hybrid", "1.10.0", TEST)
    three.register("5.0.0", 5)
    three.store.database.close()
    restore_snapshot(snapshot.path, DataDir(tmp_path / "data"), moment)
    again = open_bench()
    after = (list_versions(again.store, "hybrid"), predicted(again), again.model.serving, again.actions()[:-1])
    assert after == before
    assert resolve_version(again.store, "hybrid", as_of=moment).label == "1.9.0"
    assert rollback(again.store, "hybrid", TEST).label == "1.0.0"


def test_what_clears_away_unfinished_registrations_leaves_registered_models_alone(three: Any) -> None:
    before = (list_versions(three.store, "hybrid"), predicted(three))
    drop_unfinished(three.store)
    three.store.reload()
    assert (list_versions(three.store, "hybrid"), predicted(three)) == before


@pytest.mark.parametrize("revision", ["0002", "0001"])
def test_a_downgrade_forgets_what_was_registered_and_keeps_what_is_watched(
    three: Any, open_bench: Any, tmp_path: Any, revision: str
) -> None:
    staged(three)
    three.watch(3)
    first = three.store.model("alpha").serving
    three.write_watched(4)
    second = three.refresh()
    promote(three.store, "alpha", first.label, TEST)
    three.store.database.close()
    database = open_database(DataDir(tmp_path / "data").database_path)
    migrate(database, lambda config: command.downgrade(config, revision))
    migrate(database)
    database.close()
    again = open_bench()
    assert list(again.store.catalog.models) == ["alpha"]
    model = again.store.model("alpha")
    assert (model.serving.label, model.newest_label, dict(model.stages)) == (first.label, second, {})
    assert [group.sha256 for group in model.serving.groups.values()] == [g.sha256 for g in first.groups.values()]
    assert again.store.payloads.body(model.serving, model.serving.groups["BTC_ret"], "payload", "gzip").content
    assert again.count(PromotionRow) == 0
    assert again.register("1.0.0").is_new
    assert get_version(again.store, "hybrid", "1.0.0").label == "1.0.0"
