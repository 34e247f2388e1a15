"""The pages' forms: read with just the fields that they have, and shown again with what was typed where one is refused."""

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import flask

from mmserver import errors
from mmserver.registry.fields import MAX_FIELD_BYTES
from mmserver.web.errors import PROBLEM_KEY, problem_from_error
from mmserver.web.framing import REQUEST_ID_KEY
from mmserver.web.requests import refuse_parameter
from mmserver.web.responses import render_page

CORRECTABLE = (errors.Invalid, errors.Unprocessable, errors.Conflict, errors.TooLarge)
"""What whoever filled in a form can put right."""
_MAX_FORM_BYTES = 8 * MAX_FIELD_BYTES
_FIELD = re.compile(r"[^.\[]*")


def read_form(
    request: flask.Request,
    names: Iterable[str],
    *,
    repeated: Collection[str] = (),
    files: Collection[str] = (),
    max_bytes: int = _MAX_FORM_BYTES,
) -> dict[str, str]:
    """The form's fields, "" for one that did not come; those of `repeated`, which are read elsewhere, may come many times.

    `files` may come once each, and are read elsewhere too; all other fields together have at most `max_bytes`.

    Raises:
        RequestInvalid: a field that the form does not have, or one that came twice.
        RequestEntityTooLarge
    """
    request.max_form_memory_size = max_bytes
    known = dict.fromkeys(names, "")
    for name, values in request.form.lists():
        if name not in known and name not in repeated:
            refuse_parameter(name[:200], "this form has no such field")
        if len(values) > 1 and name not in repeated:
            refuse_parameter(name, "the field is given twice")
    for name, sent in request.files.lists():
        if name not in files:
            refuse_parameter(name[:200], "this form takes no file")
        if len(sent) > 1:
            refuse_parameter(name, "one file at a time")
    return {name: request.form.get(name, "") for name in known}


def lines_of(text: str) -> str:
    """What was typed into a text area, with the ends of lines that everybody else uses."""
    return "\n".join(text.strip().splitlines())


FIELD_BY_CODE: Mapping[str, str] = MappingProxyType(
    {
        errors.NameInvalid.code: "name",
        errors.VersionInvalid.code: "version",
        errors.VersionTaken.code: "version",
        errors.ArtifactInvalid.code: "file",
        errors.UploadTooLarge.code: "file",
    }
)
"""Which field of a form an error is about that names none itself."""


def refused_form(
    error: errors.MmserverError,
    template: str,
    typed: Mapping[str, str],
    *,
    fields: Mapping[str, str] = FIELD_BY_CODE,
    **values: Any,
) -> flask.Response:
    """The form once more: what is wrong with it, in words and beside the fields, and everything that was typed.

    Args:
        fields: which field is meant, by the error's code, and by places that the domain calls otherwise than the form does.
    """
    problem = problem_from_error(error)
    flask.request.environ[PROBLEM_KEY] = problem
    messages: dict[str, list[str]] = {}
    if problem.code in fields:
        messages[fields[problem.code]] = [problem.detail]
    for place in problem.errors:
        where = fields.get(place["loc"], place["loc"])
        field = _field(where)
        deeper = where[len(field) :].lstrip(".")
        messages.setdefault(field, []).append(f"{deeper}: {place['msg']}" if deeper else place["msg"])
    said = problem.body(flask.request.environ.get(REQUEST_ID_KEY, ""))
    response = render_page(template, typed=typed, refused=said, messages=messages, **values)
    response.status_code = problem.status
    response.headers.extend(problem.headers)
    return response


def uncached(response: flask.Response) -> flask.Response:
    """A page with a form: of what is never stored, browsers lose what was typed when somebody goes back to it."""
    response.headers["Cache-Control"] = "private, no-cache"
    return response


def _field(place: str) -> str:
    match = _FIELD.match(place)
    return match[0] if match else place
