"""Versions that are registered one by one, their stages, and their other forms."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from mmserver.client.calls import (
    Blocking,
    Call,
    Flow,
    Upload,
    changing,
    given_fields,
    json_as,
    json_text,
    path,
    reading,
)
from mmserver.client.registry_answers import (
    Comparison,
    Optimizations,
    RegisteredModels,
    RegisteredVersion,
    RegisteredVersions,
)

T = TypeVar("T")
MODELS = "/api/ml/registry/models"
ONE = MODELS + "/{}"
UPLOAD_S = 600.0
"""An upload, and the conversion and proof that follow it, take longer than other calls."""
OPTIMIZE_S = 1800.0
"""Three forms, of which each may take as long as the server allows a conversion, and what measuring them takes."""
Variant = Literal["fp32", "int8_dynamic", "int8_static"]
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
    derived_from: str | None = None,
    timeout_s: float = UPLOAD_S,
) -> Flow[RegisteredVersion]:
    """Upload a model's file, with those that belong to it, and register it. The files are read while they are sent.

    The server gets the SHA-256 of `file` and refuses what arrives otherwise. The same content under the same version is
    no error. `derived_from`: the label of the version that it was made of.

    Raises:
        Conflict: other content is registered under that version.
        RequestRefused: the server cannot make a model of it; `detail` says why.
        OSError: a file cannot be read.
    """
    model_file = Path(file)
    sha256 = yield Blocking(lambda: _sha256(model_file))
    texts = {"model_type": model_type, "description": description, "derived_from": derived_from}
    documents = {
        "metrics": metrics,
        "training_params": training_params,
        "tags": tags,
        "factors": factors,
        "info": info,
        "options": options,
    }
    fields = {"name": name, "version": version, "sha256": sha256} | given_fields(texts)
    fields |= {key: _document(key, value) for key, value in given_fields(documents).items()}
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
    other_paths: Sequence[str] | None = None,
    sha256: str | None = None,
    model_type: str | None = None,
    description: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    training_params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    factors: Sequence[str] | None = None,
    info: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    derived_from: str | None = None,
    timeout_s: float = UPLOAD_S,
) -> Call[RegisteredVersion]:
    """Register a file that is on the server's machine already; `sha256`: only if it has that hash.

    Raises:
        As `register_version`, less OSError.
    """
    body: dict[str, Any] = {
        "name": name,
        "version": version,
        "path": str(server_path),
        "other_paths": None if other_paths is None else [str(path) for path in other_paths],
        "sha256": sha256,
        "model_type": model_type,
        "description": description,
        "metrics": metrics,
        "training_params": training_params,
        "tags": tags,
        "factors": factors,
        "info": info,
        "options": options,
        "derived_from": derived_from,
    }
    return _long(changing("POST", MODELS, RegisteredVersion, given_fields(body)), timeout_s)


def _long(call: Call[T], timeout_s: float) -> Call[T]:
    """A call during which the server says nothing for minutes."""
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


def rollback_promotion(name: str, *, from_version: str | None = None) -> Call[RegisteredVersion]:
    """Put back into production what was there before. Twice goes back two: this is never sent twice by itself.

    `from_version`: only if that is in production still, so that whoever does not know what came of it may ask again.

    Raises:
        Conflict: nothing is in production, nothing was before, or something else than `from_version` is.
    """
    body = None if from_version is None else {"from": from_version}
    return changing("POST", path(ONE + "/rollback", name), RegisteredVersion, body)


def delete_version(name: str, version: str) -> Call[None]:
    """Remove a version; a Conflict while it is in production."""
    return changing("DELETE", path(ONE + "/{}", name, version), type(None))


def update_metrics(name: str, version: str, metrics: Mapping[str, Any]) -> Call[RegisteredVersion]:
    """Merge metrics into those that it has; None removes one."""
    return changing("PATCH", path(ONE + "/{}/metrics", name, version), RegisteredVersion, {"metrics": metrics})


def annotate_version(
    name: str, version: str, *, description: str | None = None, tags: Mapping[str, str | None] | None = None
) -> Call[RegisteredVersion]:
    """Change the description, some tags, or both: what is None stays, a tag that is None is removed."""
    body: dict[str, Any] = {"description": description, "tags": tags}
    return changing("PATCH", path(ONE + "/{}", name, version), RegisteredVersion, given_fields(body))


# --- smaller and quicker forms ----------------------------------------------------------------------------------------


def optimize(
    name: str,
    version: str,
    *,
    variants: Sequence[Variant] | None = None,
    benchmark: bool = False,
    register: bool = True,
    rows: npt.ArrayLike | None = None,
    timeout_s: float = OPTIMIZE_S,
) -> Call[Optimizations]:
    """Make smaller and quicker forms of a version, and register those that pass; all forms unless `variants` names some.

    Whether a form passed is no error: `accepted`, with `reasons` where it did not. `benchmark`: measure longer, for the p99.
    `register`: False only tries. `rows`: real inputs to compare the forms by, rather than made-up ones. Takes minutes.

    Shapes:
        rows: n × the shape of one input; finite numbers.

    Raises:
        RequestRefused: the version cannot be optimised, or the rows do not fit it.
        ServerBusy: another version is being optimised.
        Conflict: the model is a watched one.
    """
    body: dict[str, Any] = {
        "variants": None if variants is None else list(variants),
        "benchmark": benchmark,
        "register": register,
        "rows": None if rows is None else np.asarray(rows),
    }
    where = path(ONE + "/{}/optimize", name, version)
    return _long(changing("POST", where, Optimizations, given_fields(body)), timeout_s)


def optimizations(name: str, version: str) -> Call[Optimizations]:
    """What came of the last try of each form of a version."""
    return reading(path(ONE + "/{}/optimizations", name, version), Optimizations)
