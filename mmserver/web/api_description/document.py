"""Builds the OpenAPI 3.1 document from the table of operations; msgspec gives the schemas of the very types that are sent."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from mmserver.web.api_description.error_bodies import ErrorForm, error_form
from mmserver.web.api_description.fields import FIELDS
from mmserver.web.api_description.operations import (
    ADDRESS_TOO_LONG,
    ANYWHERE,
    CSV,
    HEADERS_TOO_LARGE,
    OF_A_BODY,
    OF_A_KEY,
    OF_A_QUERY,
    OPEN_RULES,
    PATH_PARAMETERS,
    UNKNOWN_ADDRESS,
    Answer,
    AnyError,
    AnyOf,
    HttpError,
    Operation,
    Parameter,
    TypeOrSchema,
)
from mmserver.web.errors import CODE_BY_HTTP_STATUS, status_of

OPENAPI_VERSION = "3.1.1"
_REFERENCE = "#/components/schemas/{name}"
_RULE_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
REQUEST_ID_HEADER = "The request's id: the client's own if it is 1 to 128 of `A-Z a-z 0-9 . _ -`, else a new one."
RETRY_AFTER_HEADER = "Seconds to wait before asking again."


def path_of(rule: str) -> str:
    """Flask's rule as OpenAPI writes it: `<path:symbol>` is `{symbol}`."""
    return _RULE_PARAMETER.sub(r"{\1}", rule)


SECURITY_SCHEMES: Mapping[str, Mapping[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the server asks for one."},
    "api_key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same; goes before the others.",
    },
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "The same as the password, with any user name: for browsers.",
    },
}


def build_document(
    operations: Sequence[Operation],
    tags: Mapping[str, str],
    info: Mapping[str, Any],
    examples: Mapping[str, Any],
    also_sent: Iterable[type[msgspec.Struct]] = (),
) -> dict[str, Any]:
    """The document as JSON-able values.

    `tags` maps each tag to what it is; `examples` maps an operation's name to its `request` and `response`; `also_sent` are
    types that others refer to by name.
    """
    schemas = _Schemas(operations, also_sent)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = _operation(operation, schemas, examples.get(operation.name, {}))
        paths.setdefault(path_of(operation.rule), {})[operation.method.lower()] = described
    return {
        "openapi": OPENAPI_VERSION,
        "info": info,
        "tags": [{"name": name, "description": description} for name, description in tags.items()],
        "security": [{}, *({name: []} for name in SECURITY_SCHEMES)],
        "paths": paths,
        "components": {
            "securitySchemes": SECURITY_SCHEMES,
            "schemas": dict(sorted(schemas.components.items())),
            "headers": {
                "RequestId": {"description": REQUEST_ID_HEADER, "required": True, "schema": {"type": "string"}},
                "RetryAfter": {"description": RETRY_AFTER_HEADER, "required": True, "schema": {"type": "integer"}},
            },
        },
    }


# --- one operation ----------------------------------------------------------------------------------------------------


def errors_of(operation: Operation) -> tuple[AnyError, ...]:
    """Everything that the operation may be refused with, each once."""
    found: list[AnyError] = [*operation.errors, *ANYWHERE]
    if operation.rule not in OPEN_RULES:
        found += OF_A_KEY
    if "<" in operation.rule:
        found += UNKNOWN_ADDRESS, ADDRESS_TOO_LONG
    if operation.parameters:
        found += OF_A_QUERY
        found.append(ADDRESS_TOO_LONG)
        if any(parameter.place == "header" for parameter in operation.parameters):
            found.append(HEADERS_TOO_LARGE)
    if operation.body:
        found += OF_A_BODY
    return tuple(dict.fromkeys(found))


def codes_by_status(operation: Operation) -> dict[int, dict[str, str]]:
    """For each status of an error, the codes with what they mean."""
    shown_status = error_form(operation.rule).shown_status
    found: dict[int, dict[str, str]] = {}
    for error in errors_of(operation):
        status, code, meaning = _described_error(error)
        found.setdefault(shown_status.get(status, status), {})[code] = meaning
    return dict(sorted(found.items()))


def _operation(operation: Operation, schemas: "_Schemas", example: Mapping[str, Any]) -> dict[str, Any]:
    own = {parameter.name: parameter for parameter in operation.parameters if parameter.place == "path"}
    in_path = [own.get(name, PATH_PARAMETERS[name]) for name in _RULE_PARAMETER.findall(operation.rule)]
    elsewhere = [parameter for parameter in operation.parameters if parameter.place != "path"]
    described: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
    }
    if operation.description:
        described["description"] = operation.description
    if parameters := [_parameter(parameter) for parameter in (*in_path, *elsewhere)]:
        described["parameters"] = parameters
    if operation.body:
        described["requestBody"] = {
            "description": operation.body.meaning,
            "required": operation.body.is_required,
            "content": _content(
                operation.body.types, schemas.of_request, example.get("request"), example.get("request_csv")
            ),
        }
    if operation.rule in OPEN_RULES:
        described["security"] = []
    described["responses"] = _responses(operation, schemas, example.get("response"))
    return described


def _responses(operation: Operation, schemas: "_Schemas", example: Any) -> dict[str, Any]:
    responses = {str(answer.status): _answer(answer, schemas, example) for answer in operation.answers}
    for status, codes in codes_by_status(operation).items():
        refusal = _refusal(status, codes, error_form(operation.rule), schemas)
        answered = responses.get(str(status))
        responses[str(status)] = _either(answered, refusal) if answered else refusal
    return dict(sorted(responses.items()))


def _either(answer: dict[str, Any], refusal: dict[str, Any]) -> dict[str, Any]:
    """A status that an answer and a refusal share."""
    content = dict(answer.get("content", {}))
    for media_type, described in refusal["content"].items():
        if "schema" in content.get(media_type, {}):
            content[media_type] = {"schema": {"anyOf": [content[media_type]["schema"], described["schema"]]}}
        else:
            content[media_type] = described
    description = f"{answer['description']}\n\n{refusal['description']}"
    return {"description": description, "headers": {**answer["headers"], **refusal["headers"]}, "content": content}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    described = {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.meaning,
        "required": parameter.is_required,
        "schema": parameter.schema,
    }
    if parameter.example is not None:
        described["example"] = parameter.example
    return described


def _answer(answer: Answer, schemas: "_Schemas", example: Any) -> dict[str, Any]:
    headers = {name: {"description": meaning, "schema": {"type": "string"}} for name, meaning in answer.headers.items()}
    described: dict[str, Any] = {
        "description": answer.meaning,
        "headers": {**_common_headers(answer.status), **headers},
    }
    if answer.types:
        described["content"] = _content(answer.types, schemas.of_response, example if answer.status < 300 else None)
    return described


def _refusal(status: int, codes: Mapping[str, str], form: ErrorForm, schemas: "_Schemas") -> dict[str, Any]:
    """The schema allows no other code than those that are listed."""
    lines = "\n".join(f"- `{code}`: {meaning}" for code, meaning in codes.items())
    schema = {"allOf": [schemas.of_response(form.body_type)], "properties": {"code": {"enum": sorted(codes)}}}
    return {
        "description": f"{HTTPStatus(status).phrase}.\n\n{lines}",
        "headers": _common_headers(status),
        "content": {form.media_type: {"schema": schema}},
    }


def _common_headers(status: int) -> dict[str, Any]:
    headers = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    return headers


def _content(
    types: Mapping[str, TypeOrSchema], schema_of: Any, example: Any, csv_example: str | None = None
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media_type, type_ in types.items():
        content[media_type] = {} if type_ is None else {"schema": schema_of(type_)}
        if example is not None and (media_type.endswith("json") or isinstance(example, str)):
            content[media_type]["example"] = example
            example = None  # it is written in one media type only, the first that it fits
        elif media_type == CSV and csv_example is not None:
            content[media_type]["example"] = csv_example
    return content


def _described_error(error: AnyError) -> tuple[int, str, str]:
    if isinstance(error, HttpError):
        return error.status, *CODE_BY_HTTP_STATUS[error.status]
    meaning = (error.__doc__ or "").partition("\n")[0]
    return int(status_of(error)), error.code, meaning


# --- schemas ----------------------------------------------------------------------------------------------------------


class _Schemas:
    """The schemas of all types that are sent or taken, by reference; a type that is both must look the same either way."""

    def __init__(self, operations: Sequence[Operation], also_sent: Iterable[type[msgspec.Struct]]) -> None:
        sent = [type_ for operation in operations for answer in operation.answers for type_ in answer.types.values()]
        forms = [error_form(operation.rule).body_type for operation in operations]
        taken = [type_ for operation in operations if operation.body for type_ in operation.body.types.values()]
        self.components: dict[str, dict[str, Any]] = {}
        self._sent = self._schema_by_type(_single_types([*sent, *forms, *also_sent]), is_sent=True)
        self._taken = self._schema_by_type(_single_types(taken), is_sent=False)
        for name, schema in self.components.items():
            _describe_fields(name, schema)

    def of_response(self, type_: TypeOrSchema) -> Any:
        """The schema of a body that is sent."""
        return _looked_up(type_, self._sent)

    def of_request(self, type_: TypeOrSchema) -> Any:
        """The schema of a body that is taken."""
        return _looked_up(type_, self._taken)

    def _schema_by_type(self, types: list[Any], *, is_sent: bool) -> dict[Any, Any]:
        schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
        if is_sent:
            for struct in _structs_within(types):
                _require_what_is_always_sent(components[struct.__name__], struct)
        for name, schema in components.items():
            if self.components.setdefault(name, schema) != schema:
                raise ValueError(f"{name} is two types, or one that is sent and taken with other fields")
        return dict(zip(types, schemas, strict=True))


def _looked_up(type_: TypeOrSchema, schema_by_type: Mapping[Any, Any]) -> Any:
    if isinstance(type_, Mapping):
        return type_
    if isinstance(type_, AnyOf):
        return {"anyOf": [schema_by_type[one] for one in type_.types]}
    return schema_by_type[type_]


def _single_types(types: Iterable[TypeOrSchema]) -> list[Any]:
    """Every type by itself, each once."""
    singles: dict[Any, None] = {}
    for type_ in types:
        if isinstance(type_, AnyOf):
            singles.update(dict.fromkeys(type_.types))
        elif not (type_ is None or isinstance(type_, Mapping)):
            singles[type_] = None
    return list(singles)


def _structs_within(types: list[Any]) -> Iterator[type[msgspec.Struct]]:
    """Every Struct that the types are made of, each once."""
    pending: list[Any] = list(msgspec.inspect.multi_type_info(types))
    seen: set[type[msgspec.Struct]] = set()
    while pending:
        node = pending.pop()
        if isinstance(node, msgspec.inspect.StructType):
            if node.cls in seen:
                continue
            seen.add(node.cls)
            yield node.cls
            pending += [field.type for field in node.fields]
        elif isinstance(node, msgspec.inspect.Type):
            for field in msgspec.structs.fields(type(node)):
                value = getattr(node, field.name)
                pending += value if isinstance(value, tuple) else [value]


def _require_what_is_always_sent(schema: dict[str, Any], struct: type[msgspec.Struct]) -> None:
    """A field with a default may be left out of what is taken; in what is sent it stands."""
    sent = [
        field.encode_name
        for field in msgspec.structs.fields(struct)
        if field.required or not (struct.__struct_config__.omit_defaults or field.default is msgspec.UNSET)
    ]
    schema["required"] = sent
    for name in sent:
        schema["properties"][name].pop("default", None)


def _describe_fields(type_name: str, schema: dict[str, Any]) -> None:
    for name, field in schema.get("properties", {}).items():
        said = FIELDS.get(f"{type_name}.{name}", FIELDS.get(name))
        if said is not None:
            field.update({"description": said} if isinstance(said, str) else said)
