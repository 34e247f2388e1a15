"""Models of any other kind: an installed package announces what runs them, and a registered file is its input."""

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mmserver import ModelFile, ModelFormat, ModelSource, Predictor, Probes, Undecodable, hookimpl, probe_rows

KIND = "custom"
GROUP = "mmserver.custom_models"
"""Entry points whose object is called with a model's bytes and its options, and gives its Predictor. They are trusted code."""


def read_custom(source: ModelSource) -> ModelFile:
    """The file as it is, with the name of what runs it; the option `entry_point` is that name."""
    given = source.options.get("entry_point")
    if not isinstance(given, str):
        detail = (
            f"the option entry_point is to name one of the group {GROUP}: {', '.join(sorted(_announced())) or 'none'}"
        )
        raise Undecodable("option_missing" if given is None else "option_invalid", detail)
    options = {name: value for name, value in source.options.items() if name != "entry_point"}
    predictor = _made(given, source.content, options)
    rows = probe_rows(predictor.n_features)
    outputs = predictor.predict(rows)
    shape = options.get("input_shape")
    return ModelFile(
        kind=KIND,
        content=source.content,
        n_features=predictor.n_features,
        n_outputs=int(next(iter(outputs.values())).shape[1]),
        objective="",
        library_version=_announced()[given].version,
        input_shape=tuple(shape) if shape is not None else None,
        summary={"entry_point": given, "options": options},
        probes=Probes(rows=rows.tolist(), outputs={name: values.tolist() for name, values in outputs.items()}),
    )


def _made(name: str, content: bytes, options: Mapping[str, Any]) -> Predictor:
    if name not in _announced():
        raise Undecodable(
            "code_unknown", f"no entry point of the group {GROUP} is named {name!r}; is its package installed?"
        )
    make: Callable[[bytes, Mapping[str, Any]], Predictor] = _announced()[name].entry.load()
    return make(content, options)


class _Announced(NamedTuple):
    entry: importlib.metadata.EntryPoint
    version: str


@functools.cache
def _announced() -> Mapping[str, _Announced]:
    """By name; looked up once, while files can be read."""
    return {
        entry.name: _Announced(entry, f"{entry.dist.name} {entry.dist.version}" if entry.dist else "")
        for entry in importlib.metadata.entry_points(group=GROUP)
    }


def warm_up() -> None:
    """Import what is announced; one that cannot be imported says so to whoever registers a model for it."""
    for found in _announced().values():
        with contextlib.suppress(ImportError, AttributeError):
            found.entry.load()


@hookimpl
def mmserver_model_formats() -> list[ModelFormat]:
    """Claims no file; the model type `custom` has to be named."""
    return [ModelFormat(name=KIND, suffixes=(), read=read_custom, warm_up=warm_up)]


@hookimpl
def mmserver_load_predictor(model: ModelFile) -> Predictor | None:
    """What the entry point makes of the file."""
    if model.kind != KIND:
        return None
    return _made(model.summary["entry_point"], model.content, model.summary["options"])
