"""Forms of a version that are asked for on a page: begun, followed by reloading, and refused in words."""

import fcntl
import itertools
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from page_reading import Page, page

from mmserver.registry.optimizing import LOCK_FILE
from mmserver.web import optimization_runs
from mmserver.web.optimization_runs import Run

networks: Any = pytest.importorskip("conversion.networks", reason="graphs are made with the onnx package")

ROOT = "/api/ml/registry/models"
OURS = {"Sec-Fetch-Site": "same-origin"}
_numbers = itertools.count()


@pytest.fixture
def site(make_web: Callable[..., Any], tmp_path: Path) -> Any:
    """One model at a time is optimised in a data directory, so that each test has its own."""
    return make_web(tmp_path)


@pytest.fixture(scope="module")
def network() -> bytes:
    """A small one."""
    content: bytes = networks.recurrent(hidden=64)
    return content


def register(site: Any, content: bytes, suffix: str = ".onnx", version: str = "1.0.0") -> str:
    """Where its page is."""
    path = site.directory / f"model{suffix}"
    path.write_bytes(content)
    response = site.client.post(ROOT, json={"name": "net", "version": version, "path": str(path)})
    assert response.status_code == 201, response.text
    return f"/ui/models/net/versions/{version}/optimize"


def finished() -> None:
    """Wait for what was started."""
    for thread in [thread for thread in threading.enumerate() if thread.name == "optimizing"]:
        thread.join()


def words(site: Any, path: str) -> str:
    return " ".join(page(site, path).text.split())


def test_a_form_is_asked_for_followed_and_shown(site: Any, network: bytes) -> None:
    path = register(site, network)
    asked = page(site, path)
    assert [field["value"] for field in asked.all("input") if "checked" in field] == ["int8_dynamic"]
    begun = site.client.post(path, data={"variants": ["fp32", "int8_dynamic"]}, headers=OURS)
    assert (begun.status_code, begun.headers["Location"]) == (303, path)
    finished()
    text = words(site, path)
    assert "Done." in text
    reports = site.json(f"{ROOT}/net/1.0.0/optimizations")["items"]
    assert [report["variant"] for report in reports] == ["fp32", "int8_dynamic"]
    for report in reports:
        for reason in report["reasons"]:
            assert " ".join(reason.split()) in text
        if report["version"]:
            assert f"accepted as {report['version']}" in text
    assert "optimise…" in words(site, "/ui/models/net/versions/1.0.0")


def test_while_it_is_under_way_the_page_says_so_and_nothing_else_is_begun(
    site: Any, network: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = register(site, network), register(site, network, version="1.1.0")
    go_on = threading.Event()
    really = optimization_runs.optimize_version

    def held(*args: Any, **more: Any) -> Any:
        assert go_on.wait(60)
        return really(*args, **more)

    monkeypatch.setattr(optimization_runs, "optimize_version", held)
    try:
        assert site.client.post(path, data={"variants": "fp32"}, headers=OURS).status_code == 303
        assert "Under way since" in words(site, path)
        assert "0 of 1 done" in words(site, path)
        assert [form for form in page(site, path).all("form") if form["method"] == "post"] == []
        for busy in (path, other):
            refused = site.client.post(busy, data={"variants": "fp32"}, headers=OURS)
            assert (refused.status_code, "optimising a model" in refused.text) == (503, True)
    finally:
        go_on.set()
        finished()
    assert "Done." in words(site, path)
    assert "The last time" not in words(site, other)


def test_while_another_way_makes_forms_it_is_refused_in_words(site: Any, network: bytes) -> None:
    path = register(site, network)
    lock = os.open(site.directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        assert site.client.post(path, data={"variants": "fp32"}, headers=OURS).status_code == 303
        finished()
    finally:
        os.close(lock)
    assert "Refused: too many wait for optimising a model already" in words(site, path)


def test_a_run_whose_process_ended_broke_off_and_another_can_be_begun(site: Any, network: bytes) -> None:
    path = register(site, network)
    assert site.client.post(path, data={"variants": "fp32"}, headers=OURS).status_code == 303
    finished()
    runs = site.directory / "optimizing" / "runs.json"
    [run] = msgspec.json.decode(runs.read_bytes(), type=list[Run])
    runs.write_bytes(msgspec.json.encode([msgspec.structs.replace(run, state="running")]))
    assert "It broke off" in words(site, path)
    assert site.client.post(path, data={"variants": "fp32"}, headers=OURS).status_code == 303
    finished()
    assert "Done." in words(site, path)
    runs.write_bytes(b"[{")
    assert "The last time" not in words(site, path)


def test_a_bug_is_said_to_be_one_and_the_log_has_it(
    site: Any, network: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = register(site, network)

    def broken(*_args: Any, **_more: Any) -> None:
        raise ZeroDivisionError("hunter2")

    monkeypatch.setattr(optimization_runs, "optimize_version", broken)
    begun = site.client.post(path, data={"variants": "fp32"}, headers={**OURS, "X-Request-ID": "request-7"})
    assert begun.status_code == 303
    finished()
    text = words(site, path)
    assert re.search(r"It failed: a bug; the log has it under \S+", text)
    assert "hunter2" not in text
    assert "hunter2" in caplog.text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param({}, "tick one at least", id="nothing is ticked"),
        pytest.param({"variants": ["fp32", "<b>"]}, "is none of fp32, int8_dynamic, int8_static", id="no such form"),
        pytest.param({"variants": "fp32", "benchmark": "on"}, "Expected true", id="odd benchmark"),
        pytest.param({"variants": "fp32", "register": "false"}, "this form has no such field", id="no such field"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_and_nothing_is_begun(
    site: Any, network: bytes, data: dict[str, Any], said: str
) -> None:
    path = register(site, network)
    refused = site.client.post(path, data=data, headers=OURS)
    shown = Page(refused.text)
    assert (refused.status_code, shown.open) == (400, [])
    assert said in shown.text
    assert "<b>" not in refused.text
    assert not (site.directory / "optimizing").exists()


def test_a_model_that_has_no_other_forms_says_so(site: Any, xgboost_text: Callable[[int, int], bytes]) -> None:
    path = register(site, xgboost_text(3, 0), ".json")
    assert "this one runs as xgboost" in words(site, path)
    assert page(site, path).all("form") == []
    assert site.client.post(path, data={"variants": "fp32"}, headers=OURS).status_code == 303
    finished()
    assert "Refused: net 1.0.0 cannot be optimised" in words(site, path)
    assert site.client.get(path.replace("1.0.0", "9.9.9")).status_code == 404


def test_a_form_says_which_version_to_optimise_instead(site: Any, network: bytes) -> None:
    path = register(site, network)
    site.client.post(path, data={"variants": ["fp32"]}, headers=OURS)
    finished()
    form = "/ui/models/net/versions/1.0.0%2Bfp32"
    assert "optimise…" not in words(site, form)
    assert "Optimise 1.0.0 instead" in words(site, form)
    assert "Optimise 1.0.0 instead" in words(site, f"{form}/optimize")


def test_another_site_s_form_and_a_read_only_instance_begin_nothing(
    site: Any, make_web: Callable[..., Any], network: bytes, tmp_path: Path
) -> None:
    path = register(site, network)
    assert site.client.post(path, data={"variants": "fp32"}).status_code == 403
    copy = tmp_path / "copy"
    copy.mkdir()
    site.store.database.vacuum_into(copy / "mmserver.db")
    reading = make_web(copy, read_only=True)
    assert page(reading, path).all("form") == []
    assert reading.client.post(path, data={"variants": "fp32"}, headers=OURS).status_code == 403
    assert not (copy / "optimizing").exists()
