"""What can go wrong with artifacts, by the ids of the project's fault table, seen from the whole catalog.

In every case the last good version goes on being served, the refusal and its reason can be seen, the neighbours are not
affected, and the good file is served when it is back. A4 (with a manifest), A41: see test_manifests; A7 and A9 also
test_refreshing; A40 is a venue's file: see test_venues. What answers a *prediction* of such a model (A1's 503, A12's 410)
has no meaning before models predict. Depth: tests/watching (A5-A20), tests/inert (A21-A34), tests/trees (A36-A38).
"""

import gzip
import json
import os
import pickle
import shutil
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.plugin_loading import load_plugins
from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.pool import Sandbox

CANARY = "canary-of-the-artifact-cases"


# --- hostile bytes ----------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def whole(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def call(module: str, name: str, *arguments: str) -> bytes:
    return whole(named(module, name) + b"(" + b"".join(map(text, arguments)) + b"tR")


def joblib_object_array(directory: Path) -> bytes:
    import joblib

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {CANARY}",)

    joblib.dump(np.array([Evil()], dtype=object), directory / "evil")
    return (directory / "evil").read_bytes()


def booster_json(alpha: Any, seed: int = 1) -> dict[str, Any]:
    raw = pickle.loads(alpha.artifacts.model_pickles[seed]).get_booster().save_raw("json")
    document: dict[str, Any] = json.loads(raw)
    return document


def trees_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    trees: list[dict[str, Any]] = document["learner"]["gradient_booster"]["model"]["trees"]
    return trees


def broken_json(alpha: Any, change: Callable[[dict[str, Any]], None]) -> bytes:
    document = booster_json(alpha)
    change(document)
    return json.dumps(document).encode()


def set_in_tree(name: str, at: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        trees_of(document)[0][name][at] = value

    return change


def set_objective(document: dict[str, Any]) -> None:
    document["learner"]["objective"]["name"] = "my:own"


def linear_booster() -> bytes:
    import xgboost

    rng = np.random.default_rng(0)
    data = xgboost.DMatrix(rng.normal(size=(50, 3)), label=rng.normal(size=50))
    return pickle.dumps(xgboost.train({"booster": "gblinear", "nthread": 1}, data, num_boost_round=2))


def duplicate_names(document: dict[str, Any]) -> None:
    document["learner"]["feature_names"] = ["a", "a", "b"]


MODEL_PKL, MODEL_JSON, INFO, IC = "model.pkl", "model.json", "info.pkl", "ic.csv"
Make = Callable[[Any], bytes]
REFUSED: list[tuple[str, str, Make, str]] = [
    ("A1", MODEL_PKL, lambda _: b"", "empty"),
    ("A1-info", INFO, lambda _: b"", "empty"),
    ("A2-half", MODEL_PKL, lambda a: a.artifacts.model_pickles[1][:2000], "torn"),
    ("A2-all-but-one", MODEL_PKL, lambda a: a.artifacts.model_pickles[1][:-1], "torn"),
    ("A2-one-byte", MODEL_PKL, lambda a: a.artifacts.model_pickles[1][:1], "torn"),
    ("A3-half", MODEL_JSON, lambda a: broken_json(a, lambda _: None)[:999], "torn"),
    ("A3-all-but-one", MODEL_JSON, lambda a: broken_json(a, lambda _: None)[:-1], "torn"),
    ("A10", INFO, lambda _: pickle.dumps({"dim": 4}), "inconsistent_pair"),
    ("A21-system", MODEL_PKL, lambda _: call("os", "system", f"touch {CANARY}"), "forbidden_global"),
    ("A21-posix", INFO, lambda _: call("posix", "system", f"touch {CANARY}"), "forbidden_global"),
    ("A21-eval", INFO, lambda _: call("builtins", "eval", f"open('{CANARY}','w')"), "forbidden_global"),
    ("A21-pip", INFO, lambda _: call("pip", "main", "x"), "forbidden_global"),
    ("A21-runpy", INFO, lambda _: call("runpy", "run_path", "x"), "forbidden_global"),
    ("A21-resolve", INFO, lambda _: call("pkgutil", "resolve_name", "os:system"), "forbidden_global"),
    ("A22-prefix", MODEL_PKL, lambda _: call("joblib.numpy_pickle", "os.system", f"touch {CANARY}"), "forbidden_global"),
    ("A22-builtins", MODEL_PKL, lambda _: call("numpy", "__builtins__", "x"), "forbidden_global"),
    ("A22-dotted", MODEL_PKL, lambda _: call("xgboost.core", "ctypes.CDLL", "x"), "forbidden_global"),
    ("A23-runstring", INFO, lambda _: call("numpy.testing._private.utils", "runstring", "x"), "forbidden_global"),
    ("A23-myeval", INFO, lambda _: call("numpy.f2py.crackfortran", "myeval", "x"), "forbidden_global"),
    ("A23-load", INFO, lambda _: call("numpy", "load", "/etc/passwd"), "forbidden_global"),
    ("A24-eval", INFO, lambda _: call("pandas", "eval", "1"), "forbidden_global"),
    ("A24-read_pickle", INFO, lambda _: call("pandas", "read_pickle", "/etc/passwd"), "forbidden_global"),
    ("A24-read_csv", INFO, lambda _: call("pandas", "read_csv", "http://127.0.0.1:9/x"), "forbidden_global"),
    ("A25", INFO, lambda _: whole(named("builtins", "getattr") + b"(" + named("os", "path") + text("x") + b"tR"),
     "forbidden_global"),
    ("A26", INFO, lambda a: joblib_object_array(a.artifacts.path.parent), "forbidden_global"),
    ("A27", INFO, lambda _: whole(named("joblib.numpy_pickle", "NDArrayWrapper") + b")\x81}" + text("filename")
                                  + text("/etc/passwd") + b"sb"), "forbidden_global"),
    ("A29", INFO, lambda _: whole(named("pandas", "Index") + b"}" + text("get_loc") + text("x") + b"sb"), ""),
    ("A31", MODEL_PKL, lambda _: whole(named("xgboost.core", "Booster") + b"(N]" + text("/etc/passwd") + b"tR"), ""),
    ("A32-memo", INFO, lambda _: whole(b"]\x94" + b"(" + b"h\x00" * 10 + b"e" + b"(" * 3_000_000), ""),
    ("A32-length", INFO, lambda _: whole(b"\x8e" + struct.pack("<Q", 10**15) + b"x"), "torn"),
    ("A33-zlib", MODEL_PKL, lambda _: zlib.compress(bytes(60_000_000), 9), "too_large"),
    ("A33-gzip", INFO, lambda _: gzip.compress(bytes(60_000_000), 9), "too_large"),
    ("A34-second", MODEL_PKL, lambda a: a.artifacts.model_pickles[1] + pickle.dumps(1), "trailing_data"),
    ("A34-zip", INFO, lambda _: pickle.dumps({}) + b"PK\x05\x06" + bytes(18), "trailing_data"),
    ("A35-list", MODEL_PKL, lambda _: pickle.dumps([]), "wrong_type"),
    ("A35-dict", MODEL_PKL, lambda _: pickle.dumps({"a": 1}), "wrong_type"),
    ("A35-array", MODEL_PKL, lambda _: pickle.dumps(np.zeros(3)), "wrong_type"),
    ("A36-cycle", MODEL_JSON, lambda a: broken_json(a, set_in_tree("left_children", 0, 0)), "invalid_model"),
    ("A36-child", MODEL_JSON, lambda a: broken_json(a, set_in_tree("left_children", 0, 10**9)), "invalid_model"),
    ("A36-negative", MODEL_JSON, lambda a: broken_json(a, set_in_tree("right_children", 0, -5)), "invalid_model"),
    ("A36-split", MODEL_JSON, lambda a: broken_json(a, set_in_tree("split_indices", 0, 10**6)), "invalid_model"),
    ("A36-base", MODEL_JSON, lambda a: broken_json(
        a, lambda d: d["learner"]["learner_model_param"].update(base_score="[NaN]")), "invalid_model"),
    ("A36-group", MODEL_JSON, lambda a: broken_json(
        a, lambda d: d["learner"]["gradient_booster"]["model"].update(tree_info=[10**8] * 4)), "invalid_model"),
    ("A36-deep", MODEL_JSON, lambda _: b'{"a":' + b"[" * 100_000, ""),
    ("A37", MODEL_JSON, lambda a: broken_json(a, set_in_tree("split_conditions", -1, float("nan"))), ""),
    ("A38-linear", MODEL_PKL, lambda _: linear_booster(), "unsupported"),
    ("A38-objective", MODEL_JSON, lambda a: broken_json(a, set_objective), ""),
    ("A39-names", MODEL_JSON, lambda a: broken_json(a, duplicate_names), ""),
    ("A39-count", "factors.txt", lambda _: b"momentum\nvolume\n", "inconsistent_pair"),
    ("A39-none", "factors.txt", lambda _: b"\n\n", "empty"),
]  # fmt: skip


@pytest.fixture(scope="module")
def served(open_beneath: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Model `alpha` with BTC and ETH of trainings 0 and 1, for cases that leave things as they found them."""
    opened = open_beneath(tmp_path_factory.mktemp("cases"), max_artifact_bytes=100 << 20)
    opened.artifacts.write_group("BTC_ret_1h", 0)
    opened.artifacts.write_group("ETH_ret_1h", 1)
    opened.register()
    return opened


def polled(opened: Any, n: int = 2) -> None:
    for _ in range(n):
        opened.poll(70.0)


@pytest.fixture
def case(served: Any) -> Iterator[Any]:
    """The shared model, whole before the case and whole again after it, whatever the case did to ETH."""
    yield served
    for path in served.artifacts.path.glob("*"):
        if path.name.startswith("ETH_") or not path.name.startswith("BTC_"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    served.artifacts.write_group("ETH_ret_1h", 1)
    served.artifacts.write_group("BTC_ret_1h", 0)
    polled(served, 4)
    assert (served.refusals(), served.model.status) == ({}, "ok")
    assert (served.seed("BTC"), served.seed("ETH"), len(served.model.serving.groups)) == (0, 1, 2)


def assert_refused(opened: Any, reason: str) -> None:
    """ETH is refused and served as it was; its neighbour was brought up to date by the same look."""
    [refusal] = opened.model.refusals
    assert refusal.group_key == "ETH_ret_1h"
    assert reason in ("", refusal.reason)
    assert refusal.reason not in ("handler_failed", "crashed")
    assert refusal.detail
    assert opened.model.status == "stale"
    assert opened.seed("ETH") == 1
    group = opened.group("ETH")
    assert opened.store.payloads.body(opened.model.serving, group, "json", "identity").content


@pytest.mark.parametrize(
    ("name", "make", "reason"), [pytest.param(name, make, reason, id=at) for at, name, make, reason in REFUSED]
)
def test_a_bad_file_is_refused_and_its_neighbour_is_not(case: Any, name: str, make: Make, reason: str) -> None:
    modules = set(sys.modules)
    data = make(case)
    case.artifacts.write(f"ETH_ret_1h_{name}", data)
    case.artifacts.write_group("BTC_ret_1h", 5)
    polled(case)
    assert case.seed("BTC") == 5
    assert_refused(case, reason)
    hostile = {"runpy", "pip", "numpy.f2py.crackfortran", "numpy.testing._private.utils"}
    assert not (set(sys.modules) - modules) & hostile
    assert not Path(CANARY).exists()
    assert not Path("/", CANARY).exists()


def make_special(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "A15":
        os.mkfifo(path)
    elif kind == "A16-socket":
        with socket.socket(socket.AF_UNIX) as bound, Within(path.parent):
            bound.bind(path.name)
    elif kind == "A16-directory":
        path.mkdir()
    elif kind == "A16-device":
        path.symlink_to("/dev/zero")
    elif kind in ("A16-shadow", "A20-symlink"):
        path.symlink_to("/etc/shadow" if kind == "A16-shadow" else "/etc/hostname")
    elif kind == "A14-loop":
        path.symlink_to(path.name)
    elif kind == "A17":
        with path.open("wb") as file:
            file.truncate(50 << 30)


class Within:
    """Names in a deep directory are too long for a socket's address."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._before = directory, Path.cwd()

    def __enter__(self) -> None:
        os.chdir(self._directory)

    def __exit__(self, *_: object) -> None:
        os.chdir(self._before)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("A14-loop", "outside_root"),
        ("A15", "not_regular"),
        ("A16-socket", "not_regular"),
        ("A16-directory", "not_regular"),
        ("A16-device", "outside_root"),
        ("A16-shadow", "outside_root"),
        ("A17", "too_large"),
        ("A20-symlink", "outside_root"),
    ],
)
def test_what_is_no_file_of_the_directory_is_refused_without_opening_it(case: Any, kind: str, reason: str) -> None:
    make_special(case.artifacts.path / "ETH_ret_1h_model.pkl", kind)
    case.artifacts.write_group("BTC_ret_1h", 5)
    polled(case, 5)
    assert case.seed("BTC") == 5
    assert_refused(case, reason)


def test_A14_a_symlink_to_nothing_is_a_missing_file(case: Any) -> None:
    """For two looks it may be back; after three the group is served as it is then: without a model, and saying why."""
    path = case.artifacts.path / "ETH_ret_1h_model.pkl"
    path.unlink()
    path.symlink_to("nowhere")
    polled(case)
    assert case.group("ETH").has_model
    polled(case)
    assert not case.group("ETH").has_model
    assert case.refusals() == {"ETH_ret_1h": "vanished"}


def test_A20_a_hard_link_is_a_file_like_any_other(case: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside.pkl"
    outside.write_bytes(case.artifacts.model_pickles[4])
    path = case.artifacts.path / "ETH_ret_1h_model.pkl"
    path.unlink()
    os.link(outside, path)
    case.artifacts.write("ETH_ret_1h_info.pkl", pickle.dumps(case.artifacts.info(4)))
    polled(case)
    assert (case.seed("ETH"), case.model.status) == (4, "ok")


def test_A2_no_prefix_of_any_file_is_ever_served(case: Any) -> None:
    versions = {case.model.serving.label}
    for suffix in ("model.pkl", "info.pkl"):
        path = case.artifacts.path / f"ETH_ret_1h_{suffix}"
        data = path.read_bytes()
        for size in range(1, len(data), max(1, len(data) // 12)):
            path.write_bytes(data[:size])
            polled(case)
            assert_refused(case, "torn")
            versions.add(case.model.serving.label)
        path.write_bytes(data)
        polled(case)
    assert len(versions) == 1


def test_A4_a_flipped_byte_is_refused_or_another_valid_model_and_nothing_dies(case: Any) -> None:
    path = case.artifacts.path / "ETH_ret_1h_model.pkl"
    data = path.read_bytes()
    rng = np.random.default_rng(4)
    for at in rng.integers(0, len(data), 25):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :])
        polled(case)
        reasons = set(case.refusals().values())
        assert case.model.status == ("stale" if reasons else "ok")
        assert not any(reason.startswith(("crashed", "handler_failed")) for reason in reasons), (at, reasons)
        content = case.store.payloads.body(case.model.serving, case.group("ETH"), "payload", "identity").content
        json.loads(content)


def test_A5_a_growing_file_is_published_once_when_it_is_whole(case: Any) -> None:
    data = case.artifacts.model_pickles[4]
    before = case.model.serving.seq
    path = case.artifacts.path / "ETH_ret_1h_model.pkl"
    with path.open("wb", buffering=0) as file:
        for at in range(0, len(data), 500):
            file.write(data[at : at + 500])
            case.poll(0.4)
            assert (case.model.serving.seq, case.refusals()) == (before, {})
    for _ in range(10):
        case.poll(0.4)
    assert case.model.serving.seq == before + 1


@pytest.mark.parametrize("kind", ["A6", "A8"])
def test_a_rewrite_that_keeps_size_and_mtime_is_found(case: Any, kind: str) -> None:
    path = case.artifacts.path / "ETH_ret_1h_info.pkl"
    status = path.stat()
    data = pickle.dumps(case.artifacts.info(8))
    assert len(data) == status.st_size
    target = path if kind == "A6" else path.with_name(".new")
    target.write_bytes(data)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    target.rename(path)
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    polled(case)
    assert case.seed("ETH") == 8


def test_A9_a_touch_is_no_news(case: Any) -> None:
    before = case.model.serving
    os.utime(case.artifacts.path / "ETH_ret_1h_model.pkl")
    polled(case)
    assert case.model.serving is before


def test_A10_a_new_model_is_not_served_with_the_old_info(case: Any) -> None:
    """Between the two writes the pair is refused; were they written within the settling time, it is not even read."""
    case.artifacts.write("ETH_ret_1h_factors.txt", b"a\nb\n")
    polled(case)
    assert_refused(case, "inconsistent_pair")
    case.artifacts.write("ETH_ret_1h_factors.txt", b"a\nb\nc\n")
    case.poll(0.3)
    case.artifacts.write("ETH_ret_1h_info.pkl", pickle.dumps(case.artifacts.info(3)))
    case.poll(0.9)
    assert case.group("ETH").factors[0] == "momentum"
    case.poll(1.1)
    assert (case.group("ETH").factors, case.seed("ETH")) == (("a", "b", "c"), 3)


@pytest.mark.parametrize("place", ["beneath the root", "as the root"])
def test_A11_a_swapped_symlink_gives_all_of_one_set_or_all_of_the_other(
    alpha: Any, make_artifacts: Callable[[str], Any], place: str
) -> None:
    root = alpha.artifacts.path if place == "beneath the root" else alpha.artifacts.path.parent
    sets = []
    for number in (0, 3):
        made = make_artifacts(f"alpha/.v{number}" if place == "beneath the root" else f"v{number}")
        for offset, symbol in enumerate(("BTC", "ETH")):
            made.write_group(f"{symbol}_ret_1h", number + offset)
        sets.append(made.path)
    current = root / "current"
    current.symlink_to(sets[0])
    alpha.artifacts.path = root if place == "beneath the root" else current
    alpha.register()
    swapping = root / ".swap"
    for number in range(4):
        swapping.symlink_to(sets[(number + 1) % 2])
        swapping.rename(current)
        for _ in range(4):
            alpha.poll()
            assert (alpha.seed("BTC"), alpha.seed("ETH")) in ((0, 1), (3, 4))
        assert alpha.seed("BTC") == (3, 0)[number % 2]
    assert alpha.model.serving.seq == 5


def test_A12_a_deleted_group_goes_after_three_looks_and_stays_in_the_history(registered: Any) -> None:
    before = registered.model.serving
    registered.artifacts.delete_group("ETH_ret_1h")
    for _ in range(2):
        registered.poll()
        assert "ETH_ret_1h" in registered.model.serving.groups
    registered.poll()
    registered.poll()
    assert "ETH_ret_1h" not in registered.model.serving.groups
    old = registered.store.payloads.body(before, before.groups["ETH_ret_1h"], "json", "identity")
    assert old.content


@pytest.mark.parametrize("how", ["renamed", "emptied", "mostly emptied", "a file instead"])
def test_A13_a_directory_that_vanishes_loses_nothing(
    registered: Any, restart: Callable[..., Any], how: str, tmp_path: Path
) -> None:
    path, away = registered.artifacts.path, tmp_path / "away"
    shutil.copytree(path, away)
    if how == "mostly emptied":
        for symbol in ("BTC", "ETH", "SOL"):
            registered.artifacts.delete_group(f"{symbol}_ret_1h")
    else:
        shutil.rmtree(path)
        if how == "emptied":
            path.mkdir()
        elif how == "a file instead":
            path.write_bytes(b"")
    opened = registered
    for _ in range(2):
        opened.settle()
        assert (opened.model.status, len(opened.model.serving.groups)) == ("frozen", 4)
        assert opened.model.serving.seq == 1
        opened = restart(opened)
    if how == "a file instead":
        path.unlink()
    shutil.copytree(away, path, dirs_exist_ok=True)
    opened.settle()
    assert (opened.model.status, opened.model.serving.seq, len(opened.model.serving.groups)) == ("ok", 1, 4)


def test_A18_thousands_of_other_files_are_no_trouble(alpha: Any) -> None:
    alpha.artifacts.write_group("sub/BTC_ret_1h", 0)
    for number in range(3000):
        (alpha.artifacts.path / f"junk-{number}_model.pkl.bak").touch()
    alpha.register()
    assert (alpha.model.status, alpha.seed("BTC")) == ("ok", 0)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"A\nB_model.pkl", id="newline"),
        pytest.param("A\u202eB_model.pkl".encode(), id="right-to-left mark"),
        pytest.param(b"A\xff_model.pkl", id="not UTF-8"),
        pytest.param(b"_model.pkl", id="nothing before the suffix"),
        pytest.param(b"x" * 245 + b"_model.pkl", id="255 bytes"),
        pytest.param("A\u200b_model.pkl".encode(), id="zero width"),
    ],
)
def test_A19_a_name_that_cannot_be_shown_is_refused_and_escaped(case: Any, name: bytes) -> None:
    (case.artifacts.path / os.fsdecode(name)).write_bytes(case.artifacts.model_pickles[0])
    polled(case)
    [refusal] = case.model.refusals
    assert refusal.reason == "bad_name"
    for shown in (refusal.group_key, refusal.file, refusal.detail):
        assert shown.isprintable()
        json.dumps(shown, ensure_ascii=False).encode()


def test_A19_markup_in_a_name_is_a_name(case: Any) -> None:
    case.artifacts.write_group("<script>alert(1)<b>_ret_1h", 2)
    polled(case)
    assert case.group("<script>alert(1)<b>").return_name == "ret_1h"
    case.artifacts.delete_group("<script>alert(1)<b>_ret_1h")
    polled(case, 5)


def test_A30_what_was_put_into_an_instance_stays_data(case: Any) -> None:
    model = pickle.loads(case.artifacts.model_pickles[1])
    expected = model.predict(np.zeros((1, 3), dtype=np.float32))
    model.__dict__["predict"] = "evil"
    model.__dict__["n_estimators"] = {"a": [1]}
    case.artifacts.write("ETH_ret_1h_model.pkl", pickle.dumps(model))
    polled(case)
    assert (case.refusals(), case.model.status) == ({}, "ok")
    import xgboost

    content = case.store.payloads.body(case.model.serving, case.group("ETH"), "json", "identity").content
    booster = xgboost.Booster(model_file=bytearray(content))
    assert booster.inplace_predict(np.zeros((1, 3), dtype=np.float32)).tobytes() == expected.tobytes()


class CountingSandbox:
    """The worker, with a count of what it was asked."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.n_jobs = 0

    def run(self, job: str, request: bytes) -> bytes:
        self.n_jobs += 1
        return self._sandbox.run(job, request)


def test_A42_refused_content_is_not_parsed_again_wherever_it_turns_up(
    registered: Any, restart: Callable[..., Any], sandbox: Sandbox
) -> None:
    bad = pickle.dumps({"a": 1})
    registered.artifacts.write("ETH_ret_1h_model.pkl", bad)
    registered.settle()
    [before] = registered.model.refusals
    again = restart(registered)
    counting = again.store.sandbox = CountingSandbox(sandbox)
    again.settle()
    again.artifacts.write("ETH_ret_1h_model.pkl", bad)
    again.settle()
    assert counting.n_jobs == 0
    [refusal] = again.model.refusals
    assert (refusal.reason, refusal.since, refusal.attempts) == ("wrong_type", before.since, 3)


CRASHING = """
import ctypes
from mmserver import hookimpl

@hookimpl(tryfirst=True)
def mmserver_load_predictor(model):
    if model.feature_names and "crash" in model.feature_names:
        ctypes.string_at(0)
    return None
"""


def test_A43_A44_content_that_kills_the_worker_is_refused_and_not_tried_again_after_a_restart(
    open_alpha: Callable[..., Any], restart: Callable[..., Any], tmp_path: Path
) -> None:
    plugins_dir = tmp_path / "plugins"
    plugins_dir.mkdir()
    (plugins_dir / "crashing.py").write_text(CRASHING)
    with Sandbox("mmserver.catalog.ingest:handlers", {"plugins_dir": str(plugins_dir)}) as crashing:
        opened = open_alpha(sandbox=crashing)
        opened.artifacts.write_group("BTC_ret_1h", 0)
        opened.artifacts.write_group("ETH_ret_1h", 1)
        opened.register()
        document = booster_json(opened)
        document["learner"]["feature_names"] = ["crash", "b", "c"]
        for name in ("model.pkl", "factors.txt"):
            (opened.artifacts.path / f"ETH_ret_1h_{name}").unlink()
        opened.artifacts.write("ETH_ret_1h_model.json", json.dumps(document).encode())
        opened.artifacts.write_group("BTC_ret_1h", 5)
        opened.settle()
        assert opened.refusals() == {"ETH_ret_1h": "crashed(SIGSEGV)"}
        assert (opened.seed("BTC"), opened.seed("ETH")) == (5, 1)
        again = restart(opened, sandbox=(counting := CountingSandbox(crashing)))
        again.settle()
        assert counting.n_jobs == 0
        assert again.refusals() == {"ETH_ret_1h": "crashed(SIGSEGV)"}
        assert again.seed("ETH") == 1


SLOW = """
import time
from mmserver import hookimpl

@hookimpl(tryfirst=True)
def mmserver_load_predictor(model):
    if model.missing is not None:
        time.sleep(600)
    return None
"""


def test_what_could_not_be_read_in_time_is_tried_again_at_the_next_start(
    open_alpha: Callable[..., Any], restart: Callable[..., Any], tmp_path: Path
) -> None:
    plugins_dir = tmp_path / "plugins"
    plugins_dir.mkdir()
    (plugins_dir / "slow.py").write_text(SLOW)
    options = {"plugins_dir": str(plugins_dir)}
    with Sandbox("mmserver.catalog.ingest:handlers", options, limits=JobLimits(wall_s=6.0)) as slow:
        opened = open_alpha(sandbox=slow)
        opened.artifacts.write_group("BTC_ret_1h", 0)
        opened.register()
        model = pickle.loads(opened.artifacts.model_pickles[1])
        model.missing = -999.0
        opened.artifacts.write("BTC_ret_1h_model.pkl", pickle.dumps(model))
        opened.settle()
        assert opened.refusals() == {"BTC_ret_1h": "crashed(timeout after 6 s)"}
        again = restart(opened)
        again.settle()
        assert (again.refusals(), again.detail("BTC").record.model["missing"]) == ({}, -999.0)


def test_what_was_refused_is_tried_again_when_the_plugins_are_others(
    registered: Any, restart: Callable[..., Any], open_stores: Any, sandbox: Sandbox, tmp_path: Path
) -> None:
    registered.artifacts.write("ETH_ret_1h_model.pkl", b"of a format that is still to come")
    registered.settle()
    assert list(registered.refusals()) == ["ETH_ret_1h"]
    plugins_dir = tmp_path / "plugins"
    plugins_dir.mkdir()
    (plugins_dir / "another.py").write_text(SLOW)
    open_stores.plugins = load_plugins(plugins_dir)
    again = restart(registered, sandbox=(counting := CountingSandbox(sandbox)))
    again.settle()
    assert (counting.n_jobs, list(again.refusals())) == (1, ["ETH_ret_1h"])
    third = restart(again, sandbox=(counting := CountingSandbox(sandbox)))
    third.settle()
    assert counting.n_jobs == 0


def test_a_worker_that_cannot_be_started_refuses_nothing_and_the_change_is_taken_later(
    registered: Any, sandbox: Sandbox
) -> None:
    from mmserver.errors import SandboxUnavailable

    closed = Sandbox("mmserver.catalog.ingest:handlers", {})
    closed.close()
    registered.artifacts.write_group("ETH_ret_1h", 5)
    registered.store.sandbox = closed
    registered.poll()
    with pytest.raises(SandboxUnavailable):
        registered.poll()
    assert (registered.refusals(), registered.seed("ETH"), registered.model.status) == ({}, 1, "ok")
    registered.store.sandbox = sandbox
    registered.settle()
    assert registered.seed("ETH") == 5


def test_reading_goes_on_while_something_is_refused(case: Any) -> None:
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        while not done.is_set():
            try:
                version = case.model.serving
                assert json.loads(
                    case.store.payloads.body(version, version.groups["ETH_ret_1h"], "payload", "identity").content
                )
            except BaseException as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for size in (0, 1, 100, 1000):
        case.artifacts.write("ETH_ret_1h_model.pkl", case.artifacts.model_pickles[1][:size])
        polled(case)
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
