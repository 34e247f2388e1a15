"""`mmserver optimize`: smaller and quicker forms of a registered ONNX version; works beside a running server, which follows."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from mmserver.cli.feature_files import read_features, rows_from_features
from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, print_rows, shown
from mmserver.settings import Settings

if TYPE_CHECKING:
    from mmserver.catalog.store import Store
    from mmserver.conversion.reading import ModelReader
    from mmserver.web.optimization_bodies import RegistryOptimization

TIMING_COLUMN = "p99_ms"
COLUMNS = (
    "form",
    "version",
    "bytes",
    "p50_ms",
    TIMING_COLUMN,
    "times_as_fast",
    "largest_difference",
    "same_class",
    "verdict",
)
NARROW = {"times_as_fast": "faster", "largest_difference": "off_by", "same_class": "agreeing"}
"""Shorter words for a terminal of 80 columns."""


@click.command()
@click.argument("model")
@click.argument("version", default="latest")
@click.option("--int8", "is_int8", is_flag=True, help="Also INT8 with dynamic scales.")
@click.option("--static", "is_static", is_flag=True, help="Also INT8 with fixed scales.")
@click.option("--benchmark", is_flag=True, help="Measure for longer, and show p99.")
@click.option(
    "--rows",
    "features",
    metavar="FILE",
    help="A CSV, JSON or Parquet file of real rows to judge by, or - for stdin; made-up ones say less.",
)
@click.option("--dry-run", is_flag=True, help="Make, measure and report; register nothing.")
@with_settings("plugins_dir", "conversion_timeout_s", "conversion_memory_bytes")
@json_option
def optimize(settings: Settings, model: str, version: str, *, as_json: bool, **given: Any) -> None:
    """Make forms of VERSION of MODEL, and register those that are no bigger, no slower and give the same.

    The simplified FP32 form is always made. What passes becomes VERSION+fp32, VERSION+int8 or VERSION+int8-static, and is not
    promoted by that. The exit code is 0 also where nothing passes.
    """
    from mmserver.catalog.catalog import Actor
    from mmserver.catalog.opening import open_store
    from mmserver.registry.optimizing import Wish, optimize_version
    from mmserver.web.optimization_bodies import RegistryOptimizations, item_from_optimization

    chosen = {"fp32": True, "int8_dynamic": given["is_int8"], "int8_static": given["is_static"]}
    variants = [name for name, is_wanted in chosen.items() if is_wanted]
    with open_store(settings, owns_data_dir=False) as store:
        wish = Wish(
            variants=variants,
            benchmark=given["benchmark"],
            register=not given["dry_run"],
            rows=None if given["features"] is None else _rows(store, model, version, read_features(given["features"])),
        )
        done = optimize_version(store, lambda: _reader(store), model, version, wish=wish, by=Actor("command line"))
    items = [item_from_optimization(one) for one in done.optimizations if one.variant in variants]
    if as_json:
        print_json(RegistryOptimizations(items))
        return
    _print_forms(items, [name for name in COLUMNS if given["benchmark"] or name != TIMING_COLUMN])


@contextmanager
def _reader(store: "Store") -> "Iterator[ModelReader]":
    from mmserver.conversion.reading import ModelReader

    with closing(ModelReader(store.settings, store.plugins)) as reader:
        yield reader


def _rows(store: "Store", model: str, version: str, features: bytes) -> Any:
    from mmserver.registry.versions import get_version
    from mmserver.serving.features import RowLayout

    source = get_version(store, model, version)
    layout = RowLayout(source.factors, accepts_missing=True, row_shape=source.input_shape)
    return rows_from_features(features, layout)[0]


def _print_forms(items: "list[RegistryOptimization]", columns: list[str]) -> None:
    """One row a form; on a terminal, which is too narrow for them, the verdicts follow as lines."""
    rows = list(map(_row, items))
    if not sys.stdout.isatty():
        print_rows(rows, columns, as_json=False)
        return
    named = [{NARROW.get(name, name): _glance(row[name]) for name in columns[:-1]} for row in rows]
    print_rows(named, [NARROW.get(name, name) for name in columns[:-1]], as_json=False)
    for item, row in zip(items, rows, strict=True):
        click.echo(f"{item.variant}: {'' if item.accepted else 'kept out, '}{shown(row['verdict'])}")


def _glance(value: Any) -> Any:
    """Three digits of a measured number: another measurement has others already."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _row(item: "RegistryOptimization") -> dict[str, Any]:
    timing, before = item.timing, item.source_timing
    return {
        "form": item.variant,
        "version": item.version,
        "bytes": item.size_bytes,
        "p50_ms": None if timing is None else timing.p50_ms,
        "p99_ms": None if timing is None else timing.p99_ms,
        "times_as_fast": None if timing is None or before is None else before.p50_ms / timing.p50_ms,
        "largest_difference": None if item.parity is None else item.parity["max_abs_difference"],
        "same_class": item.class_agreement,
        "verdict": "accepted" if item.accepted else "; ".join(item.reasons),
    }
