"""What bots download: one content in every form and encoding, equal to the producer's model to the bit."""

import gzip
import json
import pickle
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest
import zstandard

from mmserver.catalog import gzip_splice
from mmserver.catalog.payloads import ByteCache
from mmserver.errors import GroupHasNoModel, NotConvertible

ENCODINGS = ("identity", "gzip", "br", "zstd")
DECODE: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompress(body),
}


# --- splicing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body_size", [0, 1, 2, 7, 8, 100, 32_767, 32_768, 65_536, 70_001, 300_000])
@pytest.mark.parametrize("head_size", [0, 1, 111])
@pytest.mark.parametrize("tail_size", [0, 1, 2])
def test_a_spliced_body_is_the_gzip_of_the_whole(body_size: int, head_size: int, tail_size: int) -> None:
    rng = np.random.default_rng(body_size)
    body = rng.integers(97, 101, body_size, dtype=np.uint8).tobytes()
    head, tail = b"h" * head_size, b"t" * tail_size
    spliced = gzip_splice.splice(head, gzip_splice.compress(body), tail)
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    assert unpacker.decompress(spliced) + unpacker.flush() == head + body + tail
    assert unpacker.eof
    assert not unpacker.unused_data


def test_incompressible_and_empty_bodies_splice_too() -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    for body in (b"", noise):
        assert gzip.decompress(gzip_splice.splice(b"{", gzip_splice.compress(body), b"}")) == b"{" + body + b"}"


def test_compressing_gives_the_same_bytes_each_time_and_any_reader_reads_them() -> None:
    text = b"0.12345," * 9999
    assert gzip_splice.compress(text) == gzip_splice.compress(text)
    assert gzip.decompress(gzip_splice.compress(text)) == text


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(alpha: Any) -> Any:
    alpha.artifacts.write_group("BTC_ret_1h", 2)
    alpha.artifacts.write_group("NOMODEL_ret_1h", without=("model.pkl",))
    alpha.register()
    return alpha


def body(opened: Any, form: str = "payload", encoding: str = "identity", symbol: str = "BTC") -> bytes:
    return opened.store.payloads.body(opened.model.serving, opened.group(symbol), form, encoding).content


@pytest.mark.parametrize("form", ["payload", "json", "ubj", "manifest"])
def test_every_encoding_decodes_to_the_same_bytes(served: Any, form: str) -> None:
    bodies = {encoding: DECODE[encoding](body(served, form, encoding)) for encoding in ENCODINGS}
    assert len(set(bodies.values())) == 1
    tags = {served.store.payloads.body(served.model.serving, served.group("BTC"), form, e).etag for e in ENCODINGS}
    assert tags == {served.store.payloads.etag(served.group("BTC"), form)}


def test_the_payload_has_the_fields_of_the_contract(served: Any) -> None:
    answer = json.loads(body(served))
    assert list(answer) == ["model_name", "symbol", "group_key", "version", "payload"]
    assert (answer["model_name"], answer["symbol"], answer["group_key"]) == ("alpha", "BTC", "BTC_ret_1h")
    assert answer["version"] == served.model.serving.label
    payload = answer["payload"]
    assert [row["factor_name"] for row in payload["dim_factors"]] == ["momentum", "volume", "spread"]
    assert payload["dim_factors"][1] == {"dim": 1, "factor_name": "volume", "kendall_tau": pytest.approx(0.02)}
    expected = {"dim": 3, "train_start": "2024-01-01", "train_end": "2024-06-30", "train_samples": 300, "seed": 2}
    assert {key: payload["metadata"][key] for key in expected} == expected
    assert payload["metadata"]["model"]["feature_order"] == ["momentum", "volume", "spread"]


def test_json_and_ubjson_predict_as_the_pickle_does(served: Any) -> None:
    import xgboost

    rng = np.random.default_rng(9)
    rows = rng.normal(size=(500, 3)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    expected = pickle.loads(served.artifacts.model_pickles[2]).predict(rows)
    payload_json = json.loads(body(served))["payload"]["model_json"].encode()
    assert payload_json == body(served, "json")
    for content in (payload_json, body(served, "ubj")):
        booster = xgboost.Booster(model_file=bytearray(content))
        assert booster.inplace_predict(rows).tobytes() == expected.tobytes()


def test_the_manifest_s_golden_rows_are_what_xgboost_predicts(served: Any) -> None:
    import hashlib

    import xgboost

    manifest = json.loads(body(served, "manifest"))
    assert (manifest["model_name"], manifest["group_key"]) == ("alpha", "BTC_ret_1h")
    assert manifest["feature_order"] == ["momentum", "volume", "spread"]
    for form in ("json", "ubj"):
        assert manifest["sha256"][form] == hashlib.sha256(body(served, form)).hexdigest()
    golden = manifest["golden"]
    rows = np.array([[np.nan if x is None else x for x in row] for row in golden["rows"]], dtype=np.float32)
    assert len(rows) > 10
    booster = xgboost.Booster(model_file=bytearray(body(served, "ubj")))
    for name, predict_type in (("margin", "margin"), ("prediction", "value")):
        native = booster.inplace_predict(rows, predict_type=predict_type)
        assert np.array(golden["outputs"][name], dtype=np.float32).ravel().tobytes() == native.tobytes()


def test_a_new_version_of_another_group_keeps_the_etag_and_tells_the_new_label(served: Any) -> None:
    before, etag = body(served), served.store.payloads.etag(served.group("BTC"), "payload")
    served.artifacts.write_group("ETH_ret_1h", 1)
    served.settle()
    assert served.store.payloads.etag(served.group("BTC"), "payload") == etag
    after = json.loads(body(served))
    assert after["version"] == served.model.serving.label != json.loads(before)["version"]
    assert after["payload"] == json.loads(before)["payload"]
    assert gzip.decompress(body(served, encoding="gzip")) == body(served)
    served.artifacts.write_group("BTC_ret_1h", 5)
    served.settle()
    assert served.store.payloads.etag(served.group("BTC"), "payload") != etag


def test_a_group_without_a_model_says_why(served: Any) -> None:
    assert served.store.payloads.forms(served.group("NOMODEL")) == []
    with pytest.raises(GroupHasNoModel, match="no model file"):
        body(served, symbol="NOMODEL")


def test_an_unknown_form_names_the_known_ones(served: Any) -> None:
    assert served.store.payloads.forms(served.group("BTC")) == ["payload", "json", "ubj", "manifest"]
    with pytest.raises(NotConvertible, match="payload, json, ubj, manifest"):
        body(served, "onnx")


def test_after_the_first_request_the_database_is_not_asked(served: Any) -> None:
    first = [body(served, form, encoding) for form in ("payload", "json", "ubj") for encoding in ENCODINGS]
    served.store.database.close()
    second = [body(served, form, encoding) for form in ("payload", "json", "ubj") for encoding in ENCODINGS]
    assert all(a is b for a, b in zip(first, second, strict=True))


# --- real files -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_dir(shared_artifacts: Path) -> Path:
    return shared_artifacts / "golden"


DIRECTORIES = ("daily_5d", "daily_5d_retrained", "kinds", "wide", "xgboost_1_7", "xgboost_2_1", "ambiguous")


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_every_real_model_predicts_what_its_own_library_did(
    alpha: Any, shared_artifacts: Path, golden_dir: Path, tmp_path: Path, directory: str
) -> None:
    import shutil

    import xgboost

    from mmserver.catalog.catalog import Actor
    from mmserver.catalog.registering import register_model

    cases = sorted(golden_dir.glob(f"{directory}__*.json"))
    assert cases
    for case in cases:
        group_key = case.stem.partition("__")[2]
        source = tmp_path / case.stem
        source.mkdir()
        for file in (shared_artifacts / directory).glob(f"{group_key}_*"):
            shutil.copy2(file, source)
        model = register_model(alpha.store, case.stem, str(source), Actor("test"))
        group = model.serving.groups[group_key]
        golden = json.loads(case.read_text())
        rows = np.array([[np.nan if x is None else x for x in row] for row in golden["rows"]], dtype=np.float32)
        native = np.array(golden["native"], dtype=np.float32)
        payload = json.loads(alpha.store.payloads.body(model.serving, group, "payload", "identity").content)["payload"]
        for content in (
            payload["model_json"].encode(),
            alpha.store.payloads.body(model.serving, group, "ubj", "identity").content,
        ):
            booster = xgboost.Booster(model_file=bytearray(content))
            predicted = booster.inplace_predict(rows, validate_features=False)
            assert _as_native(predicted, native).tobytes() == native.tobytes(), case.stem


def _as_native(predicted: Any, native: Any) -> Any:
    """Classifiers give both classes' probabilities in some files: the complement is computed as XGBoost's wrapper does."""
    if predicted.shape != native.shape and native.ndim == 2 and native.shape[1] == 2:
        return np.vstack((1.0 - predicted, predicted)).transpose().astype(np.float32)
    return predicted.reshape(native.shape)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_cache_holds_no_more_than_its_bound_and_drops_what_was_used_least_recently() -> None:
    cache = ByteCache(30)
    for key in "abc":
        cache.get(key, lambda: b"0123456789")
    cache.get("a", lambda: b"not called")
    cache.get("d", lambda: b"0123456789")
    built: list[str] = []
    for key in "acdb":
        cache.get(key, lambda key=key: built.append(key) or b"0123456789")
    assert built == ["b"]


@pytest.mark.parametrize("limit_bytes", [0, 5])
def test_what_is_larger_than_the_cache_is_given_but_not_held(limit_bytes: int) -> None:
    cache = ByteCache(limit_bytes)
    for content in (b"first one", b"second one"):
        assert cache.get("key", lambda content=content: content) == content


def test_an_error_is_the_caller_s_and_is_not_held() -> None:
    cache = ByteCache(100)

    def fail() -> bytes:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.get("key", fail)
    assert cache.get("key", lambda: b"yes") == b"yes"


def test_what_several_miss_is_built_once() -> None:
    cache = ByteCache(100)
    gate = threading.Barrier(8)
    built: list[int] = []
    answers: list[bytes] = []

    def ask() -> None:
        gate.wait()
        answers.append(cache.get("key", build))

    def build() -> bytes:
        built.append(1)
        threading.Event().wait(0.05)
        return b"content"

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (answers, built) == ([b"content"] * 8, [1])
    assert not cache._building


def test_a_manifest_that_says_something_else_has_another_tag(served: Any) -> None:
    before = {form: served.store.payloads.etag(served.group("BTC"), form) for form in ("payload", "manifest")}
    bare = pickle.loads(served.artifacts.model_pickles[2]).get_booster()
    served.artifacts.write("BTC_ret_1h_model.pkl", pickle.dumps(bare))
    served.refresh()
    assert json.loads(body(served, "manifest"))["details"].get("estimator") is None
    assert served.store.payloads.etag(served.group("BTC"), "payload") == before["payload"]
    assert served.store.payloads.etag(served.group("BTC"), "manifest") != before["manifest"]
