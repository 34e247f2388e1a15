"""The symbol page's factor table: every dimension with its row of the IC table, and the bars drawn beside the numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TAU = "kendall_tau"
IC_NAMES = ("ic", "ic_mean", "mean_ic", "information_coefficient", "rank_ic", "pearson", "spearman")


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
    has_tau: bool


def factor_table(ic_table: Sequence[Mapping[str, Any]], dim_factors: Sequence[Mapping[str, Any]]) -> FactorTable:
    """Join the IC table to the dimensions by factor name; a factor that the table lacks has empty cells."""
    columns = tuple(ic_table[0]) if ic_table else ()
    names = {str(row["factor_name"]) for row in dim_factors}
    factor_column = _factor_column(ic_table, columns, names)
    ic_column = next((column for wanted in IC_NAMES for column in columns if column.lower() == wanted), None)
    tau_column = next((column for column in columns if column.lower() == TAU), None)
    others = tuple(column for column in columns if column not in (factor_column, ic_column, tau_column))
    by_name = {str(row.get(factor_column)): row for row in ic_table} if factor_column else {}
    ic_scale = _scale(row.get(ic_column) for row in by_name.values()) if ic_column else 0.0
    tau_scale = _scale(row.get(TAU) for row in dim_factors)
    rows = []
    for described in dim_factors:
        measured = by_name.get(str(described["factor_name"]), {})
        ic, tau = _figure(measured.get(ic_column)), _figure(described.get(TAU))
        rows.append(
            FactorRow(
                dim=int(described["dim"]),
                name=str(described["factor_name"]),
                ic=ic,
                tau=tau,
                others=tuple(measured.get(column) for column in others),
                ic_bar=bar_from_value(ic, ic_scale),
                tau_bar=bar_from_value(tau, tau_scale),
            )
        )
    has_tau = any(row.tau is not None for row in rows)
    return FactorTable(tuple(rows), ic_column, others, ic_scale, tau_scale, has_tau)


def bar_from_value(value: float | None, scale: float) -> Bar | None:
    """The value's bar where `scale` fills a half; nothing for no value and for zero."""
    if not value or not scale:
        return None
    width = round(min(abs(value) / scale, 1.0) * 50, 2)
    return Bar(50.0, width, "positive") if value > 0 else Bar(round(50 - width, 2), width, "negative")


def _factor_column(table: Sequence[Mapping[str, Any]], columns: tuple[str, ...], names: set[str]) -> str | None:
    """The column that names factors: the one that most often has a name of a dimension."""
    hits = {column: sum(str(row.get(column)) in names for row in table) for column in columns}
    best = max(columns, key=lambda column: hits[column], default=None)
    return best if best is not None and hits[best] else None


def _scale(values: Iterable[object]) -> float:
    return max((abs(value) for value in map(_figure, values) if value is not None), default=0.0)


def _figure(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
