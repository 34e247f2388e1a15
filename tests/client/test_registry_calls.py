"""What goes over the wire for the registry and for A/B tests, and what its answers become: by both clients."""

import email.parser
import email.policy
import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.client import Conflict, NotFound, RequestRefused, Retries, ServerUnavailable, registry_answers
from tests.client.conftest import Ask, Misbehaving, answer
from tests.e2e.conftest import FACTORS, Artifacts, Server

Make = Callable[..., Misbehaving]
FORM = {
    "variant": "int8_dynamic", "accepted": False, "version": None, "reasons": ["bigger"], "notes": ["n"], "size_bytes": 2,
    "source_size_bytes": 1, "timing": {"p50_ms": 0.1, "p99_ms": 0.2, "n_calls": 50},
    "source_timing": {"p50_ms": 0.3, "p99_ms": 0.4, "n_calls": 50}, "parity": {"rows": 3}, "class_agreement": 0.99,
    "boundary_agreement": 0.9, "n_not_finite": 0, "created_at": "2026-01-03T00:00:00Z", "of_a_later_release": 1,
}  # fmt: skip
ITEM = {
    "name": "net", "version": "1.0.0", "stage": "Production", "model_type": "LSTM", "description": "d",
    "metrics": {"ic": 0.1}, "training_params": {"lr": 0.01}, "tags": {"a": "b"}, "kind": "onnx", "n_features": 6600,
    "input_shape": [60, 110], "optimizations": [FORM], "factor_count": 110, "size_mb": 1.5, "size_bytes": 1572864, "sha256": "ab",
    "derived_from": None, "parity": {"passed": True}, "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-02T00:00:00Z", "of_a_later_release": 1,
}  # fmt: skip
MODELS = "/api/ml/registry/models"


def saying(status: str, document: object = None) -> Callable[[Any, bytes], None]:
    body = b"" if document is None else json.dumps(document).encode()
    return lambda connection, _: connection.sendall(answer(status, body))


def form_of(request: bytes) -> dict[str, list[tuple[str | None, bytes]]]:
    """File name and content of each part, by the field's name."""
    parsed = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(request.split(b"\r\n", 1)[1])
    parts: dict[str, list[tuple[str | None, bytes]]] = {}
    for part in parsed.iter_parts():  # type: ignore[attr-defined]
        name = part.get_param("name", header="content-disposition")
        parts.setdefault(name, []).append((part.get_filename(), part.get_payload(decode=True)))
    return parts


def test_a_real_model_is_registered_promoted_compared_rolled_back_and_removed(
    server: Server, artifacts: Artifacts, tmp_path: Path, ask: Ask, request: pytest.FixtureRequest
) -> None:
    name, url = f"net-{request.node.callspec.id}", server.url
    for number, version in enumerate(("1.9.0", "1.10.0")):
        (tmp_path / "model.json").write_bytes(artifacts.texts[number])
        call = partial(register, name, version, tmp_path / "model.json", {"ic": 0.1 + number / 10})
        assert ask(url, call) == ask(url, call), "the same once more changes nothing"
    with pytest.raises(Conflict) as caught:
        ask(url, lambda c: c.register_version(name, "1.9.0", tmp_path / "model.json"))
    assert caught.value.code == "version_conflict"
    assert [one.version for one in ask(url, lambda c: c.get_registered(name)).versions] == ["1.10.0", "1.9.0"]
    assert ask(url, lambda c: c.promote_version(name, "1.9.0")).stage == "Production"
    assert ask(url, lambda c: c.set_stage(name, "1.10.0", "Staging")).stage == "Staging"
    assert ask(url, lambda c: c.promote_version(name, "1.10.0")).version == "1.10.0"
    row = [0.0] * len(FACTORS)
    assert ask(url, lambda c: c.predict("ANY", row, model_name=name)).model_version == "1.10.0"
    with pytest.raises(Conflict) as caught:
        ask(url, lambda c: c.rollback_promotion(name, from_version="1.9.0"))
    assert caught.value.code == "version_changed"
    assert ask(url, lambda c: c.rollback_promotion(name, from_version="1.10.0")).version == "1.9.0"
    assert ask(url, lambda c: c.predict("ANY", row, model_name=name)).model_version == "1.9.0"
    compared = ask(url, lambda c: c.compare_versions(name, "1.9.0", "1.10.0"))
    assert compared.metrics_comparison["ic"].diff == pytest.approx(0.1)
    assert (compared.is_same_content, compared.factors_comparison.added) == (False, ())
    assert ask(url, lambda c: c.update_metrics(name, "1.9.0", {"ic": None, "n": 1})).metrics == {"n": 1}
    for endless in (float("nan"), float("inf"), np.float32("nan")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            ask(url, lambda c, number=endless: c.update_metrics(name, "1.9.0", {"n": number}))
    of_numpy = {"ic": np.float32(0.25), "n": np.int64(2)}
    assert ask(url, lambda c: c.update_metrics(name, "1.9.0", of_numpy)).metrics == {"ic": 0.25, "n": 2}
    assert ask(url, lambda c: c.annotate_version(name, "1.9.0", tags={"a": "b"})).tags == {"a": "b"}
    with pytest.raises(Conflict):
        ask(url, lambda c: c.delete_version(name, "1.9.0"))
    assert ask(url, lambda c: c.delete_version(name, "1.10.0")) is None
    assert name in [one.name for one in ask(url, lambda c: c.list_registered(limit=500)).items]


def register(name: str, version: str, path: Path, metrics: dict[str, float], client: Any) -> Any:
    return client.register_version(name, version, path, metrics=metrics, factors=FACTORS)


def test_an_upload_carries_its_files_its_fields_and_the_hash(misbehaving: Make, tmp_path: Path, ask: Ask) -> None:
    model, data = tmp_path / "net.onnx", tmp_path / "net.data"
    model.write_bytes(b"\x00\r\n--model" * 100_000)
    data.write_bytes(b"weights")
    server = misbehaving(saying("201 Created", ITEM))
    found = ask(
        server.url,
        lambda c: c.register_version(
            "net", "1.0.0", model, more_files=[data], model_type="LSTM", description="ü", metrics={"ic": 0.1},
            training_params={"lr": 0.01}, tags={"a": "b"}, factors=["x", "y"], options={"code": "m:f"}, derived_from="0.9.0",
        ),
    )  # fmt: skip
    assert (found.version, found.input_shape, found.metrics) == ("1.0.0", (60, 110), {"ic": 0.1})
    assert server.paths() == [f"POST {MODELS}"]
    form = form_of(server.requests[0])
    assert form.pop("file") == [("net.onnx", model.read_bytes()), ("net.data", b"weights")]
    fields = {name: values[0][1].decode() for name, values in form.items()}
    assert fields.pop("sha256") == hashlib.sha256(model.read_bytes()).hexdigest()
    assert {name: json.loads(fields.pop(name)) for name in ("metrics", "training_params", "tags", "factors", "options")} == {
        "metrics": {"ic": 0.1}, "training_params": {"lr": 0.01}, "tags": {"a": "b"}, "factors": ["x", "y"],
        "options": {"code": "m:f"},
    }  # fmt: skip
    assert fields == {
        "name": "net",
        "version": "1.0.0",
        "model_type": "LSTM",
        "description": "ü",
        "derived_from": "0.9.0",
    }


def test_an_upload_is_read_while_it_is_sent(misbehaving: Make, tmp_path: Path, ask: Ask) -> None:
    import tracemalloc

    model = tmp_path / "large.onnx"
    with model.open("wb") as file:
        file.truncate(64 << 20)
    server = misbehaving(saying("201 Created", ITEM))
    server.keep_bodies = False
    tracemalloc.start()
    try:
        ask(server.url, lambda c: c.register_version("net", "1.0.0", model))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_an_upload_that_breaks_off_is_not_sent_again(misbehaving: Make, tmp_path: Path, ask: Ask) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    server = misbehaving(lambda connection, _: connection.close())
    with pytest.raises(ServerUnavailable):
        ask(server.url, lambda c: c.register_version("n", "1.0.0", tmp_path / "m.onnx"), retries=Retries(base_s=0.001))
    assert len(server.requests) == 1


def test_a_file_that_is_not_there_or_a_document_that_is_none_is_said_before_anything_is_sent(
    tmp_path: Path, ask: Ask
) -> None:
    url = "http://127.0.0.1:1"
    with pytest.raises(FileNotFoundError):
        ask(url, lambda c: c.register_version("n", "1.0.0", tmp_path / "none"))
    (tmp_path / "m").write_bytes(b"x")
    with pytest.raises(TypeError, match="metrics"):
        ask(url, lambda c: c.register_version("n", "1.0.0", tmp_path / "m", metrics={"a": object()}))


@pytest.mark.parametrize(
    ("call", "line", "body"),
    [
        pytest.param(
            lambda c: c.register_path("net", "1.0.0", "/m.onnx", factors=["x"]), f"POST {MODELS}",
            {"name": "net", "version": "1.0.0", "path": "/m.onnx", "factors": ["x"]}, id="register-path",
        ),
        pytest.param(
            lambda c: c.register_path(
                "net", "1.0.0", Path("/m.onnx"), other_paths=[Path("/m.data")], sha256="ab", derived_from="0.9.0"
            ),
            f"POST {MODELS}",
            {
                "name": "net", "version": "1.0.0", "path": "/m.onnx", "other_paths": ["/m.data"], "sha256": "ab",
                "derived_from": "0.9.0",
            },
            id="register-paths",
        ),
        pytest.param(
            lambda c: c.rollback_promotion("net", from_version="1.1.0"), f"POST {MODELS}/net/rollback", {"from": "1.1.0"},
            id="rollback-from",
        ),
        pytest.param(
            lambda c: c.annotate_version("net", "1.0.0", tags={"a": None}), f"PATCH {MODELS}/net/1.0.0",
            {"tags": {"a": None}}, id="remove-a-tag",
        ),
        pytest.param(lambda c: c.get_version("net"), f"GET {MODELS}/net/latest", None, id="latest"),
        pytest.param(lambda c: c.get_version("net", "1.0.0+int8"), f"GET {MODELS}/net/1.0.0%2Bint8", None, id="label"),
        pytest.param(
            lambda c: c.set_stage("net", "1.0.0", "Staging"), f"PUT {MODELS}/net/1.0.0/stage", {"stage": "Staging"},
            id="stage",
        ),
        pytest.param(lambda c: c.promote_version("net", "1.0.0"), f"POST {MODELS}/net/1.0.0/promote", None, id="promote"),
        pytest.param(lambda c: c.retire_version("net", "1.0.0"), f"POST {MODELS}/net/1.0.0/retire", None, id="retire"),
        pytest.param(lambda c: c.rollback_promotion("net"), f"POST {MODELS}/net/rollback", None, id="rollback"),
        pytest.param(
            lambda c: c.update_metrics("net", "1.0.0", {"ic": None}), f"PATCH {MODELS}/net/1.0.0/metrics",
            {"metrics": {"ic": None}}, id="metrics",
        ),
        pytest.param(
            lambda c: c.annotate_version("net", "1.0.0", description="d"), f"PATCH {MODELS}/net/1.0.0",
            {"description": "d"}, id="annotate",
        ),
    ],
)  # fmt: skip
def test_each_call_of_a_version_sends_its_request_once_and_gives_the_version(
    call: Any, line: str, body: Any, misbehaving: Make, ask: Ask
) -> None:
    server = misbehaving(saying("200 OK", ITEM))
    found = ask(server.url, call)
    assert isinstance(found, registry_answers.RegisteredVersion)
    assert (found.stage, found.sha256, found.tags) == ("Production", "ab", {"a": "b"})
    [form] = found.optimizations
    assert (form.variant, form.accepted, form.reasons, form.timing.p99_ms) == ("int8_dynamic", False, ("bigger",), 0.2)
    assert server.paths() == [line]
    sent = server.requests[0].partition(b"\r\n\r\n")[2]
    assert (json.loads(sent) if sent else None) == body


def test_lists_one_model_comparisons_and_removal(misbehaving: Make, ask: Ask) -> None:
    model = {"name": "net", "versions": 2, "latest_version": "1.0.0", "updated_at": "2026-01-01T00:00:00Z"}
    server = misbehaving(saying("200 OK", {"items": [model], "next_cursor": "c"}))
    page = ask(server.url, lambda c: c.list_registered(limit=1, cursor="a b"))
    assert (page.items[0].versions, page.next_cursor) == (2, "c")
    server.behave = saying("200 OK", {"name": "net", "production_version": "1.0.0", "versions": [ITEM]})
    assert ask(server.url, lambda c: c.get_registered("net", stage="Production")).versions[0].version == "1.0.0"
    metric = {"version1": 0.1, "version2": 0.2, "diff": 0.1, "diff_pct": 100.0}
    sizes = {"version1_mb": 1.0, "version2_mb": 0.5, "diff_mb": -0.5}
    server.behave = saying("200 OK", {"metrics_comparison": {"ic": metric}, "size_comparison": sizes})
    compared = ask(server.url, lambda c: c.compare_versions("net", "1.0.0", "1.1.0"))
    assert (compared.metrics_comparison["ic"].diff_pct, compared.size_comparison.diff_mb) == (100.0, -0.5)
    server.behave = saying("204 No Content")
    assert ask(server.url, lambda c: c.delete_version("net", "1.0.0")) is None
    assert server.paths() == [
        f"GET {MODELS}?limit=1&cursor=a+b",
        f"GET {MODELS}/net?stage=Production",
        f"GET {MODELS}/net/compare?version1=1.0.0&version2=1.1.0",
        f"DELETE {MODELS}/net/1.0.0",
    ]


@pytest.mark.parametrize(
    ("call", "line", "body"),
    [
        pytest.param(
            lambda c: c.optimize("net", "1.0.0"), f"POST {MODELS}/net/1.0.0/optimize",
            {"benchmark": False, "register": True}, id="all-forms",
        ),
        pytest.param(
            lambda c: c.optimize(
                "net", "1.0.0", variants=["fp32"], benchmark=True, register=False, rows=np.ones((2, 1, 3), np.float32) / 4
            ),
            f"POST {MODELS}/net/1.0.0/optimize",
            {
                "variants": ["fp32"], "benchmark": True, "register": False,
                "rows": [[[0.25, 0.25, 0.25]], [[0.25, 0.25, 0.25]]],
            },
            id="one-form",
        ),
        pytest.param(
            lambda c: c.optimizations("net", "latest"), f"GET {MODELS}/net/latest/optimizations", None, id="reports"
        ),
    ],
)  # fmt: skip
def test_forms_of_a_version_are_made_and_reported(call: Any, line: str, body: Any, misbehaving: Make, ask: Ask) -> None:
    server = misbehaving(saying("200 OK", {"items": [FORM]}))
    [form] = ask(server.url, call).items
    assert (form.version, form.source_size_bytes, form.class_agreement, form.parity) == (None, 1, 0.99, {"rows": 3})
    assert server.paths() == [line]
    sent = server.requests[0].partition(b"\r\n\r\n")[2]
    assert (json.loads(sent) if sent else None) == body


def test_rows_with_a_number_that_is_missing_are_not_sent(ask: Ask) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        ask("http://127.0.0.1:1", lambda c: c.optimize("net", "1.0.0", rows=[[1.0, float("nan")]]))


def test_a_real_version_is_optimised_and_what_came_of_it_stays_with_it(
    server: Server, tmp_path: Path, ask: Ask, request: pytest.FixtureRequest
) -> None:
    networks = pytest.importorskip("conversion.networks", reason="graphs are made with the onnx package")
    name, url = f"lstm-{request.node.callspec.id}", server.url
    (tmp_path / "lstm.onnx").write_bytes(networks.recurrent(hidden=64))
    ask(url, lambda c: c.register_version(name, "1.0.0", tmp_path / "lstm.onnx"))
    rows = np.random.default_rng(5).normal(size=(20, 6, 16)).astype(np.float32)
    [made] = ask(url, lambda c: c.optimize(name, "1.0.0", variants=["int8_dynamic"], rows=rows)).items
    assert (made.variant, made.accepted) == ("int8_dynamic", made.version is not None)
    assert made.accepted or made.reasons
    assert ask(url, lambda c: c.optimizations(name, "1.0.0")).items == (made,)
    assert ask(url, lambda c: c.get_version(name, "1.0.0")).optimizations == (made,)
    if made.version is not None:
        assert ask(url, lambda c: c.get_version(name, made.version)).derived_from == "1.0.0"
    with pytest.raises(RequestRefused) as caught:
        ask(url, lambda c: c.optimize(name, "1.0.0", rows=[[1.0]]))
    assert caught.value.code == "features_invalid"


def test_a_version_in_production_is_a_conflict(misbehaving: Make, ask: Ask) -> None:
    server = misbehaving(saying("409 Conflict", {"code": "version_in_use", "detail": "net 1.0.0 is in production"}))
    with pytest.raises(Conflict) as caught:
        ask(server.url, lambda c: c.delete_version("net", "1.0.0"))
    assert caught.value.code == "version_in_use"


def test_an_experiment_is_made_analysed_and_stopped(misbehaving: Make, ask: Ask) -> None:
    server = misbehaving(saying("201 Created", {"experiment_id": "e", "status": "running", "traffic_split": 0.9}))
    assert ask(server.url, lambda c: c.create_ab_test("e", "a", "1", "b", "2", start=False)).status == "running"
    sent = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
    assert sent == {
        "experiment_id": "e", "control_model": "a", "control_version": "1", "treatment_model": "b",
        "treatment_version": "2", "traffic_split": 0.9, "start": False,
    }  # fmt: skip
    report = {"control": {"n": 1}, "treatment": {}, "recommendation": {"action": "continue", "reasons": ["few"]}}
    server.behave = saying("200 OK", report)
    assert ask(server.url, lambda c: c.get_ab_test_analysis("e")).recommendation.action == "continue"
    assert ask(server.url, lambda c: c.stop_ab_test("e")).control == {"n": 1}
    assert server.paths()[1:] == ["GET /api/ml/experiments/e/analysis", "POST /api/ml/experiments/e/stop"]


def test_a_server_without_experiments_says_so(misbehaving: Make, ask: Ask) -> None:
    server = misbehaving(saying("404 Not Found", {"code": "not_found", "detail": "No such address."}))
    for call in (
        lambda c: c.create_ab_test("e", "a", "1", "b", "2"),
        lambda c: c.get_ab_test_analysis("e"),
        lambda c: c.stop_ab_test("e"),
    ):
        with pytest.raises(NotFound, match="this server has no A/B tests"):
            ask(server.url, call)


def test_an_experiment_that_is_not_there_is_not_taken_for_a_server_without_any(misbehaving: Make, ask: Ask) -> None:
    server = misbehaving(saying("404 Not Found", {"code": "experiment_not_found", "detail": "there is no e"}))
    with pytest.raises(NotFound, match="there is no e"):
        ask(server.url, lambda c: c.stop_ab_test("e"))


def test_an_upload_may_take_longer_than_other_calls(misbehaving: Make, tmp_path: Path, ask: Ask) -> None:
    from mmserver.client import Timeouts

    def slow(connection: Any, _: bytes) -> None:
        time.sleep(0.6)
        connection.sendall(answer("201 Created", json.dumps(ITEM).encode()))

    (tmp_path / "m.onnx").write_bytes(b"x")
    short = Timeouts(read_s=0.2, total_s=0.3)
    found = ask(misbehaving(slow).url, lambda c: c.register_version("n", "1", tmp_path / "m.onnx"), timeouts=short)
    assert found.name == "net"
