"""Uploads that lie, end early, never end or come all at once, over real sockets: one answer each, nothing half, nothing kept open."""

import os
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = "/api/ml/registry/models"
HEAD = f"POST {ROOT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n".encode()
MIB = 1 << 20
N_AT_ONCE = 20


@pytest.fixture(scope="module")
def server(shared_servers: Any, artifacts: Any) -> Any:
    """With `good` 1.0.0 in production."""
    started = shared_servers.start(MMSERVER_MAX_ARTIFACT_BYTES="8MiB")
    assert register(started.url, "good", "1.0.0", artifacts.texts[0]).status_code == 201
    assert started.client.post(f"{ROOT}/good/1.0.0/promote").status_code == 200
    return started


def register(url: str, name: str, version: str, content: bytes) -> httpx.Response:
    """On a connection of its own."""
    files = {"file": ("model.json", content)}
    return httpx.post(
        f"{url}{ROOT}", data={"name": name, "version": version}, files=files, timeout=120, trust_env=False
    )


def body(name: str, content: bytes, file_name: bytes = b"model.json", version: str = "1.0.0") -> bytes:
    """A multipart upload as it goes over the wire."""
    fields = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (key, value.encode())
        for key, value in ((b"name", name), (b"version", version))
    )
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n' % file_name
    return fields + part + content + b"\r\n--x--\r\n"


def length(n_bytes: int) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % n_bytes


def answer(server: Any, pieces: Iterable[bytes], *, ends: bool = False) -> tuple[int | None, str]:
    """Status and body of what comes back, None where the connection is closed without a word; `ends` stops sending."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent; the answer may be there
        got = connection.makefile("rb")
        line = got.readline()
        if not line:
            return None, ""
        n_bytes = 0
        while (header := got.readline()) not in (b"\r\n", b""):
            key, _, value = header.partition(b":")
            n_bytes = int(value) if key.lower() == b"content-length" else n_bytes
        return int(line.split()[1]), got.read(n_bytes).decode()


def check_nothing_of(server: Any, name: str) -> None:
    assert server.client.get(f"{ROOT}/{name}").status_code == 404
    assert server.audit(name) == []
    ask = {"model_name": "good", "symbol": "ANY", "features": [0.1] * 5}
    assert server.client.post("/predict", json=ask).json()["model_version"] == "1.0.0"


def n_open_uploads(server: Any) -> int:
    """Files without a name in its data directory."""
    found = 0
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        found += target.startswith(f"{server.data_dir}/") and target.endswith("(deleted)")
    return found


# --- lengths that lie ---------------------------------------------------------------------------------------------------


def test_a_length_that_is_too_small_registers_nothing(server: Any, artifacts: Any) -> None:
    whole = body("short", artifacts.texts[1])
    for n_missing in (3, 50, len(whole) // 2):
        status, said = answer(server, [length(len(whole) - n_missing), whole])
        assert (status, "not a whole multipart body" in said) == (400, True), said
        check_nothing_of(server, "short")


def test_a_length_that_is_too_large_is_waited_for_and_its_end_registers_nothing(server: Any, artifacts: Any) -> None:
    whole = body("long", artifacts.texts[1])
    assert answer(server, [length(len(whole) + 50), whole], ends=True) == (None, "")
    check_nothing_of(server, "long")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        pytest.param(b"Content-Length: -5\r\n", 400, id="negative"),
        pytest.param(b"Content-Length: 5, 5\r\n", 400, id="two in one"),
        pytest.param(b"Content-Length: 5\r\nContent-Length: 6\r\n", 400, id="two"),
        pytest.param(b"Content-Length: 1e3\r\n", 400, id="no whole number"),
        pytest.param(b"Content-Length: " + b"9" * 5000 + b"\r\n", 400, id="5000 digits"),
        pytest.param(b"Content-Length: " + b"9" * 400 + b"\r\n", 413, id="400 digits"),
        pytest.param(b"Content-Length: 10000000000\r\n", 413, id="10 GB"),
        pytest.param(
            b"Content-Length: 10000000000\r\nExpect: 100-continue\r\n", 413, id="10 GB that waits to be asked"
        ),
        pytest.param(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400, id="chunked and a length"),
        pytest.param(b"", 400, id="none"),
    ],
)
def test_a_length_that_is_none_is_answered_at_once(server: Any, lines: bytes, status: int) -> None:
    found, said = answer(server, [HEAD + lines + b"\r\n"])
    assert found == status, said


def test_chunks_that_end_early_or_never_register_nothing(server: Any, artifacts: Any, until: Any) -> None:
    whole = body("chunked", artifacts.texts[1])
    chunk = b"%x\r\n%b\r\n" % (len(whole), whole)
    start = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert answer(server, [start, chunk[: len(chunk) // 2]], ends=True) == (None, "")
    assert answer(server, [start, chunk], ends=True) == (None, "")  # all but the last, empty chunk
    check_nothing_of(server, "chunked")
    status, said = answer(server, [start, *([b"100000\r\n" + bytes(MIB) + b"\r\n"] * 11)])
    assert (status, "upload_too_large" in said) == (413, True)
    until(lambda: n_open_uploads(server) == 0, "nothing of them waits in a file")
    check_nothing_of(server, "chunked")
    assert answer(server, [start, chunk, b"0\r\n\r\n"])[0] == 201


# --- names of files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file_name",
    [
        pytest.param(b"../../etc/passwd", id="above"),
        pytest.param(b"/etc/passwd", id="absolute"),
        pytest.param(b"a/../../b.json", id="above in the middle"),
        pytest.param(b"..\\\\b.json", id="above as on Windows"),
        pytest.param(b"a\nb.json", id="a line feed"),
        pytest.param(b"a\r\nX-Evil: y\r\n\r\n.json", id="a line's end and a header"),
        pytest.param(b"a\0.json", id="NUL"),
        pytest.param(b"x" * 5000 + b".json", id="5000 characters"),
        pytest.param(b"\xff.json", id="no UTF-8"),
        pytest.param("a\u202enosj.json".encode(), id="a character that turns the text around"),
        pytest.param(b"\x1b[2J.json", id="an escape sequence"),
    ],
)
def test_a_file_s_name_is_never_a_place_and_never_a_header(server: Any, artifacts: Any, file_name: bytes) -> None:
    sent = body("named", artifacts.texts[1], file_name)
    status, said = answer(server, [length(len(sent)), sent])
    assert (status, "request_invalid" in said) == (400, True), said
    assert "X-Evil: y" not in said
    check_nothing_of(server, "named")


# --- many at once -------------------------------------------------------------------------------------------------------


def at_once(n_threads: int, ask: Callable[[int], Any]) -> list[Any]:
    """Each thread's result; all begin together."""
    gate = threading.Barrier(n_threads)

    def begin(number: int) -> Any:
        gate.wait(60)
        return ask(number)

    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(begin, range(n_threads)))


def test_of_different_contents_for_one_label_at_once_one_is_kept(server: Any, artifacts: Any) -> None:
    for number in range(4):
        name = f"rivals-{number}"
        found = at_once(3, lambda at, name=name: register(server.url, name, "1.0.0", artifacts.texts[at]))  # type: ignore[misc]
        assert sorted(response.status_code for response in found) == [201, 409, 409]
        assert {response.json()["code"] for response in found if response.status_code == 409} == {"version_conflict"}
        (kept,) = (response.json() for response in found if response.status_code == 201)
        assert server.get(f"{ROOT}/{name}")["versions"] == [kept]
        assert server.audit(name) == ["version.registered"]


def test_the_same_content_for_one_label_at_once_is_registered_once(server: Any, artifacts: Any) -> None:
    found = at_once(6, lambda _: register(server.url, "same", "1.0.0", artifacts.texts[1]))
    assert sorted(response.status_code for response in found) == [200] * 5 + [201]
    assert len({response.json()["sha256"] for response in found}) == 1
    assert server.audit("same") == ["version.registered"]


def test_twenty_uploads_at_once_are_all_registered(server: Any, artifacts: Any) -> None:
    def send(number: int) -> httpx.Response:
        """One in four is large enough to wait in a file."""
        padding = b" " * (2 * MIB if number % 4 == 0 else number)
        return register(server.url, "many", f"1.{number}.0", artifacts.texts[number % 3] + padding)

    found = at_once(N_AT_ONCE, send)
    assert [response.status_code for response in found] == [201] * N_AT_ONCE
    listed = [item["version"] for item in server.get(f"{ROOT}/many")["versions"]]
    assert listed == [f"1.{number}.0" for number in reversed(range(N_AT_ONCE))]
    assert server.audit("many") == ["version.registered"] * N_AT_ONCE


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks into /proc")
def test_twenty_uploads_that_are_cut_off_leave_no_file_and_no_descriptor(server: Any, until: Any) -> None:
    def n_descriptors() -> int:
        return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))

    def cut(_: int) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(length(6 * MIB) + body("cut", bytes(2 * MIB))[: 2 * MIB])

    at_once(N_AT_ONCE, cut)
    until(lambda: n_open_uploads(server) == 0, "no file is left")
    n_open = n_descriptors()
    for _ in range(3):
        at_once(N_AT_ONCE, cut)
    until(lambda: n_open_uploads(server) == 0 and n_descriptors() <= n_open, "nothing is left open")
    check_nothing_of(server, "cut")
