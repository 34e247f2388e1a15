"""XGBoost's model document, the same in memory whichever text it came from: number arrays of the trees are numpy arrays.

A document is only read here; whether it describes trees that can be walked is for `validation` to say.
"""

import re
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from mmserver.errors import Undecodable
from mmserver.trees.ubjson import read_ubjson

Document: TypeAlias = dict[str, Any]

KNOWN_XGBOOST = (3, 2)
"""The newest XGBoost whose documents this release was tested with; a newer minor may mean the same text differently."""

MAX_DOCUMENT_BYTES = 512 << 20
MAX_DEPTH = 32

TREE_ARRAYS: dict[str, np.dtype[Any]] = {
    "left_children": np.dtype(np.int32),
    "right_children": np.dtype(np.int32),
    "parents": np.dtype(np.int32),
    "split_indices": np.dtype(np.int32),
    "split_conditions": np.dtype(np.float32),
    "default_left": np.dtype(np.uint8),
    "split_type": np.dtype(np.uint8),
    "base_weights": np.dtype(np.float32),
    "loss_changes": np.dtype(np.float32),
    "sum_hessian": np.dtype(np.float32),
    "categories": np.dtype(np.int32),
    "categories_nodes": np.dtype(np.int32),
    "categories_segments": np.dtype(np.int64),
    "categories_sizes": np.dtype(np.int64),
}
"""Each tree's number arrays, with the types that XGBoost's own UBJSON gives them."""

CATEGORY_DTYPES: dict[int, np.dtype[Any]] = {
    7: np.dtype(np.float32),
    8: np.dtype(np.float64),
    9: np.dtype(np.int8),
    10: np.dtype(np.uint8),
    11: np.dtype(np.int16),
    13: np.dtype(np.int32),
    15: np.dtype(np.int64),
}
"""The numbers by which XGBoost names the type of a feature's categories: its JSON library's value kinds."""

_FLOAT32 = np.dtype(np.float32)
_INT32 = np.dtype(np.int32)
_INT8 = np.dtype(np.int8)
_STOPPED_AT = re.compile(r"\(byte (\d+)\)")
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_MODEL_PATH = "learner.gradient_booster.model"


def document_from_bytes(data: bytes) -> Document:
    """The document of a model file: JSON or UBJSON, told apart by content.

    Decimal numbers are read as float64 and then rounded to float32, which is what XGBoost's own reader makes of every
    number that XGBoost writes.

    Raises:
        Undecodable: torn, malformed, trailing_data, too_complex, too_large; unsupported (the old binary format);
            newer_xgboost; invalid_model where the trees' arrays are not arrays of numbers that fit.
    """
    document = _parse(data)
    version_of(document)
    _type_arrays(document)
    return document


def document_from_snapshot(handle: bytes) -> Document:
    """The model document inside the bytes that a pickled Booster holds as its `handle`.

    Raises:
        Undecodable: as `document_from_bytes`; malformed when there is no model in it.
    """
    snapshot = _parse(handle)
    document = snapshot.get("Model")
    if not isinstance(document, dict):
        raise Undecodable("malformed", "the Booster's state has no Model")
    version_of(document)
    _type_arrays(document)
    return document


def version_of(document: Document) -> tuple[int, int, int]:
    """Which XGBoost wrote the document.

    Raises:
        Undecodable: newer_xgboost, naming both versions; invalid_model when there is no version.
    """
    found = document.get("version")
    if isinstance(found, np.ndarray):
        found = found.tolist()
    if not isinstance(found, list) or len(found) != 3 or not all(type(part) is int and part >= 0 for part in found):
        raise Undecodable("invalid_model", "version: not three numbers")
    major, minor, patch = found
    if (major, minor) > KNOWN_XGBOOST:
        known = f"{KNOWN_XGBOOST[0]}.{KNOWN_XGBOOST[1]}"
        raise Undecodable(
            "newer_xgboost", f"written by XGBoost {major}.{minor}.{patch}; this release knows up to {known}"
        )
    return major, minor, patch


def member_of(parent: Any, key: str, kind: type | tuple[type, ...], path: str) -> Any:
    """`parent[key]`, checked to be of that kind; `path` names the parent in the refusal."""
    value = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(value, kind):
        where = f"{path}.{key}" if path else key
        raise Undecodable("invalid_model", f"{where}: {'missing' if value is None else 'of the wrong type'}")
    return value


def booster_of(document: Document) -> tuple[str, dict[str, Any], str]:
    """(booster name, the dict that holds the trees, its path); gblinear and others are refused by name."""
    gradient_booster = member_of(member_of(document, "learner", dict, ""), "gradient_booster", dict, "learner")
    name = member_of(gradient_booster, "name", str, "learner.gradient_booster")
    if name == "gbtree":
        return name, member_of(gradient_booster, "model", dict, "learner.gradient_booster"), _MODEL_PATH
    if name == "dart":
        inner = member_of(gradient_booster, "gbtree", dict, "learner.gradient_booster")
        path = "learner.gradient_booster.gbtree"
        if inner.get("name") != "gbtree":
            raise Undecodable("invalid_model", f"{path}.name: not gbtree")
        return name, member_of(inner, "model", dict, path), f"{path}.model"
    raise Undecodable("unsupported", f"booster {name[:80]!r}: only gbtree and dart have trees")


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise Undecodable("too_large", f"{len(data)} bytes, more than {MAX_DOCUMENT_BYTES}")
    if data[:4] in (b"binf", b"CONF"):
        raise Undecodable(
            "unsupported", "XGBoost's old binary format: load it there and re-save with save_model('model.json')"
        )
    if data[:1] == b"{" and data[1:2] in (b"L", b"l", b"I", b"U", b"i"):
        value = read_ubjson(data, max_depth=MAX_DEPTH)
    elif not data or data.lstrip(b" \t\r\n")[:1] in (b"{", b""):
        value = _read_json(data)
    else:
        raise Undecodable("malformed", f"neither JSON nor UBJSON: it starts with {data[:8]!r}")
    if not isinstance(value, dict):
        raise Undecodable("malformed", "not an object")
    return value


def _read_json(data: bytes) -> Any:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Undecodable("torn" if error.end == len(data) else "malformed", "text that is not UTF-8") from error
    bare = _TEXT.sub(b"", data)
    if _depth(bare) > MAX_DEPTH:
        raise Undecodable("too_complex", f"nested deeper than {MAX_DEPTH}")
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Undecodable(_json_reason(str(error), len(data)), str(error)) from error
    if _count_members(value) != bare.count(b":"):
        raise Undecodable("malformed", "a key comes twice in one object")
    return value


def _json_reason(message: str, size_bytes: int) -> str:
    if "trailing" in message:
        return "trailing_data"
    stopped_at = _STOPPED_AT.search(message)
    is_at_end = stopped_at is not None and int(stopped_at[1]) >= size_bytes
    return "torn" if is_at_end or "truncated" in message else "malformed"


def _depth(bare: bytes) -> int:
    """How deep the brackets of a JSON text without its strings nest."""
    characters = np.frombuffer(bare, np.uint8)
    steps = ((characters == ord("{")) | (characters == ord("["))).astype(np.int8)
    steps -= (characters == ord("}")) | (characters == ord("]"))
    turns = steps[steps != 0].astype(np.int64)
    return int(np.cumsum(turns).max(initial=0))


def _count_members(value: Any) -> int:
    count = 0
    pending = [value]
    while pending:
        container = pending.pop()
        if isinstance(container, dict):
            count += len(container)
            pending.extend(container.values())
        elif container and isinstance(container, list) and isinstance(container[0], dict | list):
            pending.extend(container)
        elif isinstance(container, list):
            pending.extend(element for element in container if isinstance(element, dict | list))
    return count


def _type_arrays(document: Document) -> None:
    """Give the number arrays their types, in place."""
    name, model, path = booster_of(document)
    if name == "dart":
        booster = document["learner"]["gradient_booster"]
        weights = _array(booster.get("weight_drop"), _FLOAT32, "learner.gradient_booster.weight_drop")
        booster["weight_drop"] = weights.tolist()
    if "cats" in model:
        _type_category_arrays(member_of(model, "cats", dict, path), f"{path}.cats")
    for index, tree in enumerate(member_of(model, "trees", list, path)):
        if not isinstance(tree, dict):
            raise Undecodable("invalid_model", f"{path}.trees[{index}]: not an object")
        for key, dtype in TREE_ARRAYS.items():
            if key in tree:
                tree[key] = _array(tree[key], dtype, f"{path}.trees[{index}].{key}")


def _type_category_arrays(cats: dict[str, Any], path: str) -> None:
    """The encodings of categorical features (from 3.1): texts end to end as bytes, or numbers of a declared type."""
    for key in ("feature_segments", "sorted_idx"):
        cats[key] = _array(cats.get(key), _INT32, f"{path}.{key}")
    for index, encoding in enumerate(member_of(cats, "enc", list, path)):
        where = f"{path}.enc[{index}]"
        values = member_of(encoding, "values", (list, np.ndarray), where)
        if "offsets" in encoding:
            encoding["offsets"] = _array(encoding["offsets"], _INT32, f"{where}.offsets")
            encoding["values"] = _array(values, _INT8, f"{where}.values")
        else:
            kind = member_of(encoding, "type", int, where)
            if kind not in CATEGORY_DTYPES:
                raise Undecodable("unsupported", f"categories of type {kind}")
            encoding["values"] = _array(values, CATEGORY_DTYPES[kind], f"{where}.values")


def _array(value: Any, dtype: np.dtype[Any], path: str) -> NDArray[Any]:
    """The numbers of `value` as a one-dimensional array of that type; floats are rounded, integers must fit."""
    if isinstance(value, np.ndarray) and value.dtype == dtype:
        return value
    if not isinstance(value, list | np.ndarray):
        raise Undecodable("invalid_model", f"{path}: not an array")
    try:
        array = np.array(value) if len(value) else np.empty(0, dtype)
    except (ValueError, OverflowError) as error:
        raise Undecodable("invalid_model", f"{path}: not an array of numbers") from error
    if array.ndim != 1 or array.dtype.kind not in ("fiu" if dtype.kind == "f" else "iub"):
        raise Undecodable("invalid_model", f"{path}: not an array of {'numbers' if dtype.kind == 'f' else 'integers'}")
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return array.astype(dtype)
    limits = np.iinfo(dtype)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise Undecodable("invalid_model", f"{path}: a number that does not fit in {dtype}")
    return array.astype(dtype)
