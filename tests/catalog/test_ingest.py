"""Whether the files of a group belong together, and that whatever is wrong with one group is that group's trouble only."""

import gzip
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.ingest import IngestRequest, SourceFile, ingest_group
from mmserver.errors import ArtifactInvalid
from mmserver.plugin_loading import Plugins, load_plugins
from mmserver.sandbox.pool import Sandbox

MODEL = "BTC_ret_1h_model.pkl"


@pytest.fixture
def ingest(plugins: Plugins, model_pickles: dict[int, bytes]) -> Callable[..., Any]:
    """Reads a group's files, given by their suffix, as the worker does; the model is that of training 0 unless named."""

    def run(group_key: str = "BTC_ret_1h", **files: bytes | None) -> Any:
        named = {"model_pkl": model_pickles[0], **files}
        sources = [
            SourceFile(f"{group_key}_{kind.replace('_', '.')}", data)
            for kind, data in named.items()
            if data is not None
        ]
        return ingest_group(IngestRequest(group_key, tuple(sources)), plugins)

    return run


def model_json(model_pickle: bytes, *, names: list[str] | None = None) -> bytes:
    booster = pickle.loads(model_pickle).get_booster()
    if names is not None:
        booster.feature_names = names
    return bytes(booster.save_raw("json"))


FACTORS = b"momentum\nvolume\nspread\n"


@pytest.mark.parametrize(
    ("files", "reason", "said"),
    [
        pytest.param({"factors_txt": b"a\nb\n"}, "inconsistent_pair", "3 inputs", id="fewer factors"),
        pytest.param({"factors_txt": b"a\nb\nc\nd\n"}, "inconsistent_pair", "4 factors", id="more factors"),
        pytest.param({"factors_txt": b"a\nb\na\n"}, "malformed", "twice", id="factor twice"),
        pytest.param({"factors_txt": b"\n"}, "empty", "no factor", id="no factors"),
        pytest.param({"factors_txt": b"a\n\nb\n"}, "malformed", "line 2", id="line missing"),
        pytest.param({"factors_txt": b"a\xff\n"}, "malformed", "UnicodeDecodeError", id="not UTF-8"),
        pytest.param({"info_pkl": pickle.dumps({"dim": 5})}, "inconsistent_pair", "dim 5", id="info dim"),
        pytest.param({"factors_txt": FACTORS, "info_pkl": pickle.dumps({"factors": ["a", "b", "c"]})},
                     "inconsistent_pair", "dim 0", id="info factors"),
        pytest.param({"factors_txt": FACTORS, "info_pkl": pickle.dumps({"factors": ["volume", "momentum", "spread"]})},
                     "inconsistent_pair", "another order", id="info order"),
        pytest.param({"info_pkl": pickle.dumps([1])}, "wrong_type", "mapping", id="info is a list"),
        pytest.param({"ic_csv": b""}, "empty", "no header", id="empty table"),
        pytest.param({"ic_csv": b"factor,ic\na,1,2\n"}, "torn", "row 2", id="torn table"),
        pytest.param({"ic_csv": b"factor,ic,ic\na,1,2\n"}, "malformed", "one name", id="column twice"),
        pytest.param({"model_pkl": pickle.dumps({"a": 1})}, "wrong_type", "dict", id="model is a dict"),
        pytest.param({"model_pkl": b"\x80\x04]."}, "wrong_type", "list", id="model is an empty list"),
        pytest.param({"model_pkl": None, "info_pkl": pickle.dumps({})}, "incomplete", "neither", id="info alone"),
        pytest.param({"factors_txt": b"".join(b"f%d\n" % n for n in range(100_001)), "model_pkl": None},
                     "too_large", "100001 factors", id="more factors than a page could list"),
        pytest.param({"ic_csv": b"factor,note\n" + b"".join(b"f%d,%s\n" % (n, b"x" * 100_000) for n in range(400))},
                     "too_large", "bytes as JSON", id="a table that no page could show"),
        pytest.param({"weird_txt": b"x"}, "unsupported", "no plugin", id="unclaimed"),
    ],
)  # fmt: skip
def test_a_group_that_does_not_fit_together_is_refused_with_its_reason(
    ingest: Callable[..., Any], files: dict[str, bytes], reason: str, said: str
) -> None:
    with pytest.raises(ArtifactInvalid, match=said) as refused:
        ingest(**files)
    assert refused.value.values["reason"] == reason


@pytest.mark.parametrize("names", [["a", "b", "c"], ["volume", "momentum", "spread"]])
def test_a_model_that_names_other_inputs_is_refused(
    ingest: Callable[..., Any], model_pickles: dict[int, bytes], names: list[str]
) -> None:
    with pytest.raises(ArtifactInvalid, match="inconsistent_pair"):
        ingest(model_pkl=None, model_json=model_json(model_pickles[0], names=names), factors_txt=FACTORS)
    names_of_the_model = ingest(model_pkl=None, model_json=model_json(model_pickles[0], names=names)).factors
    assert list(names_of_the_model) == names


def test_without_names_anywhere_the_factors_are_numbered(ingest: Callable[..., Any]) -> None:
    assert ingest().factors == ("f0", "f1", "f2")


def test_a_pickle_and_the_json_made_from_it_are_one_model(
    ingest: Callable[..., Any], model_pickles: dict[int, bytes]
) -> None:
    both = ingest(model_json=model_json(model_pickles[0]), factors_txt=FACTORS)
    assert both.payload_sha256 == ingest(factors_txt=FACTORS).payload_sha256


def test_a_json_that_predicts_something_else_than_the_pickle_is_refused(
    ingest: Callable[..., Any], model_pickles: dict[int, bytes]
) -> None:
    with pytest.raises(ArtifactInvalid, match="inconsistent_pair") as refused:
        ingest(model_json=model_json(model_pickles[1]))
    assert refused.value.values["file"] == "BTC_ret_1h_model.json"


def test_one_leaf_that_differs_is_enough(ingest: Callable[..., Any], model_pickles: dict[int, bytes]) -> None:
    document = json.loads(model_json(model_pickles[0]))
    tree = document["learner"]["gradient_booster"]["model"]["trees"][-1]
    leaf = tree["left_children"].index(-1)
    tree["split_conditions"][leaf] += 0.001
    with pytest.raises(ArtifactInvalid, match="inconsistent_pair"):
        ingest(model_json=json.dumps(document).encode())


@pytest.fixture(scope="module")
def zero_is_missing() -> Any:
    """An estimator for which 0, one of the probe rows' values, means missing."""
    import xgboost

    rng = np.random.default_rng(4)
    rows = rng.integers(-3, 4, size=(300, 3)).astype(np.float32)
    return xgboost.XGBRegressor(n_estimators=6, max_depth=3, n_jobs=1, missing=0).fit(rows, rows @ [1.0, 0.5, -2.0])


@pytest.mark.parametrize("with_json", [False, True], ids=["pickle", "pickle and JSON"])
def test_a_value_that_means_missing_may_be_among_the_probe_rows(
    ingest: Callable[..., Any], zero_is_missing: Any, with_json: bool
) -> None:
    text = bytes(zero_is_missing.get_booster().save_raw("json")) if with_json else None
    group = ingest(model_pkl=pickle.dumps(zero_is_missing), model_json=text)
    manifest = json.loads(group.manifest)
    assert manifest["missing"] == {"nan": True, "value": 0.0}
    rows = np.array([[np.nan if x is None else x for x in row] for row in manifest["golden"]["rows"]], np.float32)
    assert (rows == 0).any()
    margins = np.array(manifest["golden"]["outputs"]["margin"], np.float32).ravel()
    assert margins.tobytes() == zero_is_missing.predict(rows, output_margin=True).tobytes()


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        pytest.param("v3", {"info": "v3"}, id="text"),
        pytest.param({"depth": 3, "missing": 5}, {"depth": 3, "missing": None}, id="mapping"),
    ],
)
def test_what_the_info_file_says_of_the_model_stands_beside_our_own_facts(
    ingest: Callable[..., Any], said: object, kept: dict[str, object]
) -> None:
    group = ingest(info_pkl=pickle.dumps({"model": said}))
    facts = json.loads(gzip.decompress(group.payload_gzip))["metadata"]["model"]
    assert {name: facts[name] for name in kept} == kept
    assert facts["kind"] == "xgboost"


def test_a_json_of_a_newer_xgboost_is_refused_naming_it(
    ingest: Callable[..., Any], model_pickles: dict[int, bytes]
) -> None:
    document = json.loads(model_json(model_pickles[0]))
    document["version"] = [99, 1, 0]
    with pytest.raises(ArtifactInvalid, match=r"99\.1"):
        ingest(model_pkl=None, model_json=json.dumps(document).encode())


ODD_INFOS: list[dict[Any, Any]] = [
    {"train_samples": 1e300},
    {"train_samples": 2**100, "dim": 3},
    {"n_features": 1e30},
    {"big": 2**64, "bigger": -(2**200)},
    {"metrics": {"ic": 2**400}},
    {"ic": 10**100},
    {1: 2, None: 3, (1, 2): 4},
    {"nan": float("nan"), "inf": float("-inf"), "dim": float("nan")},
    {"text": "\ud800".encode("utf-8", "surrogatepass")},
    {"deep": [[[[[[[[[[1]]]]]]]]]]},
    {"train_start": ["a"], "symbol": {"a": 1}},
    {"dim": "3"},
    {"factors": ["a", "b"]},
    {"": "", " ": 1},
    {},
]


@pytest.mark.parametrize("info", [pytest.param(info, id=str(at)) for at, info in enumerate(ODD_INFOS)])
def test_an_odd_info_file_is_shown_and_does_not_keep_its_group_from_being_served(
    alpha: Any, info: dict[Any, Any]
) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0, info=info)
    alpha.register()
    assert alpha.refusals() == {}
    content = alpha.store.payloads.body(alpha.model.serving, alpha.group("BTC"), "payload", "identity").content
    assert json.loads(content)["payload"]["metadata"]["dim"] == 3
    assert alpha.detail("BTC").record.info is not None


def test_text_that_is_not_utf_8_is_refused_alone(alpha: Any) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0, info={"text": "\ud800"})
    alpha.artifacts.write_group("ETH_ret_1h", 1)
    alpha.register()
    assert list(alpha.model.serving.groups) == ["ETH_ret_1h"]


def test_a_predictor_that_fails_refuses_its_group_only(
    open_alpha: Callable[..., Any], tmp_path: Path, model_pickles: dict[int, bytes]
) -> None:
    from mmserver.sandbox.pool import Sandbox

    plugins_dir = tmp_path / "plugins"
    plugins_dir.mkdir()
    (plugins_dir / "failing.py").write_text(
        "from mmserver import hookimpl\n"
        "@hookimpl(tryfirst=True)\n"
        "def mmserver_load_predictor(model):\n"
        "    if model.feature_names and 'bad' in model.feature_names:\n"
        "        raise RuntimeError('this predictor cannot')\n"
        "    return None\n"
    )
    load_plugins(plugins_dir)
    with Sandbox("mmserver.catalog.ingest:handlers", {"plugins_dir": str(plugins_dir)}) as sandbox:
        opened = open_alpha(sandbox=sandbox)
        opened.artifacts.write_group("BTC_ret_1h", 0)
        data = model_json(model_pickles[1], names=["bad", "b", "c"])
        opened.artifacts.write("ETH_ret_1h_model.json", data)
        opened.register()
        assert list(opened.model.serving.groups) == ["BTC_ret_1h"]
        [refusal] = opened.model.refusals
        assert (refusal.group_key, refusal.reason) == ("ETH_ret_1h", "plugin_failed")
        assert "this predictor cannot" in refusal.detail


# --- which of two forms is used ---------------------------------------------------------------------------------------


def write_pair(alpha: Any, *, json_seed: int, json_age_s: float) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0)
    path = alpha.artifacts.write("BTC_ret_1h_model.json", model_json(alpha.artifacts.model_pickles[json_seed]))
    written = (alpha.artifacts.path / MODEL).stat().st_mtime_ns
    os.utime(path, ns=(written, written - int(json_age_s * 1e9)))


def test_a_json_that_is_older_than_its_pickle_is_ignored(alpha: Any) -> None:
    write_pair(alpha, json_seed=1, json_age_s=1)
    assert alpha.register().status == "ok"
    assert [artifact.name for artifact in alpha.detail("BTC").artifacts if "model" in artifact.name] == [MODEL]


@pytest.mark.parametrize("age_s", [0, -1])
def test_a_json_as_old_or_newer_must_be_the_same_model(alpha: Any, age_s: float) -> None:
    write_pair(alpha, json_seed=0, json_age_s=age_s)
    alpha.artifacts.write_group("ETH_ret_1h", 2)
    alpha.register()
    assert len(alpha.detail("BTC").artifacts) == 5
    write_pair(alpha, json_seed=1, json_age_s=age_s)
    alpha.settle()
    assert alpha.refusals() == {"BTC_ret_1h": "inconsistent_pair"}
    assert alpha.seed("BTC") == 0


def test_the_real_directory_with_a_json_beside_its_pickle_is_taken(alpha: Any, shared_artifacts: Path) -> None:
    from mmserver.catalog.catalog import Actor
    from mmserver.catalog.registering import register_model

    model = register_model(alpha.store, "real", str(shared_artifacts / "daily_5d"), Actor("test"))
    assert (model.status, len(model.serving.groups)) == ("ok", 3)


def test_real_ambiguous_artifacts_are_refused_naming_both(alpha: Any, shared_artifacts: Path) -> None:
    from mmserver.catalog.catalog import Actor
    from mmserver.catalog.registering import register_model
    from mmserver.errors import AmbiguousSymbols

    with pytest.raises(AmbiguousSymbols, match="SP500_ret_1d and SP500_ret_5d"):
        register_model(alpha.store, "real", str(shared_artifacts / "ambiguous"), Actor("test"))


def test_retraining_real_artifacts_is_one_version_with_every_group_updated(alpha: Any, shared_artifacts: Path) -> None:
    import shutil

    shutil.copytree(shared_artifacts / "daily_5d", alpha.artifacts.path, dirs_exist_ok=True)
    alpha.register()
    for file in (shared_artifacts / "daily_5d_retrained").iterdir():
        shutil.copyfile(file, alpha.artifacts.path / file.name)
    result = alpha.refresh()
    assert len(result.updated) == 3
    assert alpha.model.status == "ok"


LYING_WORKER = """
import msgspec

def make(options):
    def answer(request):
        n_asked = len(msgspec.msgpack.decode(request))
        lie = {"error": {"file": "f" * 100_000, "reason": "torn", "detail": "told"}, "group": None}
        return msgspec.msgpack.encode([lie] * (n_asked + options["n_more"]))
    return {"ingest_groups": answer}
"""


@pytest.mark.parametrize(("n_more", "reason"), [(1, "crashed"), (-1, "crashed"), (0, "torn")])
def test_a_worker_that_answers_for_other_groups_refuses_those_it_was_asked_for(
    open_alpha: Callable[..., Any], restart: Callable[..., Any], tmp_path: Path, n_more: int, reason: str
) -> None:
    (tmp_path / "lying_worker.py").write_text(LYING_WORKER)
    opened = open_alpha()
    for group_key in ("BTC_ret_1h", "ETH_ret_1h"):
        opened.artifacts.write_group(group_key, 1)
    opened.register()
    with Sandbox("lying_worker:make", {"n_more": n_more}, extra_paths=[tmp_path]) as lying:
        again = restart(opened, sandbox=lying)
        for group_key in ("BTC_ret_1h", "ETH_ret_1h"):
            again.artifacts.write_group(group_key, 2)
        again.settle()
        assert again.refusals() == {"BTC_ret_1h": reason, "ETH_ret_1h": reason}
        assert (again.seed("BTC"), again.seed("ETH")) == (1, 1)
        assert all(len(refusal.file) <= 2000 for refusal in again.model.refusals)
