"""Outcomes in files and JSON objects."""

import io
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mmserver.errors import RequestInvalid
from mmserver.experiments.observations.outcome_files import (
    outcome_from_object,
    outcomes_from_csv,
    outcomes_from_parquet,
)
from mmserver.experiments.observations.values import Outcome


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def test_csv_with_any_of_the_columns_in_any_order() -> None:
    text = "label,prediction_id,at,realized_return\r\nbuy,a,2026-11-20T00:00:00Z,0.5\n2,b,,\n,c,1.5,-1e-3\n\n"
    assert outcomes_from_csv(text.encode("utf-8-sig")) == [
        Outcome(prediction_id="a", label="BUY", at=1_795_132_800.0, realized_return=0.5),
        Outcome(prediction_id="b", label=2),
        Outcome(prediction_id="c", at=1.5, realized_return=-0.001),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "found nothing", id="empty"),
        pytest.param(b"id,label\n", "found id, label", id="other columns"),
        pytest.param(b"prediction_id\na\n", "realized_return or label", id="no value"),
        pytest.param(b"prediction_id,label,label\n", "columns must be", id="twice"),
        pytest.param(b"prediction_id,label\na,BUY,x\n", "line 2 has 3 fields", id="too many fields"),
        pytest.param(b"prediction_id,label\na\n", "line 2 has 1 fields", id="too few fields"),
        pytest.param(b"prediction_id,label\n\xff,BUY\n", "UTF-8", id="not UTF-8"),
        pytest.param(b'prediction_id,label\n"a,BUY\n', "not CSV", id="open quote"),
        pytest.param(b"PAR1" * 10, "columns must be", id="Parquet as CSV"),
    ],
)
def test_a_csv_that_is_none_is_refused_whole(data: bytes, message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        outcomes_from_csv(data)


def test_a_field_that_is_no_number_is_judged_with_the_others() -> None:
    [outcome] = outcomes_from_csv(b"prediction_id,realized_return\na,much\n")
    assert outcome.realized_return == "much"


def test_parquet_with_names_codes_and_times() -> None:
    import datetime

    moment = datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC)
    assert outcomes_from_parquet(_parquet({"prediction_id": ["a", "b"], "label": [1, None], "at": [moment, None], "realized_return": [None, 0.5]})) == [
        Outcome(prediction_id="a", label=1, at=moment.timestamp()),
        Outcome(prediction_id="b", realized_return=0.5),
    ]  # fmt: skip
    assert outcomes_from_parquet(_parquet({"prediction_id": ["a"], "label": ["sell"]})) == [
        Outcome(prediction_id="a", label="SELL")
    ]


def test_a_parquet_file_that_is_none_is_refused() -> None:
    whole = _parquet({"prediction_id": ["a"], "label": ["sell"]})
    for data in (b"", b"rubbish" * 50, whole[:-20], whole[:4] + b"\xff" * 20 + whole[24:]):
        with pytest.raises(RequestInvalid, match="Parquet"):
            outcomes_from_parquet(data)
    with pytest.raises(RequestInvalid, match="columns must be"):
        outcomes_from_parquet(_parquet({"id": ["a"]}))


@pytest.mark.parametrize("value", [None, [], "a", {"prediction_id": "a", "lable": "BUY"}])
def test_what_is_no_outcome_object_is_refused(value: Any) -> None:
    with pytest.raises(RequestInvalid):
        outcome_from_object(value)
