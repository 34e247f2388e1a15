"""Reading one registered model in a guarded process: its format's plugin reads it, then what came of it is proven.

Pure: bytes in, one value out. A library whose format is read here was imported, and made to run once, before any model came.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mmserver.catalog.consistency import check_dimensions, factors_of_group
from mmserver.catalog.info import facts_from_info
from mmserver.catalog.ingest import PRELOADED, IngestedGroup, built_group
from mmserver.catalog.proof import array_from_rows, proven_alone
from mmserver.catalog.symbols import ALL_SYMBOLS
from mmserver.conversion.parity import ParityReport, compared
from mmserver.errors import ArtifactInvalid, ExtraMissing, MmserverError, Undecodable
from mmserver.formats import (
    Conversion,
    FactorList,
    FloatRows,
    InfoRecord,
    ModelFile,
    ModelFormat,
    ModelSource,
    Predictor,
    Probes,
)
from mmserver.plugin_loading import Plugins, load_plugins

READ_MODEL = "read_model"
GROUP_KEY = "all"
"""The one group of a version that was registered."""
MAX_PROBE_NUMBERS = 20_000
"""Numbers of probe rows that are stored, outputs included: 200 kB as text."""


class ReadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One model as it was handed in; `format_name` says who reads it, `info` is what its producer wrote beside it."""

    source: ModelSource
    format_name: str
    factors: tuple[str, ...] | None = None
    info: dict[str, Any] = {}


def handlers(options: dict[str, Any]) -> Mapping[str, Callable[[bytes], bytes]]:
    """The worker's one job, MessagePack in and out. `options`: `modules` to import, of formats to warm up, and `plugins_dir`."""
    modules = tuple(options["modules"])
    for module_name in (*PRELOADED, *modules):
        importlib.import_module(module_name)
    plugins_dir = options.get("plugins_dir")
    plugins = load_plugins(Path(plugins_dir) if plugins_dir else None)
    formats = {claim.name: claim for claim in plugins.model_formats if claim.modules == modules}
    cold = {claim.name: said for claim in formats.values() if (said := _warmed_up(claim)) is not None}

    def run_read_model(request: bytes) -> bytes:
        wanted = msgspec.msgpack.decode(request, type=ReadRequest)
        if wanted.format_name in cold:
            raise ArtifactInvalid(
                file=wanted.source.file_name,
                reason="plugin_failed",
                detail=f"its warm-up failed: {cold[wanted.format_name]}",
            )
        return msgspec.msgpack.encode(read_model(wanted, formats[wanted.format_name], plugins))

    return {READ_MODEL: run_read_model}


def read_model(request: ReadRequest, claim: ModelFormat, plugins: Plugins) -> IngestedGroup:
    """What is stored of the model, proven to load and to predict what its source predicts.

    Raises:
        ArtifactInvalid: names the file, a stable reason and the detail.
        ExtraMissing: a package that this very model needs is not installed.
    """
    name = request.source.file_name
    model = _read(request.source, claim)
    facts = facts_from_info(request.info)
    factors = _factors(request, model)
    return built_group(
        group_key=GROUP_KEY,
        symbol=ALL_SYMBOLS,
        return_name="",
        factors=factors,
        model=_proven(name, model, plugins),
        info=request.info,
        facts=facts,
        ic_table=None,
        plugins=plugins,
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def _warmed_up(claim: ModelFormat) -> str | None:
    """None, or what its plugin raised: that is the format's trouble, not that of the others that are read here."""
    if claim.warm_up is None:
        return None
    try:
        claim.warm_up()
    except Exception as error:  # noqa: BLE001 (a plugin's)
        return f"{type(error).__name__}: {error}"[:300]
    return None


def _read(source: ModelSource, claim: ModelFormat) -> ModelFile:
    name = source.file_name
    try:
        model: object = claim.read(source)
    except Undecodable as error:
        raise ArtifactInvalid(file=name, reason=error.reason, detail=error.detail) from error
    except (ArtifactInvalid, ExtraMissing):
        raise
    except MmserverError as error:
        raise ArtifactInvalid(file=name, reason=error.code, detail=str(error)) from error
    except MemoryError:
        raise
    except Exception as error:
        raise ArtifactInvalid(file=name, reason="malformed", detail=f"{type(error).__name__}: {error}"[:300]) from error
    if not isinstance(model, ModelFile):
        detail = f"the format {claim.name} gave {type(model).__name__}, not a model"
        raise ArtifactInvalid(file=name, reason="plugin_failed", detail=detail)
    return model


def _factors(request: ReadRequest, model: ModelFile) -> tuple[str, ...]:
    """Those that were given, else the model's own, else those of the info, else f0, f1, …; they name the last axis of a row.

    Raises:
        ArtifactInvalid: inconsistent_pair, where their number is wrong, the info says otherwise, or a name that the model has too stands elsewhere in it.
    """
    name = request.source.file_name
    facts = facts_from_info(request.info)
    given = ("factors", FactorList(factors=request.factors)) if request.factors is not None else None
    factors = factors_of_group(name, given, model, facts)
    own = model.feature_names
    nameless = msgspec.structs.replace(model, feature_names=None) if given else model
    info = ("info", InfoRecord(request.info)) if request.info else None
    if facts.dim == model.n_features:  # of a row that is not flat, some count every number, not its factors
        facts = msgspec.structs.replace(facts, dim=None)
    check_dimensions(factors=factors, factor_list=given, model_name=name, model=nameless, info=info, facts=facts)
    if given and own:
        position = {factor: dim for dim, factor in enumerate(factors)}
        for dim, factor in enumerate(own):
            if position.get(factor, dim) != dim:
                detail = f"the model's input {dim} is {factor!r}, in the factors that is {position[factor]}"
                raise ArtifactInvalid(file=name, reason="inconsistent_pair", detail=detail)
    return factors


# --- proving ----------------------------------------------------------------------------------------------------------


def _proven(name: str, model: ModelFile, plugins: Plugins) -> ModelFile:
    """The model with what it predicts for its probe rows, as many as are stored, and with its parity where it was converted."""
    try:
        predictor = plugins.load_predictor(model)
        if predictor is None:
            detail = f"no plugin runs {model.kind} models"
            raise ArtifactInvalid(file=name, reason="unsupported", detail=detail)
        _check_shape(name, model, predictor)
        if model.conversion is None:
            proven = proven_alone(name, model, plugins)
        else:
            proven = _proven_near(name, model, model.conversion, predictor)
    except (ArtifactInvalid, MemoryError):
        raise
    except Undecodable as error:
        raise ArtifactInvalid(file=name, reason=error.reason, detail=error.detail) from error
    except Exception as error:
        detail = f"it does not load or run: {type(error).__name__}: {error}"[:300]
        raise ArtifactInvalid(file=name, reason="plugin_failed", detail=detail) from error
    return msgspec.structs.replace(proven, probes=_cut(proven.probes))


def _check_shape(name: str, model: ModelFile, predictor: Predictor) -> None:
    if predictor.n_features != model.n_features or np.prod(model.row_shape) != model.n_features:
        detail = f"rows of {model.row_shape} have not the {predictor.n_features} numbers that its predictor takes"
        raise ArtifactInvalid(file=name, reason="plugin_failed", detail=detail)


def _proven_near(name: str, model: ModelFile, conversion: Conversion, predictor: Predictor) -> ModelFile:
    """The converted model with its own outputs for the probe rows, and how far they are from its source's.

    Raises:
        ArtifactInvalid: parity_failed, with the figures; plugin_failed where the plugin gave nothing to compare with.
    """
    probes = model.probes
    if probes is None or not probes.rows or not probes.outputs:
        detail = "it says that the model was converted, but not what its source predicts"
        raise ArtifactInvalid(file=name, reason="plugin_failed", detail=detail)
    rows = array_from_rows(probes.rows)
    found = {key: np.asarray(values, np.float32) for key, values in predictor.predict(rows).items()}
    expected = {key: np.asarray(values, np.float32) for key, values in probes.outputs.items()}
    report = compared(expected, found, conversion, f"{model.kind} {model.library_version}".strip())
    if not report.passed:
        raise ArtifactInvalid(file=name, reason="parity_failed", detail=_figures(report))
    summary = {
        **model.summary,
        "parity": msgspec.to_builtins(report),
        "accepts_missing": _is_missing_proven(rows, expected, found),
    }
    outputs = {key: values.tolist() for key, values in found.items()}
    return msgspec.structs.replace(model, summary=summary, probes=Probes(rows=probes.rows, outputs=outputs))


def _figures(report: ParityReport) -> str:
    if report.note is not None:
        return report.note
    classes = "" if report.class_agreement is None else f", the same class in {report.class_agreement:.2%}"
    largest = "infinite" if report.max_abs_difference is None else f"{report.max_abs_difference:.3g}"
    return (
        f"{report.n_beyond} of {report.n_rows} rows differ from {report.source} by more than {report.absolute:g} + "
        f"{report.relative:g} of the value; the largest difference is {largest}{classes}"
    )


def _is_missing_proven(rows: FloatRows, expected: Mapping[str, FloatRows], found: Mapping[str, FloatRows]) -> bool:
    """Whether every input was missing in some row for which both gave finite numbers; they agreed, or we were not here."""
    finite = np.ones(len(rows), np.bool_)
    for key, values in expected.items():
        finite &= np.isfinite(values).all(axis=1) & np.isfinite(found[key]).all(axis=1)
    return bool(np.isnan(rows[finite]).any(axis=0).all())


def _cut(probes: Probes | None) -> Probes | None:
    """The first rows, as many as may be stored, of those without an infinity: JSON would make a missing value of it."""
    if probes is None or not probes.rows:
        return probes
    tables = {key: np.asarray(values, np.float32) for key, values in probes.outputs.items()}
    width = len(probes.rows[0]) + sum(table.shape[1] for table in tables.values())
    kept = [
        at
        for at in range(len(probes.rows))
        if _is_json(probes.rows[at]) and all(np.isfinite(table[at]).all() for table in tables.values())
    ][: max(1, MAX_PROBE_NUMBERS // width)]
    outputs = {key: table[kept].tolist() for key, table in tables.items()}
    return Probes(rows=[probes.rows[at] for at in kept], outputs=outputs)


def _is_json(row: list[float | None]) -> bool:
    return all(cell is None or math.isfinite(cell) for cell in row)
