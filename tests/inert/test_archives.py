"""Archives are looked through before a library opens them: what leads out, lies, or unpacks without end is refused by name."""

import io
import random
import struct
import warnings
import zipfile
from typing import Any

import pytest

from mmserver.errors import Undecodable
from mmserver.inert.archives import archive_names
from mmserver.inert.limits import Limits


def archive(*entries: tuple[Any, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in entries:
            opened.writestr(name, data)
    return file.getvalue()


def link(name: str, target: bytes = b"/etc/passwd") -> tuple[zipfile.ZipInfo, bytes]:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    return entry, target


def encrypted() -> bytes:
    data = bytearray(archive(("secret", b"words")))
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<H", data, at + 8, 1)
    return bytes(data)


def overlapping() -> bytes:
    """Two entries of the directory with one place."""
    data = bytearray(archive(("a", b"x" * 99), ("b", b"x" * 99)))
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    struct.pack_into("<L", data, second + 42, 0)
    return bytes(data)


def test_the_names_of_a_good_archive_are_given_in_its_order() -> None:
    data = archive(("model/data.pkl", b"1"), ("model/", b""), ("a..b/c", b"2"), ("ü.json", b"{}"))
    assert archive_names(data) == ("model/data.pkl", "model/", "a..b/c", "ü.json")


@pytest.mark.parametrize("data", [b"", b"tree\n", b"\x80\x04.", b"\x00" * 99])
def test_what_is_no_archive_has_no_names(data: bytes) -> None:
    assert archive_names(data) == ()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(archive(("ok", b"1"), ("../evil.py", b"1")), "'../evil.py' leads out", id="parent"),
        pytest.param(archive(("a/b/../../../evil", b"1")), "'a/b/../../../evil' leads out", id="parent-inside"),
        pytest.param(archive(("/etc/cron.d/evil", b"1")), "'/etc/cron.d/evil' has an absolute path", id="absolute"),
        pytest.param(archive(("C:/evil.exe", b"1")), "'C:/evil.exe' has an absolute path", id="drive"),
        pytest.param(archive(("..\\evil.py", b"1")), r"'..\\\\evil.py' has a backslash", id="backslash"),
        pytest.param(archive(("a\nb", b"1")), r"'a\\nb' has no name", id="line-break"),
        pytest.param(archive(link("weights.npy")), "'weights.npy' is a symbolic link", id="symlink"),
        pytest.param(archive(("a", b"1"), ("a", b"2")), "two entries named 'a'", id="twice"),
        pytest.param(archive(("a", b"1"), ("A", b"2")), "two entries named 'A'", id="twice-in-another-case"),
        pytest.param(encrypted(), "'secret' is encrypted", id="encrypted"),
        pytest.param(overlapping(), "lies where another lies", id="overlapping"),
        pytest.param(
            archive(("bomb", bytes(20 << 20)), compression=zipfile.ZIP_DEFLATED), "'bomb' would be 20971520", id="bomb"
        ),
    ],
)
def test_an_entry_that_is_wrong_is_refused_by_its_name(data: bytes, says: str) -> None:
    with pytest.raises(Undecodable, match=says) as refusal:
        archive_names(data)
    assert refusal.value.reason == "unsafe_archive"


def test_many_entries_that_are_large_together_are_refused() -> None:
    data = archive(*((str(number), bytes(600)) for number in range(5)))
    with pytest.raises(Undecodable, match="'3' would be"):
        archive_names(data, Limits(max_bytes=2000))


def test_no_cut_and_no_flipped_bit_of_the_contents_gets_through() -> None:
    data = archive(("a", random.Random(0).randbytes(200)), ("b", b"words"))
    for length in range(2, len(data)):
        with pytest.raises(Undecodable):
            archive_names(data[:length])
    for at in range(31, data.index(b"PK", 4)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        with pytest.raises(Undecodable):
            archive_names(bytes(flipped))
