"""Strict reading of bodies and query parameters."""

import datetime as dt

import flask
import msgspec
import pytest
from werkzeug.exceptions import UnsupportedMediaType
from werkzeug.test import EnvironBuilder

from mmserver.errors import RequestInvalid
from mmserver.web import requests


class Order(msgspec.Struct):
    name: str
    size: int = 1
    weights: list[float] = []


def request_with(body: bytes = b"", content_type: str = "application/json", **headers: str) -> flask.Request:
    builder = EnvironBuilder(method="POST", data=body, content_type=content_type, headers=headers)
    return flask.Request(builder.get_environ())


def query(text: str) -> flask.Request:
    return flask.Request(EnvironBuilder(query_string=text).get_environ())


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 100_000, id="deep arrays"),
        pytest.param(b'{"a":' * 100_000, id="deep objects"),
        pytest.param(b'{"name":"x","a":' + b"[" * 32 + b"]" * 32 + b"}", id="one level too deep"),
        pytest.param(b'{"name":"x","w":NaN}', id="NaN"),
        pytest.param(b'{"name":"x","weights":[Infinity]}', id="Infinity"),
        pytest.param(b'{"name":"x","weights":[-Infinity]}', id="-Infinity"),
        pytest.param(b'{"name":"x","weights":[1e999]}', id="1e999"),
        pytest.param(b'{"name":"x","unknown":1e999}', id="1e999 in an unknown field"),
        pytest.param(b'{"name":"x","name":"y"}', id="duplicate name"),
        pytest.param(b'{"name":"x","deep":{"a":1,"a":1}}', id="duplicate name inside"),
        pytest.param(b'{"name":"x","size":' + b"9" * 5000 + b"}", id="5000-digit integer"),
        pytest.param(b'{"name":"x","size":99999999999999999999}', id="20-digit integer"),
        pytest.param(b'{"name":"x","size":"1"}', id="number as string"),
        pytest.param(b'{"name":"x","size":true}', id="bool as number"),
        pytest.param(b'{"name":"x","size":1.5}', id="float as integer"),
        pytest.param(b'{"name":null}', id="null where text is due"),
        pytest.param(b'{"name":"\xff"}', id="invalid UTF-8"),
        pytest.param('{"name":"x"}'.encode("utf-16"), id="UTF-16"),
        pytest.param('{"name":"x"}'.encode("utf-16-le"), id="UTF-16 without mark"),
        pytest.param(b'\xef\xbb\xbf{"name":"x"}', id="byte order mark"),
        pytest.param(b'{"name":"\\ud800"}', id="lone surrogate"),
        pytest.param(b'{"name":"a\\u0000b"}', id="NUL in a string"),
        pytest.param(b'{"name":"a\x00b"}', id="raw NUL in a string"),
        pytest.param(b"{}", id="missing field"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"3", id="scalar"),
        pytest.param(b"null", id="null"),
        pytest.param(b"", id="empty"),
        pytest.param(b"  \n", id="blank"),
        pytest.param(b'{"name":"x"}{"name":"y"}', id="two documents"),
        pytest.param(b'{"name":"x",}', id="trailing comma"),
        pytest.param(b'{"name":"x"', id="torn"),
        pytest.param(b"{'name':'x'}", id="Python, not JSON"),
    ],
)
def test_json_that_parsers_disagree_about_is_refused_with_a_place(body: bytes) -> None:
    with pytest.raises(RequestInvalid) as refused:
        requests.read_body(request_with(body), Order)
    assert refused.value.values["errors"]
    assert set(refused.value.values["errors"][0]) == {"loc", "msg"}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"name":"x","other":{"a":[1,2,null]}}', id="unknown field"),
        pytest.param(b'{"name":"x","a":' + b"[" * 31 + b"]" * 31 + b"}", id="as deep as may be"),
        pytest.param(b'{"name":"x","a":"' + b"[" * 100 + b'"}', id="brackets in a string"),
        pytest.param(b'{"name":"x","a":[' + b"[]," * 100 + b"[]]}", id="many brackets, not deep"),
        pytest.param(b'{"name":"x","a":"\\\\u0000"}', id="an escaped backslash, no NUL"),
        pytest.param(b'{"name":"x","a":"\\ud83d\\ude00"}', id="a surrogate pair"),
    ],
)
def test_json_that_is_fine_is_read(body: bytes) -> None:
    assert requests.read_body(request_with(body), Order) == Order("x")


def test_every_field_that_does_not_fit_is_named() -> None:
    with pytest.raises(RequestInvalid) as refused:
        requests.read_body(request_with(b'{"size":"1","weights":[0.5,"x"]}'), Order)
    errors = {error["loc"]: error["msg"] for error in refused.value.values["errors"]}
    assert list(errors) == ["name", "size", "weights[1]"]
    assert errors["name"] == "the field is missing"
    assert "`str`" in errors["weights[1]"]


def test_a_scan_of_an_unclosed_string_is_linear() -> None:
    body = b'{"a":' + b"[" * 33 + b'"' + b'\\"' * 1_000_000
    with pytest.raises(RequestInvalid):
        requests.strict_json(body)
    requests._check_depth(b"[]" * 20 + b'"' + b'\\"' * 1_000_000)


@pytest.mark.parametrize(
    ("content_type", "headers"),
    [
        pytest.param("", {}, id="none"),
        pytest.param("text/plain", {}, id="text"),
        pytest.param("application/x-www-form-urlencoded", {}, id="form"),
        pytest.param("application/json; charset=utf-16", {}, id="other charset"),
        pytest.param("application/json", {"Content-Encoding": "gzip"}, id="compressed"),
    ],
)
def test_what_is_not_plain_json_is_415(content_type: str, headers: dict[str, str]) -> None:
    with pytest.raises(UnsupportedMediaType):
        requests.read_body(request_with(b'{"name":"x"}', content_type, **headers), Order)


@pytest.mark.parametrize("content_type", ["application/json; charset=UTF-8", "application/merge-patch+json"])
def test_json_media_types_are_taken(content_type: str) -> None:
    assert requests.read_body(request_with(b'{"name":"x"}', content_type), Order).name == "x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-20T14:03:22Z", dt.datetime(2026, 11, 20, 14, 3, 22, tzinfo=dt.UTC)),
        ("2026-11-20T14:03:22.5%2B02:00", dt.datetime(2026, 11, 20, 12, 3, 22, 500_000, tzinfo=dt.UTC)),
        pytest.param(
            "2026-11-20T14:03:22+02:00",
            dt.datetime(2026, 11, 20, 12, 3, 22, tzinfo=dt.UTC),
            id="a plus that became a space",
        ),
        ("", None),
    ],
)
def test_times_come_out_in_utc(text: str, expected: dt.datetime | None) -> None:
    assert requests.query_time(query(f"as_of={text}"), "as_of") == expected


@pytest.mark.parametrize(
    "text", ["2026-11-20T14:03:22", "yesterday", "1763647402", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00%2B05:00"]
)
def test_a_time_that_is_not_one_moment_is_refused_by_name(text: str) -> None:
    with pytest.raises(RequestInvalid, match="as_of") as refused:
        requests.query_time(query(f"as_of={text}"), "as_of")
    assert refused.value.values["errors"][0]["loc"] == "as_of"


@pytest.mark.parametrize("text", ["0", "501", "-1", "1.0", "1e2", "x", "٣", "9" * 30])
def test_limits_out_of_bounds_are_refused(text: str) -> None:
    with pytest.raises(RequestInvalid, match="limit"):
        requests.query_number(query(f"limit={text}"), "limit", 50, 1, 500)


@pytest.mark.parametrize(("text", "expected"), [("30", 30.0), ("0.5", 0.5), ("600", 60.0), ("inf", 60.0), ("", 0.0)])
def test_waits_are_bounded(text: str, expected: float) -> None:
    assert requests.query_seconds(query(f"wait={text}"), "wait", 60.0) == expected


@pytest.mark.parametrize("text", ["-1", "nan", "soon"])
def test_waits_that_are_no_time_are_refused(text: str) -> None:
    with pytest.raises(RequestInvalid, match="wait"):
        requests.query_seconds(query(f"wait={text}"), "wait", 60.0)


@pytest.mark.parametrize("text", ["a%00b", "a%0Ab", "x" * 600])
def test_query_text_that_can_name_nothing_is_refused(text: str) -> None:
    with pytest.raises(RequestInvalid):
        requests.query_text(query(f"version={text}"), "version")
