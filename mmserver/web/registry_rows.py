"""What the registry's pages show of versions: columns, bars, and figures in words with their units."""

import json
import shlex
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import flask
import msgspec

from mmserver.conversion.parity import ParityReport
from mmserver.registry.comparing import Comparison, MetricComparison
from mmserver.registry.optimizing import is_form
from mmserver.registry.semantic_versions import precedence
from mmserver.registry.versions import ListedVersion, Optimization
from mmserver.web.figures import EMPTY, number, size
from mmserver.web.listing import Column
from mmserver.web.optimization_bodies import FormTiming, RegistryOptimization, item_from_optimization
from mmserver.web.registry_bodies import StageName, stage_name

MAIN_METRICS = 3
"""Columns of a list of versions; the rest stands on each version's page."""
_STAGE_ORDER: dict[StageName, int] = {"Production": 0, "Staging": 1, "None": 2, "Archived": 3}
_MAX_ROW_ON_A_LINE = 12
"""Inputs of a model whose row is written out in an example."""
_FORMS = {"fp32": "FP32, graph simplified", "int8_dynamic": "INT8, dynamic", "int8_static": "INT8, static"}


@dataclass(frozen=True, slots=True)
class Parity:
    """A parity report for readers. `facts` holds every figure: (what it is, in words)."""

    has_passed: bool | None
    """None where the report is none of ours and does not say it."""
    max_abs_difference: float | None
    n_rows: int | None
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar in a cell that is 100 wide, and what it is of."""

    width: float
    text: str


@dataclass(frozen=True, slots=True)
class FormRow:
    """The source of a form, or the form: its figures, each with a bar on the scale of the larger of the two."""

    what: str
    label: str | None
    is_source: bool
    size: Bar | None
    p50: Bar | None
    p99: Bar | None


@dataclass(frozen=True, slots=True)
class FormReport:
    """What came of one form of a version. `facts`: (what it is, in words)."""

    name: str
    item: RegistryOptimization
    rows: tuple[FormRow, FormRow]
    facts: tuple[tuple[str, str], ...]
    parity: Parity | None


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of two versions."""

    name: str
    compared: MetricComparison


# --- addresses --------------------------------------------------------------------------------------------------------


def model_path(model_name: str) -> str:
    """Where a model's page is."""
    return flask.url_for("pages.get_model_page", model_name=model_name)


def version_path(model_name: str, label: str) -> str:
    """Where a version's page is."""
    return f"{model_path(model_name)}/versions/{urllib.parse.quote(label, safe='')}"


# --- lists of versions ------------------------------------------------------------------------------------------------


def main_metrics(versions: Iterable[ListedVersion]) -> list[str]:
    """The names that most versions have; among those with as many, the one that comes first in the newest."""
    counts = Counter(name for version in versions for name in version.metrics)
    return [name for name, _ in counts.most_common(MAIN_METRICS)]


def version_columns(metrics: Sequence[str]) -> tuple[Column[ListedVersion], ...]:
    """The columns of a list of versions, with one for each of the metrics."""
    return (
        Column("version", "Version", lambda version: precedence(version.label)),
        Column("stage", "Stage", lambda version: _STAGE_ORDER[stage_name(version.stage)]),
        Column("type", "Type", lambda version: version.model_type),
        *(metric_column(name) for name in metrics),
        Column("size", "Size", lambda version: version.size_bytes, is_number=True),
        Column("parity", "Parity, max |Δ|", lambda version: _max_abs(version.parity), is_number=True),
        Column("created", "Created (UTC)", lambda version: version.created_at, is_number=True),
    )


def metric_column(name: str) -> Column[ListedVersion]:
    """The column of one metric."""
    return Column(f"metric.{name}", name, lambda version: version.metrics.get(name), is_number=True)


def matches_version(version: ListedVersion, query: str) -> bool:
    """Whether the words stand anywhere in what was said of the version."""
    said = (version.label, version.model_type, version.derived_from or "", version.description)
    wanted = query.casefold()
    return any(wanted in text.casefold() for text in (*said, *version.tags, *version.tags.values()))


# --- parity -----------------------------------------------------------------------------------------------------------


def parity_from_report(report: dict[str, Any] | None) -> Parity | None:
    """A stored report in words; one of another make is shown as it is."""
    if report is None:
        return None
    try:
        found = msgspec.convert(report, ParityReport)
    except msgspec.ValidationError:
        return Parity(None, None, None, tuple((str(key), number(value)) for key, value in report.items()))
    return Parity(found.passed, found.max_abs_difference, found.n_rows, tuple(_parity_facts(found)))


def _parity_facts(found: ParityReport) -> Iterable[tuple[str, str]]:
    yield "Compared", f"{found.target} with {found.source}, on {_counted(found.n_rows, 'row')}"
    yield "Largest difference, absolute", _difference(found.max_abs_difference)
    yield "Largest difference, relative", _difference(found.max_rel_difference)
    yield "A number may be off by", _allowance(found)
    yield "Rows with a number further off", f"{number(found.n_beyond)} of {number(found.n_rows)}"
    yield "Rows that may have one", percent(found.max_share_beyond) if found.max_share_beyond else "none"
    agreement = "one output: there are no classes" if found.class_agreement is None else percent(found.class_agreement)
    yield "Rows of the same class", agreement
    yield "Verdict", "passed" if found.passed else "failed"
    if found.note:
        yield "Cannot be compared", found.note


def _allowance(found: ParityReport) -> str:
    """The most that any column is allowed; how much less another one is, follows from its own numbers."""
    share = f", plus {percent(found.relative)} of its size" if found.relative else ""
    return f"at most {found.absolute:.4g}{share}; by less in a column that moves less over the rows"


def _difference(value: float | None) -> str:
    """In the model's own units; None: one of the two has what the other lacks."""
    return f"{EMPTY} (one gives what the other does not)" if value is None else f"{value:.4g}"


def _max_abs(report: dict[str, Any] | None) -> float | None:
    value = (report or {}).get("max_abs_difference")
    return float(value) if isinstance(value, int | float) else None


# --- forms of a version -----------------------------------------------------------------------------------------------


def form_report(version: ListedVersion, one: Optimization) -> FormReport:
    """What came of one form, beside the version that it was made of."""
    item = item_from_optimization(one)
    times = (item.source_timing, item.timing)
    sizes = _bars((item.source_size_bytes, item.size_bytes), lambda value: size(int(value)))
    p50s = _bars([time.p50_ms if time else None for time in times], _ms)
    p99s = _bars([time.p99_ms if time else None for time in times], _ms)
    rows = (
        FormRow("source", version.label, True, sizes[0], p50s[0], p99s[0]),
        FormRow("this form", item.version, False, sizes[1], p50s[1], p99s[1]),
    )
    return FormReport(form_name(item.variant), item, rows, tuple(_form_facts(item)), parity_from_report(item.parity))


def form_name(variant: str) -> str:
    """What people call it."""
    return _FORMS.get(variant, variant)


def why_no_forms(version: ListedVersion) -> str | None:
    """Why a version has no other forms, in words; None where it can have some."""
    if version.kind != "onnx":
        return f"Only ONNX models have other forms, and this one runs as {version.kind}."
    if is_form(version):
        return f"This is a form of {version.derived_from} already. Optimise {version.derived_from} instead."
    return None


def _form_facts(item: RegistryOptimization) -> Iterable[tuple[str, str]]:
    if item.size_bytes is not None:
        yield "Size, of the source's", percent(item.size_bytes / item.source_size_bytes)
    if item.timing is not None and item.source_timing is not None:
        yield "p50, of the source's", percent(item.timing.p50_ms / item.source_timing.p50_ms)
        yield "Timed", _timed(item.timing)
    if item.class_agreement is not None:
        yield "Rows of the same class", percent(item.class_agreement)
    if item.boundary_agreement is not None:
        yield "The same, of the rows nearest to another class", percent(item.boundary_agreement)
    if item.n_not_finite:
        yield "Rows without a number, for which the source has one", number(item.n_not_finite)


def _timed(timing: FormTiming) -> str:
    return f"{_counted(timing.n_calls, 'call')} of one row, on one thread, in turns with the source"


def _bars(values: Sequence[float | None], text_of: Callable[[float], str]) -> list[Bar | None]:
    largest = max((value for value in values if value is not None), default=0.0)
    return [
        None if value is None else Bar(round(value / largest * 100, 2) if largest else 0.0, text_of(value))
        for value in values
    ]


# --- two versions -----------------------------------------------------------------------------------------------------


def metric_rows(comparison: Comparison) -> list[MetricRow]:
    """In the order of their names' first appearance."""
    return [MetricRow(name, compared) for name, compared in comparison.metrics_comparison.items()]


def is_reordered_only(comparison: Comparison) -> bool:
    """Whether both have the same factors at other places: by position, a client would feed each moved one wrongly."""
    factors = comparison.factors_comparison
    return bool(factors.moved) and not factors.added and not factors.removed


# --- words ------------------------------------------------------------------------------------------------------------


def predict_command(version: ListedVersion, root_url: str) -> str:
    """A line for a shell that predicts one row of zeros with just this version."""
    url = shlex.quote(f"{root_url}predict")
    asked = {"model_name": version.model_name, "model_version": version.label, "symbol": "BTCUSDT"}
    shape = version.input_shape or (version.n_features,)
    if shape == (version.n_features,) and version.n_features <= _MAX_ROW_ON_A_LINE:
        body = json.dumps({**asked, "features": [0.0] * version.n_features})
        return f"curl -s {url} -H 'Content-Type: application/json' -d '{body}'"
    row = "0.0"
    for length in reversed(shape):
        row = f"[{row}] * {length}"
    script = f'import json; print(json.dumps({json.dumps(asked)[:-1]}, "features": {row}}}))'
    return f"python3 -c '{script}' | curl -s {url} -H 'Content-Type: application/json' -d @-"


def input_text(version: ListedVersion) -> str:
    """What one row is."""
    shape = version.input_shape
    if shape is None or len(shape) == 1:
        return _counted(version.n_features, "factor")
    return " × ".join(map(number, shape[:-1])) + f" timesteps × {_counted(shape[-1], 'factor')}"


def percent(share: float) -> str:
    """A share in percent."""
    return f"{share * 100:.4g} %"


def _ms(value: float) -> str:
    return f"{value:.4g} ms"


def _counted(n: int, noun: str) -> str:
    return f"{number(n)} {noun}{'' if n == 1 else 's'}"
