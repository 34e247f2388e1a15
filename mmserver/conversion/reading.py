"""Reading registered models in guarded processes: one for each set of libraries, started when needed, ended when idle."""

import importlib.util
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mmserver.catalog.ingest import IngestedGroup
from mmserver.catalog.intake import is_payload_whole
from mmserver.catalog.symbols import ALL_SYMBOLS
from mmserver.conversion.worker import GROUP_KEY, READ_MODEL, ReadRequest
from mmserver.errors import ArtifactInvalid, ExtraMissing, SandboxUnavailable, Undecodable, WorkerCrashed
from mmserver.formats import ModelFormat, ModelSource
from mmserver.plugin_loading import Plugins
from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.pool import Sandbox
from mmserver.settings import Settings

IDLE_S = 60.0
"""A process with heavy libraries is kept that long after its last model."""
START_TIMEOUT_S = 115.0
"""For the imports of heavy libraries and their warm-up: torch takes 8 s on an idle core, 25 s on a busy one (measured)."""
HANDLERS = "mmserver.conversion.worker:handlers"
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Kept:
    """One guarded process, and how many threads use it."""

    sandbox: Sandbox
    n_users: int = 0
    ending: threading.Timer | None = field(default=None, repr=False)


class ModelReader:
    """Reads models for all threads of one process; each guarded process reads one model at a time, the others wait."""

    def __init__(self, settings: Settings, plugins: Plugins, *, idle_s: float = IDLE_S) -> None:
        """Nothing is started before the first model."""
        self._plugins_dir = str(settings.plugins_dir) if settings.plugins_dir else None
        self._limits = JobLimits(
            memory_bytes=settings.conversion_memory_bytes,
            cpu_s=max(1, int(settings.conversion_timeout_s)),
            wall_s=settings.conversion_timeout_s,
        )
        self._plugins = plugins
        self._unpickled = settings.allow_unpickling
        self._idle_s = idle_s
        self._kept: dict[tuple[str, ...], _Kept] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def read(
        self, source: ModelSource, claim: ModelFormat, *, factors: tuple[str, ...] | None = None, info: dict[str, Any]
    ) -> IngestedGroup:
        """The model as it is stored, read by its format's plugin and proven.

        Raises:
            ArtifactInvalid: it cannot be used; also where its reading crashed, hung or ran out of memory.
            ExtraMissing: the format needs packages that are not installed.
            SandboxUnavailable: no guarded process can be started.
        """
        _check_installed(claim)
        if source.file_name not in source.files:
            detail = f"no file of that name was handed in, only {', '.join(sorted(source.files)) or 'nothing'}"
            raise ArtifactInvalid(file=source.file_name, reason="incomplete", detail=detail)
        with self._used(claim.modules) as sandbox:
            may_unpickle = claim.name in self._unpickled and sandbox.level().refuses_attacks
            source = msgspec.structs.replace(source, may_unpickle=may_unpickle)
            request = ReadRequest(source=source, format_name=claim.name, factors=factors, info=info)
            try:
                answer = sandbox.run(READ_MODEL, msgspec.msgpack.encode(request))
            except WorkerCrashed as error:
                how = error.values["how"]
                detail = "the process that read it died"
                log.warning("reading %s as %s: %s: %s", source.file_name, claim.name, detail, how)
                raise ArtifactInvalid(file=source.file_name, reason=f"crashed({how})", detail=detail) from error
            except Undecodable as error:  # a plugin left by what is no Exception, such as SystemExit
                raise ArtifactInvalid(file=source.file_name, reason=error.reason, detail=error.detail) from error
        return _believed(answer, source.file_name)

    def n_processes(self) -> int:
        """Guarded processes that are kept now."""
        with self._lock:
            return len(self._kept)

    def close(self) -> None:
        """End every process; who reads meanwhile gets SandboxUnavailable."""
        with self._lock:
            self._is_closed = True
            kept, self._kept = list(self._kept.values()), {}
        for one in kept:
            if one.ending is not None:
                one.ending.cancel()
            one.sandbox.close()

    @contextmanager
    def _used(self, modules: tuple[str, ...]) -> Iterator[Sandbox]:
        kept = self._taken(modules)
        try:
            yield kept.sandbox
        finally:
            self._left(modules, kept)

    def _taken(self, modules: tuple[str, ...]) -> _Kept:
        with self._lock:
            if self._is_closed:
                raise SandboxUnavailable(reason="it was closed")
            kept = self._kept.get(modules)
            if kept is None:
                options = {"modules": list(modules), "plugins_dir": self._plugins_dir}
                sandbox = Sandbox(HANDLERS, options, n_workers=1, limits=self._limits, start_timeout_s=START_TIMEOUT_S)
                kept = self._kept[modules] = _Kept(sandbox)
            if kept.ending is not None:
                kept.ending.cancel()
                kept.ending = None
            kept.n_users += 1
            return kept

    def _left(self, modules: tuple[str, ...], kept: _Kept) -> None:
        with self._lock:
            kept.n_users -= 1
            if kept.n_users == 0 and self._kept.get(modules) is kept:
                kept.ending = threading.Timer(self._idle_s, self._end_idle, (modules, kept))
                kept.ending.daemon = True
                kept.ending.start()

    def _end_idle(self, modules: tuple[str, ...], kept: _Kept) -> None:
        with self._lock:
            is_idle = kept.n_users == 0 and self._kept.get(modules) is kept
            if is_idle:
                del self._kept[modules]
        if is_idle:
            kept.sandbox.close()


def _believed(answer: bytes, file_name: str) -> IngestedGroup:
    """The group, if it is one that a registered model may have: a process that a model took over may say anything."""
    reason, detail = "crashed(the worker's answer makes no sense)", "it is no group of one model"
    try:
        group = msgspec.msgpack.decode(answer, type=IngestedGroup)
    except msgspec.MsgspecError as error:
        raise ArtifactInvalid(file=file_name, reason=reason, detail=str(error)) from error
    if (group.group_key, group.symbol) != (GROUP_KEY, ALL_SYMBOLS) or not is_payload_whole(group):
        raise ArtifactInvalid(file=file_name, reason=reason, detail=detail)
    return group


def _check_installed(claim: ModelFormat) -> None:
    """By looking, not by importing: the libraries are for the guarded process."""
    for module_name in claim.modules:
        package_name = module_name.partition(".")[0]
        if importlib.util.find_spec(package_name) is None:
            raise ExtraMissing(what=f"a model of the format {claim.name}", extra=claim.extra or package_name)
