import shutil

import pytest

from mmserver.errors import StillChanging
from mmserver.watching.refreshing import settle_now
from mmserver.watching.scanning import restat


@pytest.fixture
def refresh(root, poller):
    """Refresh as a person asks for it; `during` is called in each wait, `once` in the first."""

    def run(during=lambda: None, once=None, **options):
        actions = iter([once] if once else [])

        def wait(duration_s):
            next(actions, during)()
            root.clock.now += duration_s

        _, observation = settle_now(poller.watcher, root.scan(), wait, root.clock, **options)
        poller.take(observation)
        return observation

    return run


def test_a_refresh_without_changes_does_not_wait(root, poller, refresh):
    root.write_group("x")
    poller.settle()
    before = root.clock.now
    refresh()
    assert root.clock.now == before


def test_a_refresh_waits_once_for_what_changed(root, poller, refresh):
    root.write_group("x", b"old")
    root.write_group("y")
    poller.settle()
    root.write_group("x", b"new")
    root.write_group("deep/z")
    before = root.clock.now
    observation = refresh()
    assert {group.group_key for group in observation.changed} == {"x", "z"}
    assert root.clock.now - before == pytest.approx(2.0, abs=0.01)
    assert poller.content["x"]["x_model.pkl"] == b"new"


def test_a_deleted_group_is_gone_at_once(root, poller, refresh):
    for key in ("x", "y", "sub/z"):
        root.write_group(key)
    poller.settle()
    root.delete_group("x")
    assert refresh().gone == ("x",)
    shutil.rmtree(root.path / "sub")
    assert refresh().gone == ("z",)


def test_a_group_that_comes_back_while_waiting_is_not_gone(root, poller, refresh):
    for key in ("x", "y"):
        root.write_group(key)
    poller.settle()
    root.delete_group("x")
    assert not refresh(once=lambda: root.write_group("x", b"new")).gone
    assert poller.content["x"]["x_model.pkl"] == b"new"


def test_files_that_stop_changing_while_waiting_are_read_whole(root, poller, refresh):
    root.write_group("x", b"0")
    writes = iter([b"1", b"22", b"333"])

    def write_on():
        data = next(writes, None)
        if data is not None:
            root.write_group("x", data)
            root.write_group(f"new{len(data)}", data)

    refresh(write_on)
    assert poller.content["x"] == {"x_info.pkl": b"333", "x_model.pkl": b"333"}
    assert set(poller.content) == {"x", "new1", "new2", "new3"}


def test_files_that_never_stop_are_still_changing(root, refresh):
    path = root.write("x_model.pkl")

    def write_on():
        with path.open("ab") as file:
            file.write(b"x")

    with pytest.raises(StillChanging):
        refresh(write_on)


def test_a_refresh_of_a_vanished_root_is_frozen_until_a_person_accepts(root, poller, refresh):
    for i in range(5):
        root.write_group(f"S{i}")
    poller.settle()
    shutil.rmtree(root.path)
    root.path.mkdir()
    assert refresh().frozen == "mass_vanish"
    assert len(poller.content) == 5
    assert len(refresh(accept_vanished=True).gone) == 5


def test_a_file_that_is_added_to_a_settling_group_is_seen_among_many_others(root, poller, refresh):
    for i in range(50):
        root.write_group(f"S{i}")
    poller.settle()
    root.write("x_info.pkl")
    refresh(once=lambda: root.write("x_model.pkl"))
    assert set(poller.content["x"]) == {"x_info.pkl", "x_model.pkl"}


def test_a_new_group_beside_a_settling_one_is_seen_among_many_others(root, poller, refresh):
    for i in range(50):
        root.write_group(f"S{i}")
    poller.settle()
    root.write_group("x")
    observation = refresh(once=lambda: root.write_group("y"))
    assert {group.group_key for group in observation.changed} == {"x", "y"}


def test_a_partial_look_releases_only_what_it_looked_at(root, poller):
    root.write_group("x")
    root.write_group("y")
    poller.poll()
    root.clock.now += 3
    observation = poller.watcher.observe(restat(root.last, [("", "x")], root.clock))
    assert [group.group_key for group in observation.changed] == ["x"]
    assert observation.pending == {"y": "settling"}


@pytest.mark.parametrize("away", ["the directory", "the root"])
def test_a_place_that_vanishes_while_waiting_is_no_error(root, poller, refresh, away):
    root.write_group("sub/x")
    root.write_group("y")
    poller.settle()
    root.write_group("sub/x", b"new")
    observation = refresh(once=lambda: shutil.rmtree(root.path / "sub" if away == "the directory" else root.path))
    assert observation.gone == (("x",) if away == "the directory" else ())
    assert observation.frozen == (None if away == "the directory" else "root_missing")
