"""Finding plugins, checking them strictly at start, and containing what they do afterwards.

Two kinds of trouble are kept apart: a contract broken for everybody (a misspelt hook, two claims on one suffix) stops the
start; a plugin that cannot be imported or raises in a hook is disabled and named, and the others go on.
"""

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import pluggy

from mmserver import hookspecs
from mmserver.errors import PluginInvalid
from mmserver.formats import (
    ArtifactFormat,
    Converter,
    Event,
    Interpreter,
    ModelFile,
    ModelFormat,
    PageLink,
    Predictor,
)

if TYPE_CHECKING:
    import click
    import flask

ENTRY_POINT_GROUP = "mmserver.plugins"
PROVIDER_SUFFIX = "ExecutionProvider"
"""How onnxruntime names `CUDA`: `CUDAExecutionProvider`."""
Contribution = TypeVar("Contribution")
log = logging.getLogger(__name__)


class PluginStatus(msgspec.Struct, frozen=True):
    """One plugin as found: `error` is None when it works."""

    name: str
    source: str
    hooks: tuple[str, ...]
    error: str | None = None


class Plugins:
    """All plugins of one process. Made by `load_plugins`; every call to plugin code goes through here."""

    def __init__(
        self,
        manager: pluggy.PluginManager,
        statuses: dict[str, PluginStatus],
        identity: str,
        execution_providers: tuple[str, ...] = (),
    ) -> None:
        self.identity = identity
        """Another one as soon as any plugin is: what was refused before may be readable then."""
        self._manager = manager
        self._statuses = statuses
        self._execution_providers = execution_providers
        self.formats: tuple[ArtifactFormat, ...] = tuple(self._collected("mmserver_formats"))
        self.model_formats: tuple[ModelFormat, ...] = tuple(self._collected("mmserver_model_formats"))
        self.converters: tuple[Converter, ...] = tuple(self._collected("mmserver_converters"))
        _check_claims(self.formats, self.converters)
        _check_model_formats(self.model_formats)

    def statuses(self) -> list[PluginStatus]:
        """Every plugin that was found, in the order of their names, the failed ones with their error."""
        return [self._statuses[name] for name in sorted(self._statuses)]

    def group_suffixes(self) -> tuple[str, ...]:
        """The name endings that make a file part of a group."""
        return tuple(f.suffix for f in self.formats if f.role != "quantiles")

    def format_for(self, file_name: str, *, quantiles: bool = False) -> ArtifactFormat | None:
        """The format that claims the file, by the longest suffix; None when nobody does."""
        claims = [f for f in self.formats if (f.role == "quantiles") == quantiles and file_name.endswith(f.suffix)]
        return max(claims, key=lambda f: len(f.suffix), default=None)

    def model_format_for(self, file_name: str, model_type: str | None = None) -> ModelFormat | None:
        """The format of that name; without one, the one that claims the file by the longest suffix. None when nobody does."""
        if model_type is not None:
            return next((f for f in self.model_formats if f.name == model_type), None)
        claims = [(len(suffix), f) for f in self.model_formats for suffix in f.suffixes if file_name.endswith(suffix)]
        return max(claims, key=lambda claim: claim[0])[1] if claims else None

    def converter_for(self, kind: str, target: str) -> Converter | None:
        """The converter of that kind of model into that form; None when there is none."""
        return next((c for c in self.converters if (c.kind, c.target) == (kind, target)), None)

    def load_predictor(self, model: ModelFile) -> Predictor | None:
        """The first predictor that a plugin gives; what it raises is left to the caller, who runs in the worker."""
        predictor: Predictor | None = self._manager.hook.mmserver_load_predictor(
            model=model, execution_providers=self._execution_providers
        )
        return predictor

    def load_interpreter(self, model: ModelFile, info: dict[str, Any]) -> Interpreter | None:
        """The first interpreter that a plugin gives; what it raises is left to the caller."""
        interpreter: Interpreter | None = self._manager.hook.mmserver_load_interpreter(model=model, info=info)
        return interpreter

    def notify(self, event: Event) -> None:
        """Tell every plugin; what they raise is logged and does not reach the caller."""
        for implementation in self._manager.hook.mmserver_event.get_hookimpls():
            self._contained(implementation.plugin_name, partial(implementation.function, event=event), None)

    def blueprints(self) -> "list[flask.Blueprint]":
        """Routes of all plugins."""
        return self._collected("mmserver_blueprints")

    def pages(self) -> list[PageLink]:
        """Navigation links of all plugins."""
        return self._collected("mmserver_pages")

    def commands(self) -> "list[click.Command]":
        """Commands of all plugins."""
        return self._collected("mmserver_commands")

    def _collected(self, hook: str) -> list[Any]:
        collected: list[Any] = []
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            listed = partial(_listed, implementation.function)
            collected.extend(self._contained(implementation.plugin_name, listed, []))
        return collected

    def _contained(self, plugin: str, call: Callable[[], Contribution], otherwise: Contribution) -> Contribution:
        try:
            return call()
        except Exception as error:
            log.exception("plugin %s failed", plugin)
            self._statuses[plugin] = msgspec.structs.replace(self._statuses[plugin], error=_short(error))
            return otherwise


def load_plugins(plugins_dir: Path | None = None, execution_providers: Iterable[str] = ()) -> Plugins:
    """Every installed plugin, and every `*.py` file in `plugins_dir` that does not begin with an underscore.

    `execution_providers` (`CPU`, `CUDA`, …) are handed on to what loads predictors.

    Raises:
        PluginInvalid: a misspelt hook, two claims on one suffix, two plugins of one name, or a directory that is not there.
    """
    # A plugin may import onnxruntime, which reads at its import whether it may report models and sessions to its makers.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    statuses: dict[str, PluginStatus] = {}
    identity = hashlib.sha256()
    for name, source, revision, load in _sources(plugins_dir):
        if name in statuses:
            raise PluginInvalid(plugin=name, reason=f"found twice: {statuses[name].source} and {source}")
        statuses[name] = _register(manager, name, source, load)
        identity.update(msgspec.json.encode([name, source, revision, statuses[name].error]))
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginInvalid(plugin=manager.get_name(error.plugin) or "?", reason=str(error)) from error
    providers = tuple(f"{name}{PROVIDER_SUFFIX}" for name in execution_providers)
    return Plugins(manager, statuses, identity.hexdigest(), providers)


def _sources(plugins_dir: Path | None) -> Iterable[tuple[str, str, str, Callable[[], Any]]]:
    """Name, source, revision (a distribution's version, a file's hash), and what imports it."""
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        yield entry.name, entry.value, entry.dist.version if entry.dist else "", entry.load
    if plugins_dir is None:
        return
    if not plugins_dir.is_dir():
        raise PluginInvalid(plugin=str(plugins_dir), reason="the plugins directory does not exist")
    for path in sorted(plugins_dir.glob("*.py")):
        if not path.name.startswith("_"):
            yield path.stem, path.name, _revision_of(path), partial(_module_from_file, path)


def _register(manager: pluggy.PluginManager, name: str, source: str, load: Callable[[], Any]) -> PluginStatus:
    try:
        plugin = load()
    except Exception as error:
        log.warning("plugin %s could not be loaded: %s", name, _short(error), exc_info=log.isEnabledFor(logging.DEBUG))
        return PluginStatus(name=name, source=source, hooks=(), error=_short(error))
    try:
        manager.register(plugin, name=name)
    except pluggy.PluginValidationError as error:
        raise PluginInvalid(plugin=name, reason=str(error)) from error
    hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or ()))
    if not hooks:
        raise PluginInvalid(plugin=name, reason="it implements no hook; is @hookimpl missing?")
    return PluginStatus(name=name, source=source, hooks=hooks)


def _revision_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # importing it will say why
        return ""


def _module_from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mmserver_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise PluginInvalid(plugin=path.stem, reason="not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses, pickles and state dicts find their module by its name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _check_claims(formats: Iterable[ArtifactFormat], converters: Iterable[Converter]) -> None:
    suffixes: dict[tuple[bool, str], str] = {}
    names: set[str] = set()
    for claim in formats:
        key = (claim.role == "quantiles", claim.suffix)
        if key in suffixes:
            raise PluginInvalid(plugin=claim.name, reason=f"claims {claim.suffix!r}, which {suffixes[key]} claims too")
        if claim.name in names:
            raise PluginInvalid(plugin=claim.name, reason="two formats have this name")
        suffixes[key] = claim.name
        names.add(claim.name)
    targets: set[tuple[str, str]] = set()
    for converter in converters:
        if (converter.kind, converter.target) in targets:
            reason = f"two converters give {converter.kind} as {converter.target}"
            raise PluginInvalid(plugin=converter.kind, reason=reason)
        targets.add((converter.kind, converter.target))


def _check_model_formats(formats: Iterable[ModelFormat]) -> None:
    names: set[str] = set()
    suffixes: dict[str, str] = {}
    for claim in formats:
        if claim.name in names:
            raise PluginInvalid(plugin=claim.name, reason="two model formats have this name")
        names.add(claim.name)
        for suffix in claim.suffixes:
            if suffix in suffixes:
                raise PluginInvalid(plugin=claim.name, reason=f"claims {suffix!r}, which {suffixes[suffix]} claims too")
            suffixes[suffix] = claim.name


def _listed(hook: Callable[[], Iterable[Any]]) -> list[Any]:
    return list(hook())


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
