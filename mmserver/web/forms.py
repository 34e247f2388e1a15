"""The pages' forms: read with just the fields that they have, and shown again with what was typed where one is refused."""

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import flask

from mmserver import errors
from mmserver.registry.fields import MAX_FIELD_BYTES
from mmserver.web.errors import problem_from_error
from mmserver.web.framing import REQUEST_ID_KEY
from mmserver.web.requests import refuse_parameter
from mmserver.web.responses import render_page

CORRECTABLE = (errors.Invalid, errors.Unprocessable, errors.Conflict, errors.TooLarge)
"""What whoever filled in a form can put right."""
_MAX_FORM_BYTES = 8 * MAX_FIELD_BYTES
_FIELD = re.compile(r"[^.\[]*")


def read_form(request: flask.Request, names: Iterable[str], *, repeated: Collection[str] = ()) -> dict[str, str]:
    """The form's fields, "" for one that did not come; those of `repeated`, which are read elsewhere, may come many times.

    Raises:
        RequestInvalid: a field that the form does not have, or one that came twice.
        RequestEntityTooLarge
    """
    request.max_form_memory_size = _MAX_FORM_BYTES
    known = dict.fromkeys(names, "")
    for name, values in request.form.lists():
        if name not in known and name not in repeated:
            refuse_parameter(name[:200], "this form has no such field")
        if len(values) > 1 and name not in repeated:
            refuse_parameter(name, "the field is given twice")
    for name in request.files:
        refuse_parameter(name[:200], "this form takes no file")
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


def refused_form(error: errors.MmserverError, template: str, typed: Mapping[str, str], **values: Any) -> flask.Response:
    """The form once more: what is wrong with it, in words and beside the fields, and everything that was typed."""
    problem = problem_from_error(error)
    messages: dict[str, list[str]] = {}
    if problem.code in FIELD_BY_CODE:
        messages[FIELD_BY_CODE[problem.code]] = [problem.detail]
    for place in problem.errors:
        field = _field(place["loc"])
        deeper = place["loc"][len(field) :].lstrip(".")
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
