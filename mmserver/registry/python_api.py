"""The registry from Python, in this process: works on a data directory, also beside a running server, which follows.

`ModelRegistry` does the work; `AsyncModelRegistry` has the same methods to be awaited, and is what `get_model_registry` gives.
"""

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from mmserver.async_faces import in_thread
from mmserver.catalog.catalog import Actor
from mmserver.catalog.opening import open_store
from mmserver.catalog.store import Store
from mmserver.conversion.reading import ModelReader
from mmserver.errors import ArtifactInvalid, RequestInvalid, UploadTooLarge, VersionNotFound, WrongModelKind
from mmserver.formats import ModelSource
from mmserver.registry import annotating as annotations
from mmserver.registry import comparing, removing, stages, versions
from mmserver.registry.fields import Number
from mmserver.registry.registering import NewVersion, register_version
from mmserver.registry.stage_names import ModelStage, stage_name
from mmserver.registry.versions import ListedVersion, StagedVersion
from mmserver.settings import Settings, load_settings

ACTOR = Actor("python")
_ALL = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What is known of a version.

    Units:
        size_mb: MiB of the files that were handed in.
    """

    name: str
    version: str
    stage: ModelStage
    model_type: str
    description: str
    metrics: dict[str, Number]
    training_params: dict[str, Any]
    tags: dict[str, str]
    created_at: datetime
    updated_at: datetime
    size_mb: float
    sha256: str
    kind: str
    n_features: int
    input_shape: tuple[int, ...] | None
    factor_count: int
    derived_from: str | None
    parity: dict[str, Any] | None
    path: Path | None
    """Its directory, where `MMSERVER_REGISTRY_DIR` keeps one."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A version of a registered model."""

    metadata: ModelMetadata

    @property
    def name(self) -> str:
        """The model's name."""
        return self.metadata.name

    @property
    def version(self) -> str:
        """The version's label."""
        return self.metadata.version

    @property
    def stage(self) -> ModelStage:
        """The stage that it is in."""
        return self.metadata.stage


class ModelRegistry:
    """The registry of a data directory, open until `close`; usable from all threads."""

    def __init__(self, data_dir: str | os.PathLike[str] | None = None, *, settings: Settings | None = None) -> None:
        """Settings come from the environment, as a server's do; `data_dir` in place of `MMSERVER_DATA_DIR`.

        Raises:
            SettingInvalid, SchemaOutdated, SchemaTooNew, DatabaseCorrupt: why it cannot be opened.
        """
        given = {} if data_dir is None else {"data_dir": os.fspath(data_dir)}
        self._settings = settings or load_settings(given, os.environ, None)
        self._opened = ExitStack()
        self._store: Store = self._opened.enter_context(open_store(self._settings, owns_data_dir=False))
        self._reader = self._opened.enter_context(closing(ModelReader(self._settings, self._store.plugins)))
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the guarded processes and close the database; a second call does nothing."""
        with self._lock:
            opened, self._opened = self._opened, ExitStack()
        opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- reading ----------------------------------------------------------------------------------------------------------

    def get_model(self, name: str, version: str | None = None) -> ModelInfo:
        """A version by its label, by a stage or `latest`; without one what the model serves: production, else the newest.

        Raises:
            ModelNotFound, VersionNotFound
        """
        return self._info(versions.get_version(self._store, name, version or "latest"))

    def get_production_model(self, name: str) -> ModelInfo | None:
        """What is in production; None where nothing is.

        Raises:
            ModelNotFound
        """
        return self._in_stage(name, "production")

    def get_staging_model(self, name: str) -> ModelInfo | None:
        """What is in staging; None where nothing is.

        Raises:
            ModelNotFound
        """
        return self._in_stage(name, "staging")

    def list_models(self, name: str | None = None, stage: ModelStage | str | None = None) -> list[ModelInfo]:
        """All versions of all models, or of one, newest first; or those in a stage.

        Raises:
            ModelNotFound
            RequestInvalid: there is no such stage.
        """
        wanted = None if stage is None else ModelStage(stage_name(stages.stage_from_text(stage)))
        self._store.follow_commits()
        names = [name] if name is not None else [model.name for model in versions.list_models(self._store, _ALL)]
        found = [self._info(one) for model_name in names for one in versions.list_versions(self._store, model_name)]
        return [info for info in found if wanted is None or info.stage is wanted]

    def compare_models(self, name: str, version1: str, version2: str) -> dict[str, Any]:
        """`metrics_comparison`, `size_comparison` and what else differs, as the HTTP route gives it.

        Raises:
            ModelNotFound, VersionNotFound
        """
        found: dict[str, Any] = msgspec.to_builtins(comparing.compare(self._store, name, version1, version2))
        return found

    # --- changing ---------------------------------------------------------------------------------------------------------

    def register_model(
        self,
        name: str,
        version: str,
        model_path: str | os.PathLike[str],
        *,
        other_paths: Iterable[str | os.PathLike[str]] = (),
        model_type: str | None = None,
        description: str = "",
        metrics: Mapping[str, Any] | None = None,
        training_params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        factors: Iterable[str] | None = None,
        info: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        derived_from: str | None = None,
        stage: ModelStage | str = ModelStage.NONE,
    ) -> ModelInfo:
        """Read a model's file, and others that it refers to, and keep it under its label, for good.

        Args:
            other_paths: beneath the model's directory they keep their relative names, elsewhere their own.
            options: what the format asks for, such as `code` of a torch state dict.
            stage: put it there when it is registered.

        Raises:
            As `registry.registering.register_version` and `set_model_stage`; FileNotFoundError and other OSErrors for a file.
        """
        wanted = stages.stage_from_text(stage)
        for what, given in (("other_paths", other_paths), ("factors", factors)):
            if isinstance(given, str):  # which is iterable too, letter by letter
                problem = "must be a list"
                raise RequestInvalid(f"{what}: {problem}", errors=[{"loc": what, "msg": problem}])
        source = self._source(Path(model_path), [Path(path) for path in other_paths])
        new = NewVersion(
            model_name=name,
            label=version,
            source=msgspec.structs.replace(source, options=dict(options or {})),
            model_type=model_type,
            description=description,
            metrics=metrics or {},
            training_params=training_params or {},
            tags=tags or {},
            factors=None if factors is None else tuple(factors),
            info=info or {},
            derived_from=derived_from,
        )
        registered = register_version(self._store, self._reader, new, ACTOR)
        if wanted is None:
            return self._info(registered.version)
        return self.set_model_stage(name, version, stage)

    def set_model_stage(self, name: str, version: str, stage: ModelStage | str) -> ModelInfo:
        """Put a version into a stage; what was in production or staging gives way.

        Raises:
            ModelNotFound, VersionNotFound, WrongModelKind, ReadOnly
            VersionInUse: what is in production cannot be archived.
            RequestInvalid: there is no such stage.
        """
        wanted = stages.stage_from_text(stage)
        return self._changed(name, stages.set_stage(self._registered(name), name, version, wanted, ACTOR))

    def promote_to_production(self, name: str, version: str) -> ModelInfo:
        """Put a version into production; the one that was there is archived, and one `rollback` away.

        Raises:
            ModelNotFound, VersionNotFound, WrongModelKind, ReadOnly
        """
        return self._changed(name, stages.promote(self._registered(name), name, version, ACTOR))

    def rollback(self, name: str, from_version: str | None = None) -> ModelInfo:
        """Put back what was in production before; with `from_version` only from that, so that it can be tried again safely.

        Raises:
            ModelNotFound, NotInProduction, NothingBefore, WrongModelKind, ReadOnly
            VersionChanged: something else came into production in place of `from_version`.
        """
        return self._changed(name, stages.rollback(self._registered(name), name, ACTOR, from_label=from_version))

    def retire_model(self, name: str, version: str) -> ModelInfo:
        """Archive a version.

        Raises:
            ModelNotFound, VersionNotFound, WrongModelKind, ReadOnly
            VersionInUse: it is in production.
        """
        return self._changed(name, stages.retire(self._registered(name), name, version, ACTOR))

    def delete_model(self, name: str, version: str) -> None:
        """Forget a version; with its last one the model is gone.

        Raises:
            ModelNotFound, VersionNotFound, WrongModelKind, ReadOnly
            RequestInvalid: `version` is `latest` or a stage, not a label.
            VersionInUse: it is in production or in a running experiment, or another version derives from it.
        """
        removing.delete_version(self._store, name, version, ACTOR)

    def update_metrics(self, name: str, version: str, metrics: Mapping[str, Any]) -> ModelInfo:
        """Set the metrics that are named, remove those that are None; the others stay.

        Raises:
            ModelNotFound, VersionNotFound, WrongModelKind, ReadOnly
            RequestInvalid: names the one that is no finite number.
        """
        return self._info(annotations.update_metrics(self._store, name, version, metrics, ACTOR))

    def annotate_model(
        self,
        name: str,
        version: str,
        *,
        description: str | None = None,
        tags: Mapping[str, str | None] | None = None,
    ) -> ModelInfo:
        """Set the description, and the tags that are named; those that are None are removed.

        Raises:
            ModelNotFound, VersionNotFound, WrongModelKind, RequestInvalid, ReadOnly
        """
        found = annotations.annotate_version(self._store, name, version, ACTOR, description=description, tags=tags)
        return self._info(found)

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _source(self, path: Path, others: list[Path]) -> ModelSource:
        left_bytes = limit_bytes = self._settings.max_artifact_bytes
        files: dict[str, bytes] = {}
        for one in (path, *others):
            name = one.relative_to(path.parent).as_posix() if one.is_relative_to(path.parent) else one.name
            if name in files:
                raise RequestInvalid(f"other_paths: two files have the name {name!r}")
            content = _content(one.absolute(), left_bytes)
            if content is None:
                what = "the model with its files"
                raise UploadTooLarge(what=what, limit_bytes=limit_bytes, setting="MMSERVER_MAX_ARTIFACT_BYTES")
            left_bytes -= len(content)
            files[name] = content
        return ModelSource(file_name=path.name, files=files)

    def _registered(self, name: str) -> Store:
        """The store, for a change of a model that must be a registered one.

        Raises:
            ModelNotFound, WrongModelKind
        """
        self._store.follow_commits()
        model = self._store.model(name)
        if model.is_watched:
            raise WrongModelKind(
                model_name=name, kind=model.kind, instead="set its stages over HTTP or on the command line"
            )
        return self._store

    def _in_stage(self, name: str, stage: str) -> ModelInfo | None:
        try:
            return self.get_model(name, stage)
        except VersionNotFound:
            return None

    def _changed(self, name: str, version: StagedVersion) -> ModelInfo:
        assert isinstance(version, ListedVersion), name  # noqa: S101 (looked at before)
        return self._info(version)

    def _info(self, version: ListedVersion) -> ModelInfo:
        directory = self._settings.registry_dir
        path = directory.absolute() / version.model_name / f"v{version.label}" if directory is not None else None
        return ModelInfo(
            ModelMetadata(
                name=version.model_name,
                version=version.label,
                stage=stage_name(version.stage),
                model_type=version.model_type,
                description=version.description,
                metrics=version.metrics,
                training_params=version.training_params,
                tags=version.tags,
                created_at=version.created_at,
                updated_at=version.updated_at,
                size_mb=version.size_bytes / versions.BYTES_A_MB,
                sha256=version.sha256,
                kind=version.kind,
                n_features=version.n_features,
                input_shape=version.input_shape,
                factor_count=version.factor_count,
                derived_from=version.derived_from,
                parity=version.parity,
                path=path,
            )
        )


class AsyncModelRegistry:
    """`ModelRegistry` for asyncio: the same methods, each awaited from a thread. `async with` closes it."""

    def __init__(self, sync: ModelRegistry) -> None:
        """`sync` does the work."""
        self.sync = sync

    register_model = in_thread(ModelRegistry.register_model)
    get_model = in_thread(ModelRegistry.get_model)
    get_production_model = in_thread(ModelRegistry.get_production_model)
    get_staging_model = in_thread(ModelRegistry.get_staging_model)
    list_models = in_thread(ModelRegistry.list_models)
    set_model_stage = in_thread(ModelRegistry.set_model_stage)
    promote_to_production = in_thread(ModelRegistry.promote_to_production)
    rollback = in_thread(ModelRegistry.rollback)
    retire_model = in_thread(ModelRegistry.retire_model)
    delete_model = in_thread(ModelRegistry.delete_model)
    update_metrics = in_thread(ModelRegistry.update_metrics)
    annotate_model = in_thread(ModelRegistry.annotate_model)
    compare_models = in_thread(ModelRegistry.compare_models)
    close = in_thread(ModelRegistry.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def get_model_registry(
    data_dir: str | os.PathLike[str] | None = None, *, settings: Settings | None = None
) -> AsyncModelRegistry:
    """The registry of a data directory, opened; `data_dir` in place of `MMSERVER_DATA_DIR`. Close it when it is done with.

    Raises:
        As `ModelRegistry`.
    """
    return AsyncModelRegistry(ModelRegistry(data_dir, settings=settings))


def _content(path: Path, limit_bytes: int) -> bytes | None:
    """None where it is larger.

    Raises:
        OSError: it cannot be opened.
        ArtifactInvalid: not_regular.
    """
    found = path.stat()  # a link that the caller named is followed
    if not path.is_file():
        raise ArtifactInvalid(file=str(path), reason="not_regular", detail="a model is a regular file")
    if found.st_size > limit_bytes:
        return None
    with path.open("rb") as file:
        content = file.read(limit_bytes + 1)
    return content if len(content) <= limit_bytes else None
