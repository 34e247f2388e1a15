"""How much work something is, said in steps, which are as many on every machine and under every load."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def n_steps(work: Callable[[], object]) -> int:
    """How many instructions of Python it takes, in this thread; what it leaves to C or NumPy counts as one."""
    n_done = 0

    def count(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal n_done
        frame.f_trace_opcodes = True
        n_done += event == "opcode"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
    return n_done
