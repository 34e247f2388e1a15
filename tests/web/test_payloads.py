"""The download that bots poll: codings, tags, forms, and waiting for a change."""

import gzip
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import brotli
import pytest
import zstandard

PATH = "/api/models/alpha/model/BTCUSDT"
DECODERS: dict[str | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
}


@pytest.mark.parametrize(
    ("accept_encoding", "coding"),
    [
        ("gzip", "gzip"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("gzip;q=0.9, br;q=0.1", "gzip"),
        ("deflate", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("form", ["payload", "json", "ubj", "manifest"])
def test_every_form_comes_in_the_coding_that_the_client_takes(
    web: Any, form: str, accept_encoding: str | None, coding: str | None
) -> None:
    headers = {"Accept-Encoding": accept_encoding} if accept_encoding else {}
    plain = web.client.get(f"{PATH}?format={form}")
    response = web.client.get(f"{PATH}?format={form}", headers=headers)
    assert response.headers.get("Content-Encoding") == coding
    assert response.headers["Vary"] == "Accept-Encoding"
    assert int(response.headers["Content-Length"]) == len(response.data)
    assert DECODERS[coding](response.data) == plain.data
    assert response.mimetype == ("application/vnd.xgboost.ubj" if form == "ubj" else "application/json")


def test_a_response_says_what_it_is(web: Any) -> None:
    response = web.client.get(PATH)
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Model-Version"] == response.json["version"]
    assert response.headers["X-Group-Key"] == "BTCUSDT_ret_1h"
    assert response.headers["ETag"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("form", ["json", "ubj"])
def test_a_model_alone_is_a_file_to_keep(web: Any, form: str) -> None:
    disposition = web.client.get(f"{PATH}?format={form}").headers["Content-Disposition"]
    assert disposition == f'attachment; filename="BTCUSDT_ret_1h_model.{form}"'


@pytest.mark.parametrize("accept_encoding", ["gzip", "br", "zstd", "identity"])
def test_who_has_the_content_in_any_coding_gets_304_without_a_body(web: Any, accept_encoding: str) -> None:
    tag = web.client.get(PATH, headers={"Accept-Encoding": "gzip"}).headers["ETag"]
    opaque = tag.removeprefix("W/")
    for known in (tag, opaque, f'"other", {tag}', "*"):
        response = web.client.get(PATH, headers={"If-None-Match": known, "Accept-Encoding": accept_encoding})
        assert (response.status_code, response.data) == (304, b""), known
        assert response.headers["ETag"] == tag
        assert response.headers["X-Model-Version"]
        assert response.headers["Vary"] == "Accept-Encoding"
        assert "Content-Type" not in response.headers


def test_who_has_other_content_gets_it(web: Any) -> None:
    other = web.client.get("/api/models/alpha/model/ETHUSDT").headers["ETag"]
    json_form = web.client.get(f"{PATH}?format=json").headers["ETag"]
    for known in (other, json_form, '"x"', ""):
        assert web.client.get(PATH, headers={"If-None-Match": known}).status_code == 200


def test_head_is_get_without_a_body(web: Any) -> None:
    for headers in ({"Accept-Encoding": "gzip"}, {}):
        got, head = web.client.get(PATH, headers=headers), web.client.head(PATH, headers=headers)
        assert (head.status_code, head.data) == (200, b"")
        for name in ("ETag", "Content-Length", "Content-Encoding", "Content-Type", "X-Model-Version", "Vary"):
            assert head.headers.get(name) == got.headers.get(name)
    tag = web.client.get(PATH).headers["ETag"]
    assert web.client.head(PATH, headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize("known", [True, False])
def test_the_short_way_gives_what_the_long_way_gives(web: Any, known: bool) -> None:
    headers = {"Accept-Encoding": "gzip", "X-Request-ID": "same"}
    if known:
        headers["If-None-Match"] = web.client.get(PATH, headers=headers).headers["ETag"]
    web.client.get(PATH, headers=headers)  # from now on it is held in memory
    short = web.client.get(PATH, headers=headers)
    long = web.client.get(f"{PATH}?group_key=BTCUSDT_ret_1h", headers=headers)
    assert (short.status_code, short.data) == (long.status_code, long.data)
    assert sorted(short.headers) == sorted(long.headers)


def test_other_methods_are_named(web: Any) -> None:
    assert web.client.post(PATH, json={}).status_code == 405
    options = web.client.options(PATH)
    assert options.status_code == 200
    assert {"GET", "HEAD", "OPTIONS"} <= set(options.headers["Allow"].replace(" ", "").split(","))


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("format=onnx", 400, "not_convertible"),
        ("group_key=ETHUSDT_ret_1h", 404, "symbol_not_found"),
        ("as_of=2026-01-01T00:00:00", 400, "request_invalid"),
        ("wait=soon", 400, "request_invalid"),
        ("wait=-1", 400, "request_invalid"),
        ("wait=1&as_of=2026-01-01T00:00:00Z", 400, "request_invalid"),
        ("wait=1&version=20260101_000000", 400, "request_invalid"),
    ],
)
def test_a_question_without_an_answer_is_refused(web: Any, query: str, status: int, code: str) -> None:
    response = web.client.get(f"{PATH}?{query}")
    assert (response.status_code, response.json["code"]) == (status, code)


def test_an_old_version_can_be_had_by_its_label(changing: Any, group_writer: Callable[..., None]) -> None:
    name = changing.directory.name
    first = changing.client.get(f"/api/models/{name}/model/BTCUSDT")
    group_writer(changing.directory, "BTCUSDT_ret_1h", seed=5)
    changing.client.post(f"/api/models/{name}/refresh")
    assert changing.client.get(f"/api/models/{name}/model/BTCUSDT").data != first.data
    old = changing.client.get(f"/api/models/{name}/model/BTCUSDT?version={first.json['version']}")
    assert old.data == first.data


def test_waiting_ends_without_news_when_its_time_is_up(web: Any) -> None:
    tag = web.client.get(PATH).headers["ETag"]
    started = time.monotonic()
    response = web.client.get(PATH, query_string={"wait": "0.3", "etag": tag})
    assert response.status_code == 304
    assert time.monotonic() - started >= 0.3


def test_who_does_not_have_the_content_need_not_wait(web: Any) -> None:
    started = time.monotonic()
    assert web.client.get(f"{PATH}?wait=60").status_code == 200
    assert web.client.get(f'{PATH}?wait=60&etag="old"').status_code == 200
    assert time.monotonic() - started < 60


def test_waiting_ends_with_the_new_payload_when_it_is_served(changing: Any, group_writer: Callable[..., None]) -> None:
    name = changing.directory.name
    path = f"/api/models/{name}/model/BTCUSDT"
    old = changing.client.get(path)
    begun = threading.Event()

    def wait() -> Any:
        begun.set()
        client = changing.app.test_client(use_cookies=False)
        return client.get(f"{path}?wait=60", headers={"If-None-Match": old.headers["ETag"]})

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        begun.wait()
        group_writer(changing.directory, "BTCUSDT_ret_1h", seed=6)
        version = changing.client.post(f"/api/models/{name}/refresh").json["version"]
        news = waiting.result(timeout=120)
    assert news.status_code == 200
    assert news.json["version"] == news.headers["X-Model-Version"] == version
    assert news.headers["ETag"] != old.headers["ETag"]


def test_waiting_ends_when_the_model_is_removed(changing: Any) -> None:
    name = changing.directory.name
    path = f"/api/models/{name}/model/BTCUSDT"
    tag = changing.client.get(path).headers["ETag"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: changing.app.test_client().get(f"{path}?wait=60", headers={"If-None-Match": tag}))
        changing.client.delete(f"/api/models/{name}")
        assert waiting.result(timeout=120).status_code == 404


def test_the_manifest_proves_a_loader(web: Any) -> None:
    manifest = json.loads(web.client.get(f"{PATH}?format=manifest").data)
    assert manifest["group_key"] == "BTCUSDT_ret_1h"
    assert manifest["golden"]["rows"]
    assert set(manifest["sha256"]) == {"json", "ubj"}
