import errno
import os

import pytest

from mmserver.watching.beneath import RootHandle


@pytest.fixture
def handle(root):
    root.write("sub/x_model.pkl", b"in")
    with RootHandle(root.path) as opened:
        yield opened


@pytest.fixture
def old_kernel_handle(root):
    root.write("sub/x_model.pkl", b"in")
    with RootHandle(root.path, allow_openat2=False) as opened:
        yield opened


def read(handle, relpath):
    fd = handle.open(relpath, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        return file.read()


@pytest.fixture(params=["openat2", "component-wise"])
def either(request):
    handle = request.getfixturevalue("handle" if request.param == "openat2" else "old_kernel_handle")
    if request.param == "openat2" and not handle.follows_symlinks:
        pytest.skip("this kernel has no openat2")
    return handle


def test_a_file_in_a_subdirectory_is_opened(either):
    assert read(either, "sub/x_model.pkl") == b"in"


@pytest.mark.parametrize("relpath", ["../secret", "sub/../../secret", "out/secret", "out_file", "abs_file"])
def test_nothing_leads_out(either, root, relpath):
    (root.path.parent / "secret").write_bytes(b"secret")
    (root.path / "out").symlink_to("..")
    (root.path / "out_file").symlink_to("../secret")
    (root.path / "abs_file").symlink_to(root.path.parent / "secret")
    with pytest.raises(OSError) as raised:
        either.open(relpath, os.O_RDONLY)
    assert raised.value.errno in {errno.EXDEV, errno.ELOOP, errno.ENOTDIR}


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_a_symlink_that_stays_inside_is_followed(handle, root, kind):
    if not handle.follows_symlinks:
        pytest.skip("this kernel has no openat2")
    target = root.path / "sub" if kind == "absolute" else "sub"
    (root.path / "current").symlink_to(target)
    assert os.path.samestat(handle.stat("current"), os.stat(root.path / "sub"))


def test_without_openat2_every_symlink_is_refused(old_kernel_handle, root):
    (root.path / "current").symlink_to("sub")
    with pytest.raises(OSError) as raised:
        old_kernel_handle.stat("current")
    assert raised.value.errno == errno.ELOOP


def test_the_handle_keeps_meaning_the_directory_that_was_opened(either, root):
    root.path.rename(root.path.with_name("moved"))
    root.path.mkdir()
    assert read(either, "sub/x_model.pkl") == b"in"


def test_no_file_descriptor_is_left_open(either, root):
    (root.path / "out").symlink_to("..")
    before = os.listdir("/proc/self/fd")
    for relpath in ("sub/x_model.pkl", "sub/none", "none/x", "out/x", "../x"):
        try:
            os.close(either.open(relpath, os.O_RDONLY))
        except OSError:
            continue
    assert len(os.listdir("/proc/self/fd")) == len(before)
