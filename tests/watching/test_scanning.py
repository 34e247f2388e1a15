import gc
import os
import socket
import tracemalloc

import pytest

from mmserver.watching.names import ArtifactNames
from mmserver.watching.scanning import scan_tree


def test_files_are_grouped_by_what_precedes_the_suffix(root):
    root.write_group("SOL_1m")
    root.write_group("deep/er/BTC_1m")
    root.write("readme.md")
    groups = root.scan().groups
    assert groups["SOL_1m"].relpaths == ("SOL_1m_info.pkl", "SOL_1m_model.pkl")
    assert groups["BTC_1m"].relpaths == ("deep/er/BTC_1m_info.pkl", "deep/er/BTC_1m_model.pkl")
    assert len(groups) == 2


def test_files_and_directories_under_way_are_ignored(root):
    for relpath in (".A_model.pkl.tmp-1", "A_model.pkl.part", "A_model.pkl~", ".v2/A_model.pkl", "v2.tmp/A_model.pkl"):
        root.write(relpath)
    scan = root.scan()
    assert not scan.groups
    assert not scan.problems


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    directory = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(directory)


def make_device(path):
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making a device needs privileges")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(make_fifo, "not_regular", id="A15 named pipe"),
        pytest.param(make_socket, "not_regular", id="A16 socket"),
        pytest.param(make_device, "not_regular", id="A16 device"),
        pytest.param(lambda path: path.mkdir(), "not_regular", id="A16 directory"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), "outside_root", id="A16 symlink to a device"),
        pytest.param(lambda path: path.symlink_to("/etc/shadow"), "outside_root", id="A20 symlink to a file outside"),
        pytest.param(lambda path: path.symlink_to("../.."), "outside_root", id="symlink to a directory above"),
        pytest.param(lambda path: path.symlink_to(path.name), "outside_root", id="symlink to itself"),
        pytest.param(lambda path: path.symlink_to("none"), "vanished", id="dangling symlink"),
    ],
)
def test_what_is_not_a_file_beneath_the_root_is_reported_and_its_neighbours_go_on(root, make, reason):
    make(root.path / "x_model.pkl")
    root.write_group("good")
    assert root.problems() == {"x_model.pkl": reason}
    assert list(root.last.groups) == ["good"]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        pytest.param(b"a\nb_model.pkl", "a\\x0ab_model.pkl", id="newline"),
        pytest.param(b"a\xffb_model.pkl", "a\\xffb_model.pkl", id="not UTF-8"),
        pytest.param("a\u202eb_model.pkl".encode(), "a\\u202eb_model.pkl", id="right-to-left mark"),
        pytest.param(b"x" * 245 + b"_model.pkl", "x" * 245 + "_model.pkl", id="255 bytes"),
        pytest.param(b"_model.pkl", "_model.pkl", id="nothing before the suffix"),
    ],
)
def test_a_name_that_cannot_be_shown_is_a_problem_not_a_group(root, raw, shown):
    (root.path / os.fsdecode(raw)).write_bytes(b"x")
    root.write_group("good")
    assert root.problems() == {shown: "bad_name"}
    assert list(root.last.groups) == ["good"]


def test_a_directory_with_such_a_name_is_not_searched(root):
    root.write("a\u202eb/x_model.pkl")
    assert root.problems() == {"a\\u202eb": "bad_name"}
    assert not root.last.groups


def test_a_hard_link_is_a_file_like_any_other(root):
    outside = root.path.parent / "outside"
    outside.write_bytes(b"x")
    os.link(outside, root.path / "x_model.pkl")
    assert list(root.scan().groups) == ["x"]


def test_the_same_key_in_two_directories_is_reported_with_both_paths_and_the_first_is_kept(root):
    root.write("b/x_model.pkl")
    root.write("a/x_model.pkl")
    scan = root.scan()
    assert scan.groups["x"].directory == "a"
    (problem,) = scan.problems
    assert problem.reason == "duplicate_group"
    assert "a/x_model.pkl" in problem.detail
    assert "b/x_model.pkl" in problem.detail


def test_a_directory_symlink_says_which_of_several_is_meant(root):
    for version in ("v41", "v42"):
        root.write(f"{version}/x_model.pkl")
    link = root.path / "current"
    link.symlink_to("v42")
    scan = root.scan()
    assert scan.groups["x"].directory == "v42"
    assert not scan.problems
    link.unlink()
    link.symlink_to("v41")
    assert root.scan().groups["x"].directory == "v41"


def test_a_symlink_to_a_hidden_directory_is_followed(root):
    root.write(".versions/v1/x_model.pkl", b"one")
    (root.path / "current").symlink_to(".versions/v1")
    group = root.group("x")
    assert group.relpaths == ("current/x_model.pkl",)
    assert root.read(group) == {"x_model.pkl": b"one"}


def test_symlink_loops_end(root):
    root.write("a/x_model.pkl")
    (root.path / "a" / "up").symlink_to("..")
    (root.path / "self").symlink_to(".")
    scan = root.scan()
    assert scan.groups["x"].directory == "a"
    assert not scan.problems


def test_a_symlink_to_a_file_has_the_targets_identity(root):
    target = root.write(".store/1", b"one")
    (root.path / "x_model.pkl").symlink_to(".store/1")
    before = root.group("x")
    target.write_bytes(b"other")
    after = root.group("x")
    assert before != after
    assert after.files[0][1].size_bytes == 5


@pytest.mark.parametrize("n_directories", [0, 3])
def test_an_unchanged_rescan_shares_every_object_with_the_one_before(root, n_directories):
    for i in range(30):
        root.write_group(f"d{i % n_directories}/S{i}" if n_directories else f"S{i}")
    (root.path / "link").symlink_to("d0" if n_directories else ".")
    first, second = root.scan(), root.scan()
    assert second.groups is first.groups
    assert second.listings is first.listings


def test_after_one_change_only_that_group_is_a_new_object(root):
    for i in range(10):
        root.write_group(f"S{i}")
    first = root.scan()
    root.write("S3_model.pkl", b"longer")
    second = root.scan()
    assert [key for key in second.groups if second.groups[key] is not first.groups[key]] == ["S3"]


CHANGES = {
    "file added": lambda root: root.write("S1_ic.csv"),
    "file removed": lambda root: (root.path / "S1_info.pkl").unlink(),
    "group added": lambda root: root.write_group("S9"),
    "group removed": lambda root: root.delete_group("S1"),
    "file to directory": lambda root: (root.delete_group("S1"), (root.path / "S1_info.pkl").mkdir()),
    "file to fifo": lambda root: ((root.path / "S1_info.pkl").unlink(), make_fifo(root.path / "S1_info.pkl")),
    "file to symlink": lambda root: (
        (root.path / "S1_info.pkl").unlink(),
        (root.path / "S1_info.pkl").symlink_to("S0_info.pkl"),
    ),
    "directory added": lambda root: root.write_group("sub/S8"),
    "directory removed": lambda root: (root.delete_group("T0"), (root.path / "t").rmdir()),
    "directory renamed": lambda root: (root.path / "t").rename(root.path / "u"),
    "renamed over": lambda root: (root.path / "S0_info.pkl").rename(root.path / "S1_info.pkl"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_rescan_finds_what_a_first_scan_would(root, change):
    for key in ("S0", "S1", "t/T0"):
        root.write_group(key)
    root.scan()
    for step in (change, CHANGES["group added"]):
        step(root)
        again, fresh = root.scan(), scan_tree(root.path, root.names, None, clock=root.clock)
        assert again.groups == fresh.groups
        assert again.problems == fresh.problems
        assert again.listings.keys() == fresh.listings.keys()
        root.write_group("S0", b"changed")


def test_other_suffixes_regroup_everything(root):
    root.write_group("x")
    root.write("x_model.bin")
    root.scan()
    root.names = ArtifactNames(["_model.bin"])
    assert root.group("x").relpaths == ("x_model.bin",)


def test_a_directory_that_cannot_be_listed_keeps_its_last_state(reachable_root, without_privileges):
    root = reachable_root
    root.write_group("locked/deep/x")
    root.write_group("open/y")
    locked = root.path / "locked"
    root.scan()
    locked.chmod(0)
    try:
        with without_privileges():
            scan = root.scan()
            fresh = scan_tree(root.path, root.names, None, clock=root.clock)
    finally:
        locked.chmod(0o755)
    assert set(scan.groups) == {"x", "y"}
    assert scan.is_unknown("locked/deep")
    assert {problem.path: problem.reason for problem in scan.problems} == {"locked": "unreadable"}
    assert set(fresh.groups) == {"y"}
    assert fresh.is_unknown("locked/deep")


def test_files_whose_status_cannot_be_read_withhold_their_group_only_if_never_seen(reachable_root, without_privileges):
    root = reachable_root
    root.write_group("listed/x")
    listed = root.path / "listed"
    seen = root.scan().groups["x"]
    listed.chmod(0o744)  # others may list the names, but not look at the files
    try:
        with without_privileges():
            scan = root.scan()
            fresh = scan_tree(root.path, root.names, None, clock=root.clock)
    finally:
        listed.chmod(0o755)
    assert scan.groups["x"] == seen
    assert {problem.reason for problem in scan.problems} == {"unreadable"}
    assert not fresh.groups
    assert root.group("x") == seen
    assert not root.last.problems


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_root_that_is_not_there_shows_what_was_seen_last(root, kind):
    root.write_group("x")
    root.scan()
    root.path.rename(root.path.with_name("away"))
    if kind == "a file":
        root.path.write_bytes(b"")
    scan = root.scan()
    assert scan.root_state == "missing"
    assert set(scan.groups) == {"x"}


def test_a_budget_bounds_a_giant_directory_and_the_others_are_not_starved(root):
    for i in range(600):
        root.write(f"giant/G{i}_model.pkl")
    for i in range(20):
        root.write(f"small{i}/S{i}_model.pkl")
    scan = root.scan(max_files=300)
    assert scan.truncated
    assert {f"S{i}" for i in range(20)} == set(scan.groups)
    assert {problem.path: problem.reason for problem in scan.problems} == {"giant": "truncated"}
    assert scan.n_entries <= 301
    whole = root.scan(max_files=700)
    assert not whole.truncated
    assert len(whole.groups) == 620


def test_many_directories_over_the_budget_are_all_reached_in_turn(root):
    for i in range(40):
        root.write_group(f"d{i:02}/S{i}")
    for _ in range(10):
        scan = root.scan(max_files=60)
        assert scan.truncated
    assert len(scan.groups) == 40


def test_a_scan_that_is_out_of_time_says_so(root):
    for i in range(5):
        root.write_group(f"d{i}/S{i}")
    ticks = iter(range(1000))
    scan = scan_tree(root.path, root.names, None, clock=lambda: float(next(ticks)), time_budget_s=4.0)
    assert scan.truncated
    assert scan.is_unknown("d4")


def test_scans_leave_no_file_descriptor_open(root):
    for i in range(5):
        root.write_group(f"d{i}/S{i}")
    before = len(os.listdir("/proc/self/fd"))
    for max_files in (1, 3, 8, 1000):
        root.scan(max_files=max_files)
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_does_not_grow_with_the_number_of_scans(root):
    for i in range(300):
        root.write_group(f"S{i}")
    for round_number in range(3):
        root.write("S0_model.pkl", b"x" * round_number)
        root.scan()
    tracemalloc.start()
    root.write("S0_model.pkl", b"first")
    root.scan()
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    for round_number in range(30):
        root.write("S0_model.pkl", b"x" * (10 + round_number))
        root.scan()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 50_000
