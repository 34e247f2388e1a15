"""What a form of a model is judged by: rows, gates, and the report with its verdict.

The class alone never decides: bots act on how sure a model is, and nothing says that the largest of several numbers is a class
and not the return of a horizon. So every column of every output has to come near, too. Class agreement over usual rows alone says little, since most lie far from any other class: some of the rows that are made here
lie between two that the source puts into different ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from mmserver.conversion.benchmarking import Timing
from mmserver.conversion.graph_rewriting import OpenedGraph
from mmserver.conversion.parity import ParityReport, compared, spread_of
from mmserver.errors import Undecodable
from mmserver.formats import Conversion, FloatRows

Variant: TypeAlias = Literal["fp32", "int8_dynamic", "int8_static"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

MIN_ROWS = 1000
"""A form is judged by at least so many."""
MAX_ROWS = 4000
"""More of those that were given are not run: each runs alone, through every form."""
MIN_MIXED_ROWS = 250
"""Rows between two others of different classes: somewhere between them the model changes its mind."""
BOUNDARY_SHARE = 0.1
"""Of the rows, those that lie closest to another class."""
_SHARE_BEYOND = 0.01
"""Of the rows, those that may have a number further off than a spread allows."""
PROBABILITY_SPREAD_RATIO, MAX_PROBABILITY_DIFFERENCE = 0.5, 0.1
"""What a probability may differ by where the rows are of several classes: half of its column's standard deviation, but no more
than a tenth. It is steep between two classes, where many of the rows lie; yet a small class must not vanish."""
_SUM_TOLERANCE = 1e-3
_SEED = 17


class Gates(msgspec.Struct, frozen=True, kw_only=True):
    """What a form has to be; None: anything.

    Units:
        max_size_ratio, max_latency_ratio: bytes and p50 for one row, in those of the source.
        max_abs_difference, max_rel_difference: a number may differ by `absolute + relative * |source|`, in no row by more.
        max_spread_ratio: without max_abs_difference, in standard deviations of the source's own column over the rows; one row in
            a hundred may be beyond. Probabilities of several classes have bounds of their own.
        min_class_agreement: share of rows of the same class, or of the same sign where there is a single output.
    """

    max_size_ratio: float | None = 1.0
    max_latency_ratio: float | None = 1.0
    max_abs_difference: float | None = None
    max_rel_difference: float = 0.0
    max_spread_ratio: float = 0.1
    min_class_agreement: float | None = None


FP32_GATES = Gates(max_size_ratio=1.1, max_latency_ratio=1.25, max_abs_difference=1e-5, max_rel_difference=1e-5)
"""The same numbers; the runtime simplifies the source too when it loads it, so nothing is gained, and noise is allowed for."""
INT8_GATES = Gates(min_class_agreement=0.99)
GATES: Mapping[Variant, Gates] = MappingProxyType(
    {"fp32": FP32_GATES, "int8_dynamic": INT8_GATES, "int8_static": INT8_GATES}
)


class Optimised(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of one form, and whether it passed; what could not be made or run has None.

    Units:
        class_agreement: share of the rows of the same class as the source's, or of the same sign for a single output;
            boundary_agreement: the same of the tenth of the rows that lie closest to another class.
    """

    variant: Variant
    size_bytes: int | None
    source_size_bytes: int
    parity: ParityReport | None = None
    class_agreement: float | None = None
    boundary_agreement: float | None = None
    n_not_finite: int = 0
    """Rows for which it gives no number, but the source does."""
    timing: Timing | None = None
    source_timing: Timing | None = None
    accepted: bool = False
    reasons: tuple[str, ...] = ()
    """Why not."""
    notes: tuple[str, ...] = ()
    """What to know of the figures."""


# --- the verdict -------------------------------------------------------------------------------------------------------


def judged(report: Optimised, gates: Gates) -> Optimised:
    """The report of a form that was measured, with the verdict: why it is kept out, or that it is accepted."""
    reasons = tuple(_reasons(report, gates))
    return msgspec.structs.replace(report, accepted=not reasons, reasons=reasons)


def _reasons(report: Optimised, gates: Gates) -> Iterator[str]:
    parity, timing, source_timing = report.parity, report.timing, report.source_timing
    if report.size_bytes is None or parity is None or timing is None or source_timing is None:
        yield "not measured"
        return
    ratio = report.size_bytes / report.source_size_bytes
    if gates.max_size_ratio is not None and not ratio <= gates.max_size_ratio:
        sizes = f"{report.size_bytes} bytes are {ratio:.2f} times the source's {report.source_size_bytes}"
        yield f"bigger: {sizes}; at most {gates.max_size_ratio:g}"
    ratio = timing.p50_ms / source_timing.p50_ms
    if gates.max_latency_ratio is not None and not ratio <= gates.max_latency_ratio:
        times = f"{timing.p50_ms:.4g} ms are {ratio:.2f} times the source's {source_timing.p50_ms:.4g} ms"
        yield f"slower: {times}; at most {gates.max_latency_ratio:g}"
    if report.n_not_finite:
        yield f"off: no number for {report.n_not_finite} of {parity.n_rows} rows, for which the source has one"
    if not parity.passed:
        yield f"off: {distance_text(parity)}"
    share = report.class_agreement
    if gates.min_class_agreement is not None and not (share is not None and share >= gates.min_class_agreement):
        found = "no class" if share is None else f"the same class for {share:.2%}"
        yield f"off: {found} of {parity.n_rows} rows; at least {gates.min_class_agreement:.2%}"


def distance_text(parity: ParityReport) -> str:
    """How far it is off, in words."""
    if parity.note is not None:
        return parity.note
    largest = "not finite" if parity.max_abs_difference is None else f"{parity.max_abs_difference:.3g}"
    bound = f"{parity.absolute:.3g} + {parity.relative:.3g} of the value"
    return f"{parity.n_beyond} of {parity.n_rows} rows differ by more than {bound}; the largest difference is {largest}"


def measured(
    form: Optimised, expected: Mapping[str, FloatRows], found: Mapping[str, FloatRows], gates: Gates
) -> Optimised:
    """The report with what the outputs say."""
    agrees = _agrees(expected, found)
    parity = compared(expected, found, tolerance(gates), form.variant, absolutes=_allowed_by_spread(gates, expected))
    return msgspec.structs.replace(
        form,
        parity=parity,
        class_agreement=float(agrees.mean()),
        boundary_agreement=float(agrees[_near_boundary(expected)].mean()),
        n_not_finite=int((_finite(expected) & ~_finite(found)).sum()),
    )


def _finite(outputs: Mapping[str, FloatRows]) -> npt.NDArray[np.bool_]:
    """Which rows have numbers in all outputs."""
    found: npt.NDArray[np.bool_] = np.all([np.isfinite(values).all(axis=1) for values in outputs.values()], axis=0)
    return found


def tolerance(gates: Gates, *, source: str = "onnx") -> Conversion:
    """How near the form has to come to the source's outputs, apart from what the spread of each column says."""
    if gates.max_abs_difference is not None:
        return Conversion(source=source, absolute=gates.max_abs_difference, relative=gates.max_rel_difference)
    return Conversion(source=source, absolute=0.0, relative=gates.max_rel_difference, max_share_beyond=_SHARE_BEYOND)


def _allowed_by_spread(gates: Gates, expected: Mapping[str, FloatRows]) -> Mapping[str, npt.NDArray[np.float64]] | None:
    """What each column may differ by; None where the gates say it in numbers."""
    if gates.max_abs_difference is not None:
        return None
    found = {}
    for name, values in expected.items():
        spread = spread_of(values)
        if _holds_probabilities(values):
            found[name] = np.minimum(MAX_PROBABILITY_DIFFERENCE, PROBABILITY_SPREAD_RATIO * spread)
        else:
            found[name] = gates.max_spread_ratio * spread
    return found


def _holds_probabilities(values: FloatRows) -> bool:
    """Whether each row has the probabilities of several classes, and not always the same of them is the largest."""
    rows = values[np.isfinite(values).all(axis=1)]
    if values.shape[1] < 2 or not len(rows) or rows.min() < -_SUM_TOLERANCE:
        return False
    sums = rows.sum(axis=1, dtype=np.float64)
    return bool((np.abs(sums - 1) <= _SUM_TOLERANCE).all()) and len(np.unique(rows.argmax(axis=1))) > 1


# --- the rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgingRows:
    """What the forms are judged by.

    Shapes:
        rows: n_rows × the shape of a row.
    """

    rows: FloatRows
    notes: tuple[str, ...]


def judging_rows(source: OpenedGraph, rows: FloatRows | None) -> JudgingRows:
    """The given rows of finite numbers, and rows between two of different classes: at least a thousand; always the same.

    Raises:
        Undecodable: none of the rows has finite numbers only, or they are no rows for the model.
    """
    random = np.random.default_rng(_SEED)
    notes = []
    shape = source.signature.shape
    if rows is None or not len(rows):
        given = random.normal(size=(MIN_ROWS - MIN_MIXED_ROWS, *shape)).astype(np.float32)
        notes.append("judged by made-up rows of normal numbers: real rows say more")
    else:
        given = _usable(rows, source)
        if len(given) < len(rows):
            notes.append(f"{len(rows) - len(given)} rows with numbers that are not finite were left out")
        if len(given) > MAX_ROWS:
            notes.append(f"{MAX_ROWS} of {len(given)} rows were used")
            given = given[np.linspace(0, len(given) - 1, MAX_ROWS).astype(int)]
    n_mixed = max(MIN_MIXED_ROWS, MIN_ROWS - len(given))
    classes = classes_of(source.run(given))
    first, second = random.integers(len(given), size=(2, n_mixed))
    for _ in range(8):  # until nearly all pairs are of two classes, where there are two
        same = classes[first] == classes[second]
        second[same] = random.integers(len(given), size=int(same.sum()))
    share = random.uniform(size=(n_mixed, *[1] * len(shape)))
    mixed = (given[first] * (1 - share) + given[second] * share).astype(np.float32)
    notes.append(f"{n_mixed} of the {len(given) + n_mixed} rows lie between two others")
    return JudgingRows(np.concatenate([given, mixed]), tuple(notes))


def classes_of(outputs: Mapping[str, FloatRows]) -> npt.NDArray[np.int64]:
    """The class of every row: the largest number of the first output that has several, else the sign of the first."""
    values = _deciding(outputs)
    found = values.argmax(axis=1) if values.shape[1] > 1 else np.sign(values[:, 0])
    return found.astype(np.int64)


def _agrees(expected: Mapping[str, FloatRows], found: Mapping[str, FloatRows]) -> npt.NDArray[np.bool_]:
    """Which rows have the largest number in the same place, in each output of several; the same sign, where there is none."""
    wide = [name for name, values in expected.items() if values.shape[1] > 1]
    agrees: npt.NDArray[np.bool_] = classes_of(expected) == classes_of(found)
    for name in wide:
        if name not in found or found[name].shape != expected[name].shape:
            return np.zeros_like(agrees)
        agrees &= expected[name].argmax(axis=1) == found[name].argmax(axis=1)
    return agrees


def _usable(rows: FloatRows, source: OpenedGraph) -> FloatRows:
    signature = source.signature
    if rows.size != len(rows) * signature.n_features:
        detail = f"rows of shape {rows.shape[1:]} for a model that takes {signature.shape}"
        raise Undecodable("unsupported", detail)
    shaped = np.ascontiguousarray(rows, np.float32).reshape(len(rows), *signature.shape)
    usable: FloatRows = shaped[np.isfinite(shaped.reshape(len(rows), -1)).all(axis=1)]
    if not len(usable):
        raise Undecodable("unsupported", "no row to judge by has finite numbers only")
    return usable


def _deciding(outputs: Mapping[str, FloatRows]) -> FloatRows:
    tables = list(outputs.values())
    return next((values for values in tables if values.shape[1] > 1), tables[0])


def _near_boundary(outputs: Mapping[str, FloatRows]) -> npt.NDArray[np.int64]:
    """Indices of the rows whose class is the least clear."""
    values = _deciding(outputs)
    if values.shape[1] > 1:
        ordered = np.sort(values, axis=1)
        clearness = ordered[:, -1] - ordered[:, -2]
    else:
        clearness = np.abs(values[:, 0])
    return np.argsort(clearness, kind="stable")[: max(1, int(BOUNDARY_SHARE * len(values)))]
