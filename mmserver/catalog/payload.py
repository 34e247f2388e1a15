"""What is served of a group: the payload that bots download, and the manifest that proves a loader."""

import hashlib
import math
from typing import Any

import msgspec

from mmserver.catalog.info import InfoFacts
from mmserver.errors import NotConvertible
from mmserver.formats import IcTable, ModelFile
from mmserver.plugin_loading import Plugins

_IC_COLUMNS = ("ic", "ic_mean", "mean_ic", "pearson_ic", "information_coefficient")
_TREE_RULES = {
    "input": "float32",
    "split": "left when x < threshold, else right; a missing x goes the node's default way",
    "sum": "float32, base score first, then the trees in order",
}
_TAU_COLUMNS = ("kendall_tau", "kendalltau", "kendall", "tau", "ktau")


class DimFactor(msgspec.Struct, frozen=True):
    """What one input dimension means. Units: kendall_tau in [-1, 1], None where it is not known."""

    dim: int
    factor_name: str
    kendall_tau: float | None


class Payload(msgspec.Struct, frozen=True):
    """What bots download."""

    model_json: str
    metadata: dict[str, Any]
    dim_factors: list[DimFactor]


def _column(table: IcTable, names: tuple[str, ...]) -> int | None:
    lowered = [column.lower() for column in table.columns]
    return next((lowered.index(name) for name in names if name in lowered), None)


def _numbers_by_factor(table: IcTable | None, names: tuple[str, ...]) -> dict[str, float]:
    at = _column(table, names) if table else None
    if table is None or at is None:
        return {}
    factor_at = table.columns.index(table.factor_column)
    values = ((row[factor_at], row[at]) for row in table.rows)
    return {str(f): float(v) for f, v in values if isinstance(v, int | float) and not isinstance(v, bool)}


def dim_factors_from_table(factors: tuple[str, ...], table: IcTable | None) -> list[DimFactor]:
    taus = _numbers_by_factor(table, _TAU_COLUMNS)
    return [DimFactor(dim=dim, factor_name=name, kendall_tau=taus.get(name)) for dim, name in enumerate(factors)]


def ic_mean(table: IcTable | None) -> float | None:
    values = list(_numbers_by_factor(table, _IC_COLUMNS).values())
    return math.fsum(values) / len(values) if values else None


def payload_from_model(
    model: ModelFile | None, plugins: Plugins, info: dict[str, Any], facts: InfoFacts, dim_factors: list[DimFactor]
) -> tuple[Payload | None, str | None]:
    """(the payload, None), or (None, why there is none)."""
    if model is None:
        return None, "the group has no model file"
    converter = plugins.converter_for(model.kind, "json")
    if converter is None:
        return None, f"no plugin gives {model.kind} models as JSON"
    try:
        model_json = converter.convert(model).decode("utf-8")
    except NotConvertible as error:
        return None, str(error)
    metadata = {**info, "dim": len(dim_factors)}
    for name in ("train_start", "train_end", "train_samples"):
        if (value := getattr(facts, name)) is not None:
            metadata[name] = value
    metadata["model"] = {
        **_said_of_the_model(info),
        **_facts_of_the_model(model, [entry.factor_name for entry in dim_factors]),
        "model_json_sha256": hashlib.sha256(model_json.encode()).hexdigest(),
    }
    return Payload(model_json=model_json, metadata=metadata, dim_factors=dim_factors), None


def _said_of_the_model(info: dict[str, Any]) -> dict[str, Any]:
    """What the info file has under the name that our own facts take: a mapping's members beside them, else as `info`."""
    if "model" not in info:
        return {}
    return info["model"] if isinstance(info["model"], dict) else {"info": info["model"]}


def _facts_of_the_model(model: ModelFile, factors: list[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "kind": model.kind,
        "objective": model.objective,
        "n_features": model.n_features,
        "n_outputs": model.n_outputs,
        "n_trees": model.n_trees,
        "best_iteration": model.best_iteration,
        "missing": model.missing,
        "feature_order": factors,
        "library_version": model.library_version,
    }
    return {**facts, "input_shape": list(model.input_shape)} if model.input_shape else facts


def manifest_from_model(model: ModelFile, payload: Payload | None, factors: tuple[str, ...]) -> bytes:
    """What a client in another language needs to prove its loader, without the model's own text."""
    return msgspec.json.encode(
        {
            "model": payload.metadata["model"] if payload else _facts_of_the_model(model, list(factors)),
            "details": model.summary,
            "feature_order": list(factors),
            "missing": {"nan": model.summary.get("accepts_missing", True), "value": model.missing},
            "rules": _TREE_RULES if model.n_trees else None,
            "golden": model.probes,
        }
    )
