"""What processes share is always whole: whoever reads, whoever dies in the middle of writing."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

import pytest

from mmserver.serving import siblings
from mmserver.serving.siblings import SharedPlace, Siblings


@pytest.fixture
def fd() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


def test_a_new_place_is_empty(fd: int) -> None:
    assert SharedPlace(fd, 0).read_numbered() == (0, b"")


def test_a_content_is_replaced_whole_and_numbered(fd: int) -> None:
    writer, reader = SharedPlace(fd, 0), SharedPlace(fd, 0)
    for number, content in enumerate((b"long content", b"short", b"", b"x" * 100_000), 1):
        assert writer.replace(content) == number
        assert reader.number() == number
        assert reader.read_numbered() == (number, content)


def test_places_of_one_file_do_not_touch_each_other(fd: int) -> None:
    found = Siblings.of_file(fd, 100, 3, 1)
    for number, place in enumerate((found.unloaded, *found.statistics)):
        for _ in range(2):
            place.replace(bytes([number]) * siblings.MAX_CONTENT_BYTES)
    for number, place in enumerate((found.unloaded, *found.statistics)):
        assert place.read() == bytes([number]) * siblings.MAX_CONTENT_BYTES
    assert os.pread(fd, 100, 0) == bytes(100)


def test_what_is_too_long_is_refused_and_the_content_stays(fd: int) -> None:
    place = SharedPlace(fd, 0)
    place.replace(b"before")
    with pytest.raises(OSError, match="more than one process can share"):
        place.replace(bytes(siblings.MAX_CONTENT_BYTES + 1))
    assert place.read() == b"before"


def test_a_writer_that_dies_before_its_head_is_written_leaves_the_content_before(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SharedPlace(fd, 0)
    place.replace(b"before")
    write = os.pwrite

    def die_at_the_head(fd: int, content: bytes, at: int) -> int:
        if at == 0:
            raise KeyboardInterrupt
        return write(fd, content, at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", die_at_the_head)
        with pytest.raises(KeyboardInterrupt):
            place.replace(b"half of it")
    assert place.read() == b"before"
    place.replace(b"after")
    assert place.read() == b"after"


def test_a_content_that_is_damaged_is_an_error_and_never_read(fd: int) -> None:
    place = SharedPlace(fd, 0)
    place.replace(b"content")
    os.pwrite(fd, b"C", 4096 + siblings.MAX_CONTENT_BYTES)
    with pytest.raises(OSError, match="faster than it can be read"):
        place.read()


CHANGES = 300
WRITER = f"""
import sys
from mmserver.serving.siblings import SharedPlace
place = SharedPlace(int(sys.argv[1]), 0)
for _ in range({CHANGES}):
    with place.alone():
        count = len(place.read())
        place.replace(b"x" * (count + 1))
"""


def test_changes_of_several_processes_and_threads_are_all_there(fd: int) -> None:
    """A change that was lost would leave the content shorter; one that was seen half, a reader with an error."""
    place = SharedPlace(fd, 0)
    ending = threading.Event()
    lengths: list[int] = []

    def change() -> None:
        for _ in range(CHANGES):
            with place.alone():
                place.replace(b"x" * (len(place.read()) + 1))

    def watch() -> None:
        other = SharedPlace(fd, 0)
        while not ending.is_set():
            lengths.append(len(other.read()))

    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(fd)], pass_fds=[fd]) for _ in range(2)]
    threads = [threading.Thread(target=change) for _ in range(2)]
    watching = threading.Thread(target=watch)
    for thread in (watching, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(600) for process in processes] == [0, 0]
    ending.set()
    watching.join()
    assert place.number() == len(place.read()) == 4 * CHANGES
    assert lengths == sorted(lengths)
