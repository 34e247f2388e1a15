"""PyTorch models of every form become one ONNX file for any number of rows; a file brings weights, never code."""

import io
import json
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mmserver.errors import Undecodable
from mmserver.plugin_loading import load_plugins

torch = pytest.importorskip("torch", reason="torch is not installed (the extra torch)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra torch)")

NETS = """
import torch
from mmserver import hookimpl


class Net(torch.nn.Module):
    def __init__(self, n_factors=4, hidden=8):
        super().__init__()
        self.conv = torch.nn.Conv1d(n_factors, hidden, 3, padding=1)
        self.norm = torch.nn.BatchNorm1d(hidden)
        self.lstm = torch.nn.LSTM(hidden, hidden, num_layers=2, batch_first=True, dropout=0.5)
        self.head = torch.nn.Linear(hidden, 3)

    def forward(self, rows):
        found = torch.relu(self.norm(self.conv(rows.transpose(1, 2)))).transpose(1, 2)
        return self.head(self.lstm(found)[0][:, -1])


class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 1)

    def forward(self, rows):
        return self.head(rows) if rows.sum() > 0 else -self.head(rows)


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 3)

    def forward(self, rows):
        found = self.head(rows)
        return {"probabilities": torch.softmax(found[:, :2], -1), "expected_return": found[:, 2]}


def made(**options):
    return Net(**options)


@hookimpl
def mmserver_load_interpreter(model, info):
    return None
"""
SHAPE = [6, 4]


@pytest.fixture(scope="module", autouse=True)
def nets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module of a plugins directory, which state dicts may name."""
    directory = tmp_path_factory.mktemp("plugins")
    (directory / "nets.py").write_text(NETS)
    load_plugins(directory)
    yield sys.modules["mmserver_plugin_nets"]
    del sys.modules["mmserver_plugin_nets"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def program(network: Any, *, n_rows: int = 2, is_dynamic: bool = True) -> bytes:
    file = io.BytesIO()
    rows = torch.zeros(n_rows, *SHAPE)
    shapes = ({0: torch.export.Dim("batch")},) if is_dynamic else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The tensor attributes", category=UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        torch.export.save(torch.export.export(network.eval(), (rows,), dynamic_shapes=shapes, strict=False), file)
    return file.getvalue()


def test_a_state_dict_with_its_code_agrees_with_torch(
    read_model: Callable[..., Any], parity: Callable[..., Any], nets: Any
) -> None:
    network = nets.Net(hidden=5)
    network(torch.randn(64, *SHAPE))  # so that the normalisation has seen something
    model = read_model("torch", saved(network.state_dict()), code="nets:Net", kwargs={"hidden": 5}, input_shape=SHAPE)
    report = parity(model)
    assert (report.passed, report.class_agreement) == (True, 1.0)
    assert report.max_abs_difference < 1e-6
    assert (model.kind, model.n_features, model.input_shape, model.n_outputs) == ("onnx", 24, (6, 4), 3)
    assert model.summary["runs_together"]


def test_a_function_may_make_the_network(read_model: Callable[..., Any], nets: Any) -> None:
    weights = saved({"epoch": 3, "model": nets.Net().state_dict()})
    options = {"code": "nets:made", "input_shape": SHAPE, "state_key": "model", "output_names": {"output": "logits"}}
    assert list(read_model("torch", weights, **options).probes.outputs) == ["logits"]


def test_the_same_file_gives_the_same_bytes(read_model: Callable[..., Any], nets: Any) -> None:
    weights = saved(nets.Two().state_dict())
    first, second = (read_model("torch", weights, code="nets:Two", input_shape=[4]) for _ in range(2))
    assert first.content == second.content


def test_a_dict_of_outputs_names_them(read_model: Callable[..., Any], parity: Callable[..., Any], nets: Any) -> None:
    model = read_model("torch", saved(nets.Two().state_dict()), code="nets:Two", input_shape=[4])
    assert list(model.probes.outputs) == ["probabilities", "expected_return"]
    assert parity(model).passed
    assert model.input_shape is None


def test_an_export_program_agrees_with_torch(
    read_model: Callable[..., Any], parity: Callable[..., Any], nets: Any
) -> None:
    model = read_model("torch", program(nets.Net()))
    assert parity(model).passed
    assert (model.input_shape, model.summary["runs_together"]) == ((6, 4), True)


def test_an_export_program_of_one_row_is_refused_with_what_to_do(read_model: Callable[..., Any], nets: Any) -> None:
    with pytest.raises(Undecodable, match=r"torch.export.Dim\('batch'\)"):
        read_model("torch", program(nets.Net(), n_rows=1, is_dynamic=False))


def test_torch_script_agrees_with_torch(read_model: Callable[..., Any], parity: Callable[..., Any], nets: Any) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the one who traces
        torch.jit.save(torch.jit.trace(nets.Net().eval(), torch.zeros(1, *SHAPE), check_trace=False), file)
    model = read_model("torch", file.getvalue(), input_shape=SHAPE)
    assert parity(model).passed
    assert model.summary["runs_together"]


def test_a_branch_on_the_numbers_of_a_row_is_refused_not_frozen(read_model: Callable[..., Any], nets: Any) -> None:
    weights = saved(nets.Branching().state_dict())
    with pytest.raises(Exception, match="data-dependent"):
        read_model("torch", weights, code="nets:Branching", input_shape=[4])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"code": "nets:Net"}, "input_shape", id="no-shape"),
        pytest.param({"code": "nets:Net", "input_shape": [6, -4]}, "input_shape", id="negative-shape"),
        pytest.param({"code": "nets:Net", "input_shape": "6x4"}, "input_shape", id="text-for-shape"),
        pytest.param({"input_shape": SHAPE}, "option code", id="no-code"),
        pytest.param({"code": "nets.Net", "input_shape": SHAPE}, "option code", id="code-without-colon"),
        pytest.param({"code": "elsewhere:Net", "input_shape": SHAPE}, "elsewhere is neither", id="unknown-module"),
        pytest.param({"code": "os:system", "input_shape": SHAPE}, "os is neither", id="installed-module"),
        pytest.param({"code": "nets:torch", "input_shape": SHAPE}, "no network", id="imported-name"),
        pytest.param({"code": "nets:hookimpl", "input_shape": SHAPE}, "no network", id="somebody-else-s-function"),
        pytest.param({"code": "nets:Net", "kwargs": [1], "input_shape": SHAPE}, "kwargs", id="kwargs-list"),
        pytest.param({"code": "nets:Net", "input_shape": SHAPE, "state_key": "x"}, "state_key", id="no-such-key"),
        pytest.param(
            {"code": "nets:Net", "input_shape": SHAPE, "output_names": ["a"]},
            "what some of output shall be called",
            id="list-of-names",
        ),
    ],
)
def test_an_option_that_is_missing_or_wrong_is_named(
    read_model: Callable[..., Any], nets: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(Undecodable, match=says):
        read_model("torch", saved(nets.Net().state_dict()), **options)


def test_weights_of_another_shape_are_refused(read_model: Callable[..., Any], nets: Any) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        read_model("torch", saved(nets.Net(hidden=9).state_dict()), code="nets:Net", input_shape=SHAPE)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle was run",))


def test_a_whole_network_or_a_payload_in_a_pickle_is_refused_and_not_run(
    read_model: Callable[..., Any], nets: Any
) -> None:
    for content in (saved(nets.Net()), saved({"a": Payload()}), pickle.dumps(Payload())):
        with pytest.raises(Undecodable, match="more than weights") as refusal:
            read_model("torch", content, code="nets:Net", input_shape=SHAPE)
        assert "weights_only" not in str(refusal.value)


def changed(content: bytes, ending: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with one member changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as new:
        assert any(name.endswith(ending) for name in old.namelist())
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith(ending) else old.read(name))
    return file.getvalue()


def test_a_payload_in_an_export_program_is_not_run(read_model: Callable[..., Any], nets: Any) -> None:
    forged = changed(program(nets.Net()), "sample_inputs/model.pt", lambda _: saved(Payload()))
    with pytest.raises(Exception, match=r"[Ww]eights"):
        read_model("torch", forged)


def test_a_size_that_is_code_in_an_export_program_is_refused(read_model: Callable[..., Any], nets: Any) -> None:
    def forge(data: bytes) -> bytes:
        document = json.loads(data)
        text = json.dumps(document).replace("Symbol('s", "exit(chr(49)) or Symbol('s")
        return text.encode()

    with pytest.raises(Undecodable, match="no arithmetic"):
        read_model("torch", changed(program(nets.Net()), "models/model.json", forge))


def test_a_torn_file_of_any_form_is_refused(read_model: Callable[..., Any], nets: Any) -> None:
    for whole in (saved(nets.Net().state_dict()), program(nets.Net())):
        for length in range(0, len(whole), len(whole) // 8 + 1):
            with pytest.raises((Undecodable, RuntimeError, EOFError, OSError, ValueError)):
                read_model("torch", whole[:length], code="nets:Net", input_shape=SHAPE)


@pytest.mark.parametrize("form", ["state_dict", "program"])
def test_a_flipped_bit_is_seen(read_model: Callable[..., Any], nets: Any, form: str) -> None:
    whole = program(nets.Net()) if form == "program" else saved(nets.Net().state_dict())
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    middle = largest.header_offset + 64 + largest.file_size // 2
    with pytest.raises((Undecodable, zipfile.BadZipFile), match=r"damaged|CRC"):
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        read_model("torch", flipped, code="nets:Net", input_shape=SHAPE)


@pytest.mark.parametrize("kind", ["weights", "program"])
@pytest.mark.parametrize("name", ["../evil.pkl", "/etc/evil.pkl", "..\\evil.pkl"])
def test_an_archive_with_an_entry_that_leads_out_is_refused_by_its_name(
    read_model: Callable[..., Any], nets: Any, kind: str, name: str
) -> None:
    network = nets.Net()
    file = io.BytesIO(saved(network.state_dict()) if kind == "weights" else program(network))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, b"")
    with pytest.raises(Undecodable, match=re.escape(repr(name))) as refusal:
        read_model("torch", file.getvalue(), code="nets:Net", input_shape=SHAPE)
    assert refusal.value.reason == "unsafe_archive"
