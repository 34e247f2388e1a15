"""torch modules written as ONNX, in one file and for any number of rows."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmserver.errors import ExtraMissing, NotConvertible
from mmserver.formats import FloatRows
from mmserver.graphs.tidying import content_from_graph

INPUT_NAME = "features"
OUTPUT_NAME = "output"
"""It says nothing of what the output means; a lone `prediction` is served as a return."""
OPSET = 18
_EXPORTING = threading.Lock()
"""Exporting and its silence change what belongs to the whole process."""
_EXAMPLE_ROWS = 2
"""One row would be taken for a constant."""
_LOGGER = "torch.onnx"


def onnx_from_torch(module: Any, input_shape: Sequence[int]) -> bytes:
    """The module as it predicts: in evaluation mode, with its weights inside, for any number of rows.

    Shapes:
        input_shape: of one row.

    Raises:
        NotConvertible: TorchScript, or what torch cannot export; say it by `torch.export` or bring ONNX.
        ExtraMissing: torch, or what it exports with, is not installed.
    """
    torch = import_torch()
    if isinstance(module, torch.jit.ScriptModule):
        raise NotConvertible(
            target="onnx", reason="torch exports no TorchScript; give the module that it was made from"
        )
    example = torch.zeros((_EXAMPLE_ROWS, *input_shape), dtype=torch.float32)
    with _EXPORTING, _evaluating(module), _quiet():
        try:
            n_outputs = len(_tensors(module(example)))
            rows = {0: torch.export.Dim("batch")}
            program = torch.export.export(module, (example,), dynamic_shapes=(rows,), strict=False)
            graph = graph_from_program(program, output_names(n_outputs))
        except Exception as error:  # tracing runs the module's own code
            raise NotConvertible(target="onnx", reason=_reason(error)) from error
    return content_from_graph(graph)


def graph_from_program(program: Any, names: Sequence[str]) -> Any:
    """A `torch.export` program as an `onnx.ModelProto` with its weights inside, its outputs under these names."""
    torch = import_torch()
    exported = torch.onnx.export(
        program,
        (),
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        input_names=[INPUT_NAME],
        output_names=list(names),
        verbose=False,
    )
    return exported.model_proto


def torch_outputs(module: Any, rows: FloatRows) -> list[FloatRows]:
    """What the module itself gives for rows in the shape that it takes: each output as n_rows × width, in their order.

    Raises:
        ExtraMissing: torch is not installed.
    """
    torch = import_torch()
    with _evaluating(module), torch.inference_mode():
        found = module(torch.from_numpy(np.ascontiguousarray(rows, np.float32)))
    return [value.detach().cpu().numpy().reshape(len(rows), -1).astype(np.float32) for value in _tensors(found)]


def import_torch() -> Any:
    """torch, with what it exports to ONNX with.

    Raises:
        ExtraMissing: one of them is not installed.
    """
    try:
        import onnxscript  # noqa: F401
        import torch
    except ImportError as error:
        raise ExtraMissing(what="exporting torch modules to ONNX", extra="torch") from error
    return torch


def output_names(n_outputs: int) -> list[str]:
    """What the outputs of an exported module are called."""
    return [OUTPUT_NAME] if n_outputs == 1 else [f"{OUTPUT_NAME}_{number}" for number in range(n_outputs)]


def _tensors(found: Any) -> list[Any]:
    if isinstance(found, dict):
        return list(found.values())
    return list(found) if isinstance(found, list | tuple) else [found]


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """torch works on the caller's thread only meanwhile, in all of the process."""
    torch = import_torch()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Dropout and the like are off meanwhile; each part is left as it was, since a part may be frozen while others train."""
    parts = list(module.modules()) if callable(getattr(module, "modules", None)) else []
    were_training = [part.training for part in parts]
    try:
        if any(were_training):
            module.eval()
        yield
    finally:
        for part, was_training in zip(parts, were_training, strict=True):
            part.training = was_training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch warns of its own deprecations, and of packages that nobody asked for."""
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    """The first line that says something; torch wraps it in pages."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"[:300]
