import itertools
import os
import shutil

import pytest

from mmserver.watching.identities import LoadedGroup


def keys(groups):
    return [group.group_key for group in groups]


def test_a_new_group_is_offered_after_it_was_the_same_for_settle_s(root, poller):
    root.write_group("x")
    assert poller.poll().pending == {"x": "settling"}
    assert poller.poll(1.9).pending == {"x": "settling"}
    assert keys(poller.poll(0.1).changed) == ["x"]
    quiet = poller.poll()
    assert not quiet.changed
    assert not quiet.pending


def test_a_group_that_was_offered_but_not_dealt_with_is_offered_again(root, poller):
    root.write_group("x")
    poller.poll()
    root.clock.now += 5
    for _ in range(2):
        assert keys(poller.watcher.observe(root.scan()).changed) == ["x"]


def test_a_growing_file_is_read_once_when_it_has_stopped(root, poller):
    """A5."""
    root.write_group("x")
    for _ in range(50):
        with (root.path / "x_model.pkl").open("ab") as file:
            file.write(b"x" * 1000)
        assert not poller.poll().changed
    poller.settle()
    assert poller.n_loads == 1
    assert len(poller.content["x"]["x_model.pkl"]) == 50_001


def rewrite_in_place(path):
    status = path.stat()
    path.write_bytes(b"y" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_with_same_times(path):
    status = path.stat()
    new = path.with_name(".new")
    new.write_bytes(b"y" * status.st_size)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(path)


@pytest.mark.parametrize(
    "rewrite",
    [pytest.param(rewrite_in_place, id="A6 in place"), pytest.param(replace_with_same_times, id="A8 by rename")],
)
def test_the_same_size_and_mtime_do_not_hide_a_change(root, poller, rewrite):
    root.write_group("x", b"old")
    poller.settle()
    rewrite(root.path / "x_model.pkl")
    poller.settle()
    assert poller.content["x"]["x_model.pkl"] == b"yyy"


def test_a_file_that_was_only_touched_is_read_but_is_no_news(root, poller):
    """A9."""
    root.write_group("x")
    poller.settle()
    os.utime(root.path / "x_model.pkl")
    poller.settle()
    assert poller.n_loads == 1
    assert not poller.poll().pending


def loaded_group(root, key, read_after_s):
    group = root.group(key)
    newest_ns = max(identity.ctime_ns for _, identity in group.files)
    return LoadedGroup(group, newest_ns + int(read_after_s * 1e9))


def test_what_was_read_within_a_timestamp_tick_is_hashed_once_more(root, make_poller):
    """A7: a rewrite within the tick would leave the same identity, so that only the content tells."""
    root.write_group("x", b"new")
    poller = make_poller({"x": loaded_group(root, "x", 0.5)}, granularity_s=1.0)
    poller.content["x"] = {"x_info.pkl": b"old", "x_model.pkl": b"old"}
    assert keys(poller.poll().suspicious) == ["x"]
    assert poller.content["x"]["x_model.pkl"] == b"new"
    assert (
        sum(len(poller.poll().suspicious) for _ in range(8)) == 1
    )  # for it was read just now, and written just before


def test_what_was_read_later_than_that_is_not(root, make_poller):
    root.write_group("x")
    poller = make_poller({"x": loaded_group(root, "x", 1.5)}, granularity_s=1.0)
    assert not poller.poll().suspicious


def test_timestamps_in_the_future_do_not_cause_endless_hashing(root, poller):
    root.write_group("x")
    os.utime(root.path / "x_model.pkl", (4e9, 4e9))
    observations = [poller.poll() for _ in range(20)]
    assert sum(len(seen.suspicious) for seen in observations) == 1


def test_every_loaded_group_is_hashed_again_within_rehash_s_a_few_at_a_time(root, make_poller):
    for i in range(100):
        root.write_group(f"S{i}")
    loaded = {f"S{i}": loaded_group(root, f"S{i}", 10) for i in range(100)}
    watcher = make_poller(loaded, rehash_s=600.0).watcher
    verified = []
    for _ in range(121):
        observation = watcher.observe(root.scan())
        assert len(observation.to_verify) <= 2
        verified += keys(observation.to_verify)
        root.clock.now += 5
    assert set(verified) == set(loaded)


def test_content_that_changed_without_a_trace_is_found(root, make_poller):
    """What a writer through a memory map can do: the identity is the same, the content is not."""
    root.write_group("x", b"new")
    poller = make_poller({"x": loaded_group(root, "x", 10)}, rehash_s=60.0)
    poller.content["x"] = {"x_info.pkl": b"new", "x_model.pkl": b"old"}
    for _ in range(61):
        poller.poll()
    assert poller.content["x"]["x_model.pkl"] == b"new"


def test_a_deleted_group_is_gone_after_three_polls(root, poller):
    """A12."""
    for key in ("x", "y"):
        root.write_group(key)
    poller.settle()
    root.delete_group("x")
    assert [poller.poll(2.5).gone for _ in range(4)] == [(), (), ("x",), ()]
    root.write_group("x")
    poller.settle()
    assert set(poller.content) == {"x", "y"}


def test_a_file_that_is_away_for_a_moment_changes_nothing(root, poller):
    """A writer that removes before it writes."""
    for key in ("x", "y"):
        root.write_group(key, b"old")
    poller.settle()
    (root.path / "x_model.pkl").unlink()
    for _ in range(2):
        assert not poller.poll(2.5).changed
    root.write("x_model.pkl", b"new")
    poller.settle()
    assert poller.content["x"] == {"x_info.pkl": b"old", "x_model.pkl": b"new"}
    assert poller.n_loads == 3


def test_a_file_that_stays_away_changes_its_group(root, poller):
    root.write_group("x")
    poller.settle()
    (root.path / "x_model.pkl").unlink()
    assert [len(poller.poll(2.5).changed) for _ in range(4)] == [0, 0, 1, 0]
    assert set(poller.content["x"]) == {"x_info.pkl"}


def unmount(root):
    root.path.rename(root.path.with_name("away"))


def remount(root):
    shutil.rmtree(root.path, ignore_errors=True)
    root.path.with_name("away").rename(root.path)


def empty(root):
    unmount(root)
    root.path.mkdir()


def move_some_away(root, n):
    away = root.path.with_name("away")
    shutil.copytree(root.path, away)
    for i in range(n):
        root.delete_group(f"S{i}")


@pytest.mark.parametrize(
    ("vanish", "reason"),
    [
        pytest.param(unmount, "root_missing", id="root gone"),
        pytest.param(empty, "mass_vanish", id="root empty"),
        pytest.param(lambda root: move_some_away(root, 4), "mass_vanish", id="four of ten gone"),
    ],
)
def test_when_too_much_vanishes_nothing_is_gone_until_it_is_back(root, poller, vanish, reason):
    """A13."""
    for i in range(10):
        root.write_group(f"S{i}")
    poller.settle()
    vanish(root)
    for _ in range(10):
        observation = poller.poll()
        assert observation.frozen == reason
        assert not observation.gone
    remount(root)
    poller.settle()
    assert len(poller.content) == 10
    assert poller.poll().frozen is None


@pytest.mark.parametrize("vanish", [unmount, empty])
def test_a_person_can_say_that_it_is_meant(root, poller, vanish):
    for i in range(10):
        root.write_group(f"S{i}")
    poller.settle()
    vanish(root)
    poller.poll()
    assert len(poller.poll(accept_vanished=True).gone) == 10
    assert not poller.content


def test_groups_loaded_during_a_freeze_do_not_end_it(root, poller):
    for i in range(10):
        root.write_group(f"S{i}")
    poller.settle()
    move_some_away(root, 4)
    poller.poll()
    for i in range(10, 30):
        root.write_group(f"S{i}")
    poller.settle()
    assert "S29" in poller.content
    assert poller.poll().frozen == "mass_vanish"


def test_losing_one_group_of_three_is_no_mass_vanish(root, poller):
    for i in range(3):
        root.write_group(f"S{i}")
    poller.settle()
    root.delete_group("S0")
    poller.settle()
    assert set(poller.content) == {"S1", "S2"}


def test_another_disk_with_less_on_it_is_not_taken_for_the_root(root, make_poller):
    for i in range(3):
        root.write_group(f"S{i}")
    loaded = {f"S{i}": loaded_group(root, f"S{i}", 10) for i in range(3)}
    other_dev = root.last.root_dev + 1
    root.write_group("S1", b"stale")
    same_content = make_poller(loaded, root_dev=other_dev)
    assert same_content.poll().frozen is None
    root.delete_group("S2")
    poller = make_poller(loaded, root_dev=other_dev)
    for _ in range(5):
        observation = poller.poll()
        assert observation.frozen == "other_device"
        assert not observation.changed
    assert poller.poll(accept_vanished=True).gone == ("S2",)


def test_groups_in_a_directory_that_cannot_be_listed_are_not_gone(reachable_root, without_privileges, make_poller):
    """A14."""
    root = reachable_root
    root.write_group("locked/x")
    root.write_group("y")
    loaded = {key: loaded_group(root, key, 10) for key in ("x", "y")}
    poller = make_poller(loaded)
    poller.content = {"x": {}, "y": {}}
    (root.path / "locked").chmod(0)
    try:
        with without_privileges():
            root.last = None  # as after a restart
            root.clock.now += 1
            for _ in range(8):
                root.clock.now += 1
                observation = poller.watcher.observe(root.scan())
                assert not observation.gone
                assert not observation.pending
    finally:
        (root.path / "locked").chmod(0o755)


def test_a_loaded_file_that_became_a_fifo_neither_changes_nor_removes_its_group(root, poller):
    """A15."""
    root.write_group("x")
    root.write_group("y")
    poller.settle()
    (root.path / "x_model.pkl").unlink()
    os.mkfifo(root.path / "x_model.pkl")
    for _ in range(6):
        observation = poller.poll()
        assert not observation.pending
        assert not observation.changed
    (root.path / "x_model.pkl").unlink()
    poller.settle()
    assert set(poller.content["x"]) == {"x_info.pkl"}


def test_what_was_refused_is_not_offered_again_until_it_changes(root, make_poller):
    root.write_group("x", b"bad")
    watcher = make_poller().watcher
    watcher.observe(root.scan())
    root.clock.now += 3
    (group,) = watcher.observe(root.scan()).changed
    watcher.refused(group)
    for _ in range(5):
        root.clock.now += 3
        observation = watcher.observe(root.scan())
        assert not observation.changed
        assert not observation.pending
    root.write_group("x", b"good")
    watcher.observe(root.scan())
    root.clock.now += 3
    assert keys(watcher.observe(root.scan()).changed) == ["x"]


def test_a_group_that_is_unstable_when_read_is_tried_again_after_twice_as_long(root, make_poller):
    root.write_group("x")
    watcher = make_poller().watcher
    watcher.observe(root.scan())
    offered_at = []
    for _ in range(400):
        root.clock.now += 1
        observation = watcher.observe(root.scan())
        if observation.changed:
            offered_at.append(root.clock.now)
            watcher.unstable("x", root.clock.now)
    gaps = [after - before for before, after in itertools.pairwise(offered_at)]
    assert gaps[:6] == [2, 4, 8, 16, 32, 60]
    assert set(gaps[6:]) == {60}


def test_a_group_that_changes_again_long_after_it_was_offered_is_not_one_that_never_settles(root, make_poller):
    root.write_group("x")
    watcher = make_poller(max_wait_s=60.0).watcher
    for _ in range(30):
        root.clock.now += 5
        watcher.observe(root.scan())
    root.write_group("x", b"new")
    root.clock.now += 5
    assert watcher.observe(root.scan()).pending == {"x": "settling"}


def test_groups_of_one_root_wait_for_each_other_but_not_for_ever(root, poller):
    root.write_group("x")
    waited_s = 0
    while "x" not in poller.content:
        root.write("noisy_model.pkl", os.urandom(8))
        observation = poller.poll()
        waited_s += 1
        assert waited_s < 70
    assert waited_s >= 60
    assert observation.never_settles == ("noisy",)
    root.write_group("y")
    for _ in range(4):
        root.write("noisy_model.pkl", os.urandom(8))
        poller.poll()
    assert "y" in poller.content
    poller.settle()
    assert "noisy" in poller.content


def test_of_duplicates_the_loaded_one_is_kept(root, poller):
    root.write("b/x_model.pkl", b"b")
    poller.settle()
    root.write("a/x_model.pkl", b"a")
    poller.settle()
    assert poller.content["x"] == {"x_model.pkl": b"b"}
    shutil.rmtree(root.path / "b")
    poller.settle()
    assert poller.content["x"] == {"x_model.pkl": b"a"}


def test_a_directory_symlink_that_is_swapped_is_a_change(root, poller):
    """A11."""
    root.write_group("v41/x", b"v41")
    root.write_group("v42/x", b"v42")
    link = root.path / "current"
    link.symlink_to("v41")
    poller.settle()
    assert poller.content["x"]["x_model.pkl"] == b"v41"
    link.unlink()
    link.symlink_to("v42")
    poller.settle()
    assert poller.content["x"]["x_model.pkl"] == b"v42"


def test_what_a_restart_remembers_is_not_read_again(root, make_poller):
    root.write_group("x")
    poller = make_poller({"x": loaded_group(root, "x", 10)})
    assert not poller.poll().pending
