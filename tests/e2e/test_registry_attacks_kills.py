"""`kill -9` in the middle of uploads, registrations, promotions and deletions: what was answered is there, and all is whole."""

import os
import random
import socket
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = "/api/ml/registry/models"
MODEL = f"{ROOT}/hybrid"
N_KILLS = 3
N_UPLOADERS = 3
STATE_FILES = {"loading", "snapshots", "state.db", "state.db-shm", "state.db-wal"}


def upload(client: httpx.Client, version: str, content: bytes) -> httpx.Response:
    return client.post(ROOT, data={"name": "hybrid", "version": version}, files={"file": ("model.json", content)})


def labels(server: Any) -> set[str]:
    return {item["version"] for item in server.get(MODEL)["versions"]}


def n_orphans(database_path: Path) -> int:
    """Blobs that no row refers to, once it is sure that the file is whole and no row refers to what is not there."""
    with closing(sqlite3.connect(f"file:{database_path}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        used = [
            f'SELECT "{column}" FROM "{table}" WHERE "{column}" IS NOT NULL'
            for table in tables
            for _, _, of, column, *_ in connection.execute(f'PRAGMA foreign_key_list("{table}")')
            if of == "blobs"
        ]
        assert len(used) > 3
        found = connection.execute(f"SELECT count(*) FROM blobs WHERE sha256 NOT IN ({' UNION ALL '.join(used)})")
        return int(found.fetchone()[0])


@dataclass
class Wishes:
    """What several clients asked for at once, until the server died; one lock for all that is known."""

    seed: int
    n_until_kill: int
    kill: Callable[[], None]
    kept: set[str]
    production: str
    wished: str | None = None
    """Of the promotion without an answer."""
    unsure: set[str] = field(default_factory=set)
    """Deletions without an answer."""
    strange: list[str] = field(default_factory=list)
    n_done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def done(self) -> None:
        """An answer came; the kill falls when as many came as were drawn, while the other clients wait for theirs."""
        self.n_done += 1
        if self.n_done == self.n_until_kill:
            self.kill()

    def check(self, response: httpx.Response, *allowed: int) -> bool:
        """Whether it was done."""
        if response.status_code not in allowed:
            self.strange.append(response.text)
        return response.status_code < 300

    def upload(self, url: str, number: int, contents: list[bytes]) -> None:
        """Register one version after the other; some are so large that they wait in a file."""
        chosen = random.Random(f"{self.seed} uploads {number}")
        with httpx.Client(base_url=url, trust_env=False, timeout=120) as client:
            for patch in range(10_000):
                version = f"{self.seed}.{number}.{patch}"
                content = chosen.choice(contents) + b" " * chosen.choice((0, 10, 3_000_000))
                is_done = self.check(upload(client, version, content), 201)
                with self.lock:
                    self.kept |= {version} if is_done else set()
                    self.done()

    def promote(self, url: str) -> None:
        chosen = random.Random(f"{self.seed} promotions")
        with httpx.Client(base_url=url, trust_env=False, timeout=120) as client:
            while True:
                with self.lock:
                    self.wished = chosen.choice(sorted(self.kept))
                is_done = self.check(client.post(f"{MODEL}/{self.wished}/promote"), 200, 404)
                with self.lock:
                    self.production, self.wished = (self.wished if is_done else self.production), None
                    self.done()

    def delete(self, url: str) -> None:
        chosen = random.Random(f"{self.seed} deletions")
        with httpx.Client(base_url=url, trust_env=False, timeout=120) as client:
            while True:
                with self.lock:
                    version = chosen.choice(sorted(self.kept))
                    self.unsure.add(version)
                is_done = self.check(client.delete(f"{MODEL}/{version}"), 204, 404, 409)
                with self.lock:
                    self.unsure.discard(version)
                    self.kept -= {version} if is_done else set()
                    self.done()


def until_killed(ask: Callable[..., None], *arguments: Any) -> threading.Thread:
    """In a thread that ends when the server does."""

    def run() -> None:
        try:
            ask(*arguments)
        except httpx.TransportError:
            return

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_kills_at_any_moment_lose_nothing_that_was_answered_and_leave_nothing_half(
    servers: Any, artifacts: Any, mmserver: Any
) -> None:
    server = servers.start()
    assert upload(server.client, "0.0.1", artifacts.texts[0]).status_code == 201
    assert server.client.post(f"{MODEL}/0.0.1/promote").status_code == 200
    kept, production = {"0.0.1"}, "0.0.1"
    for seed in range(1, N_KILLS + 1):
        assert upload(server.client, f"0.1.{seed}", artifacts.texts[1]).status_code == 201  # its worker is there now
        kept.add(f"0.1.{seed}")
        wishes = Wishes(seed, random.Random(seed).randint(5, 60), server.process.kill, set(kept), production)
        threads = [
            *(until_killed(wishes.upload, server.url, number, artifacts.texts) for number in range(N_UPLOADERS)),
            until_killed(wishes.promote, server.url),
            until_killed(wishes.delete, server.url),
        ]
        for thread in threads:
            thread.join()
        server.process.wait()
        assert wishes.strange == []
        server = servers.start(data_dir=server.data_dir)
        found = server.get(MODEL)
        kept, production = labels(server), found["production_version"]
        assert wishes.kept - wishes.unsure <= kept
        assert production in {wishes.production, wishes.wished}
        ask = {"model_name": "hybrid", "symbol": "ANY", "features": [0.1] * 5}
        assert server.client.post("/predict", json=ask).json()["model_version"] == production
        assert n_orphans(server.data_dir / "state.db") == 0
        assert {path.name for path in server.data_dir.iterdir()} <= STATE_FILES
        assert list((server.data_dir / "snapshots").iterdir()) == []
    assert server.stop() == 0
    assert "is whole" in mmserver("db", "check", "--data-dir", server.data_dir).stdout
    report = mmserver("doctor", "--data-dir", server.data_dir).stdout
    assert "database" in report
    assert "\tfail\t" not in report


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks into /proc")
def test_an_upload_that_is_half_there_at_a_kill_is_forgotten(servers: Any, artifacts: Any, until: Any) -> None:
    server = servers.start()
    head = f"POST {ROOT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="model.json"\r\n\r\n' + bytes(3_000_000)

    def waits_in_a_file() -> bool:
        links = Path(f"/proc/{server.process.pid}/fd").iterdir()
        targets = [os.readlink(link) for link in links if link.is_symlink()]
        return any(target.startswith(f"{server.data_dir}/") and target.endswith("(deleted)") for target in targets)

    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{head}Content-Length: 6000000\r\n\r\n".encode() + part)
        until(waits_in_a_file, "the upload waits in a file")
        server.kill()
    assert {path.name for path in server.data_dir.iterdir()} <= STATE_FILES
    again = servers.start(data_dir=server.data_dir)
    assert again.get(ROOT)["items"] == []
    assert upload(again.client, "1.0.0", artifacts.texts[0]).status_code == 201
