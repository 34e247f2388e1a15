import hashlib
import os

import pytest

from mmserver.errors import ArtifactInvalid, ArtifactUnstable
from mmserver.watching.beneath import open_root
from mmserver.watching.reading import read_file, read_group


@pytest.fixture
def handle(root):
    with open_root(root.path) as opened:
        yield opened


def reason_of(error):
    return error.value.values["reason"]


def test_the_bytes_come_with_their_hash_and_identity(root, handle):
    data = os.urandom(300_000)
    root.write("sub/x_model.pkl", data)
    found = read_file(handle, "sub/x_model.pkl", 300_000)
    assert found.data == data
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.identity == root.group("x").files[0][1]


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(50 << 30)


def make_directory(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda path: path.write_bytes(b""), "empty", id="A1 no bytes"),
        pytest.param(make_sparse, "too_large", id="A17 50 GB sparse"),
        pytest.param(lambda path: path.write_bytes(b"x" * 1001), "too_large", id="one byte too many"),
        pytest.param(os.mkfifo, "not_regular", id="A15 named pipe"),
        pytest.param(make_directory, "not_regular", id="A16 directory"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), "outside_root", id="A16 symlink to a device"),
        pytest.param(lambda path: path.symlink_to("../../etc/passwd"), "outside_root", id="A20 symlink out"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(root, handle, make, reason):
    make(root.path / "x_model.pkl")
    with pytest.raises(ArtifactInvalid) as error:
        read_file(handle, "x_model.pkl", 1000)
    assert reason_of(error) == reason


def test_a_missing_file_or_directory_has_vanished(root, handle):
    for relpath in ("x_model.pkl", "none/x_model.pkl", f"{'x' * 300}_model.pkl"):
        with pytest.raises(ArtifactUnstable) as error:
            read_file(handle, relpath, 1000)
        assert reason_of(error) == "vanished"


def test_a_file_that_may_not_be_read_is_unreadable(reachable_root, without_privileges):
    path = reachable_root.write("x_model.pkl")
    path.chmod(0)
    with without_privileges(), open_root(reachable_root.path) as handle, pytest.raises(ArtifactUnstable) as error:
        read_file(handle, "x_model.pkl", 1000)
    assert reason_of(error) == "unreadable"


def test_a_hostile_name_is_escaped_in_the_error(root, handle):
    with pytest.raises(ArtifactUnstable, match=r"a\\x0ab_model") as error:
        read_file(handle, "a\nb_model.pkl", 1000)
    assert "\n" not in str(error.value)


class Interruption:
    """A wall clock that does something when it is read for the n-th time: just before the n-th file is opened."""

    def __init__(self, n, action):
        self.n_left = n
        self.action = action

    def __call__(self):
        self.n_left -= 1
        if self.n_left == 0:
            self.action()
        return 0


def replace(path, data):
    temporary = path.with_name(".new")
    temporary.write_bytes(data)
    temporary.rename(path)


INTERRUPTIONS = {
    "emptied": lambda path: path.write_bytes(b""),
    "grows": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "rewritten": lambda path: path.write_bytes(b"y" * path.stat().st_size),
    "replaced": lambda path: replace(path, b"y" * path.stat().st_size),
    "touched": lambda path: os.utime(path, ns=(0, 0)),
}


@pytest.mark.parametrize("before_file", [1, 2])
@pytest.mark.parametrize("name", ["x_info.pkl", "x_model.pkl"])
@pytest.mark.parametrize("change", INTERRUPTIONS.values(), ids=INTERRUPTIONS.keys())
def test_a_file_that_changes_before_all_are_read_spoils_the_group(root, handle, change, name, before_file):
    root.write_group("x", b"old")
    group = root.group("x")
    interruption = Interruption(before_file, lambda: change(root.path / name))
    with pytest.raises(ArtifactUnstable) as error:
        read_group(handle, group, 1000, wall_clock_ns=interruption)
    assert reason_of(error) == "changing"


def test_a_file_that_is_deleted_meanwhile_has_vanished(root, handle):
    root.write_group("x")
    group = root.group("x")
    interruption = Interruption(2, (root.path / "x_info.pkl").unlink)
    with pytest.raises(ArtifactUnstable) as error:
        read_group(handle, group, 1000, wall_clock_ns=interruption)
    assert reason_of(error) == "vanished"


def swap(link, target):
    temporary = link.with_name(".link")
    temporary.symlink_to(target)
    temporary.rename(link)


@pytest.mark.parametrize("before_file", [1, 2])
def test_a_directory_symlink_swapped_while_reading_gives_one_version(root, handle, before_file):
    root.write_group(".store/v41/x", b"v41")
    root.write_group(".store/v42/x", b"v42")
    current = root.path / "current"
    current.symlink_to(".store/v41")
    group = root.group("x")
    interruption = Interruption(before_file, lambda: swap(current, ".store/v42"))
    files = read_group(handle, group, 1000, wall_clock_ns=interruption)
    assert [file.data for file in files] == [b"v41", b"v41"]
    assert root.read(root.group("x")) == {"x_info.pkl": b"v42", "x_model.pkl": b"v42"}


def test_file_symlinks_swapped_while_reading_are_never_mixed(root, handle):
    root.write_group(".store/v41/x", b"v41")
    root.write_group(".store/v42/x", b"v42")
    current = root.path / ".current"
    current.symlink_to(".store/v41")
    for name in ("x_info.pkl", "x_model.pkl"):
        (root.path / name).symlink_to(f".current/{name}")
    group = root.group("x")
    assert root.read(group) == {"x_info.pkl": b"v41", "x_model.pkl": b"v41"}
    with pytest.raises(ArtifactUnstable) as error:
        read_group(handle, group, 1000, wall_clock_ns=Interruption(2, lambda: swap(current, ".store/v42")))
    assert reason_of(error) == "changing"


def test_no_file_descriptor_is_left_open(root, handle):
    root.write_group("x")
    group = root.group("x")
    os.mkfifo(root.path / "y_model.pkl")
    before = len(os.listdir("/proc/self/fd"))
    read_group(handle, group, 1000)
    for relpath in ("y_model.pkl", "none", "none/none"):
        with pytest.raises((ArtifactInvalid, ArtifactUnstable)):
            read_file(handle, relpath, 1000)
    assert len(os.listdir("/proc/self/fd")) == before
