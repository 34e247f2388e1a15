"""What mmserver/server relies on in waitress's own workings; read this first when waitress has a new version.

Each test names who relies on it. When one fails, look at that part of mmserver/server before `setup.cfg` lets the version in.
"""

import configparser
import inspect
import select
import socket
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.buffers import OverflowableBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.receiver import ChunkedReceiver, FixedStreamReceiver
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ErrorTask, Task, ThreadedTaskDispatcher, WSGITask

from mmserver.server.connections import Channel
from mmserver.server.http_server import NO_ROOM
from mmserver.server.requests import FIELDS_OF_HEAD

SETUP = Path(__file__).parents[2] / "setup.cfg"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def parameters(function: Any) -> str:
    return ", ".join(str(parameter) for parameter in inspect.signature(function).parameters.values())


def source(of: Any) -> str:
    return inspect.getsource(of)


class Queue:
    """Takes tasks and does nothing."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []

    def add_task(self, task: Any) -> None:
        self.tasks.append(task)


class Pair:
    """A waitress server without threads, and a client."""

    def __init__(self, **adjustments: Any) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.map: dict[int, Any] = {}
        self.queue = Queue()
        keywords: dict[str, Any] = {"sockets": [self.listener], "asyncore_use_poll": True, **adjustments}
        self.server = create_server(lambda _environ, _start: [], map=self.map, _dispatcher=self.queue, **keywords)
        self.clients: list[socket.socket] = []

    def connect(self) -> socket.socket:
        self.clients.append(socket.create_connection(self.listener.getsockname(), timeout=60))
        return self.clients[-1]

    def turn(self) -> None:
        wasyncore.loop(timeout=0.1, map=self.map, use_poll=True, count=1)

    def channel(self) -> Any:
        self.connect()
        self.turn()
        (channel,) = self.server.active_channels.values()
        return channel

    def close(self) -> None:
        for client in self.clients:
            client.close()
        wasyncore.close_all(self.map)
        self.listener.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


# --- the version ------------------------------------------------------------------------------------------------------


def test_the_installed_version_is_in_the_range_that_setup_cfg_pins() -> None:
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    (pin,) = [line for line in setup["options"]["install_requires"].splitlines() if line.startswith("waitress")]
    assert pin == "waitress >= 3.0.2, < 3.1", "the range was widened: has everything in this file been looked at again?"
    installed = tuple(int(part) for part in version("waitress").split(".")[:3])
    assert (3, 0, 2) <= installed < (3, 1), f"waitress {version('waitress')} is installed, which nobody has looked at"


# --- names and signatures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (create_server, "application, map=None, _start=True, _sock=None, _dispatcher=None, **kw"),
        (wasyncore.loop, "timeout=30.0, use_poll=False, map=None, count=None"),
        (wasyncore.close_all, "map=None, ignore_all=False"),
        (wasyncore.dispatcher.accept, "self"),
        (wasyncore.dispatcher.close, "self"),
        (wasyncore.dispatcher.send, "self, data, do_close=True"),
        (wasyncore.dispatcher.handle_error, "self"),
        (wasyncore.dispatcher.handle_expt, "self"),
        (BaseWSGIServer.handle_accept, "self"),
        (BaseWSGIServer.maintenance, "self, now"),
        (BaseWSGIServer.pull_trigger, "self"),
        (BaseWSGIServer.readable, "self"),
        (HTTPChannel.__init__, "self, server, sock, addr, adj, map=None"),
        (HTTPChannel.readable, "self"),
        (HTTPChannel.writable, "self"),
        (HTTPChannel.handle_read, "self"),
        (HTTPChannel.received, "self, data"),
        (HTTPChannel.handle_write, "self"),
        (HTTPChannel.handle_close, "self"),
        (HTTPChannel.service, "self"),
        (HTTPChannel.write_soon, "self, data"),
        (HTTPChannel.send_continue, "self"),
        (HTTPRequestParser.__init__, "self, adj"),
        (HTTPRequestParser.received, "self, data"),
        (HTTPRequestParser.parse_header, "self, header_plus"),
        (FixedStreamReceiver.__init__, "self, cl, buf"),
        (OverflowableBuffer.__init__, "self, overflow"),
        (OverflowableBuffer.get, "self, numbytes=-1, skip=False"),
        (Task.__init__, "self, channel, request"),
        (Task.build_response_header, "self"),
        (Task.set_close_on_finish, "self"),
        (Task.write, "self, data"),
        (ThreadedTaskDispatcher.handler_thread, "self, thread_no"),
        (ThreadedTaskDispatcher.set_thread_count, "self, count"),
        (ThreadedTaskDispatcher.add_task, "self, task"),
        (ThreadedTaskDispatcher.shutdown, "self, cancel_pending=True, timeout=5"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_what_we_call_or_override_has_the_signature_that_we_know(function: Any, expected: str) -> None:
    assert parameters(function) == expected, f"see who calls or overrides {function.__qualname__} in mmserver/server"


def test_every_adjustment_that_we_make_exists() -> None:
    """http_server.py: one that is renamed would be an error; one whose default we rely on might just change."""
    adjustments = Adjustments(
        ident=None, clear_untrusted_proxy_headers=True, channel_request_lookahead=1, connection_limit=3,
        max_request_header_size=1, max_request_body_size=1, recv_bytes=1, inbuf_overflow=1, outbuf_overflow=1,
        outbuf_high_watermark=1, log_socket_errors=False, asyncore_use_poll=True,
    )  # fmt: skip
    assert adjustments.send_bytes == 1, "connections.py: answers are to leave at once, however short"
    assert adjustments.url_prefix == "", "requests.py: paths are taken as they came"
    assert adjustments.url_scheme == "http", "requests.py: FIELDS_OF_HEAD keeps url_scheme for every request"
    assert adjustments.expose_tracebacks is False, "refusals.py: no traceback reaches a client"
    assert adjustments.trusted_proxy is None, "no proxy's word is taken"


# --- the loop and the door --------------------------------------------------------------------------------------------


def test_the_server_has_the_parts_that_we_replace_or_read(pair: Pair) -> None:
    """http_server.py sets handle_accept, accept, maintenance, pull_trigger, handle_error and channel_class on the instance."""
    assert type(pair.server).__mro__[1] is BaseWSGIServer
    assert (pair.server.accepting, pair.server.active_channels, pair.server.channel_class) == (True, {}, HTTPChannel)
    assert len(pair.map) == 2, "http_server.N_OWN: what lies in the map besides connections"
    assert "self.maintenance(now)" in source(BaseWSGIServer.readable), "http_server.py switches maintenance off there"
    assert "self.accept()" in source(BaseWSGIServer.handle_accept), "http_server._accept stands in for it"
    assert "self.channel_class(self, conn, addr, self.adj, map=self._map)" in source(BaseWSGIServer.handle_accept)
    assert "self.trigger.pull_trigger()" in source(BaseWSGIServer.pull_trigger)


def test_one_call_lets_in_one(pair: Pair) -> None:
    """http_server._let_in calls it until the map does not grow; were it to let in all, the loop would be idle."""
    for _ in range(3):
        pair.connect()
    for n_inside in (1, 2, 3, 3):
        pair.server.handle_accept()
        assert len(pair.server.active_channels) == n_inside


def test_the_connection_limit_is_of_all_in_the_map() -> None:
    """http_server.py adds N_OWN to the limit that is set."""
    pair = Pair(connection_limit=4)
    try:
        for _ in range(3):
            pair.connect()
        for _ in range(5):
            pair.turn()
        assert len(pair.server.active_channels) == 2
        assert pair.server.in_connection_overflow
        assert not pair.server.readable()
    finally:
        pair.close()


def test_a_server_that_does_not_accept_is_not_watched(pair: Pair) -> None:
    """http_server._accept closes the door by it when no files are left."""
    pair.connect()
    pair.server.accepting = False
    assert not pair.server.readable()
    assert not pair.server.writable()
    pair.turn()
    assert pair.server.active_channels == {}


def test_accept_says_none_for_nobody_and_raises_for_want_of_room(pair: Pair) -> None:
    assert wasyncore.dispatcher.accept(pair.server) is None
    accept = source(wasyncore.dispatcher.accept)
    assert "if why.args[0] in (EWOULDBLOCK, ECONNABORTED, EAGAIN)" in accept, f"http_server.NO_ROOM is {NO_ROOM}"


def test_pulling_the_trigger_ends_the_waiting(pair: Pair) -> None:
    """HttpServer.wake."""
    puller = threading.Timer(0.05, pair.server.pull_trigger)
    puller.start()
    began = time.monotonic()
    wasyncore.loop(timeout=120, map=pair.map, use_poll=True, count=1)
    puller.join()
    assert time.monotonic() - began < 60


def test_closing_the_dispatcher_alone_leaves_the_trigger(pair: Pair) -> None:
    """HttpServer.stop_listening."""
    wasyncore.dispatcher.close(pair.server)
    assert list(pair.map.values()) == [pair.server.trigger]
    pair.server.pull_trigger()
    pair.turn()


def test_what_a_handler_raises_goes_to_handle_error_and_what_that_raises_ends_the_loop(pair: Pair) -> None:
    """http_server._end_loop."""

    def fail() -> None:
        raise RuntimeError("from the handler")

    def fail_again() -> None:
        raise ZeroDivisionError

    pair.server.handle_accept = fail
    pair.server.handle_error = fail_again
    pair.connect()
    with pytest.raises(ZeroDivisionError):
        pair.turn()
    assert "handle_expt_event" in source(wasyncore.readwrite), "connections.Channel.handle_expt"


# --- connections ------------------------------------------------------------------------------------------------------


def test_a_connection_has_the_state_that_we_read_and_set(pair: Pair) -> None:
    channel = pair.channel()
    expected = {
        "connected": True, "requests": [], "request": None, "total_outbufs_len": 0, "current_outbuf_count": 0,
        "close_when_flushed": False, "will_close": False, "sent_continue": False, "server": pair.server,
        "adj": pair.server.adj, "task_class": WSGITask, "error_task_class": ErrorTask, "parser_class": HTTPRequestParser,
    }  # fmt: skip
    assert {name: getattr(channel, name) for name in expected} == expected, "see connections.Channel"
    assert isinstance(channel.requests_lock, type(threading.Lock())), "not reentrant: Channel.answered, Channel.recv"
    assert not hasattr(HTTPChannel, "front")
    added = {"answered", "answer_inline", "is_idle", "overdue", "waits_inline", "is_held_back", "is_half_closed"}
    assert not added & set(dir(HTTPChannel)), "waitress now has a name that connections.Channel gives to something else"
    assert issubclass(Channel, HTTPChannel)


@pytest.mark.parametrize(
    ("name", "value"),
    [("will_close", True), ("close_when_flushed", True), ("requests", [1, 2]), ("total_outbufs_len", 1)],
)
def test_a_connection_is_not_read_while(pair: Pair, name: str, value: Any) -> None:
    """connections.py and http_server.py: no request is begun while answers wait, and only one is looked ahead."""
    channel = pair.channel()
    pair.server.adj.channel_request_lookahead = 1
    assert channel.readable()
    channel.requests = [1]
    assert channel.readable(), "a client that leaves would not be noticed while its request is worked on"
    channel.requests = []
    setattr(channel, name, value)
    assert not channel.readable()


def test_only_the_first_request_becomes_a_task_and_service_adds_the_next(pair: Pair) -> None:
    """pool.Pool.add_task and HttpServer._take_task are asked once for each request that becomes the first."""
    channel = pair.channel()
    assert channel.received(GET + GET) is True
    assert (len(channel.requests), pair.queue.tasks) == (2, [channel])
    assert channel.received(b"") is False, "Channel.handle_read hands over what recv gave, nothing too"
    body = source(HTTPChannel.service)
    assert body.index("self.requests.pop(0)") < body.index("self.server.add_task(self)")
    assert "self.server.pull_trigger()" in body, "Channel.is_held_back is looked at by the I/O thread after that"


def test_received_goes_on_until_the_parser_has_taken_all(pair: Pair) -> None:
    """requests.Request.received must take something of what it refuses, or this would not end."""
    assert "if n >= len(data):" in source(HTTPChannel.received)
    assert "if self.will_close or self.close_when_flushed:" in source(HTTPChannel.received)


def test_short_answers_are_sent_by_write_soon_itself(pair: Pair) -> None:
    """connections.Channel.answered."""
    channel = pair.channel()
    assert channel.send(b"abc") == 3
    assert channel.write_soon(b"def") == 3
    assert (channel.total_outbufs_len, pair.clients[0].recv(6)) == (0, b"abcdef")


def test_a_connection_that_is_to_close_when_flushed_is_closed_by_handle_write(pair: Pair) -> None:
    """connections.Channel.handle_write takes over where a refused request's rest is to be dropped."""
    channel = pair.channel()
    channel.close_when_flushed = True
    assert channel.writable()
    channel.handle_write()
    assert pair.server.active_channels == {}
    assert channel.socket is None


def test_past_the_high_watermark_write_soon_waits_for_the_loop() -> None:
    """connections.MAX_UNSENT_BYTES: the I/O thread, which answers too, must never get there."""
    flush = source(HTTPChannel._flush_outbufs_below_high_watermark)
    assert "self.total_outbufs_len > self.adj.outbuf_high_watermark" in flush
    assert "self.outbuf_lock.wait()" in flush


# --- tasks and threads ------------------------------------------------------------------------------------------------


def test_a_task_closes_after_an_answer_without_a_length() -> None:
    """connections.Task.build_response_header mends it for 304, and takes the header out again."""

    class Front:
        adj = Adjustments(ident=None)
        server = None

    channel: Any = Front()
    channel.server = channel
    request = HTTPRequestParser(channel.adj)
    request.parse_header(GET)
    task = WSGITask(channel, request)
    task.status = "304 Not Modified"
    assert (task.version, task.has_body, task.close_on_finish, task.chunked_response) == ("1.1", False, False, False)
    assert b"\r\nConnection: close" in task.build_response_header(), "mended there? then ours can go"
    assert task.close_on_finish
    assert {name: getattr(Task, name) for name in ("status", "wrote_header", "complete", "content_length")} == {
        "status": "200 OK", "wrote_header": False, "complete": False, "content_length": None,
    }  # fmt: skip


def test_a_pool_has_the_parts_that_ours_counts_with() -> None:
    """pool.Pool.n_waiting and queue_task."""
    pool = ThreadedTaskDispatcher()
    assert (pool.threads, list(pool.queue), pool.stop_count, pool.active_count) == (set(), [], 0, 0)
    assert pool.queue_cv._lock is pool.lock
    pool.set_thread_count(2)
    deadline = time.monotonic() + 60
    while pool.active_count:
        assert time.monotonic() < deadline, "a thread that waits is no longer counted as idle"
        time.sleep(0.005)
    assert len(pool.threads) == 2
    served = threading.Event()

    class Once:
        def service(self) -> None:
            served.set()

    with pool.lock:
        pool.queue.append(Once())
        pool.queue_cv.notify()
    assert served.wait(60)
    assert pool.shutdown(timeout=60)
    assert not pool.threads


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_head_sets_what_we_keep_of_it_and_no_more() -> None:
    """requests.FIELDS_OF_HEAD: a field that is not there would be missing of every head that is read from memory."""
    adjustments = Adjustments()
    seen: set[str] = set()
    for head in (
        b"POST http://a/b?c#d HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ):
        request = HTTPRequestParser(adjustments)
        before = set(vars(request)) - {"headers"}
        request.parse_header(head)
        seen |= set(vars(request)) - before
    assert seen == {*FIELDS_OF_HEAD, "body_rcv", "chunked"}, "mend requests.FIELDS_OF_HEAD"


def test_a_body_with_a_length_is_taken_by_the_receiver_that_we_make_ourselves() -> None:
    """requests.Request.parse_header."""
    parse = source(HTTPRequestParser.parse_header)
    assert "buf = OverflowableBuffer(self.adj.inbuf_overflow)" in parse
    assert "self.body_rcv = FixedStreamReceiver(cl, buf)" in parse
    receiver = FixedStreamReceiver(3, OverflowableBuffer(10))
    assert [receiver.received(data) for data in (b"ab", b"cde")] == [2, 1]
    assert (receiver.completed, len(receiver), receiver.getbuf().get(3)) == (True, 3, b"abc")
    assert receiver.getbuf().get(3) == b"abc", "Request.body leaves it there to be read again"


def test_the_receiver_of_chunks_keeps_what_is_not_whole_where_we_look_for_it() -> None:
    """requests.Request._check_chunks."""
    receiver = ChunkedReceiver(OverflowableBuffer(10))
    receiver.received(b"5;a=")
    assert receiver.control_line == b"5;a="
    receiver.received(b"b\r\nabcde\r\n0\r\nA: b")
    assert (receiver.trailer, receiver.completed) == (b"A: b", False)
    receiver.received(b"\r\n\r\n")
    assert (receiver.trailer.rstrip(), receiver.completed) == (b"A: b", True)


def test_a_head_that_is_too_large_is_read_as_another_outside_of_any_try() -> None:
    """requests.Request.parse_header must not refuse the stand-in, which names no host."""
    assert 'self.parse_header(b"GET / HTTP/1.0\\r\\n")' in source(HTTPRequestParser.received)
    assert "self.header_bytes_received >= max_header" in source(HTTPRequestParser.received)


def test_what_parsing_raises_becomes_the_error_and_completes_the_request() -> None:
    """requests.Request raises ParsingError for what it refuses."""

    class Refusing(HTTPRequestParser):  # type: ignore[misc]
        def parse_header(self, header_plus: bytes) -> None:
            raise ParsingError("refused")

    request = Refusing(Adjustments())
    assert request.received(GET + b"rest") == len(GET)
    assert (request.completed, request.error.code, request.error.body) == (True, 400, "refused")
    fresh = HTTPRequestParser(Adjustments())
    expected = {
        "completed": False, "empty": False, "headers_finished": False, "header_plus": b"", "body_rcv": None,
        "error": None, "header_bytes_received": 0, "expect_continue": False, "connection_close": False,
    }  # fmt: skip
    assert {name: getattr(fresh, name) for name in expected} == expected


def test_poll_is_there() -> None:
    """HttpServer.has_visitors, and more connections than select can count."""
    assert hasattr(select, "poll")
