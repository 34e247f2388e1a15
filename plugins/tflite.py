"""TensorFlow Lite models, `.tflite`, run by LiteRT as they are: one row at a time, with its own kernels, on the caller's thread.

LiteRT is native code, and the format has no checksum: a file is opened in the guarded process first, and what keeps state,
draws random numbers or asks for somebody else's code is refused by name.
"""

import contextlib
import functools
import importlib.metadata
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from mmserver import (
    Converter,
    FloatRows,
    ModelFile,
    ModelFormat,
    ModelSource,
    Predictor,
    Probes,
    Undecodable,
    hookimpl,
    likeness,
    probe_rows,
    stated_classes,
    stated_output_names,
)

KIND = "tflite"
IDENTIFIER = b"TFL3"
_FORBIDDEN = re.compile(
    r"CALL_ONCE|CUSTOM|DELEGATE|HASHTABLE\w*|LSH_PROJECTION|MULTINOMIAL|RANDOM_\w+|SKIP_GRAM|STABLEHLO_CUSTOM_CALL"
    r"|STABLEHLO_RNG_BIT_GENERATOR|VAR_HANDLE|\w+_VARIABLE"
)
"""Operators that keep something between rows, draw random numbers, or are no part of LiteRT."""
_NUMBERS = ("float16", "float32", "float64")
_LABELS = ("bool", "int32", "int64")
_ABSENT = -1
"""Stands for an input that an operator can do without; others crash LiteRT."""
_CAN_DO_WITHOUT = re.compile(r"\w*CONV\w*|FULLY_CONNECTED|\w*LSTM|\w*RNN|SVDF")
_MAX_INPUTS = 1 << 24
_N_THREADS = 8
"""That may run one model at the same time, each with tensors of its own, for the memory that is counted."""
_SIZE_OF_AN_INTERPRETER_BYTES = 1 << 17


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """Where rows go in and numbers come out: positions of tensors, and what each output is called."""

    input: int
    shape: tuple[int, ...]
    outputs: dict[str, int]


def read_tflite(source: ModelSource) -> ModelFile:
    """The file as it is; the option `output_names` gives outputs other names, as `{"output_0": "probabilities"}`."""
    import numpy as np

    check_structure(source.content)
    interpreter = _opened(source.content)
    graph = _graph(interpreter, source.options)
    runner = TfliteRunner(source.content, graph)
    runner.run(np.zeros((1, runner.n_features), np.float32))  # before more rows are made, which may be large
    rows = probe_rows(runner.n_features)
    outputs = _tried(runner, rows)
    widths = {name: int(values.shape[1]) for name, values in outputs.items()}
    classes = stated_classes(source.options, widths)
    return ModelFile(
        kind=KIND,
        content=source.content,
        n_features=runner.n_features,
        n_outputs=next(iter(widths.values())),
        objective=str(source.options.get("objective", "")),
        library_version=f"LiteRT {_version()}",
        input_shape=graph.shape if len(graph.shape) > 1 else None,
        summary={
            **({} if classes is None else {"classes": classes}),
            "graph": msgspec.to_builtins(graph),
            "accepts_missing": False,
            "outputs": widths,
            "tensors_bytes": _tensors_bytes(interpreter),
        },
        probes=Probes(rows=rows.tolist(), outputs={name: values.tolist() for name, values in outputs.items()}),
    )


# --- the file ---------------------------------------------------------------------------------------------------------


def check_structure(content: bytes) -> None:
    """Refuse what is no model, is in several files, or has operators that cannot be served; in Python, before native code."""
    from ai_edge_litert import schema_py_generated as schema

    if content[4:8] != IDENTIFIER:
        raise Undecodable(
            "wrong_type",
            f"a TensorFlow Lite model is expected, with TFL3 after its first four bytes; this is {likeness(content)}",
        )
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.Model.GetRootAs(content)
    operators = []
    for number in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(number)
        name = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "an unknown one")
        if name not in names.values() or _FORBIDDEN.fullmatch(name):
            own = code.CustomCode()
            what = f"{name} {own.decode('ascii', 'replace')[:60]!r}" if own else name
            detail = "convert it with TensorFlow Lite's own operators only (TFLITE_BUILTINS), without variables or random numbers"
            raise Undecodable("unsupported", f"its operator {what} cannot be served; {detail}")
        operators.append(name)
    outside = any(buffer.Offset() > 1 for buffer in map(model.Buffers, range(model.BuffersLength())))
    if outside or model.ExternalBuffersLength():
        raise Undecodable("unsupported", "its weights lie behind the graph or in another file, which is not read")
    for number in range(model.SubgraphsLength()):
        _check_order(model, model.Subgraphs(number), f"graph {number}", operators)


def _check_order(model: Any, graph: Any, name: str, operators: list[str]) -> None:
    """Refuse operators that read what nothing has written, or write what is there: LiteRT would read any memory.

    Source:
        measured: one such file, of a flipped bit, was refused by one process and crashed the next.
    """
    written = {int(index) for index in map(graph.Inputs, range(graph.InputsLength()))}
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        if tensor.Buffer() >= model.BuffersLength():
            raise Undecodable("malformed", f"tensor {index} of {name} has no buffer")
        is_constant = model.Buffers(tensor.Buffer()).DataLength() > 0
        is_empty = 0 in map(tensor.Shape, range(tensor.ShapeLength()))
        if is_constant or is_empty or tensor.IsVariable():
            written.add(index)
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        kind = operators[operator.OpcodeIndex()]
        taken = set(map(operator.Inputs, range(operator.InputsLength())))
        if _CAN_DO_WITHOUT.fullmatch(kind):
            taken.discard(_ABSENT)
        given = list(map(operator.Outputs, range(operator.OutputsLength())))
        if not taken <= written or not written.isdisjoint(given) or len(set(given)) != len(given):
            detail = (
                f"{kind}, operator {number} of {name}, reads tensors {sorted(taken)} and writes {given}: out of order"
            )
            raise Undecodable("malformed", detail[:300])
        written.update(given)
    if not written.issuperset(map(graph.Outputs, range(graph.OutputsLength()))):
        raise Undecodable("malformed", f"an output of {name} is never written")


def _opened(content: bytes) -> Any:
    """An interpreter on one thread. LiteRT's default delegate is left out: damaged files crashed it, never the plain kernels.

    Source:
        measured with ai-edge-litert 2.3, 1,800 files with flipped bits each: with XNNPACK, one died by SIGSEGV and another failed
        at a later row; the kernels without a delegate refused them or ran every row.
    """
    from ai_edge_litert import interpreter as litert

    plain = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = litert.Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    return interpreter


def _graph(interpreter: Any, options: Mapping[str, Any]) -> Graph:
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    signatures = interpreter.get_signature_list()
    if len(inputs) != 1 or len(signatures) > 1:
        raise _unsupported(f"it has {len(inputs)} inputs and {len(signatures)} signatures; a model takes one, of one")
    (taken,) = inputs
    if taken["dtype"].__name__ != "float32":
        detail = "rows are float32: convert it with inference_input_type = tf.float32, which quantises inside"
        raise _unsupported(f"its input {taken['name']} is {taken['dtype'].__name__}; {detail}")
    batch, *shape = (int(size) for size in taken["shape"])
    signature = [int(size) for size in taken["shape_signature"]] or [batch, *shape]
    if batch != 1 or not shape or -1 in signature[1:] or min(shape) < 1:
        detail = "its first axis has to be the batch, open or of one row, and every other one fixed"
        raise _unsupported(f"its input {taken['name']} is {signature}; {detail}")
    size = math.prod(shape)
    if size > _MAX_INPUTS:
        raise Undecodable("too_large", f"a row of its input has {size} numbers, more than {_MAX_INPUTS}")
    return Graph(input=int(taken["index"]), shape=tuple(shape), outputs=_outputs(interpreter, outputs, options))


def _outputs(interpreter: Any, outputs: list[Any], options: Mapping[str, Any]) -> dict[str, int]:
    """By name, without labels; the signature's names where it has one, which stand in another order than the tensors."""
    named: dict[str, Any] = {str(one["name"]): one for one in outputs}
    for signature in interpreter.get_signature_list():
        named = interpreter.get_signature_runner(signature).get_output_details()
    strange = [f"{name} {one['dtype'].__name__}" for name, one in named.items()
               if one["dtype"].__name__ not in (*_NUMBERS, *_LABELS)]  # fmt: skip
    if strange:
        raise _unsupported(f"its output is {strange[0]}; convert it with inference_output_type = tf.float32")
    given = {name: int(one["index"]) for name, one in named.items() if one["dtype"].__name__ in _NUMBERS}
    if not given or len(set(given.values())) != len(given):
        raise _unsupported(f"it gives no floating-point output, or one twice; it has {', '.join(named) or 'none'}")
    return dict(zip(stated_output_names(options, list(given)), given.values(), strict=True))


def _unsupported(detail: str) -> Undecodable:
    return Undecodable("unsupported", detail)


def _tensors_bytes(interpreter: Any) -> int:
    """Memory of every tensor at once, which is more than LiteRT needs: it uses parts again."""
    return sum(
        int(abs(one["shape"].astype("float64").prod())) * one["dtype"]().itemsize
        for one in interpreter.get_tensor_details()
    )


def _tried(runner: "TfliteRunner", rows: FloatRows) -> dict[str, FloatRows]:
    """What it gives for the rows, once each has the same numbers in another order too."""
    import numpy as np

    outputs, backwards = runner.run(rows), runner.run(rows[::-1])
    for name, values in outputs.items():
        if values.tobytes() != backwards[name][::-1].tobytes():
            detail = f"its output {name} is another one for the same row after other rows; does it keep something?"
            raise Undecodable("not_deterministic", detail)
    if not any(np.isfinite(values).all(axis=1).any() for values in outputs.values()):
        raise Undecodable("not_finite", "it gives no finite number for any of the rows that it was tried with")
    return outputs


@functools.cache
def _version() -> str:
    """Looked up once, while files can be read."""
    return importlib.metadata.version("ai-edge-litert")


# --- running ----------------------------------------------------------------------------------------------------------


class TfliteRunner:
    """Runs rows; an interpreter is for one thread at a time, so each that runs has one, which is kept for the next."""

    accepts_missing = False

    def __init__(self, content: bytes, graph: Graph, tensors_bytes: int = 0) -> None:
        """Open one."""
        self._content = content  # the interpreters look at these bytes
        self._graph = graph
        self._free = [_opened(content)]
        self.n_features = math.prod(graph.shape)
        self.size_bytes = len(content) + _N_THREADS * (tensors_bytes + _SIZE_OF_AN_INTERPRETER_BYTES)

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """Every output of every row, under its name."""
        return self.run(rows)

    def run(self, rows: FloatRows) -> dict[str, FloatRows]:
        """The same.

        Raises:
            ValueError: an output is not one row for each row.
        """
        import numpy as np

        try:
            interpreter = self._free.pop()
        except IndexError:
            interpreter = _opened(self._content)
        shaped = rows.reshape(-1, 1, *self._graph.shape)
        found: dict[str, list[Any]] = {name: [] for name in self._graph.outputs}
        for row in shaped:
            interpreter.reset_all_variables()
            interpreter.set_tensor(self._graph.input, row)
            interpreter.invoke()
            for name, index in self._graph.outputs.items():
                values = interpreter.get_tensor(index)
                if values.shape[:1] != (1,) or not values.size:
                    raise ValueError(f"its output {name} is {values.shape} for one row; it must have one row for each")
                found[name].append(values.reshape(-1))
        self._free.append(interpreter)  # not where a row failed: what state that leaves, nobody says
        with np.errstate(over="ignore"):  # infinite then, which is refused where it matters
            return {name: np.stack(values).astype(np.float32) for name, values in found.items()}


def model_as_tflite(model: ModelFile) -> bytes:
    """The file as it was handed in."""
    return model.content


def warm_up() -> None:
    """What LiteRT imports with its first model, and looks up of this machine."""
    from ai_edge_litert import interpreter, schema_py_generated  # noqa: F401

    _version()
    with contextlib.suppress(ValueError):
        interpreter.Interpreter(model_content=IDENTIFIER * 4)


@hookimpl
def mmserver_model_formats() -> list[ModelFormat]:
    """Claims `.tflite`."""
    return [
        ModelFormat(
            name=KIND,
            suffixes=(".tflite",),
            read=read_tflite,
            modules=("ai_edge_litert",),
            extra="tflite",
            warm_up=warm_up,
        )
    ]


@hookimpl
def mmserver_converters() -> list[Converter]:
    """The file itself."""
    return [Converter(kind=KIND, target=KIND, media_type="application/octet-stream", convert=model_as_tflite)]


@hookimpl
def mmserver_load_predictor(model: ModelFile) -> Predictor | None:
    """LiteRT on the caller's thread."""
    if model.kind != KIND:
        return None
    graph = msgspec.convert(model.summary["graph"], Graph)
    return TfliteRunner(model.content, graph, int(model.summary["tensors_bytes"]))
