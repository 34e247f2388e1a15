"""Experiments beside `kill -9`, two processes and a file of observations that goes away: their state is whole, or said to be lost."""

import random
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = "/api/ml/experiments"
REGISTRY = "/api/ml/registry/models"
VERSIONS = ("1.0.0", "1.1.0")
N_KILLS = 3
ENDED = {"applied": ["experiment.stopped", "experiment.applied"], "stopped": ["experiment.stopped"]}


def register(server: Any, artifacts: Any, name: str) -> str:
    """A model of two versions, the first in production."""
    for version, content in zip(VERSIONS, artifacts.texts, strict=False):
        files = {"file": ("model.json", content)}
        assert server.client.post(REGISTRY, data={"name": name, "version": version}, files=files).status_code == 201
    assert server.client.post(f"{REGISTRY}/{name}/1.0.0/promote").status_code == 200
    return name


def plan_of(name: str, model_name: str, **changes: Any) -> dict[str, Any]:
    arms = {"control_model": model_name, "control_version": "1.0.0", "treatment_model": model_name}
    plan = {"experiment_id": name, **arms, "treatment_version": "1.1.0", "traffic_split": 0.9, "unit": "prediction"}
    return {**plan, **changes}


def predict(server: Any, name: str, n: int) -> list[Any]:
    one = {"model_name": name, "symbol": "ANY", "features": [0.1] * 5}
    found: list[Any] = server.client.post("/predict/batch", json={"requests": [one] * n}).json()["predictions"]
    return found


def production(server: Any, name: str) -> Any:
    return server.get(f"{REGISTRY}/{name}")["production_version"]


def check_whole(server: Any) -> dict[str, str]:
    """The status of each experiment, once its rows, its phases and its audit say the same of it."""
    statuses = {}
    for key, name, status, applied in server.query("SELECT id, experiment_id, status, applied FROM experiments"):
        actions = server.audit(name)
        phases = server.query("SELECT phase FROM experiment_phases WHERE experiment_key = ? ORDER BY phase", key)
        n_ramps = actions.count("experiment.ramped")
        assert [phase for (phase,) in phases] == list(range(1, n_ramps + 2))
        begun = ["experiment.created", *["experiment.started"] * (status != "draft"), *["experiment.ramped"] * n_ramps]
        assert actions == begun + ENDED.get(status, [])
        assert (applied is not None) == (status == "applied")
        statuses[name] = status
    return statuses


class Lives:
    """Experiments of one model, from their draft to what is applied, one after another, until the server dies."""

    def __init__(self, model_name: str, seed: int, kill: Callable[[], None]) -> None:
        self.model_name = model_name
        self.answered: dict[str, str] = {}
        """The last status that was told, by name."""
        self.strange: list[str] = []
        self._seed = seed
        self._n_left = random.Random(seed).randint(3, 25)
        self._kill = kill

    def live(self, url: str) -> None:
        """Kills from another thread, so that it falls while a request is under way."""
        with httpx.Client(base_url=url, trust_env=False, timeout=120) as client:
            for number in range(1000):
                name = f"{self.model_name}-{self._seed}-{number}"
                address = f"{ROOT}/{name}"
                for path, body, status in (
                    (ROOT, plan_of(name, self.model_name, start=False), "draft"),
                    (f"{address}/start", None, "running"),
                    (f"{address}/ramp", {"traffic_split": 0.5}, "running"),
                    (f"{address}/ramp", {"traffic_split": 0.25}, "running"),
                    (f"{address}/apply", {"action": ("promote", "rollback")[number % 2]}, "applied"),
                ):
                    self._n_left -= 1
                    if self._n_left == 0:
                        threading.Thread(target=self._kill).start()
                    answer = client.post(path, json=body)
                    if answer.status_code >= 300:
                        self.strange.append(answer.text)
                        return
                    self.answered[name] = status


def test_kills_at_any_moment_leave_each_experiment_whole_with_its_audit(servers: Any, artifacts: Any) -> None:
    server = servers.start()
    register(server, artifacts, "hybrid")
    for seed in range(1, N_KILLS + 1):
        lives = Lives("hybrid", seed, server.process.kill)
        with pytest.raises(httpx.TransportError):
            lives.live(server.url)
        server.process.wait()
        assert lives.strange == []
        server = servers.start(data_dir=server.data_dir)
        found = check_whole(server)
        order = ("draft", "running", "applied")
        for name, status in lives.answered.items():
            assert order.index(found[name]) >= order.index(status)
        running = [name for name, status in found.items() if status == "running"]
        assert len(running) <= 1
        last = server.query("SELECT applied FROM experiments WHERE applied IS NOT NULL ORDER BY id DESC LIMIT 1")
        assert production(server, "hybrid") == ("1.1.0" if last == [("promote",)] else "1.0.0")
        for name in running:
            assert server.client.post(f"{ROOT}/{name}/stop").status_code == 200


def test_two_processes_that_ramp_at_once_make_one_phase_after_another(
    servers: Any, artifacts: Any, mmserver: Any
) -> None:
    server = servers.start()
    register(server, artifacts, "hybrid")
    assert server.client.post(ROOT, json=plan_of("exp", "hybrid")).status_code == 201
    address = f"{ROOT}/exp"

    def ramp(share: float) -> None:
        if round(100 * share) % 2:
            mmserver(
                "experiments", "ramp", "exp", "--treatment-share", share, "--data-dir", server.data_dir, check=False
            )
        else:
            answer = httpx.post(f"{server.url}{address}/ramp", json={"traffic_split": 1 - share}, trust_env=False)
            assert answer.status_code in {200, 400}, answer.text  # 400: a greater share came first

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(ramp, (0.2, 0.21, 0.3, 0.31, 0.4, 0.5)))
    assert check_whole(server) == {"exp": "running"}
    phases = server.get(address)["phases"]
    shares = [phase["traffic_split"] for phase in phases]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0.5
    assert {phase["salt"] for phase in phases} == {"exp:1"}
    answers = [httpx.post(f"{server.url}{address}/apply", json={"action": one}) for one in ("promote", "rollback")]
    assert [answer.status_code for answer in answers] == [200, 409]


def test_of_a_promotion_and_a_rollback_at_once_one_is_applied_and_in_production(servers: Any, artifacts: Any) -> None:
    server = servers.start()
    for number in range(5):
        name = register(server, artifacts, f"hybrid{number}")
        server.client.post(ROOT, json=plan_of(f"{name}-exp", name))

        def apply(action: str, name: str = name) -> int:
            address = f"{server.url}{ROOT}/{name}-exp/apply"
            return httpx.post(address, json={"action": action}, trust_env=False, timeout=120).status_code

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(apply, ("promote", "rollback"))) == [200, 409]
        applied = server.get(f"{ROOT}/{name}-exp")["applied"]
        assert production(server, name) == {"promote": "1.1.0", "rollback": "1.0.0"}[applied]
    check_whole(server)


@pytest.fixture
def observed(servers: Any, artifacts: Any) -> Any:
    """A server with an experiment that was looked at once, and 40 predictions."""
    server = servers.start()
    register(server, artifacts, "hybrid")
    assert server.client.post(ROOT, json=plan_of("exp", "hybrid", traffic_split=0.5)).status_code == 201
    outcomes = [{"prediction_id": one["prediction_id"], "label": "BUY"} for one in predict(server, "hybrid", 40)]
    assert server.client.post(f"{ROOT}/exp/outcomes", json=outcomes).json()["n_accepted"] == 40
    undecided = server.client.post(f"{ROOT}/exp/apply")
    assert (undecided.status_code, undecided.json()["code"]) == (409, "experiment_undecided")
    return server


def n_predictions(server: Any) -> int:
    report = server.get(f"{ROOT}/exp/analysis")
    return int(report["control"]["n_predictions"] + report["treatment"]["n_predictions"])


def test_sums_that_were_deleted_beside_a_running_server_are_told_and_decide_nothing(observed: Any) -> None:
    (observed.data_dir / "observations.sqlite").unlink()
    assert all(one["variant"] for one in predict(observed, "hybrid", 400))
    recommendation = observed.get(f"{ROOT}/exp/analysis")["recommendation"]
    assert (recommendation["verdict"], recommendation["action"]) == ("invalid", "continue")
    assert "observations.sqlite lacks" in recommendation["reasons"][0]
    refused = observed.client.post(f"{ROOT}/exp/apply")
    assert (refused.status_code, refused.json()["code"]) == (409, "experiment_undecided")
    assert "invalid" in refused.json()["detail"]
    assert observed.client.post(f"{ROOT}/exp/apply", json={"action": "keep"}).json()["action"] == "keep"


def test_arms_in_other_shares_than_were_drawn_make_an_experiment_invalid(observed: Any) -> None:
    """As a balancer would do that sends one arm's requests elsewhere."""
    with closing(sqlite3.connect(observed.data_dir / "state.db")) as connection, connection:
        connection.execute("UPDATE experiment_phases SET treatment_weight = 0.01")
    assert observed.client.post(f"{ROOT}/exp/apply").json()["code"] == "experiment_undecided"
    recommendation = observed.get(f"{ROOT}/exp/analysis")["recommendation"]
    assert (recommendation["verdict"], recommendation["action"]) == ("invalid", "continue")
    assert production(observed, "hybrid") == "1.0.0"


def test_while_the_file_of_observations_is_locked_predictions_are_answered_and_counted_afterwards(
    observed: Any,
) -> None:
    path = observed.data_dir / "observations.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert all(one["variant"] for one in predict(observed, "hybrid", 20))
        [one] = predict(observed, "hybrid", 1)
        waiting = observed.client.post(f"{ROOT}/exp/outcomes", json={"prediction_id": one["prediction_id"], "label": 1})
        assert (waiting.status_code, waiting.json()["code"]) == (503, "database_busy")
        other.execute("ROLLBACK")
    assert n_predictions(observed) == 61
    sent = observed.client.post(f"{ROOT}/exp/outcomes", json={"prediction_id": one["prediction_id"], "label": 1})
    assert sent.json()["n_accepted"] == 1


def test_beside_a_damaged_file_of_observations_predictions_are_answered_and_kept(servers: Any, observed: Any) -> None:
    observed.kill()
    path: Path = observed.data_dir / "observations.sqlite"
    for side in ("-wal", "-shm"):
        path.with_name(path.name + side).unlink(missing_ok=True)
    path.write_bytes(b"rubbish" * 5000)
    server = servers.start(data_dir=observed.data_dir)
    answers = predict(server, "hybrid", 20)
    assert all(one["variant"] for one in answers)
    refused = server.client.get(f"{ROOT}/exp/analysis")
    assert (refused.status_code, refused.json()["code"]) == (500, "observations_corrupt")
    path.rename(path.with_name("away"))
    assert n_predictions(server) >= 20
    assert server.get(f"{ROOT}/exp/analysis")["recommendation"]["verdict"] == "invalid"
