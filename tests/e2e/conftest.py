"""A real `mmserver serve` on a port of its own, and real artifacts for it: small trained models, pickled by their library."""

import http.client
import json
import os
import pickle
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

COMMAND = Path(sys.executable).with_name("mmserver")
FACTORS = ("mom_1h", "vol_1d", "spread", "rsi_14", "gap")
START_TIMEOUT_S = 120.0
N_MODELS = 3

FAST = {
    "MMSERVER_WATCH_INTERVAL_S": "0.2",
    "MMSERVER_WATCH_DEBOUNCE_S": "0.2",
    "MMSERVER_GONE_POLLS": "2",
    "MMSERVER_SANDBOX_WORKERS": "1",
    "MMSERVER_SNAPSHOT_INTERVAL_S": "0",
}
"""So that tests wait for fractions of a second where an operator waits for seconds."""


def find_free_port() -> int:
    """One that the system will give to nobody who asks for any."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ours = [port for port in range(10_000, 65_536) if not first <= port <= last]
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", random.SystemRandom().choice(ours))) as tried:
            port: int = tried.getsockname()[1]
            return port


def environment(**environ: str) -> dict[str, str]:
    """This process's environment without anybody's settings, and the given ones."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MMSERVER_", "MODEL_M"))}
    return {**inherited, **environ}


def wait_until(is_so: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Whatever true value `is_so` gives within the time; looks again every 20 ms."""
    deadline = time.monotonic() + timeout_s
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)
    return found


@dataclass
class Server:
    """One running `mmserver serve`, its state and a client of it."""

    data_dir: Path
    log_path: Path
    process: "subprocess.Popen[bytes]"
    url: str = ""
    client: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False))

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def connect(self) -> None:
        """Wait until it says where it serves, and answers there."""

        def address() -> str | None:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log}"
            found = re.findall(r"serving on (http://\S+),", self.log)
            return found[-1] if found else None

        self.url = wait_until(address, "an address in the log", START_TIMEOUT_S)
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=60)
        assert self.client.get("/livez").status_code == 200

    def get(self, path: str, **options: Any) -> Any:
        """The JSON body of a GET that must succeed."""
        response = self.client.get(path, **options)
        assert response.status_code == 200, response.text
        return response.json()

    def register(self, model_name: str, directory: Path) -> Any:
        """Register a directory; it must succeed."""
        response = self.client.post("/api/models", json={"model_name": model_name, "root_path": str(directory)})
        assert response.status_code == 201, response.text
        return response.json()

    def item(self, model_name: str) -> Any:
        """The model as it stands in the list."""
        return self.get(f"/api/models/{model_name}")

    def see_what_was_sent(self) -> None:
        """Return once its I/O thread has read whatever was sent to it before, by anybody; for one worker."""
        for _ in range(2):  # the first may be read in one turn with the others, and before them
            with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
                client.sendall(b"nonsense\r\n\r\n")  # which that thread answers by itself
                assert client.recv(65536).startswith(b"HTTP/1.0 400 ")

    def query(self, statement: str, *values: Any) -> list[Any]:
        """Rows from the database, read beside the running server."""
        with closing(sqlite3.connect(f"file:{self.data_dir}/state.db?mode=ro", uri=True)) as connection:
            return connection.execute(statement, values).fetchall()

    def audit(self, target: str) -> list[str]:
        """The actions on one model or venue, oldest first."""
        rows = self.query("SELECT action FROM audit WHERE target = ? ORDER BY id", target)
        return [action for (action,) in rows]

    def kill(self) -> None:
        """`kill -9`, as an out-of-memory killer would."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)


StartServer = Callable[..., Server]


class Servers:
    """Starts servers, and ends at last whatever still runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[Server] = []

    def start(
        self,
        *flags: str | Path,
        data_dir: Path | None = None,
        wait: bool = True,
        before: Sequence[str] = (),
        **environ: str,
    ) -> Server:
        """`mmserver serve`, on a free port; with `wait=False` it may as well fail. `before` is a command that runs it."""
        data_dir = data_dir or self._directory / f"data {len(self._started)}"
        log_path = self._directory / f"server-{len(self._started)}.log"
        arguments = ["serve", "--host", "127.0.0.1", "--port", "0", "--data-dir", data_dir, *flags]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*before, COMMAND, *map(str, arguments)],
                cwd=self._directory,
                env=environment(**{**FAST, **environ}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        server = Server(data_dir, log_path, process)
        self._started.append(server)
        if wait:
            server.connect()
        return server

    def end(self) -> None:
        """Kill each with its children, and see that none had an error that nobody foresaw."""
        for server in self._started:
            server.client.close()
            try:
                os.killpg(server.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            finally:
                server.process.wait()
        for server in self._started:
            assert "Traceback" not in server.log, server.log


class Artifacts:
    """Writes groups as producers do; the models are real ones, told apart by their number."""

    def __init__(self, pickles: list[bytes], texts: list[bytes]) -> None:
        self.pickles = pickles
        self.texts = texts

    def write(
        self, directory: Path, group_key: str, model: int = 0, *, form: str = "pkl", info: Any = None, ic: float = 0.02
    ) -> None:
        """The four files of a group, each put in place whole, as a careful producer does."""
        directory.mkdir(parents=True, exist_ok=True)
        rows = [f"{name},{ic + dim / 100:.4f},{ic / 2 + dim / 100:.4f}" for dim, name in enumerate(FACTORS)]
        files = {
            "factors.txt": "".join(f"{name}\n" for name in FACTORS).encode(),
            "ic.csv": "\n".join(["factor,ic,kendall_tau", *rows, ""]).encode(),
            "info.pkl": pickle.dumps(info or self.info(model)),
            f"model.{form}": (self.pickles if form == "pkl" else self.texts)[model],
        }
        for name, content in files.items():
            self.put(directory / f"{group_key}_{name}", content)

    def put(self, path: Path, content: bytes) -> None:
        """Replace a file in one step."""
        new = path.with_name(f".{path.name}.new")
        new.write_bytes(content)
        new.rename(path)

    @staticmethod
    def info(model: int) -> dict[str, Any]:
        """What the producer says of the training of that model."""
        return {
            "dim": len(FACTORS),
            "train_start": "2024-01-01",
            "train_end": "2024-06-30",
            "train_samples": 300,
            "number": model,
            "metrics": {"ic": np.float64(0.031), "rmse": None},
        }


@pytest.fixture(scope="session")
def artifacts() -> Artifacts:
    """Three small regressors, trained once."""
    import xgboost

    pickles, texts = [], []
    for seed in range(N_MODELS):
        random = np.random.default_rng(seed)
        rows = random.normal(size=(300, len(FACTORS))).astype(np.float32)
        rows[random.random(rows.shape) < 0.05] = np.nan
        labels = np.nan_to_num(rows) @ random.normal(size=len(FACTORS))
        model = xgboost.XGBRegressor(n_estimators=8, max_depth=3, n_jobs=1, random_state=seed).fit(rows, labels)
        pickles.append(pickle.dumps(model))
        texts.append(bytes(model.get_booster().save_raw("json")))
    return Artifacts(pickles, texts)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """For tests that need servers of their own."""
    made = Servers(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="session")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    made = Servers(tmp_path_factory.mktemp("servers"))
    yield made
    made.end()


@pytest.fixture(scope="session")
def server(shared_servers: Servers) -> Server:
    """One server for all tests that only add models of their own."""
    return shared_servers.start()


@pytest.fixture(scope="session")
def alpha(server: Server, artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model on the shared server that nobody changes: BTCUSDT and ETHUSDT as pickles, SOLUSDT as JSON."""
    directory = tmp_path_factory.mktemp("artifacts") / "alpha"
    artifacts.write(directory, "BTCUSDT_mid_chg_1m", 0)
    artifacts.write(directory, "ETHUSDT_mid_chg_1m", 1)
    artifacts.write(directory / "more", "SOLUSDT_mid_chg_1m", 2, form="json")
    server.register("alpha", directory)
    return "alpha"


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """`wait_until`, for tests."""
    return wait_until


@pytest.fixture
def free_port() -> Callable[[], int]:
    """`find_free_port`, for tests."""
    return find_free_port


@pytest.fixture
def mmserver(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`mmserver …` in a process of its own, which must succeed unless `check=False`."""

    def run(*arguments: str | Path, check: bool = True, **environ: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [COMMAND, *map(str, arguments)],
            cwd=tmp_path,
            env=environment(**{**FAST, **environ}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


SLOW_MODEL = """
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from mmserver import Artifact, ArtifactFormat, FloatRows, ModelFile, Predictor, hookimpl


def parse(artifact: Artifact) -> ModelFile:
    return ModelFile(
        kind="slow_sum",
        content=artifact.data,
        n_features=2,
        n_outputs=1,
        objective="regression",
        library_version="1",
        feature_names=("a", "b"),
    )


class SlowSum:
    n_features = 2
    size_bytes = 1

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        time.sleep(0.1)
        while Path(__file__).with_name("hold").exists():
            time.sleep(0.01)
        return {"prediction": rows.sum(axis=1, keepdims=True)}


@hookimpl
def mmserver_formats() -> list[ArtifactFormat]:
    return [ArtifactFormat(name="slow_sum", suffix="_slow.txt", role="model", parse=parse)]


@hookimpl
def mmserver_load_predictor(model: ModelFile) -> Predictor | None:
    return SlowSum() if model.kind == "slow_sum" else None


if "GRACE_S" in os.environ and "mmserver.server.process" in sys.modules:
    sys.modules["mmserver.server.process"].GRACE_S = float(os.environ["GRACE_S"])
"""
"""A model that takes a tenth of a second, and, while there is a file `hold` beside it, as long as there is.

`GRACE_S` is how long a server that ends waits for what it has not answered yet.
"""


class SlowRequest:
    """A prediction of the slow model, as it goes over the wire."""

    body = json.dumps({"symbol": "ONEUSDT", "model_name": "slow", "features": [1, 2]}).encode()
    head = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )


@dataclass
class Seen:
    """One answer to one client."""

    status: int
    headers: Any
    body: Any


class KeptClient:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None) -> Seen:
        """Send one request and read its answer; JSON both."""
        self.send(method, path, body)
        return self.read()

    def send(self, method: str, path: str, body: Any = None) -> None:
        content = body if body is None or isinstance(body, bytes) else json.dumps(body)
        self.connection.request(method, path, content, {"Content-Type": "application/json"})

    def read(self) -> Seen:
        answer = self.connection.getresponse()
        read = answer.read()
        is_json = "json" in answer.headers.get("Content-Type", "")
        return Seen(answer.status, answer.headers, json.loads(read) if is_json else read)

    def send_prediction(self) -> None:
        """Ask the slow model; `read` waits for its answer."""
        self.send("POST", "/predict", SlowRequest.body)

    def predict(self) -> Seen:
        """Ask the slow model, and wait."""
        self.send_prediction()
        return self.read()


@pytest.fixture
def slow_request() -> type[SlowRequest]:
    return SlowRequest


@pytest.fixture
def clients_of() -> Iterator[Callable[..., list[KeptClient]]]:
    """Connections to a server that end with the test."""
    made: list[KeptClient] = []

    def connect(server: Server, n_clients: int, port: int | None = None) -> list[KeptClient]:
        new = [KeptClient(port or server.port) for _ in range(n_clients)]
        made.extend(new)
        return new

    yield connect
    for client in made:
        client.connection.close()


class SlowServers:
    """Starts servers with a model that takes a tenth of a second, and as long as it is held."""

    def __init__(self, servers: Servers, directory: Path) -> None:
        self._servers = servers
        self._directory = directory
        (directory / "plugins").mkdir()
        (directory / "plugins/slow_sums.py").write_text(SLOW_MODEL)
        (directory / "artifacts").mkdir()
        (directory / "artifacts/ONEUSDT_ret_5d_slow.txt").write_text("x")

    def __call__(self, *flags: str, **environ: str) -> Server:
        server = self._servers.start("--plugins-dir", self._directory / "plugins", *flags, **environ)
        server.register("slow", self._directory / "artifacts")
        answer = server.client.post("/predict", content=SlowRequest.body, headers={"Content-Type": "application/json"})
        assert answer.json()["prediction"]["expected_return"] == 3.0
        return server

    @contextmanager
    def hold(self) -> Iterator[None]:
        """No prediction of the model ends within the block."""
        held = self._directory / "plugins/hold"
        held.touch()
        try:
            yield
        finally:
            held.unlink()


@pytest.fixture
def slow_server(servers: Servers, tmp_path: Path) -> SlowServers:
    """Starts a server with a model that takes a tenth of a second; `slow_server.hold()` holds it."""
    return SlowServers(servers, tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that lies here starts a server or a browser."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
