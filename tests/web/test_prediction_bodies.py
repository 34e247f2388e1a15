"""Bodies of prediction requests: the quick proof and the strict reader agree, and every refusal names its place."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmserver.errors import FeaturesInvalid, FieldsInvalid, RequestInvalid, TooManyRows
from mmserver.serving.predictions import Asked
from mmserver.web import prediction_bodies
from mmserver.web.prediction_bodies import PredictBody, batch_from_bytes, body_from_bytes, plain_body
from mmserver.web.requests import strict_json


def strictly(data: bytes) -> Any:
    """The document as the slow reader sees it; it knows no types."""
    return strict_json(data)


def quickly(data: bytes) -> PredictBody | None:
    body = plain_body(data)
    return body if body is not None and prediction_bodies.has_plain_features(body) else None


# --- the proof --------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["symbol", "features", "model_name", "model_version", "timestamp", "explain", "unit_id", "other", "größe", ""]
)
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers().map(str),
    st.integers(min_value=-(2**70), max_value=2**70).map(str),
    st.sampled_from(["1e999", "-1e400", "NaN", "Infinity", "01", "1.", "-0", "1e5", "9223372036854775807", "9223372036854775808",
                     "18446744073709551615", "18446744073709551616", "9" * 21, "1e19"]),
)  # fmt: skip
STRINGS = st.one_of(
    st.sampled_from(
        ['"BTC/USDT"', '"2024-01-15T10:30:00Z"', '"a\\u0000b"', '"\\ud800"', '"\\""', '"[[{"', '"é"', '""']
    ),
    st.text(max_size=5).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.text(max_size=5).map(json.dumps),
)
SCALARS = st.one_of(NUMBERS, STRINGS, st.sampled_from(["null", "true", "false"]))


def arrays(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(items, max_size=4).map(lambda found: "[" + ",".join(found) + "]")


def objects(names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.tuples(names.map(lambda name: json.dumps(name, ensure_ascii=False)), values).map(": ".join)
    return st.lists(members, max_size=5).map(lambda found: "{" + ", ".join(found) + "}")


VALUES = st.recursive(SCALARS, lambda inner: st.one_of(arrays(inner), objects(NAMES, inner)), max_leaves=8)
FEATURES = st.one_of(arrays(NUMBERS), arrays(arrays(NUMBERS)), objects(NAMES, NUMBERS), VALUES)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Mostly sensible bodies, with anything in any place."""
    members = ['"symbol": ' + draw(st.one_of(st.just('"BTC/USDT"'), VALUES)), '"features": ' + draw(FEATURES)]
    members += [json.dumps(name, ensure_ascii=False) + ":" + draw(VALUES) for name in draw(st.lists(NAMES, max_size=3))]
    text = (
        "{"
        + ",".join(draw(st.permutations(members)))
        + "}"
        + draw(st.sampled_from(["", "", "", " ", "\n", "}", "\x00", "x"]))
    )
    data = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 2)) :]
    return data


@settings(max_examples=600, deadline=None)
@given(bodies())
@example(b'{"symbol":"a","symbol":"b","features":[1]}')
@example(b'{"symbol":"a","features":{"x":1,"x":2}}')
@example(b'{"symbol":"a","features":[1],"other":1e999}')
@example(b'{"symbol":"a","features":[1],"other":[NaN]}')
@example(b'{"symbol":"a","features":[18446744073709551616]}')
@example(b'{"symbol":"a","features":[[1,2],[18446744073709551616,3]]}')
@example(b'{"symbol":"a","features":{"x":-9223372036854775809}}')
@example(b'{"symbol":"a","features":[1,[2]]}')
@example(b'{"symbol":"a","features":[[2],1]}')
@example(b'{"symbol":"a","features":[1],"explain":true,"explain":true}')
@example(b'{"symbol":"a","features":[1],"model_name":null,"model_name":"b"}')
@example(b'{"features":[1],"symbol":"a\\u0000"}')
@example(b'\xef\xbb\xbf{"symbol":"a","features":[1]}')
@example('{"symbol":"a","features":[1]}'.encode("utf-16"))
@example(b'{"symbol":"\xed\xa0\x80","features":[1]}')
@example(b'{"symbol":"a","features":[1],"\xff":1}')
def test_what_the_quick_proof_accepts_is_strict_json_of_the_same_content(data: bytes) -> None:
    quick = quickly(data)
    if quick is None:
        return
    document = strictly(data)
    assert document["symbol"] == quick.symbol
    assert same(document.get("features"), None if quick.features is prediction_bodies.UNSET else quick.features)
    assert set(document) <= set(PredictBody.__struct_fields__)
    for name, value in document.items():
        if name not in ("features", "timestamp"):
            assert getattr(quick, name) == value


def same(strict: Any, quick: Any) -> bool:
    """Equal, numbers by the double that they mean."""
    if isinstance(strict, list):
        return len(strict) == len(quick) and all(map(same, strict, quick))
    if isinstance(strict, dict):
        return list(strict) == list(quick) and all(map(same, strict.values(), quick.values()))
    return strict is quick is None or (isinstance(quick, float) and float(strict) == quick)


@settings(max_examples=400, deadline=None)
@given(bodies())
def test_every_body_is_read_or_refused_by_a_known_error(data: bytes) -> None:
    try:
        body = body_from_bytes(data)
    except (RequestInvalid, FieldsInvalid) as error:
        assert error.values["errors"]
        return
    assert strictly(data)["symbol"] == body.symbol


@settings(max_examples=300, deadline=None)
@given(st.lists(bodies(), max_size=3), st.booleans())
def test_a_batch_reads_each_item_as_if_it_came_alone(items: list[bytes], is_padded: bool) -> None:
    data = b'{"requests":[' + b",".join(items) + b"]" + (b' , "other" : 1' if is_padded else b"") + b"}"
    try:
        strictly(data)
    except RequestInvalid:
        with pytest.raises((RequestInvalid, FieldsInvalid)):
            batch_from_bytes(data, None, 1000)
        return
    try:
        batch = batch_from_bytes(data, None, 1000)
    except RequestInvalid as error:  # what only the other reader refuses: lone surrogates
        assert "surrogate" in str(error) or "utf-8" in str(error).lower() or "escaped" in str(error)
        return
    if len(batch.items) != len(items):
        return  # the items' own brackets made another document of it
    for item, alone in zip(batch.items, items, strict=True):
        try:
            expected: Any = prediction_bodies.asked_from_body(body_from_bytes(alone), None)
        except (FieldsInvalid, FeaturesInvalid) as error:
            assert type(item.asked) is type(error)
            assert item.asked.values == error.values
        else:
            assert item.asked == expected


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"symbol":"BTC/USDT","features":[0.1,-2,3e4]}', id="vector"),
        pytest.param(b'{"symbol":"BTC/USDT","features":{"rsi":65.5,"vol":null}}', id="by name"),
        pytest.param(b'{"symbol":"BTC/USDT","features":[[1,2],[3,null]]}', id="matrix"),
        pytest.param(
            b'{"symbol":"B","features":[1],"timestamp":"2024-01-15T10:30:00Z","model_name":"m","model_version":"latest",'
            b'"experiment_id":"e","unit_id":"u","explain":false,"model_type":null}',
            id="every field",
        ),
        pytest.param('{"symbol":"größe","features":{"π":1}}'.encode(), id="not ASCII"),
        pytest.param(b' {\n"features" : [ 1.5 ] , "symbol" : "a" }\r\n', id="spaces"),
    ],
)
def test_ordinary_bodies_need_no_second_reader(data: bytes) -> None:
    assert quickly(data) is not None


def test_a_batch_of_ordinary_items_needs_no_second_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_bodies, "strict_document", pytest.fail)
    data = b'{"requests":[{"symbol":"a","features":[1]},{"symbol":"b","features":{"x":null}}],"max_batch_size":32,"model_version":"1.0"}'
    batch = batch_from_bytes(data, None, 1000)
    assert [item.symbol for item in batch.items] == ["a", "b"]
    assert batch.max_batch_size == 32


# --- what is refused, and where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "locs"),
    [
        pytest.param(b'{"symbol":"a","features":[1,true,"2",null,3,[4]]}', ["features[1]", "features[2]", "features[5]"], id="vector"),
        pytest.param(b'{"symbol":"a","features":{"rsi":"65","vol":1,"gap":false}}', ["features.rsi", "features.gap"], id="names"),
        pytest.param(b'{"symbol":"a","features":[[1,"2"],3,[true]]}', ["features[0][1]", "features[1]", "features[2][0]"], id="matrix"),
        pytest.param(b'{"symbol":"a","features":"1,2"}', ["features"], id="text"),
        pytest.param(b'{"symbol":"a","features":1}', ["features"], id="number"),
        pytest.param(b'{"features":[1]}', ["symbol"], id="no symbol"),
        pytest.param(b'{"symbol":null,"features":[1]}', ["symbol"], id="null symbol"),
        pytest.param(b'{"symbol":7,"features":["x"],"model_name":1}', ["symbol", "model_name", "features[0]"], id="several"),
        pytest.param(b'{"symbol":"a","features":[1],"timestamp":"2024-01-15T10:30:00"}', ["timestamp"], id="time without offset"),
        pytest.param(b'{"symbol":"a","features":[1],"timestamp":1705314600}', ["timestamp"], id="time as a number"),
        pytest.param(b'{"symbol":"a","features":[1],"explain":"yes"}', ["explain"], id="flag as text"),
        pytest.param(b"[1,2]", [""], id="array"),
        pytest.param(b'"BTC"', [""], id="text alone"),
        pytest.param(b"3", [""], id="number alone"),
        pytest.param(b"null", [""], id="null"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_named_by_its_place(data: bytes, locs: list[str]) -> None:
    with pytest.raises(FieldsInvalid) as refused:
        body_from_bytes(data)
    assert [error["loc"] for error in refused.value.values["errors"]] == locs


def test_the_places_of_a_body_full_of_errors_are_not_all_listed() -> None:
    data = json.dumps({"symbol": "a", "features": ["x"] * 5000}).encode()
    with pytest.raises(FieldsInvalid) as refused:
        body_from_bytes(data)
    assert len(refused.value.values["errors"]) == prediction_bodies.MAX_ERRORS


@pytest.mark.parametrize("given_features", [b"", b',"features":null'])
@pytest.mark.parametrize("model_type", [b"", b',"model_type":"LSTM","data":[0.0,0.01]'])
def test_without_features_there_is_nothing_to_predict_from(given_features: bytes, model_type: bytes) -> None:
    body = body_from_bytes(b'{"symbol":"a"' + given_features + model_type + b"}")
    with pytest.raises(FeaturesInvalid, match="LSTM" if model_type else "no feature service") as refused:
        prediction_bodies.asked_from_body(body, None)
    assert refused.value.values["errors"] == [{"loc": "features", "msg": "the field is missing"}]


def test_a_batchs_names_are_for_the_items_without_one() -> None:
    data = (
        b'{"model_version":"1.0","model_name":"m","requests":['
        b'{"symbol":"a","features":[1]},{"symbol":"b","features":[1],"model_version":"2.0","model_name":"n"}]}'
    )
    asked = [item.asked for item in batch_from_bytes(data, None, 1000).items]
    assert all(isinstance(one, Asked) for one in asked)
    assert [(one.model_name, one.version) for one in asked if isinstance(one, Asked)] == [("m", "1.0"), ("n", "2.0")]


@pytest.mark.parametrize(
    ("data", "locs"),
    [
        pytest.param(b"{}", ["requests"], id="missing"),
        pytest.param(b'{"requests":{}}', ["requests"], id="no list"),
        pytest.param(b'{"requests":[],"max_batch_size":0}', ["max_batch_size"], id="none at a time"),
        pytest.param(b'{"requests":[],"max_batch_size":true}', ["max_batch_size"], id="bool as number"),
        pytest.param(b'{"requests":[],"model_version":1}', ["model_version"], id="number as version"),
        pytest.param(b"[]", [""], id="bare list"),
    ],
)
def test_a_batch_as_a_whole_is_refused_by_its_own_fields_only(data: bytes, locs: list[str]) -> None:
    with pytest.raises(FieldsInvalid) as refused:
        batch_from_bytes(data, None, 1000)
    assert [error["loc"] for error in refused.value.values["errors"]] == locs


def test_numbers_are_the_doubles_that_were_written() -> None:
    written = [0.1, -1e-300, 1.7976931348623157e308, 5e-324, 123456789012345678.0, -0.0]
    body = body_from_bytes(json.dumps({"symbol": "a", "features": written}).encode())
    assert body.features == written
    assert math.copysign(1.0, body.features[-1]) == -1.0  # type: ignore[index,arg-type]


@pytest.mark.parametrize("item", [b"1", b'{"symbol":"A","features":[1]}'], ids=["wrong", "right"])
def test_a_batch_of_too_many_items_is_refused_before_they_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, item: bytes
) -> None:
    looked_at: list[Any] = []
    monkeypatch.setattr(prediction_bodies, "_item", lambda *what: looked_at.append(what))
    data = b'{"requests":[' + b",".join([item] * 1001) + b"]}"
    with pytest.raises(TooManyRows, match="1001 rows are more than the 1000"):
        batch_from_bytes(data, None, 1000)
    assert not looked_at
