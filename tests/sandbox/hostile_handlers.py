"""Handlers for the sandbox's tests: honest ones, and attacks that a decoder that was taken over could try."""

import contextlib
import ctypes
import fcntl
import gzip
import io
import mmap
import os
import signal
import socket
import sys
import threading
import time
import zipfile
import zlib

import brotli
import msgspec
import numpy as np
import zstandard

from mmserver.errors import ArtifactInvalid, DiskFull, Undecodable

JOB_FD = 3


def make(options):
    if options.get("fail"):
        raise LookupError("no such thing")
    if options.get("exit"):
        sys.stderr.write("these are my last words\n")
        sys.stderr.flush()
        os._exit(3)
    if options.get("hang"):
        time.sleep(3600)
    if options.get("thread"):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    if options.get("unknown_machine"):
        from mmserver.sandbox import seccomp

        seccomp.ARCHITECTURES.clear()
    jobs = {name: job for name, job in globals().items() if getattr(job, "is_job", False)}
    if options.get("xgboost"):
        import xgboost

        jobs["xgboost"] = lambda request: xgboost_predictions(xgboost, request)
    return jobs


def job(function):
    function.is_job = True
    return function


@job
def echo(request):
    return request


@job
def size(request):
    return str(len(request)).encode()


@job
def libraries(request):
    """Everything that decoders use, on the request; the answer is the request again, by way of each of them."""
    table = np.frombuffer(request, dtype=np.uint8).astype(np.float64)
    square = table[:64].reshape(8, 8) @ np.linalg.inv(np.eye(8))
    assert np.array_equal(np.sort(square.ravel()), np.sort(table[:64]))
    rest = zlib.decompress(zlib.compress(request))
    rest = gzip.decompress(gzip.compress(rest))
    rest = brotli.decompress(brotli.compress(rest))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("a/b", rest)
    with zipfile.ZipFile(archive) as opened:
        rest = opened.read("a/b")
    rest = zstandard.ZstdDecompressor().decompress(zstandard.ZstdCompressor().compress(rest))
    return msgspec.msgpack.decode(msgspec.msgpack.encode(rest))


def xgboost_predictions(xgboost, request):
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    booster = xgboost.Booster(params={"nthread": 1})
    booster.load_model(bytearray(request))
    booster.set_param({"nthread": 1})
    slow = booster.predict(xgboost.DMatrix(features, nthread=1))
    assert np.array_equal(slow, booster.inplace_predict(features))
    return slow.tobytes()


@job
def raise_artifact_invalid(request):
    raise ArtifactInvalid(file="a_model.pkl", reason="torn", detail=f"{len(request)} bytes")


@job
def raise_undecodable(_request):
    raise Undecodable("too_complex", "lone \udcff surrogate")


@job
def raise_unplain(_request):
    raise ArtifactInvalid(file=b"bytes", reason=1 << 200, detail=[object, {"k": "x" * 100_000}] * 100)


@job
def raise_value_error(_request):
    raise ValueError("nothing fits")


@job
def raise_exit(_request):
    sys.exit(0)


@job
def raise_disk_full(_request):
    raise DiskFull


@job
def answer_no_bytes(_request):
    return None


@job
def interval(_request):
    begun = time.monotonic()
    time.sleep(0.05)
    return msgspec.json.encode([begun, time.monotonic()])


@job
def pids(_request):
    return msgspec.json.encode([os.getpid(), os.getppid()])


# --- attacks; each returns what it got, if it got that far --------------------------------------------------------------


@job
def read_file(request):
    with open(request.decode(), "rb") as file:
        return file.read(10)


@job
def write_file(request):
    with open(request.decode(), "wb") as file:
        file.write(b"owned")
    return b"written"


@job
def list_directory(_request):
    return msgspec.json.encode(os.listdir("/"))


@job
def environment(_request):
    return msgspec.json.encode(dict(os.environ))


@job
def open_descriptors(_request):
    found = []
    for fd in range(1024):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_GETFD)
            found.append(fd)
    return msgspec.json.encode(found)


@job
def connect(request):
    with socket.socket() as attacker:
        attacker.connect(("127.0.0.1", int(request)))
        return b"connected"


@job
def connect_unix(request):
    with socket.socket(socket.AF_UNIX) as attacker:
        attacker.connect(request.decode())
        return b"connected"


@job
def fork_bomb(_request):
    while True:
        os.fork()


@job
def start_thread(_request):
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    return b"started"


@job
def execute(_request):
    os.execv("/bin/sh", ["sh", "-c", "exit 0"])


@job
def kill_parent(_request):
    os.kill(os.getppid(), signal.SIGKILL)
    return b"killed"


@job
def kill_given(request):
    os.kill(int(request), signal.SIGKILL)
    return b"killed"


@job
def kill_group(_request):
    os.killpg(0, signal.SIGKILL)


@job
def signal_by_descriptor(request):
    """Have the kernel send SIGKILL to another process when the job socket becomes readable."""
    fcntl.fcntl(JOB_FD, fcntl.F_SETOWN, int(request))
    return b"owner set"


@job
def trace_parent(_request):
    libc = ctypes.CDLL(None, use_errno=True)
    return str(libc.ptrace(16, os.getppid(), None, None)).encode()


@job
def write_parent_memory(_request):
    with open(f"/proc/{os.getppid()}/mem", "r+b") as file:
        return str(file.seek(0)).encode()


@job
def executable_memory(_request):
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    return b"mapped"


@job
def lift_limits(_request):
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    return b"changed"


@job
def outlive_parent(_request):
    libc = ctypes.CDLL(None, use_errno=True)
    return str(libc.prctl(1, 0, 0, 0, 0)).encode()


@job
def memory_bomb(_request):
    hoard = []
    while True:
        hoard.append(bytearray(8 << 20))


@job
def cpu_loop(_request):
    while True:
        pass


@job
def stubborn_cpu_loop(_request):
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    while True:
        pass


@job
def sleep(_request):
    time.sleep(3600)


@job
def exit_silently(request):
    os._exit(int(request or b"0"))


@job
def giant_answer(request):
    return bytes(int(request))


@job
def raw_answer(request):
    os.write(JOB_FD, request)
    os._exit(0)


@job
def dribble(_request):
    for byte in b"R\0\0\0\0\0\0\0\x05hel":
        os.write(JOB_FD, bytes([byte]))
        time.sleep(0.01)
    time.sleep(3600)


@job
def segfault(_request):
    ctypes.string_at(0)


@job
def abort(_request):
    os.abort()
