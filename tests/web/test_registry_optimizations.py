"""Forms of registered models over HTTP: made, judged, registered, served, and kept out."""

import fcntl
import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.registry.optimizing import LOCK_FILE
from mmserver.storage.audit import AuditEntry, list_audit

networks: Any = pytest.importorskip("conversion.networks", reason="graphs are made with the onnx package")

ROOT = "/api/ml/registry/models"
WINDOW = np.random.default_rng(5).normal(size=(6, 16)).round(3).tolist()
_numbers = itertools.count()


@pytest.fixture(scope="module")
def site(make_web: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Models are told apart by their names, so that tests can share it."""
    return make_web(tmp_path_factory.mktemp("optimizing"))


@pytest.fixture(scope="module")
def network() -> bytes:
    """A small one."""
    content: bytes = networks.recurrent(hidden=64)
    return content


@pytest.fixture(scope="module")
def large() -> bytes:
    """One that INT8 makes smaller and quicker, and nothing else of."""
    content: bytes = networks.recurrent(hidden=512)
    return content


@pytest.fixture
def name() -> str:
    """A model's name that no other test has."""
    return f"network-{next(_numbers)}"


def register(site: Any, name: str, content: bytes, suffix: str = ".onnx", **fields: Any) -> Any:
    path = site.directory / f"{name}{suffix}"
    path.write_bytes(content)
    response = site.client.post(ROOT, json={"name": name, "version": "1.0.0", "path": str(path)} | fields)
    assert response.status_code == 201, response.text
    return response.json


def optimize(site: Any, name: str, *variants: str, status: int = 200, **more: Any) -> Any:
    """The reports, or the problem."""
    response = site.client.post(f"{ROOT}/{name}/1.0.0/optimize", json={"variants": variants, **more})
    assert response.status_code == status, response.text
    return response.json["items"] if status == 200 else response.json


def labels(site: Any, name: str) -> list[str]:
    return [version["version"] for version in site.json(f"{ROOT}/{name}")["versions"]]


def audit(site: Any, name: str) -> list[AuditEntry]:
    with site.store.database.read() as connection:
        return [entry for entry in reversed(list_audit(connection, limit=1000)) if entry.target == name]


def infer(site: Any, name: str, version: str) -> list[float]:
    inputs = [{"name": "features", "shape": [1, 6, 16], "datatype": "FP32", "data": [WINDOW]}]
    response = site.client.post(f"/v2/models/{name}/versions/{version}/infer", json={"inputs": inputs})
    assert response.status_code == 200, response.text
    data: list[float] = response.json["outputs"][0]["data"]
    return data


# --- what passes ------------------------------------------------------------------------------------------------------


def test_an_int8_form_is_registered_promoted_served_and_rolled_back(site: Any, name: str, large: bytes) -> None:
    register(site, name, large, tags={"desk": "fx"}, training_params={"hidden": 512})
    site.client.post(f"{ROOT}/{name}/1.0.0/promote")
    [report] = optimize(site, name, "int8_dynamic")
    assert (report["accepted"], report["version"], report["reasons"]) == (True, "1.0.0+int8", [])
    assert report["size_bytes"] < report["source_size_bytes"] / 3
    assert report["timing"]["p50_ms"] < report["source_timing"]["p50_ms"]
    assert labels(site, name) == ["1.0.0", "1.0.0+int8"]
    form = site.json(f"{ROOT}/{name}/1.0.0+int8")
    assert (form["derived_from"], form["parity"], form["optimizations"]) == ("1.0.0", report["parity"], [])
    assert (form["tags"], form["training_params"]) == ({"desk": "fx"}, {"hidden": 512})
    assert form["size_bytes"] == report["size_bytes"]
    assert site.json(f"{ROOT}/{name}")["production_version"] == "1.0.0"
    exact = infer(site, name, "production")
    site.client.post(f"{ROOT}/{name}/1.0.0+int8/promote")
    near = infer(site, name, "production")
    assert near == infer(site, name, "1.0.0+int8") != exact
    assert np.abs(np.subtract(near, exact)).max() <= report["parity"]["max_abs_difference"] * 2
    assert site.client.post(f"{ROOT}/{name}/rollback").json["version"] == "1.0.0"
    assert infer(site, name, "production") == exact


def test_what_came_of_it_stays_with_the_version_and_is_audited(site: Any, name: str, network: bytes) -> None:
    register(site, name, network)
    made = optimize(site, name, "fp32", "int8_dynamic", "int8_static", benchmark=True)
    assert [report["variant"] for report in made] == ["fp32", "int8_dynamic", "int8_static"]
    assert [report["timing"]["n_calls"] for report in made] == [1000] * 3
    assert site.json(f"{ROOT}/{name}/latest/optimizations")["items"] == made
    assert site.json(f"{ROOT}/{name}/1.0.0")["optimizations"] == made
    entries = [entry for entry in audit(site, name) if entry.action == "version.optimized"]
    assert [entry.detail["variant"] for entry in entries] == ["fp32", "int8_dynamic", "int8_static"]
    assert [entry.detail["result"] for entry in entries] == [report["version"] for report in made]
    assert entries[0].actor == "anonymous@127.0.0.1"


def test_the_same_again_changes_nothing_but_the_report(site: Any, name: str, network: bytes) -> None:
    register(site, name, network)
    [first] = optimize(site, name, "fp32")
    before = site.json(f"{ROOT}/{name}/1.0.0+fp32")
    [second] = optimize(site, name, "fp32")
    assert (second["version"], second["accepted"]) == ("1.0.0+fp32", True)
    assert second["created_at"] > first["created_at"]
    assert site.json(f"{ROOT}/{name}/1.0.0+fp32") == before
    assert site.json(f"{ROOT}/{name}/1.0.0/optimizations")["items"] == [second]


def test_a_form_means_what_its_source_means(site: Any, name: str, network: bytes) -> None:
    """A graph says nothing of its classes: they are said at registration, here in an order that is not the usual one."""
    options = {"classes": ["BUY", "SELL", "HOLD"], "objective": "multiclass"}
    register(
        site, name, network, options=options, factors=[f"factor_{at}" for at in range(16)], info={"output": "logits"}
    )
    optimize(site, name, "fp32")

    def decision(version: str) -> Any:
        asked = {"model_name": name, "symbol": "X", "features": WINDOW, "model_version": version}
        answer = site.client.post("/predict", json=asked)
        assert answer.status_code == 200, answer.text
        return answer.json["prediction"]

    scores = infer(site, name, "1.0.0")
    assert decision("1.0.0")["direction"] == options["classes"][int(np.argmax(scores))]
    assert decision("1.0.0+fp32") == decision("1.0.0")
    fields = ("factor_count", "input_shape", "kind", "n_features", "model_type")
    source, form = (site.json(f"{ROOT}/{name}/{label}") for label in ("1.0.0", "1.0.0+fp32"))
    assert {field: source[field] for field in fields} == {field: form[field] for field in fields}


def test_without_registering_there_are_reports_only(site: Any, name: str, large: bytes) -> None:
    register(site, name, large)
    [report] = optimize(site, name, "int8_dynamic", register=False)
    assert (report["accepted"], report["version"]) == (True, None)
    assert labels(site, name) == ["1.0.0"]
    assert site.json(f"{ROOT}/{name}/1.0.0/optimizations")["items"] == []


def test_a_try_that_registers_nothing_leaves_what_is_known_of_the_forms_that_are(
    site: Any, name: str, network: bytes
) -> None:
    register(site, name, network)
    optimize(site, name, "fp32")
    before = site.json(f"{ROOT}/{name}/1.0.0/optimizations")["items"]
    optimize(site, name, "fp32", register=False)
    assert site.json(f"{ROOT}/{name}/1.0.0/optimizations")["items"] == before
    assert before[0]["version"] == "1.0.0+fp32"


def test_real_rows_are_taken_in_the_model_s_shape(site: Any, name: str, network: bytes) -> None:
    register(site, name, network)
    [report] = optimize(site, name, "fp32", register=False, rows=[WINDOW, WINDOW, [[1e300] * 16] * 6])
    assert report["notes"][0] == "1 rows with numbers that are not finite were left out"
    assert optimize(site, name, "fp32", status=422, rows=[[1.0, 2.0]])["code"] == "features_invalid"
    assert optimize(site, name, "fp32", status=400, rows=[])["errors"][0]["loc"] == "rows"


def test_a_removed_form_leaves_its_report(site: Any, name: str, network: bytes) -> None:
    register(site, name, network)
    optimize(site, name, "fp32")
    assert site.client.delete(f"{ROOT}/{name}/1.0.0+fp32").status_code == 204
    [report] = site.json(f"{ROOT}/{name}/1.0.0/optimizations")["items"]
    assert (report["accepted"], report["version"]) == (True, None)


def test_a_form_gets_a_number_where_its_label_meant_other_content_before(site: Any, name: str, network: bytes) -> None:
    register(site, name, network)
    register(site, name, networks.dense(), version="1.0.0+fp32")
    assert site.client.delete(f"{ROOT}/{name}/1.0.0+fp32").status_code == 204
    [report] = optimize(site, name, "fp32")
    assert (report["accepted"], report["version"]) == (True, "1.0.0+fp32.2"), report
    form = site.json(f"{ROOT}/{name}/1.0.0+fp32.2")
    assert form["derived_from"] == "1.0.0"
    assert labels(site, name) == [
        "1.0.0",
        "1.0.0+fp32.2",
    ]  # not newer than its source, so that nothing serves it by itself
    assert infer(site, name, "1.0.0+fp32.2") == pytest.approx(infer(site, name, "1.0.0"), abs=1e-5)
    [again] = optimize(site, name, "fp32")
    assert again["version"] == "1.0.0+fp32.2"
    assert site.client.delete(f"{ROOT}/{name}/1.0.0+fp32.2").status_code == 204
    [back] = optimize(site, name, "fp32")
    assert back["version"] == "1.0.0+fp32.2"  # the content that it meant
    assert site.json(f"{ROOT}/{name}/{back['version']}")["sha256"] == form["sha256"]


def test_reports_go_with_the_version_that_they_are_of(site: Any, name: str, network: bytes) -> None:
    register(site, name, network)
    optimize(site, name, "fp32")
    register(site, name, network, version="2.0.0")
    for label in ("1.0.0+fp32", "1.0.0"):
        assert site.client.delete(f"{ROOT}/{name}/{label}").status_code == 204
    assert labels(site, name) == ["2.0.0"]
    register(site, name, network)
    assert site.json(f"{ROOT}/{name}/1.0.0/optimizations")["items"] == []


# --- what is kept out -------------------------------------------------------------------------------------------------


def test_a_form_that_is_bigger_is_kept_out_with_the_reason(site: Any, name: str) -> None:
    register(site, name, networks.dense())
    [report] = optimize(site, name, "int8_dynamic")
    assert (report["accepted"], report["version"]) == (False, None)
    assert report["reasons"][0].startswith("bigger: ")
    assert report["size_bytes"] > report["source_size_bytes"]
    assert labels(site, name) == ["1.0.0"]
    [entry] = [entry for entry in audit(site, name) if entry.action == "version.optimized"]
    assert entry.detail["reasons"] == report["reasons"]


def test_a_label_with_other_content_keeps_a_form_out(site: Any, name: str, network: bytes) -> None:
    register(site, name, network)
    register(site, name, networks.dense(), version="1.0.0+fp32")
    [report] = optimize(site, name, "fp32")
    assert (report["accepted"], report["version"]) == (False, None)
    assert report["reasons"] == [
        f"not registered: {name} 1.0.0+fp32 is registered with other content; choose another version"
    ]


def test_what_has_nothing_to_quantise_is_a_reason(site: Any, name: str) -> None:
    register(site, name, networks.doubling())
    [report] = optimize(site, name, "int8_static")
    assert (report["size_bytes"], report["timing"], report["parity"]) == (None, None, None)
    assert "it has no Conv, MatMul, Gemm with constant float32 weights" in report["reasons"][0]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_trees_are_refused_by_name(site: Any, name: str, xgboost_text: Callable[[int, int], bytes]) -> None:
    register(site, name, xgboost_text(3, 0), ".json")
    problem = optimize(site, name, "fp32", status=422)
    assert problem["code"] == "not_optimizable"
    assert "run exactly as they are already" in problem["detail"]
    assert site.json(f"{ROOT}/{name}/1.0.0/optimizations")["items"] == []
    assert [entry.action for entry in audit(site, name)] == ["version.registered"]


def test_a_form_of_a_form_is_refused_and_the_source_is_named(site: Any, name: str, network: bytes) -> None:
    register(site, name, network)
    [report] = optimize(site, name, "fp32")
    assert report["version"] == "1.0.0+fp32"
    response = site.client.post(f"{ROOT}/{name}/1.0.0+fp32/optimize", json={"variants": ["int8_dynamic"]})
    assert (response.status_code, response.json["code"]) == (422, "not_optimizable")
    assert "optimise 1.0.0 instead" in response.json["detail"]
    assert sorted(labels(site, name)) == ["1.0.0", "1.0.0+fp32"]


def test_what_is_derived_from_another_otherwise_has_forms_of_its_own(site: Any, name: str, network: bytes) -> None:
    register(site, name, network)
    path = site.directory / f"{name}.onnx"
    path.write_bytes(networks.recurrent(hidden=72))
    tuned = {"name": name, "version": "1.0.0+tuned", "path": str(path), "derived_from": "1.0.0"}
    assert site.client.post(ROOT, json=tuned).status_code == 201
    response = site.client.post(f"{ROOT}/{name}/1.0.0+tuned/optimize", json={"variants": ["fp32"]})
    assert [item["version"] for item in response.json["items"]] == ["1.0.0+tuned.fp32"]


def test_a_watched_model_is_refused(site: Any, name: str, group_writer: Callable[..., None], tmp_path: Any) -> None:
    group_writer(tmp_path, "BTCUSDT_ret_1h")
    register_model(site.store, name, str(tmp_path), Actor("test"))
    response = site.client.post(f"{ROOT}/{name}/latest/optimize", json={})
    assert (response.status_code, response.json["code"]) == (409, "wrong_model_kind")


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        pytest.param({"variants": []}, "variants", id="none"),
        pytest.param({"variants": ["fp32", "int4"]}, "variants.1", id="unknown"),
        pytest.param({"variants": "fp32"}, "variants", id="text"),
        pytest.param({"benchmark": 1}, "benchmark", id="number"),
    ],
)
def test_a_wish_that_does_not_fit_is_refused(site: Any, name: str, body: Any, loc: str) -> None:
    register(site, name, networks.dense())
    response = site.client.post(f"{ROOT}/{name}/1.0.0/optimize", json=body)
    assert (response.status_code, response.json["code"]) == (400, "request_invalid")
    assert [error["loc"] for error in response.json["errors"]] == [loc]


def test_a_missing_extra_is_named(site: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    register(site, name, networks.dense())
    monkeypatch.setitem(sys.modules, "onnx", None)
    problem = optimize(site, name, "fp32", status=400)
    assert problem["code"] == "extra_missing"
    assert "mmserver[onnx]" in problem["detail"]


def test_a_second_one_at_the_same_time_is_to_try_later(site: Any, name: str) -> None:
    """Also beside a command, or another process of this server: who has the file locked has the turn."""
    register(site, name, networks.dense())
    descriptor = os.open(site.store.settings.data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    response = site.client.post(f"{ROOT}/{name}/1.0.0/optimize", json={})
    assert (response.status_code, response.json["code"]) == (503, "overloaded")
    assert response.headers["Retry-After"]
    os.close(descriptor)
    optimize(site, name, "fp32")


def test_a_read_only_instance_makes_nothing(make_web: Callable[..., Any], site: Any, name: str) -> None:
    register(site, name, networks.dense())
    read_only = make_web(site.directory, read_only=True)
    problem = optimize(read_only, name, "fp32", status=403)
    assert problem["code"] == "read_only"
    assert read_only.json(f"{ROOT}/{name}/1.0.0/optimizations")["items"] == []


def test_a_form_that_hangs_costs_its_time_and_the_server_goes_on(
    make_web: Callable[..., Any], site: Any, name: str, network: bytes
) -> None:
    register(site, name, network)
    impatient = make_web(site.directory, conversion_timeout_s=0.2)
    [report] = optimize(impatient, name, "int8_dynamic")
    assert (report["accepted"], report["reasons"]) == (False, ["crashed(timeout after 0.2 s)"])
    assert len(infer(impatient, name, "1.0.0")) == 3
    assert site.json(f"{ROOT}/{name}/1.0.0/optimizations")["items"] == [report]
    assert optimize(site, name, "fp32")[0]["accepted"]
