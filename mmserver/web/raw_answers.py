"""What the standard protocols' requests and answers say of experiments, beside their own bodies."""

import urllib.parse
from typing import TYPE_CHECKING

import flask

from mmserver.errors import FieldsInvalid

if TYPE_CHECKING:
    from mmserver.experiments.raw_outputs import RawAnswer

UNIT_ID = "X-Unit-Id"
UNIT_ID_KEY = "X_UNIT_ID"
"""The same as the quick routes have it."""
PREDICTION_ID = "prediction_id"
MAX_UNIT_ID_LENGTH = 512


def said_of_arm(answer: "RawAnswer") -> dict[str, str]:
    """Which arm answered which experiment's request, by what outcomes are given later; as parameters of an answer."""
    said = {
        "variant": answer.variant,
        "experiment_id": answer.experiment_id,
        PREDICTION_ID: answer.prediction_id,
    }
    return said if answer.fallback is None else {**said, "fallback": answer.fallback}


def headers_of_arm(answer: "RawAnswer") -> dict[str, str]:
    """The same as headers: `X-Variant`, `X-Experiment-Id`, `X-Prediction-Id`, `X-Fallback`; percent-encoded where not ASCII."""
    return _headers(said_of_arm(answer))


def headers_of_observed(prediction_id: str | None) -> dict[str, str]:
    """`X-Prediction-Id` of a request outside experiments that is observed; none of another."""
    return {} if prediction_id is None else _headers({PREDICTION_ID: prediction_id})


def _headers(said: dict[str, str]) -> dict[str, str]:
    return {
        "-".join(["X", *name.title().split("_")]): text if text.isascii() else urllib.parse.quote(text)
        for name, text in said.items()
    }


def unit_id_from_request(request: flask.Request) -> str | None:
    """What the caller names as the unit, in a header; see `checked_unit_id`."""
    return checked_unit_id(request.headers.get(UNIT_ID), UNIT_ID)


def checked_unit_id(given: object, where: str) -> str | None:
    """The same text; None where it is absent or empty.

    Raises:
        FieldsInvalid: no text, one that is too long, or in a header one that is not ASCII.
    """
    if given is None or given == "":
        return None
    if not isinstance(given, str) or len(given) > MAX_UNIT_ID_LENGTH or (where == UNIT_ID and not given.isascii()):
        problem = f"expected {'ASCII ' if where == UNIT_ID else ''}text of at most {MAX_UNIT_ID_LENGTH} characters"
        raise FieldsInvalid(reason=f"{where}: {problem}", errors=[{"loc": where, "msg": problem}])
    return given
