"""One document from either text and from a pickled Booster's state; what is not whole or not known is refused."""

import json

import numpy as np
import pytest
import xgboost

from mmserver.errors import Undecodable
from mmserver.trees.canonical import json_from_document, ubjson_from_document
from mmserver.trees.document import document_from_bytes, document_from_snapshot


def refused(data: bytes) -> Undecodable:
    with pytest.raises(Undecodable) as caught:
        document_from_bytes(data)
    return caught.value


@pytest.mark.parametrize("kind", ["regression", "multi", "categorical", "dart", "named", "empty"])
def test_json_and_ubjson_of_one_model_are_the_same_document(booster, kind):
    from_text = document_from_bytes(bytes(booster(kind).save_raw("json")))
    from_binary = document_from_bytes(bytes(booster(kind).save_raw("ubj")))
    assert json_from_document(from_text) == json_from_document(from_binary)
    assert ubjson_from_document(from_text) == ubjson_from_document(from_binary)


def test_a_booster_s_state_holds_the_document_that_it_would_save(booster):
    model = booster("regression")
    state = bytes(model.__getstate__()["handle"])
    saved = document_from_bytes(bytes(model.save_raw("ubj")))
    assert ubjson_from_document(document_from_snapshot(state)) == ubjson_from_document(saved)


def test_a_state_in_json_text_is_read_too(booster):
    text = bytes(booster("regression").save_raw("json"))
    document = document_from_snapshot(b'{"Config":{},"Model":' + text + b"}")
    assert json_from_document(document) == json_from_document(document_from_bytes(text))


def test_a_state_without_a_model_is_refused():
    with pytest.raises(Undecodable, match="no Model"):
        document_from_snapshot(b'{"Config":{}}')


def test_spaces_and_line_ends_around_json_do_not_matter(booster):
    text = bytes(booster("regression").save_raw("json"))
    spaced = b"\n " + json.dumps(json.loads(text), indent=1).encode() + b"\r\n"
    assert json_from_document(document_from_bytes(spaced)) == json_from_document(document_from_bytes(text))


@pytest.mark.parametrize("form", ["json", "ubj"])
def test_every_prefix_of_a_model_is_refused(booster, form):
    raw = bytes(booster("stumps").save_raw(form))
    for length in range(len(raw)):
        assert refused(raw[:length]).reason in {"torn", "malformed"}, length


def test_a_torn_json_text_is_called_torn(booster):
    raw = bytes(booster("stumps").save_raw("json"))
    reasons = [refused(raw[:length]).reason for length in range(0, len(raw), 7)]
    assert reasons.count("torn") > 0.95 * len(reasons)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"binf" + bytes(100), "unsupported", id="old-binary"),
        pytest.param(b"CONFIG-offset:" + bytes(100), "unsupported", id="old-state"),
        pytest.param(b"\x80\x04\x95", "malformed", id="a-pickle"),
        pytest.param(b"[1]", "malformed", id="an-array"),
        pytest.param(b'{"a":1,"a":2}', "malformed", id="key-twice"),
        pytest.param(b'{"a":{"b":1,"b":2}}', "malformed", id="inner-key-twice"),
        pytest.param(b'{"a":NaN}', "malformed", id="nan"),
        pytest.param(b'{"a":-Infinity}', "malformed", id="infinity"),
        pytest.param(b'{"a":1e999}', "malformed", id="too-large-for-float64"),
        pytest.param(b'{"a":"\xff"}', "malformed", id="not-utf8"),
        pytest.param(b'{"a":1}{', "trailing_data", id="trailing"),
        pytest.param(b'{"a":' + b"[" * 100_000, "too_complex", id="deep"),
        pytest.param(b'{"a":' * 33 + b"1" + b"}" * 33, "too_complex", id="a-little-too-deep"),
        pytest.param(b'{"a":"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["}', "invalid_model", id="brackets-in-text-are-text"),
        pytest.param(b"{}", "invalid_model", id="no-version"),
        pytest.param(b'{"version":[3,2]}', "invalid_model", id="short-version"),
    ],
)
def test_what_is_no_model_is_refused_by_name(data, reason):
    assert refused(data).reason == reason


def test_the_old_binary_format_is_refused_with_what_to_do():
    assert "save_model" in refused(b"binf" + bytes(64)).detail


@pytest.mark.parametrize("version", [[3, 3, 0], [4, 0, 0], [99, 0, 1]])
def test_a_newer_minor_is_refused_naming_both(booster, version):
    document = json.loads(bytes(booster("regression").save_raw("json")))
    document["version"] = version
    error = refused(json.dumps(document).encode())
    assert error.reason == "newer_xgboost"
    assert ".".join(map(str, version)) in error.detail
    assert "3.2" in error.detail


def test_the_installed_xgboost_is_not_newer_than_the_known_one(booster):
    assert document_from_bytes(bytes(booster("regression").save_raw("json")))["version"][:2] == [3, 2]
    assert xgboost.__version__.startswith("3.2")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split_conditions", "x"),
        ("split_conditions", ["1"]),
        ("split_conditions", [[1.0]]),
        ("split_conditions", [1.0, [1.0]]),
        ("left_children", [0.5]),
        ("left_children", [1 << 40]),
        ("left_children", [1 << 80]),
        ("left_children", {"0": 1}),
        ("default_left", [256]),
        ("default_left", [-1]),
    ],
)
def test_arrays_of_something_else_are_refused_with_their_path(booster, key, value):
    document = json.loads(bytes(booster("regression").save_raw("json")))
    document["learner"]["gradient_booster"]["model"]["trees"][2][key] = value
    error = refused(json.dumps(document).encode())
    assert error.reason == "invalid_model"
    assert error.detail.startswith(f"learner.gradient_booster.model.trees[2].{key}:")


def test_booleans_as_older_versions_wrote_them_are_read(booster):
    document = json.loads(bytes(booster("regression").save_raw("json")))
    expected = document_from_bytes(json.dumps(document).encode())
    for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
        tree["default_left"] = [bool(flag) for flag in tree["default_left"]]
    found = document_from_bytes(json.dumps(document).encode())
    trees = [each["learner"]["gradient_booster"]["model"]["trees"] for each in (expected, found)]
    assert all(np.array_equal(a["default_left"], b["default_left"]) for a, b in zip(*trees, strict=True))
