"""Classes that are said at registration fit the model, or are refused: nothing else is taken in their place."""

from typing import Any

import pytest

from mmserver.errors import Undecodable
from mmserver.graphs.model_file import stated_classes

HEADS = {"probabilities": 3, "expected_return": 1}


@pytest.mark.parametrize(
    "classes",
    [["BUY", "SELL", "HOLD"], [2, 0, 1], [-1.0, 0.0, 1.0]],
    ids=["names", "codes", "signs"],
)
def test_names_and_codes_are_kept_in_their_order(classes: Any) -> None:
    assert stated_classes({"classes": classes}, HEADS) == classes


def test_a_single_number_is_of_two_classes() -> None:
    assert stated_classes({"classes": ["BUY", "SELL"]}, {"probability": 1}) == ["BUY", "SELL"]


def test_nothing_said_is_no_classes() -> None:
    assert stated_classes({"objective": "multiclass"}, HEADS) is None


@pytest.mark.parametrize(
    "classes",
    [
        pytest.param(5, id="number"),
        pytest.param(None, id="null"),
        pytest.param("abc", id="text-as-long-as-the-output"),
        pytest.param({"BUY": 0, "HOLD": 1, "SELL": 2}, id="name-to-number"),
        pytest.param({"0": "BUY", "1": "HOLD", "2": "SELL"}, id="number-to-name"),
        pytest.param([], id="empty"),
        pytest.param(["BUY", "SELL"], id="too-short"),
        pytest.param(["SELL", "HOLD", "BUY", "NONE"], id="too-long"),
        pytest.param(["SELL", "HOLD", None], id="null-within"),
        pytest.param([True, False, 2], id="truth-values"),
        pytest.param([[0], [1], [2]], id="lists"),
        pytest.param(["SELL", "HOLD", " "], id="nameless"),
        pytest.param(["SELL", "SELL", "BUY"], id="twice"),
        pytest.param([0, 1, float("nan")], id="nan"),
    ],
)
def test_what_cannot_be_the_classes_is_refused(classes: Any) -> None:
    with pytest.raises(Undecodable, match="a list of 3 different names or codes") as refusal:
        stated_classes({"classes": classes}, HEADS)
    assert refusal.value.reason == "option_invalid"
