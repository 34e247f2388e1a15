"""Honest jobs: answers, errors, libraries, size and speed."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmserver.errors import ArtifactInvalid, Undecodable, WorkerCrashed
from mmserver.sandbox.pool import Sandbox

N_JOBS = 50


@pytest.fixture(scope="module")
def with_xgboost(make_sandbox):
    """A sandbox whose zygote has imported XGBoost."""
    with make_sandbox({"xgboost": True}) as sandbox:
        sandbox.start()
        yield sandbox


@pytest.fixture(scope="module")
def trained():
    """A small regression booster."""
    import xgboost

    rng = np.random.default_rng(1)
    features = rng.normal(size=(400, 4)).astype(np.float32)
    data = xgboost.DMatrix(features, label=features[:, 0] * features[:, 1], nthread=1)
    return xgboost.train({"max_depth": 4, "nthread": 1}, data, num_boost_round=20)


@pytest.mark.parametrize("n_bytes", [0, 1, 8191, 8192, 8193, 3 << 20])
def test_bytes_come_back_whole(sandbox: Sandbox, n_bytes: int) -> None:
    request = np.random.default_rng(n_bytes).bytes(n_bytes)
    assert sandbox.run("echo", request) == request


def test_a_hundred_megabytes_go_in_and_out(sandbox: Sandbox) -> None:
    request = bytes(range(256)) * (100 << 12)
    assert sandbox.run("echo", request) == request


def test_the_libraries_of_decoders_work_in_a_job(sandbox: Sandbox) -> None:
    request = np.random.default_rng(2).bytes(100_000)
    assert sandbox.run("libraries", request) == request


def test_xgboost_predicts_in_a_job_as_it_does_here(with_xgboost: Sandbox, trained) -> None:
    import xgboost

    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected = trained.predict(xgboost.DMatrix(features, nthread=1))
    answer = with_xgboost.run("xgboost", bytes(trained.save_raw("json")))
    np.testing.assert_array_equal(np.frombuffer(answer, dtype=np.float32), expected)


def test_a_model_that_crashes_xgboost_kills_its_job_only(with_xgboost: Sandbox, trained) -> None:
    model = json.loads(trained.save_raw("json"))
    for tree in model["learner"]["gradient_booster"]["model"]["trees"]:
        tree["split_indices"] = [1 << 28] * len(tree["split_indices"])
    with pytest.raises(WorkerCrashed) as caught:
        with_xgboost.run("xgboost", json.dumps(model).encode())
    assert caught.value.values["how"] == "SIGSEGV"
    assert len(with_xgboost.run("xgboost", bytes(trained.save_raw("json")))) == 50 * 4


def test_a_handlers_error_comes_back_as_itself(sandbox: Sandbox) -> None:
    with pytest.raises(ArtifactInvalid) as caught:
        sandbox.run("raise_artifact_invalid", b"abc")
    assert caught.value.values == {"file": "a_model.pkl", "reason": "torn", "detail": "3 bytes"}


def test_an_error_with_a_lone_surrogate_comes_back(sandbox: Sandbox) -> None:
    with pytest.raises(Undecodable) as caught:
        sandbox.run("raise_undecodable", b"")
    assert caught.value.reason == "too_complex"
    assert caught.value.detail == r"lone \udcff surrogate"


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ("raise_value_error", "ValueError: nothing fits"),
        ("raise_exit", "SystemExit: 0"),
        ("answer_no_bytes", "TypeError: "),
        ("no_such_job", "no handler is named 'no_such_job'"),
        ("raise_disk_full", "disk_full: "),
        ("raise_unplain", "ArtifactInvalid: "),
    ],
)
def test_any_other_failure_is_undecodable(sandbox: Sandbox, job: str, expected: str) -> None:
    with pytest.raises(Undecodable) as caught:
        sandbox.run(job, b"")
    assert caught.value.reason == "handler_failed"
    assert caught.value.detail.startswith(expected)
    assert len(caught.value.detail) < 3000


def test_eight_threads_get_their_own_answers(sandbox: Sandbox) -> None:
    requests = [str(n).encode() * 1000 for n in range(64)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda request: sandbox.run("echo", request), requests)) == requests


def test_no_more_jobs_than_workers_run_at_once(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(8) as threads:
        intervals = [json.loads(answer) for answer in threads.map(lambda _: sandbox.run("interval", b""), range(12))]
    at_once = [sum(begun <= moment < ended for begun, ended in intervals) for moment, _ in intervals]
    assert max(at_once) <= 2


def test_a_job_imports_nothing_anew(with_xgboost: Sandbox, cpu_s_of) -> None:
    zygote_pid = json.loads(with_xgboost.run("pids", b""))[1]
    before_s = cpu_s_of(zygote_pid)
    for _ in range(N_JOBS):
        with_xgboost.run("echo", b"")
    # Measured: 5 ms of processor time each; importing xgboost takes a second.
    assert cpu_s_of(zygote_pid) - before_s < 0.1 * N_JOBS
    assert json.loads(with_xgboost.run("pids", b""))[1] == zygote_pid
