"""The symbol page's factor table: every dimension with its row of the IC table, and the bars drawn beside the numbers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmserver.catalog.ingest import GroupRecord

IC_NAMES = ("ic", "ic_mean", "mean_ic", "pearson_ic", "information_coefficient", "rank_ic", "spearman")
TAU_NAMES = ("kendall_tau", "kendalltau", "kendall", "tau", "ktau")


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar from the middle of a cell that is 100 wide: to the right for positive values, to the left for negative."""

    x: float
    width: float
    sign: str


@dataclass(frozen=True, slots=True)
class FactorRow:
    """One dimension of a model."""

    dim: int
    name: str
    ic: float | None
    tau: float | None
    others: tuple[Any, ...]
    ic_bar: Bar | None
    tau_bar: Bar | None


@dataclass(frozen=True, slots=True)
class FactorTable:
    """All dimensions. The bars of IC and of tau have a scale each: tau runs at about two thirds of a rank correlation.

    Units:
        ic_scale, tau_scale: the absolute value that a full bar stands for.
    """

    rows: tuple[FactorRow, ...]
    ic_column: str | None
    other_columns: tuple[str, ...]
    ic_scale: float
    tau_scale: float


def factor_table(record: GroupRecord) -> FactorTable:
    """Join the IC table to the dimensions by factor name; a factor that the table lacks has empty cells."""
    columns = tuple(record.ic_table[0]) if record.ic_table else ()
    ic_column = first_column(columns, IC_NAMES)
    tau_column = first_column(columns, TAU_NAMES)
    others = tuple(column for column in columns if column not in (record.factor_column, ic_column, tau_column))
    by_name = {str(row.get(record.factor_column)): row for row in record.ic_table}
    ic_scale = _scale(row.get(ic_column) for row in record.ic_table) if ic_column else 0.0
    tau_scale = _scale(described.kendall_tau for described in record.dim_factors)
    rows = []
    for described in record.dim_factors:
        measured = by_name.get(described.factor_name, {})
        ic = _figure(measured.get(ic_column)) if ic_column else None
        rows.append(
            FactorRow(
                dim=described.dim,
                name=described.factor_name,
                ic=ic,
                tau=described.kendall_tau,
                others=tuple(measured.get(column) for column in others),
                ic_bar=bar_from_value(ic, ic_scale),
                tau_bar=bar_from_value(described.kendall_tau, tau_scale),
            )
        )
    return FactorTable(tuple(rows), ic_column, others, ic_scale, tau_scale)


def bar_from_value(value: float | None, scale: float) -> Bar | None:
    """The value's bar where `scale` fills a half; nothing for no value and for zero."""
    if not value or not scale:
        return None
    width = round(min(abs(value) / scale, 1.0) * 50, 2)
    return Bar(50.0, width, "positive") if value > 0 else Bar(round(50 - width, 2), width, "negative")


def first_column(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    lowered = {column.lower(): column for column in columns}
    return next((lowered[name] for name in names if name in lowered), None)


def _scale(values: Iterable[object]) -> float:
    return max((abs(value) for value in map(_figure, values) if value is not None), default=0.0)


def _figure(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
