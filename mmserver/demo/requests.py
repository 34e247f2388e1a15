"""Requests to try the demo with: the factors of the last days of its window, which no model was trained on."""

import csv
import io
import json
from collections.abc import Iterator

import numpy as np

from mmserver.demo.factors import factor_columns
from mmserver.demo.market_data import Floats, MarketSeries

DIRECTORY = "requests"
N_DAYS = 5
_DIGITS = 6


def request_names(symbols: list[str]) -> list[str]:
    """The files that `request_files` gives for these symbols."""
    of_symbols = [f"{symbol}{end}" for symbol in symbols for end in (".json", "_vector.json", "_v2.json", ".csv")]
    return [f"{DIRECTORY}/{name}" for name in [*of_symbols, "batch.json"]]


def request_files(all_series: list[MarketSeries]) -> Iterator[tuple[str, bytes]]:
    """Each file's name and content: for every symbol its last day by factor name and as a vector, its last days as tensors
    of the Open Inference Protocol and as CSV; and one batch of all symbols."""
    batch = []
    for series in all_series:
        names, rows = _last_days(series)
        by_name = {"symbol": series.symbol, "features": dict(zip(names, rows[-1], strict=True))}
        batch.append(by_name)
        tensor = {"name": "features", "shape": [len(rows), len(names)], "datatype": "FP32", "data": rows}
        yield f"{DIRECTORY}/{series.symbol}.json", _json(by_name)
        yield f"{DIRECTORY}/{series.symbol}_vector.json", _json({"symbol": series.symbol, "features": rows[-1]})
        yield f"{DIRECTORY}/{series.symbol}_v2.json", _json({"inputs": [tensor]})
        yield f"{DIRECTORY}/{series.symbol}.csv", _csv(names, rows)
    yield f"{DIRECTORY}/batch.json", _json({"requests": batch})


def _last_days(series: MarketSeries) -> tuple[list[str], list[list[float]]]:
    """The factors, and their values on the last days on which all are known, oldest first."""
    columns = factor_columns(series)
    table = np.column_stack(list(columns.values()))
    known: Floats = table[np.isfinite(table).all(axis=1)][-N_DAYS:]
    return list(columns), [[float(f"{value:.{_DIGITS}g}") for value in row] for row in known.tolist()]


def _json(document: object) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _csv(names: list[str], rows: list[list[float]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue().encode()
