"""The nodes of an ONNX file, read from its bytes: the server has no `onnx` package, and ONNX Runtime shows no graph.

Only files that ONNX Runtime has opened are read here. Whatever occurs twice is joined, as protobuf merges it.

Source:
    onnx.proto3 (numbers of the fields); protobuf.dev, "Encoding".
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mmserver.errors import Undecodable

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT, _VALUE_NAME = 1, 11, 12, 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 1, 6, 11
_FUNCTION_NAME, _FUNCTION_INPUT, _FUNCTION_OUTPUT, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 4, 5, 7, 10
_WITHOUT_GRAPHS = "ai.onnx.ml"
"""Its trees have attributes of millions of numbers, and none of them is a graph."""


@dataclass(frozen=True, slots=True)
class Body:
    """Nodes in the file's order, which need not be the one in which they run, between names that go in and out."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator; an input or output that is left out is an empty name."""

    operator: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bodies: dict[str, Body]
    """The graphs among its attributes."""


@dataclass(frozen=True, slots=True)
class Graph:
    """The main graph, and the file's own functions by domain and name."""

    main: Body
    functions: dict[tuple[str, str], Body]


def graph_from_content(content: bytes) -> Graph:
    """What the file has.

    Raises:
        Undecodable: unsupported: it is written in a way that protobuf has given up (groups), or no protobuf.
    """
    try:
        fields = _fields(memoryview(content))
        main = _body(_joined(fields.get(_MODEL_GRAPH, [])))
        functions = dict(_function(part) for part in fields.get(_MODEL_FUNCTION, []))
    except (IndexError, ValueError) as error:
        raise Undecodable("unsupported", f"its nodes cannot be read: {error}") from error
    return Graph(main, functions)


def _body(part: memoryview) -> Body:
    fields = _fields(part)
    return Body(
        inputs=tuple(_text(_fields(value), _VALUE_NAME) for value in fields.get(_GRAPH_INPUT, [])),
        outputs=tuple(_text(_fields(value), _VALUE_NAME) for value in fields.get(_GRAPH_OUTPUT, [])),
        nodes=tuple(map(_node, fields.get(_GRAPH_NODE, []))),
    )


def _function(part: memoryview) -> tuple[tuple[str, str], Body]:
    fields = _fields(part)
    body = Body(
        inputs=_texts(fields, _FUNCTION_INPUT),
        outputs=_texts(fields, _FUNCTION_OUTPUT),
        nodes=tuple(map(_node, fields.get(_FUNCTION_NODE, []))),
    )
    return (_text(fields, _FUNCTION_DOMAIN), _text(fields, _FUNCTION_NAME)), body


def _node(part: memoryview) -> Node:
    fields = _fields(part)
    domain = _text(fields, _NODE_DOMAIN)
    attributes = fields.get(_NODE_ATTRIBUTE, []) if domain != _WITHOUT_GRAPHS else []
    return Node(
        operator=_text(fields, _NODE_OPERATOR),
        domain="" if domain == "ai.onnx" else domain,
        name=_text(fields, _NODE_NAME),
        inputs=_texts(fields, _NODE_INPUT),
        outputs=_texts(fields, _NODE_OUTPUT),
        bodies={name: body for attribute in attributes for name, body in _graphs(_fields(attribute))},
    )


def _graphs(attribute: dict[int, list[memoryview]]) -> Iterator[tuple[str, Body]]:
    name = _text(attribute, _ATTRIBUTE_NAME)
    if _ATTRIBUTE_GRAPH in attribute:
        yield name, _body(_joined(attribute[_ATTRIBUTE_GRAPH]))
    for number, part in enumerate(attribute.get(_ATTRIBUTE_GRAPHS, [])):
        yield f"{name}[{number}]", _body(part)


# --- the encoding -----------------------------------------------------------------------------------------------------


def _fields(part: memoryview) -> dict[int, list[memoryview]]:
    """The texts, bytes and messages in a message, by number of their field; its numbers are passed over."""
    found: dict[int, list[memoryview]] = {}
    at, end = 0, len(part)
    while at < end:
        key, at = _varint(part, at)
        kind = key & 7
        if kind == _BYTES:
            size, at = _varint(part, at)
            found.setdefault(key >> 3, []).append(part[at : at + size])
            at += size
        elif kind == _VARINT:
            _, at = _varint(part, at)
        elif kind in (_FIXED_64, _FIXED_32):
            at += 8 if kind == _FIXED_64 else 4
        else:
            raise ValueError(f"a field of the kind {kind}")
    if at > end:
        raise ValueError("a field ends beyond its message")
    return found


def _varint(part: memoryview, at: int) -> tuple[int, int]:
    """(the number, where it ends)."""
    value = shift = 0
    while True:
        byte = part[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _joined(parts: list[memoryview]) -> memoryview:
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _texts(fields: dict[int, list[memoryview]], number: int) -> tuple[str, ...]:
    return tuple(str(part, "utf-8", "replace") for part in fields.get(number, []))


def _text(fields: dict[int, list[memoryview]], number: int) -> str:
    """The last, as protobuf takes it."""
    return str(fields[number][-1], "utf-8", "replace") if number in fields else ""
