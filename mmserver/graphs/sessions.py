"""ONNX Runtime sessions, opened one way everywhere: from bytes, on the caller's thread, telling nobody."""

import functools
import importlib
import logging
import os
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from mmserver.errors import Undecodable

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
MAX_VARYING_BYTES = 1 << 30
"""Of all tensors of all graphs in a process whose rows differ in what they need."""
_SILENT = 4  # only what ends the process is written to standard error; everything else is raised
log = logging.getLogger(__name__)


def runtime() -> ModuleType:
    """onnxruntime, which reads at its import whether it may report models, sessions and errors to its makers: it may not.

    Source:
        onnxruntime pull request 27379: since 1.29 the official builds send telemetry unless ORT_DISABLE_TELEMETRY is set.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return importlib.import_module("onnxruntime")


def open_session(
    content: bytes, execution_providers: Sequence[str] = (), *, varies: bool = False
) -> "onnxruntime.InferenceSession":
    """A session on one thread.

    execution_providers: in the order of preference; those that are not installed are left out, the CPU is always the last.
    varies: a row may need far more memory than another, and fails where that is more than all such graphs may have.

    Raises:
        Undecodable: onnxruntime does not load it.
    """
    library = runtime()
    options = session_options(library)
    if varies:
        _bound_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    try:
        return library.InferenceSession(content, options, providers=_usable(library, execution_providers))
    except Exception as error:  # the library has a dozen classes for it, which share no base
        raise _refusal(str(error)) from error


def session_options(library: ModuleType) -> "onnxruntime.SessionOptions":
    """For a session on one thread, which writes nothing to standard error."""
    options = library.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    return options


@functools.cache
def _bound_memory() -> None:
    """Give the library, once, the memory that sessions share which ask for that."""
    library = runtime()
    memory = library.OrtMemoryInfo("Cpu", library.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, library.OrtMemType.DEFAULT)
    as_requested = 1
    settings = {"max_mem": MAX_VARYING_BYTES, "arena_extend_strategy": as_requested}
    library.create_and_register_allocator(memory, library.OrtArenaCfg(settings))


def _usable(library: ModuleType, wanted: Sequence[str]) -> list[str]:
    there = library.get_available_providers()
    missing = [name for name in wanted if name not in there]
    if missing:
        log.warning("onnxruntime %s has no %s here", library.__version__, ", ".join(missing))
    return [*(name for name in wanted if name in there and name != CPU), CPU]


def _refusal(said: str) -> Undecodable:
    """The library's message with a word for what users meet most."""
    detail = said.removeprefix("[ONNXRuntimeError] : ")[:300]
    if "External data" in said or "external data" in said:
        return Undecodable("incomplete", f"its weights lie in another file, which has to come with it: {detail}")
    if "is not a registered function/op" in said or "No opset import for domain" in said or "No Op registered" in said:
        return Undecodable("unsupported", f"an operator that onnxruntime does not have: {detail}")
    return Undecodable("malformed", detail)
