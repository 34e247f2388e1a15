"""Versions that are registered one by one, their stages, and A/B tests between them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from mmserver.client.answers import (
    Comparison,
    Experiment,
    ExperimentAnalysis,
    RegisteredModels,
    RegisteredVersion,
    RegisteredVersions,
)
from mmserver.client.calls import Blocking, Call, Flow, Upload, changing, json_as, json_text, path, reading

MODELS = "/api/ml/registry/models"
ONE = MODELS + "/{}"
UPLOAD_S = 600.0
"""An upload, and the conversion and proof that follow it, take longer than other calls."""
Stage = Literal["Production", "Staging", "Archived", "None"]

# --- registering ------------------------------------------------------------------------------------------------------


def register_version(
    name: str,
    version: str,
    file: str | Path,
    *,
    more_files: Sequence[str | Path] = (),
    model_type: str | None = None,
    description: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    training_params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    factors: Sequence[str] | None = None,
    info: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    timeout_s: float = UPLOAD_S,
) -> Flow[RegisteredVersion]:
    """Upload a model's file, with those that belong to it, and register it. The files are read while they are sent.

    The server gets the SHA-256 of `file` and refuses what arrives otherwise. The same content under the same version is
    no error, other content is a Conflict.
    """
    model_file = Path(file)
    sha256 = yield Blocking(lambda: _sha256(model_file))
    texts = {"model_type": model_type, "description": description}
    documents = {
        "metrics": metrics,
        "training_params": training_params,
        "tags": tags,
        "factors": factors,
        "info": info,
        "options": options,
    }
    fields = {"name": name, "version": version, "sha256": sha256}
    fields |= {key: text for key, text in texts.items() if text is not None}
    fields |= {key: _document(key, value) for key, value in documents.items() if value is not None}
    answer: RegisteredVersion = yield Call(
        method="POST",
        path=MODELS,
        upload=Upload(fields, (model_file, *map(Path, more_files))),
        decode=json_as(RegisteredVersion),
        read_s=timeout_s,
        total_s=timeout_s,
    )
    return answer


def register_path(
    name: str,
    version: str,
    server_path: str,
    *,
    model_type: str | None = None,
    description: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    training_params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    factors: Sequence[str] | None = None,
    info: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    timeout_s: float = UPLOAD_S,
) -> Call[RegisteredVersion]:
    """Register a file that is on the server's machine already."""
    body: dict[str, Any] = {
        "name": name,
        "version": version,
        "path": server_path,
        "model_type": model_type,
        "description": description,
        "metrics": metrics,
        "training_params": training_params,
        "tags": tags,
        "factors": factors,
        "info": info,
        "options": options,
    }
    given = {key: value for key, value in body.items() if value is not None}
    call = changing("POST", MODELS, RegisteredVersion, given)
    return msgspec.structs.replace(call, read_s=timeout_s, total_s=timeout_s)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _document(key: str, value: object) -> str:
    try:
        return json_text(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from error


# --- reading ----------------------------------------------------------------------------------------------------------


def list_registered(*, limit: int | None = None, cursor: str | None = None) -> Call[RegisteredModels]:
    """A page of the registry's models, by name."""
    return reading(MODELS, RegisteredModels, limit=limit, cursor=cursor)


def get_registered(name: str, *, stage: Stage | None = None) -> Call[RegisteredVersions]:
    """One model with its versions, or with those in a stage."""
    return reading(path(ONE, name), RegisteredVersions, stage=stage)


def get_version(name: str, version: str = "latest") -> Call[RegisteredVersion]:
    """One version by its label, by its stage, or the latest."""
    return reading(path(ONE + "/{}", name, version), RegisteredVersion)


def compare_versions(name: str, version1: str, version2: str) -> Call[Comparison]:
    """Two versions side by side: metrics, size, parameters, factors."""
    return reading(path(ONE + "/compare", name), Comparison, version1=version1, version2=version2)


# --- changing ---------------------------------------------------------------------------------------------------------


def set_stage(name: str, version: str, stage: Stage) -> Call[RegisteredVersion]:
    """Put a version into a stage, or into none."""
    return changing("PUT", path(ONE + "/{}/stage", name, version), RegisteredVersion, {"stage": stage})


def promote_version(name: str, version: str) -> Call[RegisteredVersion]:
    """Put a version into production; the one before is archived, and one `rollback_promotion` away."""
    return changing("POST", path(ONE + "/{}/promote", name, version), RegisteredVersion)


def retire_version(name: str, version: str) -> Call[RegisteredVersion]:
    """Archive a version; a Conflict while it is in production."""
    return changing("POST", path(ONE + "/{}/retire", name, version), RegisteredVersion)


def rollback_promotion(name: str) -> Call[RegisteredVersion]:
    """Put back into production what was there before. Twice goes back two: this is never sent twice by itself."""
    return changing("POST", path(ONE + "/rollback", name), RegisteredVersion)


def delete_version(name: str, version: str) -> Call[None]:
    """Remove a version; a Conflict while it is in production."""
    return changing("DELETE", path(ONE + "/{}", name, version), type(None))


def update_metrics(name: str, version: str, metrics: Mapping[str, Any]) -> Call[RegisteredVersion]:
    """Merge metrics into those that it has; None removes one."""
    return changing("PATCH", path(ONE + "/{}/metrics", name, version), RegisteredVersion, {"metrics": metrics})


def annotate_version(
    name: str, version: str, *, description: str | None = None, tags: Mapping[str, str | None] | None = None
) -> Call[RegisteredVersion]:
    """Change the description, the tags, or both; what is None stays."""
    body: dict[str, Any] = {"description": description, "tags": tags}
    given = {key: value for key, value in body.items() if value is not None}
    return changing("PATCH", path(ONE + "/{}", name, version), RegisteredVersion, given)


# --- A/B tests --------------------------------------------------------------------------------------------------------


def create_ab_test(  # noqa: PLR0917 (as its users call it)
    experiment_id: str,
    control_model: str,
    control_version: str,
    treatment_model: str,
    treatment_version: str,
    traffic_split: float = 0.9,
    *,
    unit: str | None = None,
    auto: bool | None = None,
    start: bool | None = None,
) -> Call[Experiment]:
    """Compare two versions on live requests; `traffic_split` is the control's share."""
    body: dict[str, Any] = {
        "experiment_id": experiment_id,
        "control_model": control_model,
        "control_version": control_version,
        "treatment_model": treatment_model,
        "treatment_version": treatment_version,
        "traffic_split": traffic_split,
        "unit": unit,
        "auto": auto,
        "start": start,
    }
    given = {key: value for key, value in body.items() if value is not None}
    return changing("POST", "/api/ml/experiments", Experiment, given)


def get_ab_test_analysis(experiment_id: str) -> Call[ExperimentAnalysis]:
    """How the two do so far, and what that recommends."""
    return reading(path("/api/ml/experiments/{}/analysis", experiment_id), ExperimentAnalysis)


def stop_ab_test(experiment_id: str) -> Call[ExperimentAnalysis]:
    """End it; the final report."""
    return changing("POST", path("/api/ml/experiments/{}/stop", experiment_id), ExperimentAnalysis)
