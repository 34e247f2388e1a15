"""Importing the versions of a registered MLflow model: its file, what its run measured, and the stage that it had.

MLflow itself finds and fetches; no code of a model runs, here as elsewhere: the file is read in the guarded process.
"""

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import check_name
from mmserver.catalog.store import Store
from mmserver.errors import ArtifactInvalid, ExtraMissing, ModelNotFound, RequestInvalid, UploadTooLarge
from mmserver.formats import ModelSource
from mmserver.registry.fields import checked_metrics, checked_tags
from mmserver.registry.owned_files import files_beneath, is_beneath, opened_directory, read_file, size_of_file
from mmserver.registry.registering import NewVersion, Reader
from mmserver.registry.stage_names import ModelStage
from mmserver.registry.taking_over import Candidate, Importer, Readable, TakenOver

FLAVORS = {"onnx": "data", "xgboost": "data", "lightgbm": "data", "sklearn": "pickled_model"}
"""What can be read, the first that a model has, and where it names its file."""

STAGE_ALIASES = {
    "production": ModelStage.PRODUCTION,
    "prod": ModelStage.PRODUCTION,
    "champion": ModelStage.PRODUCTION,
    "staging": ModelStage.STAGING,
    "challenger": ModelStage.STAGING,
}
"""MLflow's own words for stages, before it had aliases and since; in any case."""

_BESIDE = frozenset({"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "registered_model_meta",
                     "input_example.json", "serving_input_example.json", "input_example_metadata.json"})  # fmt: skip
_PICKLES = (".pkl", ".pickle", ".joblib")
_SILENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""MLflow's own defaults, where nobody set others, try a server that is not there for minutes."""


def import_mlflow_model(
    store: Store, reader: Reader, tracking_uri: str, name: str, by: Actor, *, model_name: str | None = None
) -> TakenOver:
    """Register every version that is not registered yet; MLflow's version 3 is 3.0.0 here.

    Stages come from MLflow's stages, and from aliases such as `production` and `champion`.

    Raises:
        ReadOnly, NameInvalid
        ExtraMissing: MLflow is not installed.
        ModelNotFound: MLflow has no model of that name.
        RequestInvalid: the registry cannot be asked.
    """
    store.check_writable()
    check_name(model_name or name)
    registry = _MlflowRegistry(store, tracking_uri, name)
    importer = Importer(store, reader, by)
    importer.take_over(model_name or name, registry.candidates(model_name or name, importer.done))
    return importer.done


class _MlflowRegistry:
    """One model in an MLflow registry."""

    def __init__(self, store: Store, tracking_uri: str, name: str) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise ExtraMissing(what="importing from MLflow", extra="mlflow")
        _check_database(tracking_uri)
        for variable, value in (_SILENT | _PATIENCE).items():
            os.environ.setdefault(variable, value)
        self._store = store
        self._uri = tracking_uri
        self._name = name
        self._mlflow: Any = importlib.import_module("mlflow")
        self._error: type[Exception] = importlib.import_module("mlflow.exceptions").MlflowException
        with self._asking():
            # Set for the process: fetching a model looks here, whatever it is told (mlflow 3.17), and makes a database in the
            # working directory where nothing is set.
            self._mlflow.set_tracking_uri(tracking_uri)
            self._mlflow.set_registry_uri(tracking_uri)
            self._client: Any = self._mlflow.MlflowClient()

    def candidates(self, model_name: str, done: TakenOver) -> dict[str, Candidate]:
        """All versions by their label here; of several in one stage the newest has it."""
        with self._asking():
            registered = self._client.get_registered_model(self._name)
            quoted = self._name.replace("'", "''")
            versions = []
            token = None
            while token != "":
                page = self._client.search_model_versions(f"name='{quoted}'", page_token=token)
                versions += [version for version in page if version.name == self._name]
                token = page.token or ""
        aliases: dict[int, list[str]] = {}
        for alias, number in registered.aliases.items():
            aliases.setdefault(int(number), []).append(alias)
        found: dict[str, Candidate] = {}
        taken: set[ModelStage] = set()
        for version in sorted(versions, key=lambda version: int(version.version), reverse=True):
            number, label = int(version.version), f"{int(version.version)}.0.0"
            stage = _stage(version.current_stage, aliases.get(number, []))
            if stage in (ModelStage.PRODUCTION, ModelStage.STAGING):
                if stage in taken:
                    done.notes.append(f"{model_name} {label}: not put into {stage}, a newer version is in it")
                    stage = ModelStage.NONE
                taken.add(stage)
            found[label] = Candidate(label=label, stage=stage, read=_Reading(self, model_name, label, version))
        return found

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                raise ModelNotFound(model_name=self._name) from error
            raise RequestInvalid(f"MLflow at {self._uri}: {_first_line(error)}") from error

    def read(self, model_name: str, label: str, version: Any) -> Readable:
        """One version, fetched into a directory of its own that only this user can read, and is gone afterwards."""
        what = f"{self._name} version {version.version}"
        try:
            run = self._client.get_run(version.run_id) if version.run_id else None
            with tempfile.TemporaryDirectory(prefix="mmserver-mlflow-") as directory:
                uri = f"models:/{self._name}/{version.version}"
                path = self._mlflow.artifacts.download_artifacts(uri, dst_path=directory)
                described = importlib.import_module("mlflow.models").Model.load(path)
                source, model_type = self._source(what, path, described.flavors)
        except (self._error, OSError) as error:
            raise ArtifactInvalid(file=what, reason="unreadable", detail=_first_line(error)) from error
        notes: list[str] = []
        new = NewVersion(
            model_name=model_name,
            label=label,
            source=source,
            model_type=model_type,
            description=version.description or "",
            metrics=_usable(checked_metrics, run.data.metrics if run else {}, notes),
            training_params=dict(run.data.params) if run else {},
            tags=_usable(checked_tags, _tags(version, run), notes),
            factors=_factors(described.signature),
        )
        return Readable(new, notes=notes)

    def _source(self, what: str, path: str, flavors: Mapping[str, Any]) -> tuple[ModelSource, str | None]:
        flavor = next((flavor for flavor in FLAVORS if flavor in flavors), None)
        if flavor is None:
            detail = f"of {', '.join(flavors)} none is read here; those that are: {', '.join(FLAVORS)}"
            raise ArtifactInvalid(file=what, reason="unsupported", detail=detail)
        named = flavors[flavor].get(FLAVORS[flavor])
        parent, _, last = path.rstrip("/").rpartition("/")
        parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with opened_directory(parent_fd, last) as model_fd:
                if not isinstance(named, str) or not is_beneath(named) or size_of_file(model_fd, named) is None:
                    raise ArtifactInvalid(file=what, reason="incomplete", detail=f"no file {named!r}"[:300])
                names = [name for name in files_beneath(model_fd) if flavor == "onnx" and name not in _BESIDE]
                files = self._contents(model_fd, [named, *(name for name in names if name != named)])
        finally:
            os.close(parent_fd)
        return ModelSource(file_name=named, files=files), self._model_type(flavor, named)

    def _model_type(self, flavor: str, file_name: str) -> str | None:
        """The flavour, where the file's name does not say the format: a pickle may be of any library."""
        plugins = self._store.plugins
        if not file_name.endswith(_PICKLES) and plugins.model_format_for(file_name) is not None:
            return None
        return flavor if plugins.model_format_for(file_name, flavor) is not None else None

    def _contents(self, model_fd: int, names: list[str]) -> dict[str, bytes]:
        left_bytes = limit_bytes = self._store.settings.max_artifact_bytes
        contents: dict[str, bytes] = {}
        for name in names:
            content = read_file(model_fd, name, left_bytes)
            if content is None:
                raise UploadTooLarge(what=name, limit_bytes=limit_bytes, setting="MMSERVER_MAX_ARTIFACT_BYTES")
            contents[name] = content
            left_bytes -= len(content)
        return contents


class _Reading:
    """Reads one version when it is its turn."""

    def __init__(self, registry: _MlflowRegistry, model_name: str, label: str, version: Any) -> None:
        self._read = (registry, model_name, label, version)

    def __call__(self) -> Readable:
        registry, model_name, label, version = self._read
        return registry.read(model_name, label, version)


def _check_database(tracking_uri: str) -> None:
    """Raises RequestInvalid for a SQLite file that is not there: MLflow would make one."""
    path = tracking_uri.removeprefix("sqlite:///").partition("?")[0]
    if path != tracking_uri.partition("?")[0] and not Path(path).is_file():
        raise RequestInvalid(f"MLflow at {tracking_uri}: there is no such file")


def _stage(stage: str | None, aliases: list[str]) -> ModelStage:
    """Production before staging, where it is in both."""
    said = {STAGE_ALIASES.get(word.casefold()) for word in (*aliases, stage or "")}
    for known in (ModelStage.PRODUCTION, ModelStage.STAGING):
        if known in said:
            return known
    return ModelStage.ARCHIVED if (stage or "").casefold() == "archived" else ModelStage.NONE


def _tags(version: Any, run: Any) -> dict[str, str]:
    """The run's and the version's own, and where it came from; what MLflow notes for itself is left out."""
    given = {**(run.data.tags if run else {}), **version.tags}
    tags = {name: value for name, value in given.items() if not name.startswith("mlflow.")}
    tags["mlflow.version"] = str(version.version)
    if version.run_id:
        tags["mlflow.run_id"] = version.run_id
    return tags


def _factors(signature: Any) -> tuple[str, ...] | None:
    """The columns of the signature; None where it speaks of a tensor, or there is none."""
    inputs = getattr(signature, "inputs", None)
    if inputs is None or inputs.is_tensor_spec() or not inputs.has_input_names():
        return None
    return tuple(inputs.input_names())


def _usable(check: Any, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """One by one: what cannot be kept is named."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        try:
            found |= check({name: value})
        except RequestInvalid as error:
            notes.append(f"{error}, left out")
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
