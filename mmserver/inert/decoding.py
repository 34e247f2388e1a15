"""Bytes in, data out: the one entry point of the inert decoder. No global is resolved, nothing is called."""

import struct

from mmserver.errors import Undecodable
from mmserver.inert.compression import unpacked
from mmserver.inert.graph import check_graph
from mmserver.inert.limits import Budget, Limits
from mmserver.inert.machine import Machine
from mmserver.inert.names import find_global
from mmserver.inert.records import Value

_MAX_RUN_BYTES = 8 << 30
_UNLIMITED_S = 1e9


def decode(data: bytes, limits: Limits | None = None) -> Value:
    """Decode a pickle (protocols 2 to 5) or a joblib file, compressed or not, into plain values and records.

    The result is a finite tree (values may be shared, never cyclic) of plain Python values, read-only numpy arrays, numpy
    scalars and the records of `mmserver.inert.records`. OrderedDict, defaultdict and Counter become dict, deque and
    one-dimensional object arrays become list, paths become str, pandas' NA and NaT become None.

    Raises:
        Undecodable: with one of these reasons:
            `empty`: no bytes at all.
            `torn`: the data ends early.
            `malformed`: not a pickle, or parts that do not fit together.
            `trailing_data`: something follows the end.
            `forbidden_opcode`: an opcode that only protocols 0 and 1, extensions or hostile files use.
            `forbidden_global`: a class or function that is not in our table; the detail is its dotted name.
            `unsupported`: known, but not read here; the detail names it.
            `too_large`, `too_complex`, `too_slow`: beyond the limits.
    """
    limits = limits or Limits()
    if not data:
        raise Undecodable("empty", "the file has no content")
    if len(data) > limits.max_bytes:
        raise Undecodable("too_large", f"{len(data)} bytes, at most {limits.max_bytes} are read")
    budget = Budget(limits)
    plain = unpacked(bytes(data), budget)
    try:
        return _decode_plain(plain, budget)
    except (ValueError, TypeError, KeyError, OverflowError, struct.error) as error:
        # Forged values that our own checks did not name: numpy and the standard library refuse them with these.
        raise Undecodable("malformed", f"values that do not fit together ({type(error).__name__})") from error
    except (RecursionError, MemoryError) as error:
        raise Undecodable("too_complex", f"more than this process can hold ({type(error).__name__})") from error


def unpacked_pickle(data: bytes) -> bytes:
    """The pickle within what joblib compressed, or the data itself, for whoever runs it: whole, and nothing behind it.

    Its time and memory are those of the process.

    Raises:
        Undecodable: `empty`, `torn`, `malformed`, `trailing_data`, `too_large` (more than 200 times as large), `unsupported`.
    """
    if not data:
        raise Undecodable("empty", "the file has no content")
    return unpacked(data, Budget(Limits(max_bytes=_MAX_RUN_BYTES, deadline_s=_UNLIMITED_S)))


def _decode_plain(data: bytes, budget: Budget) -> Value:
    machine = Machine(data, 0, budget, find_global)
    try:
        value = machine.run()
    except Undecodable as error:
        if machine.outermost is None or error.reason not in ("unsupported", "forbidden_global"):
            raise
        raise Undecodable(error.reason, f"{error.detail} (within a {machine.outermost})") from error
    if machine.pos != len(data):
        raise Undecodable("trailing_data", f"{len(data) - machine.pos} bytes follow the end of the pickle")
    check_graph(value, budget.limits)
    return value
