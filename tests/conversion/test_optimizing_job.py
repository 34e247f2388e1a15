"""Making a form in a process of its own: whatever becomes of that process, there is a report, and nothing is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.conversion.optimizing import Candidate
from mmserver.conversion.optimizing_job import OptimizationRequest, candidate_of
from mmserver.errors import ExtraMissing
from mmserver.sandbox.limits import JobLimits

networks: Any = pytest.importorskip("conversion.networks", reason="graphs are made with the onnx package")

SHAPE = (6, 16)
AGES = 1_000_000
"""Rounds that nobody waits for."""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def limits(**given: Any) -> JobLimits:
    usual = {"memory_bytes": 4 << 30, "cpu_s": 600, "wall_s": 600.0, "max_open_files": 256, "max_processes": 4096}
    return JobLimits(**{**usual, "max_written_file_bytes": 1 << 30, **given})


def request(content: bytes | None = None, **given: Any) -> OptimizationRequest:
    usual = {"variant": "int8_dynamic", "input_shape": SHAPE, "outputs": ("prediction",), "rows": b"", "n_rounds": 20}
    return OptimizationRequest(content=content or networks.recurrent(hidden=256), **{**usual, **given})


def jobs(parent_pid: int) -> list[int]:
    """Processes that a process has made forms in."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_child = f"\nPPid:\t{parent_pid}\n" in (path / "status").read_text()
            if is_child and b"optimizing_job" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def wait_for_job(parent_pid: int, n_jobs: int = 1) -> list[int]:
    until_s = time.monotonic() + 60
    while len(found := jobs(parent_pid)) != n_jobs:
        assert time.monotonic() < until_s, "no such job came or went"
        time.sleep(0.02)
    return found


def assert_nothing_made(made: Candidate, reason: str, temporary: Path) -> None:
    assert made.content is None
    assert (made.report.accepted, made.report.size_bytes, made.report.reasons) == (False, None, (reason,))
    assert list(temporary.iterdir()) == []


def test_a_form_is_what_is_made_in_this_process_too(temporary: Path) -> None:
    from mmserver.conversion.quantizing import quantized_dynamic

    content = networks.recurrent(hidden=512)
    made = candidate_of(request(content), limits())
    assert made.report.accepted, made.report.reasons
    assert made.content == quantized_dynamic(content)
    assert made.report.timing is not None
    assert made.report.timing.n_calls == 20
    assert list(temporary.iterdir()) == []


def test_what_is_kept_out_has_its_reason_and_no_content() -> None:
    made = candidate_of(request(networks.dense(), input_shape=(8,)), limits())
    assert (made.content, made.report.accepted) == (None, False)
    assert made.report.reasons[0].startswith("bigger: ")
    assert made.report.parity is not None


def test_rows_that_are_given_are_those_that_it_is_judged_by() -> None:
    rows = np.random.default_rng(3).normal(size=(1200, *SHAPE)).astype(np.float32)
    rows[0, 0, 0] = np.nan
    report = candidate_of(request(rows=rows.tobytes()), limits()).report
    assert report.notes[0] == "1 rows with numbers that are not finite were left out"
    assert report.parity is not None
    assert report.parity.n_rows == 1199 + 250


def test_only_outputs_that_are_served_decide() -> None:
    import onnx

    plain = networks.recurrent(hidden=256)
    model = onnx.load_model_from_string(plain)
    state = onnx.helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, ["batch", 256])
    model.graph.output.insert(0, state)
    content = bytes(model.SerializeToString())
    alone = candidate_of(request(plain), limits()).report
    served = candidate_of(request(content), limits()).report
    both = candidate_of(request(content, outputs=("state", "prediction")), limits()).report
    assert alone.class_agreement is not None
    assert served.class_agreement == alone.class_agreement != both.class_agreement


@pytest.mark.parametrize("content", [pytest.param(b"rubbish", id="rubbish"), pytest.param(b"\x08\x09", id="empty")])
def test_what_is_no_model_is_a_reason(content: bytes, temporary: Path) -> None:
    made = candidate_of(request(content), limits())
    assert made.report.reasons[0].startswith("malformed: ")
    assert list(temporary.iterdir()) == []


def test_a_job_that_is_killed_is_a_reason(temporary: Path) -> None:
    made: list[Candidate] = []
    asking = threading.Thread(target=lambda: made.append(candidate_of(request(n_rounds=AGES), limits())))
    asking.start()
    [pid] = wait_for_job(os.getpid())
    os.kill(pid, signal.SIGKILL)
    asking.join()
    assert_nothing_made(made[0], "crashed(SIGKILL)", temporary)


def test_a_job_that_hangs_is_killed_at_its_time(temporary: Path) -> None:
    made = candidate_of(request(n_rounds=AGES), limits(wall_s=1.5))
    assert_nothing_made(made, "crashed(timeout after 1.5 s)", temporary)
    assert jobs(os.getpid()) == []


def test_a_job_that_only_computes_is_ended_by_its_processor_time(temporary: Path) -> None:
    made = candidate_of(request(n_rounds=AGES), limits(cpu_s=2))
    assert_nothing_made(made, "crashed(SIGXCPU)", temporary)


def test_a_job_that_takes_too_much_memory_is_ended(temporary: Path) -> None:
    made = candidate_of(request(), limits(memory_bytes=16 << 20))
    assert made.content is None
    [reason] = made.report.reasons
    assert reason.startswith("crashed(")
    assert list(temporary.iterdir()) == []


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'mmserver\[onnx\]'"):
        candidate_of(request(b"never read"), limits())


def test_a_job_sees_neither_the_environment_nor_the_network_nor_privileges(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMSERVER_TEST_SECRET", "open sesame")
    asking = threading.Thread(target=candidate_of, args=(request(n_rounds=AGES), limits(wall_s=600.0)))
    asking.start()
    [pid] = wait_for_job(os.getpid())
    until_s = time.monotonic() + 60
    while "NoNewPrivs:\t1" not in (status := Path(f"/proc/{pid}/status").read_text()):
        assert time.monotonic() < until_s, status
        time.sleep(0.02)
    assert "CapEff:\t0000000000000000" in status
    if os.geteuid() == 0:  # a process that nobody may look into lets nobody else
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"sesame" not in environment
        assert b"TMPDIR=" + str(tmp_path).encode() in environment
    os.kill(pid, signal.SIGKILL)
    asking.join()


def test_a_job_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(networks.recurrent(hidden=256))
    program = f"""
        from mmserver.conversion.optimizing_job import OptimizationRequest, candidate_of
        from mmserver.sandbox.limits import JobLimits
        content = open({str(tmp_path / "model.onnx")!r}, "rb").read()
        candidate_of(
            OptimizationRequest(content=content, variant="fp32", input_shape={SHAPE}, outputs=("prediction",), rows=b"",
                                n_rounds={AGES}),
            JobLimits(cpu_s=600, wall_s=600.0, max_open_files=256, max_processes=4096, max_written_file_bytes=1 << 30),
        )
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as asking:
        [pid] = wait_for_job(asking.pid)
        asking.kill()
    until_s = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < until_s, "it outlives the process that asked"
        time.sleep(0.02)
