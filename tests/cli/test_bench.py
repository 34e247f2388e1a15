"""`mmserver bench`: it measures what it says, with the model's own rows, and never counts an answer that is none."""

import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from mmserver.app import RUNTIME_KEY, create_app
from mmserver.cli.load_generator import LoadFailed, percentiles, request_bytes, run_load
from mmserver.settings import Settings
from tests.cli.commands import run
from tests.served import served

HTTP_LINES = [("POST /predict", 1, 1), ("POST /predict", 1, 8), ("POST /predict", 1, 64)]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, models: list[bytes]) -> Path:
    """A data directory with model `alpha`, which has one symbol."""
    place = tmp_path_factory.mktemp("bench")
    artifacts = place / "artifacts"
    artifacts.mkdir()
    (artifacts / "BTCUSDT_ret_1h_factors.txt").write_text("mom_1h\nvol_1d\n")
    (artifacts / "BTCUSDT_ret_1h_model.pkl").write_bytes(models[0])
    run("models", "add", "alpha", artifacts, "--data-dir", place / "data")
    return place / "data"


def is_measured(line: dict[str, Any]) -> bool:
    agrees = abs(line["rows_per_s"] - line["calls_per_s"] * line["rows"]) <= line["rows"]  # both are rounded
    return bool(0 < line["p50_us"] <= line["p99_us"] and agrees)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is slow to start is waited for."""
    monkeypatch.setattr("mmserver.cli.bench.START_S", 300.0)


def test_engine_prediction_and_http_are_measured_and_nothing_is_left(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(path.name for path in state.iterdir())
    done = run("bench", "alpha", "--symbol", "btc/usdt", "--seconds", "0.2", "--json", "--data-dir", state)
    found = json.loads(done.stdout)
    assert (found["model_name"], found["symbol"], found["dim"], found["engine"]) == ("alpha", "BTCUSDT", 2, "exact")
    assert [(line["what"], line["rows"], line["connections"]) for line in found["items"]] == [
        ("engine", 1, None),
        ("prediction", 1, None),
        ("engine", 256, None),
        ("predictions", 256, None),
        *HTTP_LINES,
    ]
    assert all(map(is_measured, found["items"]))
    assert "load generator is Python and shares this machine" in found["note"]
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in state.iterdir()) == before


def test_a_server_that_runs_is_measured_by_its_address(state: Path) -> None:
    app = create_app(Settings(data_dir=state, watch_enabled=False, sandbox_workers=1))
    try:
        with served(app, n_threads=4) as address:
            url = f"http://{address}/"
            done = run("bench", "alpha", "--url", url, "--seconds", "0.1")
            run("bench", "beta", "--url", url, "--seconds", "0.1", code=4)
            run("bench", "alpha", "--symbol", "XRP", "--url", url, "--seconds", "0.1", code=4)
    finally:
        app.extensions[RUNTIME_KEY].close()
    subject, header, *lines = done.stdout.splitlines()
    assert "model_name=alpha" in subject
    assert "symbol=BTCUSDT" in subject
    found = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
    assert [(line["what"], int(line["rows"]), int(line["connections"])) for line in found] == HTTP_LINES
    assert "load generator is Python" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("beta",), 4),
        (("alpha", "--symbol", "XRP"), 4),
        (("alpha", "--version", "9"), 4),
        (("alpha", "--seconds", "0"), 2),
        (("alpha", "--url", "ftp://localhost"), 2),
        (("alpha", "--url", "localhost:6300"), 2),
        (("alpha", "--url", "http://127.0.0.1:9"), 5),
    ],
)
def test_what_cannot_be_measured_has_its_exit_code(arguments: tuple[str, ...], code: int, state: Path) -> None:
    assert run("bench", *arguments, "--data-dir", state, code=code).stderr


def test_a_model_of_several_symbols_asks_for_one(tmp_path: Path, models: list[bytes]) -> None:
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    for symbol in ("BTCUSDT", "ETHUSDT"):
        (artifacts / f"{symbol}_ret_1h_factors.txt").write_text("mom_1h\nvol_1d\n")
        (artifacts / f"{symbol}_ret_1h_model.pkl").write_bytes(models[0])
    run("models", "add", "alpha", artifacts, "--data-dir", tmp_path / "data")
    said = run("bench", "alpha", "--data-dir", tmp_path / "data", code=2).stderr
    assert "BTCUSDT_ret_1h, ETHUSDT_ret_1h; name one with --symbol" in said


def test_the_copy_takes_neither_the_port_nor_the_name_of_the_server_beside_it(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        monkeypatch.setenv("MMSERVER_PROBE_PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("MMSERVER_TRUSTED_HOSTS", "models.example")
        done = run("bench", "alpha", "--seconds", "0.1", "--json", "--data-dir", state)
    assert [line["what"] for line in json.loads(done.stdout)["items"]].count("POST /predict") == len(HTTP_LINES)


def test_a_copy_that_does_not_start_in_time_is_not_measured(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmserver.cli.bench.START_S", 0.0)
    done = run("bench", "alpha", "--seconds", "0.1", "--data-dir", state, code=5)
    assert "the server did not start; the server's log ends with: " in done.stderr
    assert done.stdout == ""


# --- the load generator -----------------------------------------------------------------------------------------------


class Server:
    """Answers whatever comes with the same bytes, a few at a time."""

    def __init__(self, answer: bytes, step: int) -> None:
        self.requests: list[bytes] = []
        self._answer = answer
        self._step = step
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        return self._listener.getsockname()[:2]

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with closing(connection), suppress(OSError):  # the client may leave at any time
            while request := connection.recv(65536):
                self.requests.append(request)
                for start in range(0, len(self._answer), self._step):
                    connection.sendall(self._answer[start : start + self._step])


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start such a server."""
    started: list[Server] = []

    def start(answer: bytes, step: int = 65536) -> Server:
        started.append(Server(answer, step))
        return started[-1]

    yield start
    for server in started:
        server.close()


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\nServer: x\r\n\r\n" + b"x" * 12


@pytest.mark.parametrize("step", [65536, 7])
def test_every_answer_is_waited_for_whole(serve: Callable[..., Server], step: int) -> None:
    server = serve(OK, step)
    requests = [request_bytes("h", "/predict", body) for body in (b"{}", b"[1]")]
    found = run_load(server.address, requests, 3, 0.2)
    assert found["n_calls"] > 3
    assert 0 < found["p50_us"] <= found["p99_us"]
    assert set(server.requests) == set(requests)
    assert found["n_calls"] <= len(server.requests)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (OK.replace(b"200 OK", b"503 Busy"), "503 Busy: xxx"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "no Content-Length"),
    ],
)
def test_an_answer_that_is_no_prediction_ends_the_measurement(
    answer: bytes, said: str, serve: Callable[..., Server]
) -> None:
    with pytest.raises(LoadFailed, match=said):
        run_load(serve(answer).address, [request_bytes("h", "/predict", b"{}")], 2, 0.2)


def test_percentiles_are_of_the_ordered_values() -> None:
    assert percentiles([value / 1e6 for value in range(100, 0, -1)]) == pytest.approx({"p50_us": 51, "p99_us": 100})
    assert percentiles([3e-6]) == pytest.approx({"p50_us": 3, "p99_us": 3})
