"""Whatever is on the other end of the socket: the caller gets a typed error in time, and no change is ever sent twice."""

import asyncio
import pickle
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mmserver.client import (
    AnswerInvalid,
    ClientClosed,
    ClientError,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    ModelClient,
    NotAuthenticated,
    NotFound,
    RequestRefused,
    Retries,
    ServerBusy,
    ServerError,
    ServerFailed,
    ServerUnavailable,
    SyncModelClient,
    Timeouts,
)
from tests.client.conftest import LONG_S, Ask, Misbehaving, answer

Make = Callable[..., Misbehaving]
MODELS = answer("200 OK", b"[]", Content_Type="application/json")
QUICK = Retries(attempts=3, base_s=0.001)
SHORT_S = 0.4


def listing(client: Any) -> Any:
    return client.list_models()


def reloading(client: Any) -> Any:
    return client.reload_model("alpha")


def predicting(client: Any) -> Any:
    return client.predict("BTCUSDT", [1.0])


def resetting(connection: socket.socket, _: bytes) -> None:
    """RST, in the middle of a body."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()


def cutting(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[")
    connection.shutdown(socket.SHUT_RDWR)


def babbling(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"\x00\xff garbage \x16\x03\r\n\r\n")
    connection.shutdown(socket.SHUT_RDWR)


def silent(_: socket.socket, __: bytes) -> None:
    """Takes the request and says nothing."""


def dripping(head: bytes) -> Callable[[socket.socket, bytes], None]:
    """A byte every 50 ms: no single read takes long."""

    def drip(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head)
        while True:  # until the client hangs up
            connection.sendall(b"x")
            time.sleep(0.05)

    return drip


@pytest.mark.parametrize(
    "behave",
    [pytest.param(resetting, id="reset"), pytest.param(cutting, id="cut"), pytest.param(babbling, id="garbage")],
)
def test_a_broken_answer_is_asked_for_again_and_a_change_is_not(behave: Any, misbehaving: Make, ask: Ask) -> None:
    server = misbehaving(behave)
    with pytest.raises(ServerUnavailable) as caught:
        ask(server.url, predicting, retries=QUICK)
    assert caught.value.was_sent
    assert server.paths() == ["POST /predict"] * 3
    server.requests.clear()
    with pytest.raises(ServerUnavailable):
        ask(server.url, reloading, retries=QUICK)
    assert server.paths() == ["POST /api/ml/models/reload"]


def test_an_answer_that_comes_at_the_second_attempt_is_the_answer(misbehaving: Make, ask: Ask) -> None:
    def behave(connection: socket.socket, request: bytes) -> None:
        server.behave = lambda connection, _: connection.sendall(MODELS)
        resetting(connection, request)

    server = misbehaving(behave)
    assert ask(server.url, listing, retries=QUICK) == []


@pytest.mark.parametrize(
    "behave",
    [
        pytest.param(silent, id="hung"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\nX-Long: "), id="dripping-headers"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), id="dripping-body"),
    ],
)
def test_no_server_makes_a_call_longer_than_its_time_and_none_is_asked_twice(
    behave: Any, misbehaving: Make, ask: Ask
) -> None:
    server = misbehaving(behave)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        ask(server.url, predicting, timeouts=Timeouts(read_s=LONG_S, total_s=SHORT_S), retries=QUICK)
    assert SHORT_S <= time.monotonic() - begun < LONG_S
    assert len(server.requests) <= 1


def test_a_read_timeout_below_the_whole_time_ends_a_call_too(misbehaving: Make, ask: Ask) -> None:
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        ask(misbehaving(silent).url, listing, timeouts=Timeouts(read_s=SHORT_S, total_s=LONG_S))
    assert time.monotonic() - begun < LONG_S


def test_a_listener_that_never_accepts_costs_the_time_of_the_call(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        url, begun = f"http://127.0.0.1:{listener.getsockname()[1]}", time.monotonic()
        with pytest.raises(DeadlineExceeded):
            ask(url, listing, timeouts=Timeouts(connect_s=LONG_S, read_s=LONG_S, total_s=SHORT_S))
        assert time.monotonic() - begun < LONG_S


@pytest.mark.parametrize("call", [listing, reloading])
def test_where_nobody_listens_anything_is_tried_again_and_then_unavailable(call: Any, ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ServerUnavailable, match="ConnectError") as caught:
        ask(f"http://127.0.0.1:{port}", call, retries=QUICK)
    assert not caught.value.was_sent


def test_a_busy_server_is_asked_again_when_it_says_so_and_not_before(misbehaving: Make, ask: Ask) -> None:
    asked_at: list[float] = []

    def behave(connection: socket.socket, _: bytes) -> None:
        asked_at.append(time.monotonic())
        busy = answer("503 Service Unavailable", b'{"code":"queue_full","detail":"full"}', Retry_After="1")
        connection.sendall(busy if len(asked_at) == 1 else MODELS)

    assert ask(misbehaving(behave).url, listing, retries=QUICK) == []
    assert len(asked_at) == 2
    assert asked_at[1] - asked_at[0] >= 1.0


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_a_change_that_meets_a_busy_server_is_not_sent_again(status: str, misbehaving: Make, ask: Ask) -> None:
    server = misbehaving(lambda connection, _: connection.sendall(answer(status, b"{}", Retry_After="1")))
    with pytest.raises(ServerBusy) as caught:
        ask(server.url, reloading, retries=QUICK)
    assert caught.value.retry_after_s == 1
    assert len(server.requests) == 1


def test_a_server_that_is_busy_for_longer_than_the_call_may_take_is_not_waited_for(misbehaving: Make, ask: Ask) -> None:
    server = misbehaving(lambda c, _: c.sendall(answer("503 Service Unavailable", b"", Retry_After="3600")))
    begun = time.monotonic()
    with pytest.raises(ServerBusy, match="503 http_503"):
        ask(server.url, listing, timeouts=Timeouts(total_s=LONG_S))
    assert time.monotonic() - begun < LONG_S
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRefused), (401, NotAuthenticated), (403, Forbidden), (404, NotFound), (405, NotFound), (409, Conflict),
        (412, Conflict), (422, RequestRefused), (500, ServerFailed), (502, ServerBusy), (507, ServerFailed),
        (302, ServerError), (418, ServerError), (599, ServerFailed),
    ],
)  # fmt: skip
def test_every_refusal_has_the_class_of_its_status(
    status: int, kind: type[ServerError], misbehaving: Make, ask: Ask
) -> None:
    problem = b'{"code":"x","detail":"why","request_id":"r-1","errors":[{"loc":"a","msg":"b"}],"new":1}'
    server = misbehaving(
        lambda connection, _: connection.sendall(answer(f"{status} X", problem, Location="/elsewhere"))
    )
    with pytest.raises(ServerError) as caught:
        ask(server.url, reloading)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.detail, error.request_id) == (status, "x", "why", "r-1")
    assert error.errors == ({"loc": "a", "msg": "b"},)
    assert str(error) == f"{status} x: why; a: b"
    assert len(server.requests) == 1, "redirects are not followed"


@pytest.mark.parametrize(
    ("body", "code", "detail"),
    [
        pytest.param(b'{"error":"no model","code":"model_not_found"}', "model_not_found", "no model", id="v2"),
        pytest.param(b'{"error_code":"X","message":"m"}', "http_404", "m", id="invocations"),
        pytest.param(b"<h1>\n Not  here</h1>\xff", "http_404", "<h1> Not here</h1>\ufffd", id="a-page"),
        pytest.param(b"", "http_404", "Not Found", id="nothing"),
        pytest.param(b"[" * 100_000, "http_404", "[" * 500, id="deep"),
        pytest.param(b'{"detail":5}', "http_404", '{"detail":5}', id="of-another-shape"),
    ],
)
def test_an_error_in_any_form_has_a_code_and_a_detail(
    body: bytes, code: str, detail: str, misbehaving: Make, ask: Ask
) -> None:
    server = misbehaving(lambda c, _: c.sendall(answer("404 Not Found", body, X_Request_ID="q")))
    with pytest.raises(NotFound) as caught:
        ask(server.url, listing)
    assert (caught.value.code, caught.value.detail, caught.value.request_id) == (code, detail, "q")


@pytest.mark.parametrize(
    "body", [b"", b"ok", b"<html>", b"null", b'{"a":1}', b'[{"name":5}]', b"\xff", b"[" * 100_000], ids=range(8)
)
def test_an_answer_of_something_else_is_invalid_and_not_asked_for_again(
    body: bytes, misbehaving: Make, ask: Ask
) -> None:
    server = misbehaving(lambda connection, _: connection.sendall(answer("200 OK", body)))
    with pytest.raises(AnswerInvalid):
        ask(server.url, listing, retries=QUICK)
    assert len(server.requests) == 1


def test_a_body_that_is_not_packed_as_it_says_is_invalid(misbehaving: Make, ask: Ask) -> None:
    server = misbehaving(lambda c, _: c.sendall(answer("200 OK", b"[]", Content_Encoding="gzip")))
    with pytest.raises(AnswerInvalid):
        ask(server.url, listing)


def test_the_key_goes_with_every_request_and_is_never_printed(
    misbehaving: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSERVER_API_KEY", "secret-1")
    server = misbehaving(lambda connection, _: connection.sendall(MODELS))
    monkeypatch.setenv("MMSERVER_URL", server.url + "/prefix/")
    ask(None, listing)
    assert b"\r\nAuthorization: Bearer secret-1\r\n" in server.requests[0]
    assert server.paths() == ["GET /prefix/api/ml/models"]
    client = SyncModelClient()
    assert "secret-1" not in repr(client) + repr(client._requests.address)


@pytest.mark.parametrize(
    "url", ["localhost:6300", "ftp://x", "http://", "http://u:p@x", "http://x/?a=1", "http://x:port"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        SyncModelClient(url)


@pytest.mark.parametrize("key", ["a\r\nX: y", "é", " a", ""], ids=["line", "letter", "space", "empty"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match=r"^the API key has characters that no header can carry$"):
        SyncModelClient("http://x", key)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), None])
def test_a_timeout_that_would_mean_for_ever_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="total_s"):
        Timeouts(total_s=value)


def test_connections_are_used_again(misbehaving: Make) -> None:
    connections: set[socket.socket] = set()

    def behave(connection: socket.socket, _: bytes) -> None:
        connections.add(connection)
        connection.sendall(MODELS)

    server = misbehaving(behave)
    client = SyncModelClient(server.url)
    for _ in range(5):
        client.list_models()
    client.cleanup()
    assert len(connections) == 1

    async def several() -> None:
        async with ModelClient(server.url) as client:
            for _ in range(5):
                await client.list_models()

    server.behave = lambda c, r: (
        connections.add(c),
        c.sendall(MODELS if b"readyz" not in r else answer("200 OK", b'{"status":"ok"}')),
    )[1]
    asyncio.run(several())
    assert len(connections) == 2


def test_closing_the_client_ends_calls_in_other_threads_at_once(misbehaving: Make) -> None:
    arrived, caught = threading.Event(), []
    server = misbehaving(lambda *_: arrived.set())
    client = SyncModelClient(server.url)

    def wait() -> None:
        try:
            client.list_models()
        except ClientError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert arrived.wait(10)
    client.cleanup()
    thread.join(10)
    assert not thread.is_alive(), "what it asked for is still not answered"
    assert [type(error) for error in caught] == [ClientClosed]


def test_a_cancelled_call_leaves_a_client_that_works(misbehaving: Make) -> None:
    arrived = threading.Event()
    server = misbehaving(lambda *_: arrived.set())

    async def run() -> object:
        client = ModelClient(server.url)
        task = asyncio.create_task(client.list_models())
        while not arrived.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.behave = lambda connection, _: connection.sendall(MODELS)
        try:
            return await client.list_models()
        finally:
            await client.cleanup()

    assert asyncio.run(run()) == []


def test_many_threads_share_one_client(misbehaving: Make) -> None:
    def echo(connection: socket.socket, request: bytes) -> None:
        name = request.split(b" ", 2)[1].rpartition(b"/")[2]
        document = b'{"name":"%s","versions":[],"inputs":[],"outputs":[]}' % name
        connection.sendall(answer("200 OK", document))

    client, found = SyncModelClient(misbehaving(echo).url), {}

    def work(number: int) -> None:
        found[number] = [client.get_metadata(f"m{number}-{n}").name for n in range(30)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    client.cleanup()
    assert found == {number: [f"m{number}-{n}" for n in range(30)] for number in range(8)}


def test_closing_the_client_ends_calls_of_other_tasks_at_once(misbehaving: Make) -> None:
    arrived = threading.Event()
    server = misbehaving(lambda *_: arrived.set())

    async def run() -> None:
        client = ModelClient(server.url)
        task = asyncio.create_task(client.list_models())
        while not arrived.is_set():
            await asyncio.sleep(0.01)
        await client.cleanup()
        with pytest.raises(ClientClosed):
            await asyncio.wait_for(task, 10)

    asyncio.run(run())


def test_a_proxy_of_the_environment_is_not_asked(misbehaving: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = misbehaving(lambda connection, _: connection.sendall(answer("200 OK", b"[]")))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    server = misbehaving(lambda connection, _: connection.sendall(MODELS))
    ask(server.url, listing)
    assert (len(server.requests), len(proxy.requests)) == (1, 0)


def test_errors_come_back_whole_from_another_process() -> None:
    for error in (
        NotFound(404, "x", "why", ({"loc": "a", "msg": "b"},), "r", 1.0),
        ServerUnavailable("gone", was_sent=False),
        DeadlineExceeded("late"),
        AnswerInvalid("odd"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
