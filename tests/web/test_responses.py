"""The JSON encoder."""

import datetime as dt
import json
from types import MappingProxyType

from mmserver.web.responses import json_bytes, printable_text


def test_what_is_not_a_number_becomes_null_and_the_text_stays_json() -> None:
    body = json_bytes({"a": [float("nan"), float("inf"), -0.0, 1e-300]})
    assert json.loads(body, parse_constant=lambda name: 1 / 0) == {"a": [None, None, 0.0, 1e-300]}


def test_times_are_rfc_3339_in_utc() -> None:
    assert json_bytes(dt.datetime(2026, 11, 20, 14, 3, 22, 5, tzinfo=dt.UTC)) == b'"2026-11-20T14:03:22.000005Z"'


def test_read_only_mappings_are_objects() -> None:
    assert json_bytes(MappingProxyType({"a": MappingProxyType({})})) == b'{"a":{}}'


def test_file_names_that_are_not_utf_8_are_written_out() -> None:
    name = b"x\xff.pkl".decode("utf-8", "surrogateescape")
    assert json.loads(json_bytes({"file": name, "more": [name], "at": MappingProxyType({})})) == {
        "file": "x\\udcff.pkl",
        "more": ["x\\udcff.pkl"],
        "at": {},
    }
    assert printable_text(name) == "x\\udcff.pkl"
