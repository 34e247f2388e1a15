"""The three forms that errors take: problem+json, and those of the two protocols that have their own."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType

from mmserver.web.errors import PROBLEM_MEDIA_TYPE
from mmserver.web.responses import JSON_MEDIA_TYPE


class Misfit(msgspec.Struct):
    """One place of a request that does not fit."""

    loc: str
    msg: str


class Problem(msgspec.Struct, rename={"kind": "type"}, kw_only=True):
    """An error (RFC 9457). Branch on `code`; `detail` is for people."""

    kind: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[Misfit] | UnsetType = UNSET


class OpenInferenceError(msgspec.Struct):
    """An error under `/v2`, as that protocol has it."""

    error: str
    code: str
    request_id: str


class ScoringError(msgspec.Struct):
    """An error of `/invocations`, as the common scoring protocol has it; `error_code` is our code in capitals."""

    error_code: str
    message: str
    request_id: str


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How errors look under one part of the addresses."""

    body_type: type[msgspec.Struct]
    media_type: str
    code_field: str
    spelling: Callable[[str], str] = str


_PROBLEM = ErrorForm(Problem, PROBLEM_MEDIA_TYPE, "code")
_OPEN_INFERENCE = ErrorForm(OpenInferenceError, JSON_MEDIA_TYPE, "code")
_SCORING = ErrorForm(ScoringError, JSON_MEDIA_TYPE, "error_code", str.upper)


def error_form(rule: str) -> ErrorForm:
    """The form that errors of the route have."""
    if rule == "/v2" or rule.startswith("/v2/"):
        return _OPEN_INFERENCE
    return _SCORING if rule.endswith("/invocations") else _PROBLEM
