"""A request has one id: what the body of an inference says is what its `X-Request-ID` says, whichever way the answer came."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import flask
import numpy as np
import pytest

from mmserver.server.http_server import HttpServer, Limits
from mmserver.server.inline import InlineAnswers
from mmserver.server.pool import Pool
from mmserver.web.current import QUICK_KEY
from mmserver.web.open_inference_bodies import HEADER_LENGTH

PATH = "/v2/models/alpha.BTCUSDT/infer"
Said = tuple[int, dict[str, str], bytes]
Ask = Callable[[bytes, dict[str, str]], Said]


def by_client(web: Any, path: str, body: bytes, headers: dict[str, str]) -> Said:
    response = web.client.post(path, data=body, headers=headers)
    return response.status_code, {name.lower(): value for name, value in response.headers}, response.data


@pytest.fixture
def reached_flask() -> Iterator[list[str]]:
    """The paths of the requests that Flask worked on."""
    found: list[str] = []

    def note(_app: flask.Flask, **_: Any) -> None:
        found.append(flask.request.path)

    with flask.request_started.connected_to(note):
        yield found


@pytest.fixture(scope="module")
def loaded(web: Any) -> Any:
    """The shared application, where the model is in memory and its name is known."""
    body = inference(1, is_binary=False)[0]
    assert by_client(web, f"{PATH}?flask=1", body, {})[0] == 200
    return web


@pytest.fixture
def by_io_thread(loaded: Any) -> Iterator[Ask]:
    """Asks a server whose I/O thread must answer: there is no application behind it."""

    def refuse(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("500 Internal Server Error", [("Content-Length", "0")])
        return []

    routes = loaded.app.extensions[QUICK_KEY]()
    listener = socket.create_server(("127.0.0.1", 0))
    pool = Pool(1, 10)
    server = HttpServer(refuse, listener, pool, Limits(), InlineAnswers(lambda: routes, loaded.store))
    ending = threading.Event()

    def serve() -> None:
        while not ending.is_set():
            server.turn(0.05)

    def ask(body: bytes, headers: dict[str, str]) -> Said:
        with closing(http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=60)) as connection:
            connection.request("POST", PATH, body, headers)
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()

    thread = threading.Thread(target=serve)
    thread.start()
    yield ask
    ending.set()
    thread.join()
    pool.shutdown(timeout=60)
    server.close()
    listener.close()


@pytest.fixture(params=["I/O thread", "WSGI", "Flask"])
def ask(request: pytest.FixtureRequest, loaded: Any, reached_flask: list[str]) -> Iterator[Ask]:
    """One way to an answer; it proves that the answer came that way."""
    if request.param == "I/O thread":
        yield request.getfixturevalue("by_io_thread")
    else:
        path = PATH if request.param == "WSGI" else f"{PATH}?flask=1"
        yield lambda body, headers: by_client(loaded, path, body, headers)
    assert bool(reached_flask) == (request.param == "Flask")


def inference(n_rows: int, *, is_binary: bool, **more: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request whose answer has the form that the request has."""
    rows = np.random.default_rng(n_rows).normal(size=(n_rows, 3)).astype(np.float32)
    tensor: dict[str, Any] = {"name": "features", "shape": list(rows.shape), "datatype": "FP32"}
    if not is_binary:
        return json.dumps({**more, "inputs": [{**tensor, "data": rows.ravel().tolist()}]}).encode(), {}
    tensor["parameters"] = {"binary_data_size": rows.nbytes}
    head = json.dumps({**more, "inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + rows.tobytes(), {HEADER_LENGTH: str(len(head))}


def ids(said: Said) -> tuple[str, str]:
    """The id in the header, and the one in the body."""
    status, headers, body = said
    assert status == 200, body
    document = json.loads(body[: int(headers.get(HEADER_LENGTH.lower(), len(body)))])
    return headers["x-request-id"], document["id"]


@pytest.mark.parametrize("is_binary", [False, True], ids=["JSON", "binary"])
@pytest.mark.parametrize("n_rows", [1, 4])
def test_an_inference_without_an_id_is_named_as_its_request_is(ask: Ask, n_rows: int, *, is_binary: bool) -> None:
    body, headers = inference(n_rows, is_binary=is_binary)
    assert ids(ask(body, {**headers, "X-Request-ID": "the.client-s_own"})) == ("the.client-s_own", "the.client-s_own")
    made = []
    for given in ({}, {}, {"X-Request-ID": "not sane"}, {"X-Request-ID": "x" * 129}):
        in_header, in_body = ids(ask(body, {**headers, **given}))
        assert in_header == in_body
        made.append(in_header)
    assert len(set(made)) == len(made)
    assert all(one and one not in ("-", "not sane", "x" * 129) for one in made)


def test_a_raw_inference_is_named_as_its_request_is(ask: Ask) -> None:
    body = np.zeros((2, 3), np.float32).tobytes()
    in_header, in_body = ids(ask(body, {HEADER_LENGTH: "0"}))
    assert in_header == in_body


@pytest.mark.parametrize("is_binary", [False, True], ids=["JSON", "binary"])
def test_an_inference_keeps_the_id_that_its_body_has(ask: Ask, *, is_binary: bool) -> None:
    body, headers = inference(1, is_binary=is_binary, id="of the body")
    assert ids(ask(body, {**headers, "X-Request-ID": "of-the-request"})) == ("of-the-request", "of the body")
