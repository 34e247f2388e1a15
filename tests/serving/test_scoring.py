"""The scoring protocol with models of a plugin: outputs of any name and width, missing values, failures of the library."""

from collections.abc import Callable
from typing import Any

import flask
import numpy as np
import pytest

from mmserver.web.blueprints import register_web

ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
Score = Callable[[list[list[float | None]]], Any]


@pytest.fixture
def score(desk: Any) -> Score:
    """POST rows for the only model that there is."""
    app = flask.Flask("mmserver", static_folder=None)
    register_web(app, desk.store, desk.store.plugins)
    client = app.test_client()
    return lambda rows: client.post("/invocations", json={"instances": rows})


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        pytest.param({"prediction": [[1, 0, 0]]}, [1, 4], id="prediction"),
        pytest.param({"margin": [[0, 1, 0]], "prediction": [[1, 0, 0]]}, [1, 4], id="prediction beside others"),
        pytest.param({"prediction": [[1, 0, 0], [0, 0, 1]]}, [[1, 3], [4, 6]], id="several numbers"),
        pytest.param({"score": [[0, 1, 0]]}, [2, 5], id="one output of another name"),
        pytest.param(
            {"up": [[1, 0, 0]], "both": [[1, 0, 0], [0, 1, 0]]},
            [{"up": 1, "both": [1, 2]}, {"up": 4, "both": [4, 5]}],
            id="several outputs of other names",
        ),
    ],
)
def test_outputs_are_given_as_the_library_predicts(
    outputs: dict[str, Any], expected: list[Any], desk: Any, score: Score
) -> None:
    desk.write_weights("alpha", "BTC_ret", outputs)
    desk.register()
    answer = score(ROWS)
    assert (answer.status_code, answer.json) == (200, {"predictions": expected})


def test_null_is_400_by_name_where_the_model_takes_no_missing_values(desk: Any, score: Score) -> None:
    desk.write_weights("alpha", "BTC_ret")
    desk.register()
    answer = score([[1.0, 2.0, 3.0], [1.0, None, 3.0]])
    assert (answer.status_code, answer.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert "volume is missing, and the model takes no missing values" in answer.json["message"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_a_prediction(value: float, desk: Any, score: Score) -> None:
    desk.write_weights("alpha", "BTC_ret", {"prediction": [[1, 1, 1]]})
    desk.register()
    assert score(ROWS).status_code == 200

    def poisoned(rows: Any) -> None:
        rows[1] = value

    desk.switches["predicting"] = poisoned
    answer = score(ROWS)
    assert (answer.status_code, answer.json["error_code"]) == (500, "INTERNAL_ERROR")
    assert answer.json["code"] == "prediction_not_finite"
    assert "predictions" not in answer.json


def test_a_library_that_fails_is_an_error_of_the_server(desk: Any, score: Score) -> None:
    desk.write_weights("alpha", "BTC_ret")
    desk.register()
    assert score(ROWS).status_code == 200
    desk.switches["predicting"] = lambda rows: 1 / 0
    answer = score(ROWS)
    assert answer.status_code >= 500
    assert "division" not in answer.text
