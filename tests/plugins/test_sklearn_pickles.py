"""Pickles of scikit-learn run only where the setting says so, and then only in the guarded process, where they do no harm."""

import io
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.ingest import IngestedGroup
from mmserver.conversion.reading import ModelReader
from mmserver.errors import ArtifactInvalid, Undecodable
from mmserver.formats import ModelSource
from mmserver.plugin_loading import Plugins
from mmserver.settings import Settings

pytest.importorskip("skops", reason="skops is not installed (the extra sklearn)")
pytest.importorskip("skl2onnx", reason="skl2onnx is not installed (the extra sklearn)")

import joblib
import sklearn
from sklearn import ensemble, linear_model, pipeline, preprocessing

ROWS = np.random.default_rng(0).normal(size=(100, 3))
RETURNS = ROWS @ [1.0, 2.0, -1.0]

Guarded = Callable[..., IngestedGroup]


def model() -> Any:
    return pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.Ridge()).fit(ROWS, RETURNS)


def dumped(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    joblib.dump(value, file, **options)
    return file.getvalue()


class Attack:
    """Calls the function with the arguments where it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


def put_in(part: Any, path: str) -> Any:
    """The argument, with the path where it says FILE."""
    if isinstance(part, tuple):
        return tuple(put_in(word, path) for word in part)
    return part.replace("FILE", path) if isinstance(part, str) else part


def reason(refusal: pytest.ExceptionInfo[ArtifactInvalid]) -> str:
    return str(refusal.value.values["reason"])


def test_off_a_pickle_is_refused_with_what_to_do_and_never_run(read_model: Callable[..., Any], tmp_path: Path) -> None:
    attack = pickle.dumps(Attack(Path.touch, tmp_path / "was-run"))
    with pytest.raises(Undecodable, match=r"save the model with skops.*MMSERVER_ALLOW_UNPICKLING=sklearn"):
        read_model("sklearn", attack)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.slow
class TestAllowed:
    @pytest.mark.parametrize(
        ("name", "data"),
        [
            pytest.param("a.pkl", pickle.dumps(model()), id="pickle"),
            pytest.param("a.joblib", dumped(model()), id="joblib"),
            pytest.param("a.joblib", dumped(model(), compress=("lzma", 3)), id="compressed"),
            pytest.param(
                "a.pkl",
                pickle.dumps(ensemble.RandomForestRegressor(5, n_jobs=-1, random_state=0).fit(ROWS, RETURNS)),
                id="forest",
            ),
        ],
    )
    def test_a_model_is_made_into_onnx_that_agrees(self, read_guarded: Guarded, name: str, data: bytes) -> None:
        group = read_guarded(name, data, model_type="sklearn")
        assert (group.dim, b'"passed":true' in group.detail.replace(b" ", b"")) == (3, True)

    def test_one_of_another_version_of_the_library_is_refused(self, read_guarded: Guarded) -> None:
        version = sklearn.__version__.encode()
        older = pickle.dumps(linear_model.Ridge().fit(ROWS, RETURNS)).replace(version, b"0" * len(version))
        with pytest.raises(
            ArtifactInvalid, match=f"pickled with scikit-learn 0+, here is {version.decode()}"
        ) as refusal:
            read_guarded("a.pkl", older, model_type="sklearn")
        assert reason(refusal) == "wrong_version"

    @pytest.mark.parametrize(
        ("calls", "reasons"),
        [
            pytest.param((open, "FILE", "w"), ("malformed",), id="write-a-file"),
            pytest.param((open, "/etc/passwd"), ("malformed",), id="read-a-file"),
            pytest.param((os.system, "touch FILE"), ("crashed(SIGSYS)",), id="shell"),
            pytest.param((os.execv, "/bin/touch", ("touch", "FILE")), ("crashed(SIGSYS)",), id="exec"),
            pytest.param((os.fork,), ("crashed(SIGSYS)",), id="fork"),
            pytest.param((os.kill, os.getpid(), 9), ("crashed(SIGSYS)",), id="kill-the-server"),
            pytest.param((socket.create_connection, ("127.0.0.1", 9)), ("malformed", "crashed(SIGSYS)"), id="socket"),
            pytest.param((exec, "import os; os._exit(0)"), ("crashed",), id="leave"),
            pytest.param((exec, "import os; os.write(3, bytes(99))"), ("crashed", "malformed"), id="lie"),
            pytest.param((exec, "x = [bytes(1 << 28) for _ in range(999)]"), ("crashed(out of memory",), id="memory"),
        ],
    )
    def test_an_attack_is_refused_and_does_no_harm(
        self, read_guarded: Guarded, tmp_path: Path, calls: tuple[Any, ...], reasons: tuple[str, ...]
    ) -> None:
        target = tmp_path / "was-run"
        attack = Attack(*(put_in(part, str(target)) for part in calls))
        with pytest.raises(ArtifactInvalid) as refusal:
            read_guarded("a.pkl", pickle.dumps(attack), model_type="sklearn")
        assert reason(refusal).startswith(reasons)
        assert not target.exists()
        assert read_guarded("a.pkl", pickle.dumps(model()), model_type="sklearn").dim == 3

    def test_one_that_never_ends_is_ended_at_the_limit(self, plugins: Plugins) -> None:
        claim = plugins.model_format_for("a.joblib")
        assert claim is not None
        reader = ModelReader(Settings(allow_unpickling=("sklearn",), conversion_timeout_s=2.0), plugins)
        data = pickle.dumps(Attack(exec, "while True: pass"))
        with pytest.raises(ArtifactInvalid) as refusal:
            reader.read(ModelSource(file_name="a.joblib", files={"a.joblib": data}), claim, info={})
        reader.close()
        assert reason(refusal).startswith("crashed(")


@pytest.mark.parametrize("compressor", [0, "zlib", "gzip", "bz2", "lzma", "xz"])
def test_a_dump_that_is_cut_by_its_last_byte_or_goes_on_is_refused(compressor: Any, plugins: Plugins) -> None:
    claim = plugins.model_format_for("a.joblib")
    assert claim is not None

    def read(data: bytes) -> Any:
        return claim.read(ModelSource(file_name="a", files={"a": data}, may_unpickle=True))

    whole = dumped(model(), compress=(compressor, 3) if compressor else 0)
    assert read(whole).n_features == 3
    for length in range(len(whole) - 12, len(whole)):
        with pytest.raises((Undecodable, EOFError, IndexError, ValueError, pickle.UnpicklingError)):
            read(whole[:length])
    with pytest.raises(Undecodable, match="follow") as refusal:
        read(whole + b"more")
    assert refusal.value.reason == "trailing_data"
