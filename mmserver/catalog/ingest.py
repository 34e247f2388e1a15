"""From the private bytes of one group's files to everything that is stored of it; runs in the guarded worker.

Pure: bytes in, one value out, no file or network is touched. The server never sees a parsed model of a file that it was
not able to read here.
"""

import hashlib
import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mmserver.catalog import gzip_splice
from mmserver.catalog.consistency import check_dimensions, factors_of_group
from mmserver.catalog.info import InfoFacts, facts_from_info
from mmserver.catalog.payload import (
    DimFactor,
    Payload,
    dim_factors_from_table,
    ic_mean,
    manifest_from_model,
    payload_from_model,
)
from mmserver.catalog.proof import proven_model
from mmserver.catalog.symbols import comparable_symbol, split_group_key
from mmserver.errors import ArtifactInvalid, MmserverError, QuantilesInvalid, Undecodable
from mmserver.formats import (
    Artifact,
    ArtifactFormat,
    FactorList,
    IcTable,
    InfoRecord,
    ModelFile,
    Parsed,
    QuantileTable,
)
from mmserver.plugin_loading import Plugins, load_plugins

INGEST_REVISION = 1
"""Part of every group's identity: raise it when this module makes something else of the same files.

Groups that are loaded keep what they have until one of their files changes; whoever raises it has to see to that first.
"""

MAX_DETAIL_BYTES = 32 << 20
"""A group's table, info and dimensions as JSON: each request for its page holds all of it in memory, several times over."""

INGEST_GROUPS = "ingest_groups"
INGEST_QUANTILES = "ingest_quantiles"

PRELOADED = (
    "lz4.frame",
    "mmserver.graphs.model_file",
    "mmserver.graphs.predictor",
    "mmserver.inert.archives",
    "mmserver.inert.decoding",
    "mmserver.inert.jsonable",
    "mmserver.inert.likeness",
    "mmserver.trees.document",
    "mmserver.trees.model_file",
    "mmserver.trees.proving",
    "onnxruntime",
    "xgboost",
)
"""What every model may be made into, and what that is proven with."""
ParsedT = TypeVar("ParsedT")
_PARSED_TYPE: dict[str, type] = {
    "factors": FactorList,
    "ic": IcTable,
    "info": InfoRecord,
    "model": ModelFile,
    "quantiles": QuantileTable,
}


class SourceFile(msgspec.Struct, frozen=True):
    """One file of a group as it was read."""

    name: str
    data: bytes


class IngestRequest(msgspec.Struct, frozen=True):
    """The files of one group that are to be used, at most one a role and format."""

    group_key: str
    files: tuple[SourceFile, ...]


class IngestedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a group.

    `detail` is JSON (see `GroupRecord`), `payload_gzip` the gzip of the payload's JSON in spliceable form, `manifest` JSON.
    `model_content` is the ModelFile's, where the payload does not carry it.
    """

    group_key: str
    symbol: str
    return_name: str
    dim: int
    factors: tuple[str, ...]
    train_samples: int | None
    ic_mean: float | None
    detail: bytes
    payload_gzip: bytes | None
    payload_sha256: str | None
    payload_size_bytes: int
    manifest: bytes | None
    no_model_reason: str | None
    model_content: bytes | None = None


class GroupRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The stored detail of a group, for the symbol's page and endpoint. `model` is the ModelFile without its content."""

    ic_table: list[dict[str, Any]]
    factor_column: str
    info: dict[str, Any]
    facts: InfoFacts
    dim_factors: list[DimFactor]
    model: dict[str, Any] | None


class IngestError(msgspec.Struct, frozen=True):
    """Why a group cannot be used: the values of an ArtifactInvalid."""

    file: str
    reason: str
    detail: str


class IngestOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one group: one of the two."""

    group: IngestedGroup | None = None
    error: IngestError | None = None


def handlers(options: dict[str, Any]) -> Mapping[str, Callable[[bytes], bytes]]:
    """The worker's jobs, MessagePack in and out; `options` may name a `plugins_dir`.

    XGBoost, ONNX Runtime and what parsers are made of are imported here once, so that each job, which can open no file, has them in memory.
    """
    for module_name in PRELOADED:
        importlib.import_module(module_name)

    plugins_dir = options.get("plugins_dir")
    plugins = load_plugins(Path(plugins_dir) if plugins_dir else None)

    def run_ingest_groups(request: bytes) -> bytes:
        requests = msgspec.msgpack.decode(request, type=list[IngestRequest])
        return msgspec.msgpack.encode([ingest_outcome(one, plugins) for one in requests])

    def run_ingest_quantiles(request: bytes) -> bytes:
        return msgspec.msgpack.encode(ingest_quantiles(msgspec.msgpack.decode(request, type=SourceFile), plugins))

    return {INGEST_GROUPS: run_ingest_groups, INGEST_QUANTILES: run_ingest_quantiles}


def ingest_outcome(request: IngestRequest, plugins: Plugins) -> IngestOutcome:
    """As `ingest_group`, with the refusal as a value: one group's trouble is not its neighbours'."""
    try:
        return IngestOutcome(group=ingest_group(request, plugins))
    except ArtifactInvalid as error:
        values = {name: str(error.values[name]) for name in ("file", "reason", "detail")}
        return IngestOutcome(error=IngestError(**values))
    except Exception as error:  # noqa: BLE001 (a plugin's predictor or converter failed on it)
        detail = f"{type(error).__name__}: {error}"[:300]
        return IngestOutcome(error=IngestError(request.group_key, "plugin_failed", detail))


def ingest_group(request: IngestRequest, plugins: Plugins) -> IngestedGroup:
    """Parse every file, check that they belong together, prove that the model loads, and build what is served.

    Raises:
        ArtifactInvalid: names the file, a stable reason and the detail; the group's last good content is kept.
    """
    parsed = {source.name: _parse(request.group_key, source, plugins) for source in request.files}
    factor_list = _only(parsed, FactorList)
    ic_table = _only(parsed, IcTable)
    info_record = _only(parsed, InfoRecord)
    model_name, model = proven_model(parsed, plugins)
    info = info_record[1].values if info_record else {}
    facts = facts_from_info(info)
    factors = factors_of_group(request.group_key, factor_list, model, facts)
    check_dimensions(
        factors=factors, factor_list=factor_list, model_name=model_name, model=model, info=info_record, facts=facts
    )
    symbol, return_name = split_group_key(request.group_key, facts.symbol)
    return built_group(
        group_key=request.group_key,
        symbol=symbol,
        return_name=return_name or facts.return_name or "",
        factors=factors,
        model=model,
        info=info,
        facts=facts,
        ic_table=ic_table[1] if ic_table else None,
        plugins=plugins,
    )


def built_group(
    *,
    group_key: str,
    symbol: str,
    return_name: str,
    factors: tuple[str, ...],
    model: ModelFile | None,
    info: dict[str, Any],
    facts: InfoFacts,
    ic_table: IcTable | None,
    plugins: Plugins,
) -> IngestedGroup:
    """Everything that is stored of a group whose parts were checked and whose model was proven.

    Raises:
        ArtifactInvalid: too_large.
    """
    dim_factors = dim_factors_from_table(factors, ic_table)
    record = GroupRecord(
        ic_table=[dict(zip(ic_table.columns, row, strict=True)) for row in ic_table.rows] if ic_table else [],
        factor_column=ic_table.factor_column if ic_table else "factor",
        info=info,
        facts=facts,
        dim_factors=dim_factors,
        model=_model_summary(model) if model else None,
    )
    detail = msgspec.json.encode(record)
    if len(detail) > MAX_DETAIL_BYTES:
        said = f"its table and info are {len(detail)} bytes as JSON, more than {MAX_DETAIL_BYTES}"
        raise ArtifactInvalid(file=group_key, reason="too_large", detail=said)
    payload, reason = payload_from_model(model, plugins, info, facts, dim_factors)
    payload_text = msgspec.json.encode(payload) if payload else None
    return IngestedGroup(
        group_key=group_key,
        symbol=symbol,
        return_name=return_name,
        dim=len(factors),
        factors=factors,
        train_samples=facts.train_samples,
        ic_mean=ic_mean(ic_table),
        detail=detail,
        payload_gzip=gzip_splice.compress(payload_text) if payload_text else None,
        payload_sha256=hashlib.sha256(payload_text).hexdigest() if payload_text else None,
        payload_size_bytes=len(payload_text) if payload_text else 0,
        manifest=manifest_from_model(model, payload, factors) if model else None,
        no_model_reason=reason,
        model_content=_content_beside(model, payload),
    )


def ingest_quantiles(source: SourceFile, plugins: Plugins) -> QuantileTable:
    """A venue's thresholds, all of them or none.

    Raises:
        QuantilesInvalid: not a quantiles file, or thresholds that are not 0 < medium < large and finite.
    """
    claim = plugins.format_for(source.name, quantiles=True)
    if claim is None:
        raise QuantilesInvalid(file=source.name, reason="no plugin reads this kind of file")
    try:
        table = _parse_with(claim, Artifact(name=source.name, group_key="", data=source.data))
    except ArtifactInvalid as error:
        raise QuantilesInvalid(
            file=source.name, reason=f"{error.values['reason']}: {error.values['detail']}"
        ) from error
    if not isinstance(table, QuantileTable) or not table.symbols:
        raise QuantilesInvalid(file=source.name, reason="it has no symbols")
    spellings: dict[str, str] = {}
    for symbol, (medium, large) in table.symbols.items():
        other = spellings.setdefault(comparable_symbol(symbol), symbol)
        if other != symbol:
            raise QuantilesInvalid(file=source.name, reason=f"{other} and {symbol} are one symbol; keep one")
        if not (math.isfinite(medium) and math.isfinite(large) and 0 < medium < large):
            reason = (
                f"{symbol}: thresholds must be finite with 0 < medium < large, found medium {medium}, large {large}"
            )
            raise QuantilesInvalid(file=source.name, reason=reason)
    return table


# --- parsing ------------------------------------------------------------------------------------------------------------


def _parse(group_key: str, source: SourceFile, plugins: Plugins) -> tuple[ArtifactFormat, Parsed]:
    claim = plugins.format_for(source.name)
    if claim is None:
        raise ArtifactInvalid(file=source.name, reason="unsupported", detail="no plugin reads this kind of file")
    return claim, _parse_with(claim, Artifact(name=source.name, group_key=group_key, data=source.data))


def _parse_with(claim: ArtifactFormat, artifact: Artifact) -> Parsed:
    try:
        parsed = claim.parse(artifact)
    except Undecodable as error:
        raise ArtifactInvalid(file=artifact.name, reason=error.reason, detail=error.detail) from error
    except MmserverError as error:
        raise ArtifactInvalid(file=artifact.name, reason=error.code, detail=str(error)) from error
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"[:300]
        raise ArtifactInvalid(file=artifact.name, reason="malformed", detail=detail) from error
    if not isinstance(parsed, _PARSED_TYPE[claim.role]):
        detail = f"the format {claim.name} gave {type(parsed).__name__} for a {claim.role} file"
        raise ArtifactInvalid(file=artifact.name, reason="plugin_failed", detail=detail)
    return parsed


def _only(parsed: Mapping[str, tuple[ArtifactFormat, Parsed]], kind: type[ParsedT]) -> tuple[str, ParsedT] | None:
    found = [(name, value) for name, (_, value) in parsed.items() if isinstance(value, kind)]
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise ArtifactInvalid(file=found[1][0], reason="ambiguous", detail=f"{names} say the same thing; keep one")
    return found[0] if found else None


def _content_beside(model: ModelFile | None, payload: Payload | None) -> bytes | None:
    """What predictors load, unless it is the payload's text anyway: then it is not stored a second time."""
    if model is None or (payload is not None and payload.model_json.encode() == model.content):
        return None
    return model.content


def _model_summary(model: ModelFile) -> dict[str, Any]:
    described = msgspec.to_builtins(msgspec.structs.replace(model, content=b"", probes=None))
    shown = {key: value for key, value in described.items() if key not in ("content", "probes", "type")}
    return {**shown, "content_sha256": hashlib.sha256(model.content).hexdigest()}
