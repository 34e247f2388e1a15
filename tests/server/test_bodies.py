"""Bodies that are larger than others may be: how large, where they wait, and what is left of those that never become whole."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmserver.server.bodies import UploadRules
from mmserver.settings import Settings
from mmserver.web.late_routes import MAX_UPLOAD_FIELDS_BYTES, REGISTER_RULE

HEAD = f"POST {REGISTER_RULE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n".encode()
MAX_FILE_BYTES = 2 << 20
MAX_BYTES = MAX_FILE_BYTES + MAX_UPLOAD_FIELDS_BYTES


def waiting_files(directory: Path) -> list[str]:
    """What this process has open beneath the directory, whether it has a name or not."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith(f"{directory}/"):
            found.append(target)
    return found


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    made = tmp_path / "spool"
    made.mkdir()
    return made


@pytest.fixture
def site(sites: Any, spool: Path) -> Any:
    return sites(max_body_bytes=1000, uploads=UploadRules(MAX_FILE_BYTES, spool))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk, where the kernel lets it")
    yield disk
    # A thread of the server may still have a spool open there: the mount goes as soon as nobody uses it.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def with_length(n_bytes: int) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % n_bytes


def in_chunks(body: bytes) -> bytes:
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def test_an_upload_of_just_the_limit_is_taken_whole(site: Any) -> None:
    body = os.urandom(MAX_BYTES)
    assert site.connect().ask(with_length(len(body)) + body).status == 200
    assert site.connect().ask(in_chunks(body)).status == 200
    assert [asked[2] == body for asked in site.asked] == [True, True]


def test_an_upload_of_a_byte_more_is_refused_with_the_setting_and_the_limit_and_nothing_of_it_is_read(
    site: Any,
) -> None:
    answer = site.connect().ask(with_length(MAX_BYTES + 1))
    problem = json.loads(answer.body)
    assert (answer.status, problem["code"]) == (413, "upload_too_large")
    assert "max_artifact_bytes" in problem["detail"]
    assert str(MAX_FILE_BYTES) in problem["detail"]
    assert site.asked == []


def test_an_upload_in_chunks_that_grows_too_large_is_refused_and_let_go(site: Any, spool: Path) -> None:
    client = site.connect()
    client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (MAX_BYTES + 1))
    client.send(bytes(MAX_BYTES + 1))
    answer = client.answer()
    assert (answer.status, json.loads(answer.body)["code"]) == (413, "upload_too_large")
    site.until(lambda: not waiting_files(spool))
    assert site.asked == []


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(HEAD.replace(b"multipart/form-data; boundary=x", b"application/json"), id="another media type"),
        pytest.param(HEAD.replace(REGISTER_RULE.encode(), b"/predict"), id="another route"),
        pytest.param(HEAD.replace(b"POST", b"PUT"), id="another method"),
    ],
)
def test_other_bodies_keep_their_own_limit(site: Any, head: bytes) -> None:
    answer = site.connect().ask(head + b"Content-Length: 1001\r\n\r\n")
    assert (answer.status, json.loads(answer.body)["code"]) == (413, "body_too_large")
    assert site.connect().ask(head + b"Content-Length: 1000\r\n\r\n" + bytes(1000)).status == 200


def test_heads_that_were_read_before_have_the_same_limits(site: Any) -> None:
    body = bytes(5000)
    for _ in range(3):
        assert site.connect().ask(with_length(len(body)) + body).status == 200
        other = HEAD.replace(REGISTER_RULE.encode(), b"/predict")
        assert site.connect().ask(other + b"Content-Length: 900\r\n\r\n" + bytes(900)).status == 200


def test_a_large_upload_waits_without_a_name_in_the_directory_that_is_meant_for_it(site: Any, spool: Path) -> None:
    client = site.connect()
    client.send(with_length(MAX_BYTES) + bytes(MAX_BYTES // 2))
    site.until(lambda: waiting_files(spool))
    assert os.listdir(spool) == []
    client.close()  # a server that ends leaves the file to the end of its process, which this one's is not
    site.until(lambda: not waiting_files(spool))


def test_nothing_is_left_of_an_upload_that_is_cut_off_at_half(site: Any, spool: Path) -> None:
    client = site.connect()
    client.send(with_length(MAX_BYTES) + bytes(MAX_BYTES // 2))
    site.until(lambda: waiting_files(spool))
    client.close()
    site.until(lambda: not waiting_files(spool))
    assert site.asked == []
    assert os.listdir(spool) == []


def test_a_disk_that_fills_up_meanwhile_is_said_and_the_server_goes_on(sites: Any, small_disk: Path) -> None:
    site = sites(uploads=UploadRules(MAX_FILE_BYTES, small_disk))
    for request in (with_length(MAX_BYTES) + bytes(MAX_BYTES), in_chunks(bytes(MAX_BYTES))):
        client = site.connect()
        client.send(request)
        answer = client.answer()
        assert (answer.status, json.loads(answer.body)["code"]) == (507, "disk_full")
        site.until(lambda: not waiting_files(small_disk))
    site.until(lambda: os.statvfs(small_disk).f_bavail > 300)
    body = bytes((1 << 20) + 1000)
    assert site.connect().ask(with_length(len(body)) + body).status == 200
    assert [len(asked[2]) for asked in site.asked] == [len(body)]


def test_a_directory_that_is_gone_is_an_error_of_the_server_and_not_its_end(
    site: Any, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool.rmdir()
    answer = site.connect().ask(with_length(MAX_BYTES) + bytes(MAX_BYTES // 2))
    assert (answer.status, json.loads(answer.body)["code"]) == (500, "internal")
    assert "cannot be kept" in caplog.text
    assert site.connect().ask(with_length(3) + b"abc").status == 200


def test_uploads_wait_in_the_data_directory_where_there_is_one_to_write_in(tmp_path: Path) -> None:
    assert UploadRules.of(Settings(data_dir=tmp_path)).directory == tmp_path
    assert UploadRules.of(Settings(data_dir=tmp_path, read_only=True)).directory is None
    assert UploadRules.of(Settings(data_dir=tmp_path, snapshot=tmp_path / "x.db")).directory is None
