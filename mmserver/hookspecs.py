"""The plugin contract: every hook that mmserver calls, with what it gives and expects.

A plugin is a module (or object) with functions of these names, each decorated with `@hookimpl`. It is found through the
entry-point group `mmserver.plugins` or as a single file in `--plugins-dir`. A misspelt hook stops the start.
"""

from typing import TYPE_CHECKING, Any

import pluggy

from mmserver.formats import ArtifactFormat, Converter, Event, Interpreter, ModelFile, ModelFormat, PageLink, Predictor

if TYPE_CHECKING:
    import click
    import flask

PROJECT = "mmserver"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def mmserver_formats() -> list[ArtifactFormat]:  # type: ignore[empty-body]
    """The file formats that this plugin claims and parses. Called once in the server and once in each worker."""


@hookspec
def mmserver_model_formats() -> list[ModelFormat]:  # type: ignore[empty-body]
    """The libraries whose models can be registered one by one. Called once in the server and once in each worker."""


@hookspec
def mmserver_converters() -> list[Converter]:  # type: ignore[empty-body]
    """Forms that this plugin can give a model in, for `?format=`. Called once."""


@hookspec(firstresult=True)
def mmserver_load_predictor(model: ModelFile, execution_providers: tuple[str, ...]) -> Predictor | None:
    """A predictor for the model, or None when its `kind` is another plugin's.

    `execution_providers` are ONNX Runtime's names of what shall run it, the best first; empty in the worker.

    First called in the guarded worker when an artifact is read, to prove that the model loads and predicts; what it
    raises there refuses the artifact.
    """


@hookspec(firstresult=True)
def mmserver_load_interpreter(model: ModelFile, info: dict[str, Any]) -> Interpreter | None:
    """What says which direction the model's outputs mean, or None to leave it to others, at last to mmserver itself.

    `info` is what the info file has. Called in the server when the model is loaded; where it raises, the model gives its raw
    outputs only.
    """


@hookspec
def mmserver_event(event: Event) -> None:
    """Something happened; called after the commit, outside of any request's transaction. Be quick."""


@hookspec
def mmserver_blueprints() -> list["flask.Blueprint"]:  # type: ignore[empty-body]
    """Routes to add to the server; each view says by `mmserver.needs` who may call it, or the server does not start."""


@hookspec
def mmserver_pages() -> list[PageLink]:  # type: ignore[empty-body]
    """Links to add to the navigation of every page, usually to routes of `mmserver_blueprints`."""


@hookspec
def mmserver_commands() -> list["click.Command"]:  # type: ignore[empty-body]
    """Commands to add to the `mmserver` command line."""
