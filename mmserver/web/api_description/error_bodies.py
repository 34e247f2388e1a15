"""The three forms that errors take: problem+json, and those of the two protocols that have their own."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    """An error of `/invocations`, as the common scoring protocol has it; `code` is ours."""

    error_code: str
    message: str
    code: str
    request_id: str
    errors: list[Misfit] | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How errors look under one part of the addresses; `shown_status` is the status that stands for another there."""

    body_type: type[msgspec.Struct]
    media_type: str
    shown_status: Mapping[int, int] = field(default_factory=dict)


_PROBLEM = ErrorForm(Problem, PROBLEM_MEDIA_TYPE)
_OPEN_INFERENCE = ErrorForm(OpenInferenceError, JSON_MEDIA_TYPE)
_SCORING = ErrorForm(ScoringError, JSON_MEDIA_TYPE, {422: 400})


def error_form(rule: str) -> ErrorForm:
    """The form that errors of the route have."""
    if rule == "/v2" or rule.startswith("/v2/"):
        return _OPEN_INFERENCE
    return _SCORING if rule.endswith("/invocations") else _PROBLEM
