"""PyTorch models: state dicts with the code they belong to, `torch.export` programs and TorchScript, made into ONNX.

Nothing that a file names is imported or called: weights are read as weights, code is only what is installed on the server.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import io
import json
import linecache
import math
import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmserver import (
    Conversion,
    ModelFile,
    ModelFormat,
    ModelSource,
    Undecodable,
    archive_names,
    content_from_graph,
    graph_from_program,
    hookimpl,
    likeness,
    model_file_from_onnx,
    probe_rows,
    probes_from_outputs,
    stated_output_names,
)

CODE_GROUP = "mmserver.model_code"
"""Entry points that announce modules whose networks state dicts may name."""
PLUGIN_FILES = "mmserver_plugin_"
"""What the modules of `plugins_dir` are called in front of their file's name."""
INPUT, OUTPUT = "features", "output"
OPSET = 18
_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_SYMBOLIC = re.compile(
    r"[su]\d+|Symbol|Integer|Mul|Add|Mod|Max|Min|FloorDiv|positive|integer|nonnegative|True|False|\d+"
)
_EXPECTED = "a PyTorch model is expected: torch.save(model.state_dict(), 'model.pt'), or a program of torch.export.save"
_ABSOLUTE = _RELATIVE = 1e-5


def read_torch(source: ModelSource) -> ModelFile:
    """The network as ONNX, with what torch itself gives for the probe rows."""
    import torch

    names = archive_names(source.content)  # torch checks no checksum; none of a file of torch before 1.6
    if not names and not source.content.startswith(b"\x80"):
        raise Undecodable("wrong_type", f"{_EXPECTED}; this is {likeness(source.content)}")
    if "schema.json" in names or "config.json" in names:
        raise Undecodable("wrong_type", f"{_EXPECTED}; this is {likeness(source.content)}")
    with torch.no_grad(), _quiet():
        if any(name.endswith("/archive_format") or name.startswith("archive_format") for name in names):
            return _from_program(source, _loaded_program(source.content))
        if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
            return _from_torch_script(source)
        return _from_state_dict(source)


def _from_state_dict(source: ModelSource) -> ModelFile:
    import torch

    shape = _input_shape(source.options)
    weights = _weights(source.content, source.options.get("state_key"))
    network = _network(source.options)
    network.load_state_dict(weights)
    network = network.float().eval().requires_grad_(False)
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},), strict=False)
    return _exported(source, network, program, shape, "state dict")


def _from_program(source: ModelSource, program: Any) -> ModelFile:
    import torch

    inputs = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    if (
        len(inputs) != 1
        or len(values) != 1
        or not isinstance(values[0], torch.Tensor)
        or values[0].dtype != torch.float32
    ):
        raise Undecodable("unsupported", "the program has to take one tensor of float32")
    batch, *shape = values[0].shape
    if isinstance(batch, int) or not all(isinstance(size, int) for size in shape):
        detail = "export it for any number of rows, and only that: dynamic_shapes=({0: torch.export.Dim('batch')},)"
        raise Undecodable("fixed_batch", f"its input is {tuple(map(str, values[0].shape))}; {detail}")
    return _exported(source, program.module(check_guards=False), program, tuple(shape), "export program")


def _from_torch_script(source: ModelSource) -> ModelFile:
    import torch

    shape = _input_shape(source.options)
    network = torch.jit.load(io.BytesIO(source.content), map_location="cpu").float().eval()
    rows = torch.zeros(2, *shape)
    with _without_onednn(), warnings.catch_warnings():
        # Of LSTMs and other numbers of rows, which are tried here.
        warnings.filterwarnings("ignore", category=UserWarning)
        names = _output_names(source.options, network(rows))
        exported = io.BytesIO()
        torch.onnx.export(
            network,
            (rows,),
            exported,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=names,
            dynamic_axes={name: {0: "batch"} for name in (INPUT, *names)},
        )
    import onnx

    graph = onnx.load_from_string(exported.getvalue())
    return _model_file(source, network, graph, shape=shape, names=names, what="TorchScript")


def _exported(source: ModelSource, network: Any, program: Any, shape: tuple[int, ...], what: str) -> ModelFile:
    import torch

    with _without_onednn():
        names = _output_names(source.options, network(torch.zeros(2, *shape)))
    return _model_file(source, network, graph_from_program(program, names), shape=shape, names=names, what=what)


def _model_file(
    source: ModelSource, network: Any, graph: Any, *, shape: tuple[int, ...], names: list[str], what: str
) -> ModelFile:
    import torch

    rows = probe_rows(math.prod(shape))
    with _without_onednn():
        outputs = _tensors(network(torch.from_numpy(rows).reshape(-1, *shape)))
    return model_file_from_onnx(
        content_from_graph(graph),
        input_shape=shape,
        library_version=f"torch {torch.__version__}",
        conversion=Conversion(source=f"torch {torch.__version__} {what}", absolute=_ABSOLUTE, relative=_RELATIVE),
        probes=probes_from_outputs(rows, {name: values.numpy() for name, values in zip(names, outputs, strict=True)}),
        summary={"code": source.options.get("code"), "input_shape": list(shape)},
    )


# --- options ------------------------------------------------------------------------------------------------------------


def _input_shape(options: Mapping[str, Any]) -> tuple[int, ...]:
    shape = options.get("input_shape")
    if (
        not isinstance(shape, list | tuple)
        or not shape
        or not all(type(size) is int and 0 < size < 1 << 20 for size in shape)
    ):
        detail = f"the option input_shape is to be the shape of one row, such as [60, 110]; it is {shape!r}"
        raise Undecodable("option_missing" if shape is None else "option_invalid", detail)
    return tuple(shape)


def _output_names(options: Mapping[str, Any], found: Any) -> list[str]:
    """By the keys of a dict, else `output`, which says nothing of what it means; or as the option calls them."""
    n_outputs = len(_tensors(found))
    if isinstance(found, dict):
        own = [str(name) for name in found]
    else:
        own = [OUTPUT] if n_outputs == 1 else [f"{OUTPUT}_{number}" for number in range(n_outputs)]
    return stated_output_names(options, own)


def _tensors(found: Any) -> list[Any]:
    import torch

    values = (
        list(found.values()) if isinstance(found, dict) else list(found) if isinstance(found, list | tuple) else [found]
    )
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        raise Undecodable("unsupported", "the network has to give a tensor, or a flat list or dict of tensors")
    return values


# --- code and weights ---------------------------------------------------------------------------------------------------


@functools.cache
def _announced_modules() -> dict[str, Any]:
    """Loaded once, while files can be read."""
    entries = importlib.metadata.entry_points(group=CODE_GROUP)
    return {entry.module: importlib.import_module(entry.module) for entry in entries}


def _network(options: Mapping[str, Any]) -> Any:
    import torch

    code, keywords = options.get("code"), options.get("kwargs", {})
    if not isinstance(code, str) or code.count(":") != 1:
        detail = f"a state dict has no code: the option code is to say where it is, as package.module:Factory; it is {code!r}"
        raise Undecodable("option_missing" if code is None else "option_invalid", detail)
    if not isinstance(keywords, dict):
        raise Undecodable("option_invalid", "the option kwargs is to be an object: argument → value")
    module_name, _, name = code.partition(":")
    module = _announced_modules().get(module_name) or sys.modules.get(PLUGIN_FILES + module_name)
    if module is None:
        detail = (
            f"{module_name} is neither a file of plugins_dir nor announced by an entry point in the group {CODE_GROUP}"
        )
        raise Undecodable("code_unknown", detail)
    factory = vars(module).get(name)
    is_own = getattr(factory, "__module__", None) == module.__name__
    if not (isinstance(factory, type) and issubclass(factory, torch.nn.Module)) and not (is_own and callable(factory)):
        raise Undecodable("code_unknown", f"{module_name} has no network, nor a function of its own, named {name}")
    network = factory(**keywords)
    if not isinstance(network, torch.nn.Module):
        raise Undecodable("code_unknown", f"{code} gives {type(network).__name__}, not a torch.nn.Module")
    return network


def _weights(content: bytes, key: Any) -> dict[str, Any]:
    import torch

    found = _as_weights(content)
    if key is not None:
        if not isinstance(found, dict) or key not in found:
            raise Undecodable("option_invalid", f"the option state_key: the file has no {key!r}")
        found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        keys = ", ".join(map(str, list(found)[:10])) if isinstance(found, dict) else type(found).__name__
        raise Undecodable("wrong_type", f"no state dict; the option state_key can say where in it one is: {keys}")
    return found


def _as_weights(content: bytes) -> Any:
    import torch

    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # The library's own text goes on to say how to run the file's code.
        named = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|operand|global)[^\n]{0,80}", str(error))
        what = "" if named is None else f" ({named.group(1) or named.group(0)})"
        detail = f"the file holds more than weights{what}; save the state dict: torch.save(model.state_dict(), FILE)"
        raise Undecodable("forbidden_global", detail) from None


def _loaded_program(content: bytes) -> Any:
    """A `torch.export` program, whose pickles may hold tensors only and whose symbols nothing but arithmetic."""
    import zipfile

    import torch

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if name.endswith(".json"):
                _check_symbols(json.loads(archive.read(name)))
    with _weights_only():
        return torch.export.load(io.BytesIO(content))


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """The library reads parts of a program as pickles that may run code, unless its own switch says otherwise."""
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before


def _check_symbols(document: Any) -> None:
    """torch evaluates these texts as Python."""
    for text in _symbol_texts(document):
        strange = [word for word in re.findall(r"\w+", text) if not _SYMBOLIC.fullmatch(word)]
        if strange or re.search(r"[^\w\s'()+*/=,-]", text):
            raise Undecodable("malformed", f"its symbolic sizes are no arithmetic: {text[:80]!r}")


def _symbol_texts(value: Any) -> Iterable[str]:
    if isinstance(value, list):
        for item in value:
            yield from _symbol_texts(item)
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "expr_str":
                yield str(item)
            elif name == "guards_code" and item:
                raise Undecodable("unsupported", "the program holds guards as code; export it without")
            elif name == "range_constraints":
                yield from item
            yield from _symbol_texts(item)


# --- the library --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch warns of its own deprecated parts, which its exporters use, and of how its LSTM holds its weights."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)
        warnings.filterwarnings("ignore", message=r"The tensor attributes? self\..*_flat_weights")
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        yield


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    """It writes its kernels at run time, which the guarded process may not; exporting needs it on, to keep an LSTM in one piece."""
    import torch

    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def warm_up() -> None:
    """One export of each way: what they import, and the sources that onnxscript reads of itself, are there afterwards."""
    import torch

    class Network(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv1d(4, 4, 3, padding=1), torch.nn.LayerNorm(4)
            self.lstm = torch.nn.LSTM(4, 4, 2, batch_first=True)
            self.attention = torch.nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            found = self.norm(torch.relu(self.conv(rows.transpose(1, 2))).transpose(1, 2))
            last = self.attention(self.lstm(found)[0])[:, -1]
            return torch.softmax(last, dim=-1)

    torch.set_num_threads(1)
    _announced_modules()
    rows = torch.zeros(2, 5, 4)
    weights, saved, script = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with torch.no_grad(), _quiet():
        network = Network().eval().requires_grad_(False)
        torch.save(network.state_dict(), weights)
        network.load_state_dict(_as_weights(weights.getvalue()))
        program = torch.export.export(network, (rows,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
        torch.export.save(program, saved)
        torch.jit.save(
            torch.jit.trace(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(-1)), rows, check_trace=False),
            script,
        )
    read_torch(ModelSource(file_name="a.pt2", files={"a.pt2": saved.getvalue()}))
    read_torch(ModelSource(file_name="a.pt", files={"a.pt": script.getvalue()}, options={"input_shape": [5, 4]}))
    _keep_sources("onnxscript", "torch.onnx")


def _keep_sources(*packages: str) -> None:
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name.startswith(packages) and path is not None and path.endswith(".py"):
            lines = linecache.getlines(path)
            # Without a time of change, the cache asks nobody whether the file is still the same.
            linecache.cache[path] = (sum(map(len, lines)), None, lines, path)


@hookimpl
def mmserver_model_formats() -> list[ModelFormat]:
    """Claims `.pt`, `.pth` and `.pt2`."""
    return [
        ModelFormat(
            name="torch",
            suffixes=(".pt", ".pth", ".pt2"),
            read=read_torch,
            modules=("torch", "onnx", "onnxscript", "onnxruntime"),
            extra="torch",
            warm_up=warm_up,
        )
    ]
