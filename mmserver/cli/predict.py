"""`mmserver predict`: predictions from the command line, of the models in a data directory, with or without a server beside it."""

import math
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from mmserver.cli.feature_files import read_features, rows_from_features
from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import json_for_terminals, print_rows, shown
from mmserver.errors import MmserverError
from mmserver.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from mmserver.serving.features import RowLayout
    from mmserver.serving.predictions import Prediction, Resolved, Serving

COLUMNS = ("row", "direction", "confidence", "probability", "expected_return", "model_version")
CONTRIBUTION_COLUMNS = ("row", "output", "factor", "value", "contribution")
BASE = "(base)"


@click.command()
@click.argument("model")
@click.argument("symbol")
@click.option(
    "--features",
    required=True,
    metavar="FILE",
    help="CSV with a header of factor names in any order, or JSON: an array of numbers in the model's order, an object by "
    "factor name, or an array of either; or Parquet. One prediction a row. For a model with timesteps a table of these, or "
    "nested JSON. `-` is the standard input.",
)
@click.option("--version", metavar="LABEL", help="Another version than the one that is served.")
@click.option("--explain", is_flag=True, help="Show what each factor contributes.")
@with_settings("plugins_dir")
@json_option
def predict(
    settings: Settings, *, model: str, symbol: str, features: str, version: str | None, explain: bool, as_json: bool
) -> None:
    """Predict SYMBOL with MODEL. With --json one line for each row: what `POST /predict` answers."""
    from mmserver.catalog.opening import open_store
    from mmserver.serving.predictions import Serving

    data = read_features(features)
    with open_store(settings, owns_data_dir=False) as store:
        serving = Serving(store)
        resolved = serving.resolve(symbol, model, version)
        layout = serving.loaded(resolved).layout
        rows, unused = rows_from_features(data, layout)
        if unused:
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
        print_rows(_contributions(layout, rows, predictions), CONTRIBUTION_COLUMNS, as_json=False)


# --- what is predicted ------------------------------------------------------------------------------------------------


def _predicted(
    serving: "Serving", resolved: "Resolved", symbol: str, rows: "np.ndarray[Any, Any]", *, explain: bool
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
        click.echo(json_for_terminals(json_bytes(item).decode()))


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
    layout: "RowLayout", rows: "np.ndarray[Any, Any]", predictions: "Sequence[Prediction]"
) -> Iterator[dict[str, Any]]:
    """What moved each row's margin, most first, and the base that it starts from; of each output where there are several."""
    for row, prediction in enumerate(predictions):
        found = prediction.contributions or {}
        values = rows[row].reshape(layout.row_shape)
        for output, entry in enumerate(found.get("outputs", [found])):
            told = {"row": row, "output": output}
            yield {**told, "factor": BASE, "value": None, "contribution": entry["base"]}
            for name, value, moved in sorted(_moved(layout, values, entry["factors"]), key=lambda item: -abs(item[2])):
                yield {**told, "factor": name, "value": _none_if_nan(value), "contribution": moved}


def _moved(
    layout: "RowLayout", values: "np.ndarray[Any, Any]", moved_by_factor: dict[str, Any]
) -> Iterator[tuple[str, float, float]]:
    """Each factor, its value and what it contributed; with timesteps each of them, as `name[timestep]`."""
    import numpy as np

    for dim, factor in enumerate(layout.factors):
        moved = np.asarray(moved_by_factor[factor])
        for place in np.ndindex(moved.shape):
            yield factor + "".join(f"[{at}]" for at in place), float(values[(*place, dim)]), float(moved[place])


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
