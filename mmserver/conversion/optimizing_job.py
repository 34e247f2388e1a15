"""Making one form of a model in a process of its own, which may crash, hang or eat memory without harm to who asked for it.

The guarded worker cannot do it: onnxruntime's quantiser hands models from step to step in files, and that worker opens none. So
this is a plain process with limits, without privileges or network, in a directory of its own. It meets no bytes that the
server does not run itself: the model was read and proven in the guarded worker when it was registered.
"""

import importlib.util
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mmserver.conversion.job_directories import job_directory, remove_leftovers
from mmserver.conversion.judging import Optimised, Variant
from mmserver.conversion.optimizing import Candidate, optimized
from mmserver.errors import ExtraMissing, MmserverError, Undecodable, WorkerCrashed, error_from_code
from mmserver.formats import FloatRows
from mmserver.sandbox.hardening import Hardener
from mmserver.sandbox.limits import JobLimits

WHAT = "optimising a model"
EXTRA = "onnx"
_PACKAGES = ("onnx", "onnxruntime")
NICENESS = 5
"""Whoever asks for a prediction does not wait for a model to be made smaller; what is measured is measured in turns anyway."""
MAX_OPEN_FILES, MAX_PROCESSES = 256, 4096
MAX_FILE_BYTES = 4 << 30
"""Twice what protobuf writes into one file."""
_REQUEST, _ANSWER, _LOG = "request", "answer", "log"
_LOG_BYTES = 300
_TERMINATION_S = 10.0
_BOOT = (
    "import sys; sys.path.extend(p for p in sys.argv[2:] if p not in sys.path); "
    "import mmserver.conversion.optimizing_job as j; j.main(sys.argv[1])"
)


class OptimizationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One form of a model that is served with these outputs, for rows of this shape.

    Units:
        rows: to judge by, float32 and row-major; empty: they are made up.
    """

    content: bytes
    variant: Variant
    input_shape: tuple[int, ...]
    outputs: tuple[str, ...]
    rows: bytes
    n_rounds: int


class _Job(msgspec.Struct, frozen=True, kw_only=True):
    request: OptimizationRequest
    limits: JobLimits
    parent_pid: int


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The form and its report, or the error that there is instead: its code and values."""

    report: Optimised | None = None
    content: bytes | None = None
    code: str = ""
    values: dict[str, Any] = {}


def check_installed() -> None:
    """By looking, not by importing.

    Raises:
        ExtraMissing
    """
    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        raise ExtraMissing(what=WHAT, extra=EXTRA)


# --- the side that asks -----------------------------------------------------------------------------------------------


def candidate_of(request: OptimizationRequest, limits: JobLimits) -> Candidate:
    """The form and its report, made in a process of its own; where that crashed or took too long, the report says so.

    Raises:
        ExtraMissing: what makes forms is not installed.
    """
    check_installed()
    try:
        answer = _answer(_Job(request=request, limits=limits, parent_pid=os.getpid()))
    except WorkerCrashed as error:
        return _refused(request, f"crashed({error.values['how']})")
    if answer.report is not None:
        return Candidate(answer.content, answer.report)
    refusal = error_from_code(answer.code, answer.values)
    if isinstance(refusal, ExtraMissing):
        raise refusal
    return _refused(request, str(refusal))


def _refused(request: OptimizationRequest, reason: str) -> Candidate:
    size_bytes = len(request.content)
    report = Optimised(
        variant=request.variant, size_bytes=None, source_size_bytes=size_bytes, accepted=False, reasons=(reason,)
    )
    return Candidate(None, report)


def _answer(job: _Job) -> _Answer:
    remove_leftovers()
    with job_directory() as directory:
        (directory / _REQUEST).write_bytes(msgspec.msgpack.encode(job))
        status = _run(directory, job.limits)
        try:
            answer = _read_regular(directory / _ANSWER, job.limits.max_result_bytes)
            return msgspec.msgpack.decode(answer, type=_Answer)
        except (OSError, msgspec.MsgspecError) as error:
            raise WorkerCrashed(how=_how(status, directory)) from error


def _run(directory: Path, limits: JobLimits) -> int:
    """The exit status of a process that has written its answer into the directory, if it could.

    Raises:
        WorkerCrashed: it took too long, or cannot be started.
    """
    paths = [path for path in sys.path if os.path.isabs(path)]  # noqa: PTH117
    with (directory / _LOG).open("wb") as log:
        try:
            process = subprocess.Popen(  # noqa: S603  our own interpreter and module
                [sys.executable, "-I", "-B", "-c", _BOOT, str(directory), *paths],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(directory),
                cwd=directory,
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerCrashed(how=f"it cannot be started: {error.strerror}") from error
    try:
        return process.wait(limits.wall_s)
    except subprocess.TimeoutExpired as error:
        raise WorkerCrashed(how=f"timeout after {limits.wall_s:g} s") from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(_TERMINATION_S)


def _environment(directory: Path) -> dict[str, str]:
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    found = {**one_thread, "TMPDIR": str(directory), "HOME": str(directory), "LC_ALL": "C.UTF-8"}
    if "LD_LIBRARY_PATH" in os.environ:
        found["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return found


def _read_regular(path: Path, max_bytes: int) -> bytes:
    """A file that the job wrote, if it is one: a link or a pipe in its place is not followed or waited for."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            raise OSError("no answer of a job")
        return file.read(max_bytes)


def _how(status: int, directory: Path) -> str:
    if status < 0:
        return signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    try:
        said = _read_regular(directory / _LOG, MAX_FILE_BYTES)[-_LOG_BYTES:].decode("utf-8", "replace").strip()
    except OSError:
        said = ""
    return f"exited with {status}: {said.splitlines()[-1]}" if said else f"exited with {status} and no answer"


# --- the process --------------------------------------------------------------------------------------------------------


def main(directory_name: str) -> None:
    """Do the job that lies in the directory."""
    directory = Path(directory_name)
    job = msgspec.msgpack.decode((directory / _REQUEST).read_bytes(), type=_Job)
    # The thread that started this may be kept on one CPU; the main thread of the server is not.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, os.sched_getaffinity(job.parent_pid))
    os.nice(NICENESS)
    hardener = Hardener(job.limits)
    hardener.leave_namespaces()
    hardener.harden_with_files(job.parent_pid)
    part = directory / "part"
    part.write_bytes(msgspec.msgpack.encode(_done(job)))
    part.replace(directory / _ANSWER)


def _done(job: _Job) -> _Answer:
    request = job.request
    try:
        [candidate] = optimized(
            request.content,
            _rows(request),
            variants=(request.variant,),
            n_rounds=request.n_rounds,
            input_shape=request.input_shape,
            outputs=request.outputs,
        )
    except MmserverError as error:
        return _Answer(code=error.code, values=error.values)
    except MemoryError:
        how = f"out of memory (limit {job.limits.memory_bytes >> 20} MiB)"
        return _Answer(code=Undecodable.code, values={"reason": f"crashed({how})", "detail": "nothing was made"})
    return _Answer(report=candidate.report, content=candidate.content if candidate.report.accepted else None)


def _rows(request: OptimizationRequest) -> FloatRows | None:
    if not request.rows:
        return None
    return np.frombuffer(request.rows, np.float32).reshape(-1, *request.input_shape)
