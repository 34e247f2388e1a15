"""`mmserver predict`: predictions from the command line, of the models in a data directory, with or without a server beside it."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_rows, shown
from mmserver.errors import MmserverError, RequestInvalid
from mmserver.settings import Settings

if TYPE_CHECKING:
    from mmserver.formats import FloatRows
    from mmserver.serving.predictions import Prediction, Resolved, Serving
    from mmserver.serving.tables import Table

COLUMNS = ("row", "direction", "confidence", "probability", "expected_return", "model_version")
CONTRIBUTION_COLUMNS = ("row", "output", "factor", "value", "contribution")
BASE = "(base)"
STDIN = "-"
_PARQUET_MAGIC = b"PAR1"


@click.command()
@click.argument("model")
@click.argument("symbol")
@click.option(
    "--features",
    required=True,
    metavar="FILE",
    help="CSV with a header of factor names in any order, or JSON: an array of numbers in the model's order, an object by "
    "factor name, or an array of either; or Parquet. One prediction a row. `-` is the standard input.",
)
@click.option("--version", metavar="LABEL", help="Another version than the one that is served.")
@click.option("--explain", is_flag=True, help="Show what each factor contributes.")
@with_settings("plugins_dir")
@json_option
def predict(
    settings: Settings, *, model: str, symbol: str, features: str, version: str | None, explain: bool, as_json: bool
) -> None:
    """Predict SYMBOL with MODEL. With --json one line for each row: what `POST /predict` answers."""
    from mmserver.app import open_store
    from mmserver.serving.predictions import Serving
    from mmserver.serving.tables import rows_from_table, unused_columns

    table = _table_from_bytes(_read(features))
    if not table.n_rows:
        raise RequestInvalid("there are no rows to predict for")
    with open_store(settings, owns_data_dir=False) as store:
        serving = Serving(store)
        resolved = serving.resolve(symbol, model, version)
        factors = resolved.group.factors
        rows = rows_from_table(table, factors, max_rows=None)
        if unused := unused_columns(table, factors):
            click.echo(f"not used: {shown(unused)}", err=True)
        started_ns = time.perf_counter_ns()
        answers = _predicted(serving, resolved, symbol, rows, explain=explain)
    predictions = [_checked(row, answer) for row, answer in enumerate(answers)]
    if as_json:
        _print_json_lines(predictions, started_ns)
        return
    print_rows(map(_row, range(len(predictions)), predictions), COLUMNS, as_json=False)
    if explain:
        click.echo()
        print_rows(_contributions(factors, rows, predictions), CONTRIBUTION_COLUMNS, as_json=False)


# --- what is given ----------------------------------------------------------------------------------------------------


def _read(features: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if features == STDIN else Path(features).read_bytes()
    except OSError as error:
        raise click.BadParameter(f"{shown(features)}: {error.strerror}", param_hint="--features") from error


def _table_from_bytes(data: bytes) -> "Table":
    """JSON if it begins as such, Parquet by its magic number, else CSV."""
    from mmserver.serving.tables import table_from_csv, table_from_records, table_from_rows

    if data.startswith(_PARQUET_MAGIC):
        from mmserver.serving.parquet_tables import table_from_parquet

        return table_from_parquet(data)
    if not data.lstrip().startswith((b"[", b"{")):
        return table_from_csv(data)
    from mmserver.web.plain_json import strict_document

    document = strict_document(data)
    is_rows = isinstance(document, list) and (not document or isinstance(document[0], list | dict))
    rows = document if is_rows else [document]
    if rows and isinstance(rows[0], dict):
        return table_from_records(rows, "features")
    return table_from_rows(rows, "features")


def _predicted(
    serving: "Serving", resolved: "Resolved", symbol: str, rows: "FloatRows", *, explain: bool
) -> "list[Prediction | MmserverError]":
    """A prediction a row, all of the version that was resolved, as many at once as one request may ask for."""
    from mmserver.serving.predictions import MAX_EXPLAINED_ROWS, Asked

    version = resolved.version
    asked = [
        Asked(
            symbol,
            list(map(_none_if_nan, row)),
            model_name=version.model_name,
            version=version.label,
            explain=explain,
        )
        for row in rows.tolist()
    ]
    step = min(serving.store.settings.max_rows, MAX_EXPLAINED_ROWS if explain else len(asked) or 1)
    return [
        answer for start in range(0, len(asked), step) for answer in serving.predict_many(asked[start : start + step])
    ]


def _checked(row: int, answer: "Prediction | MmserverError") -> "Prediction":
    if isinstance(answer, MmserverError):
        click.echo(f"row {row} has no prediction", err=True)
        raise answer
    return answer


# --- what is said -----------------------------------------------------------------------------------------------------


def _print_json_lines(predictions: "Sequence[Prediction]", started_ns: int) -> None:
    from mmserver.web.prediction_answers import item_from_prediction
    from mmserver.web.responses import json_bytes

    now = datetime.now(UTC)
    for prediction in predictions:
        item = item_from_prediction(prediction, started_ns, now, direction_codes=False)
        click.echo(json_bytes(item))


def _row(row: int, prediction: "Prediction") -> dict[str, Any]:
    decision = prediction.decision
    return {
        "row": row,
        "direction": decision.direction,
        "confidence": decision.confidence,
        "probability": decision.probability,
        "expected_return": decision.expected_return,
        "model_version": prediction.version,
    }


def _contributions(
    factors: Sequence[str], rows: "FloatRows", predictions: "Sequence[Prediction]"
) -> Iterator[dict[str, Any]]:
    """What moved each row's margin, most first, and the base that it starts from; of each output where there are several."""
    for row, prediction in enumerate(predictions):
        found = prediction.contributions or {}
        values = dict(zip(factors, rows[row].tolist(), strict=True))
        for output, entry in enumerate(found.get("outputs", [found])):
            told = {"row": row, "output": output}
            yield {**told, "factor": BASE, "value": None, "contribution": entry["base"]}
            for factor, moved in sorted(entry["factors"].items(), key=lambda item: -abs(item[1])):
                yield {**told, "factor": factor, "value": _none_if_nan(values[factor]), "contribution": moved}


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
