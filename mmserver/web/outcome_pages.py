"""The page that outcomes of an experiment are handed in on, as a file or pasted, and that says what came of each."""

from typing import Any

import flask
from werkzeug.wrappers import Response

from mmserver.errors import RequestInvalid, TooManyRows
from mmserver.experiments.experiments import get_experiment
from mmserver.experiments.observations.outcome_files import outcomes_from_csv, outcomes_from_parquet
from mmserver.experiments.observations.values import Outcome
from mmserver.web.current import current_store
from mmserver.web.figures import size
from mmserver.web.forms import CORRECTABLE, read_form, refused_form, uncached
from mmserver.web.outcomes import MAX_OUTCOMES, added_outcomes, outcomes_from_json
from mmserver.web.requests import error_summary, refuse_parameter
from mmserver.web.responses import render_page

_PAGE = "experiment_outcomes.html"
_FILE, _PASTED = "file", "pasted"
_PARQUET_MAGIC = b"PAR1"
_JSON_SUFFIX = ".json"


def get_outcomes_page(experiment_id: str) -> Response:
    """The form."""
    return uncached(render_page(_PAGE, typed={}, report=None, **_shown(experiment_id)))


def post_outcomes(experiment_id: str) -> Response:
    """Add the outcomes, then say of how many that came true; sent again, the same ones change nothing."""
    store = current_store()
    store.check_writable()
    shown = _shown(experiment_id)
    typed = read_form(flask.request, (_PASTED,), files=(_FILE,), max_bytes=store.settings.max_body_bytes)
    try:
        outcomes = _outcomes(typed[_PASTED])
        report = added_outcomes(outcomes, shown["experiment"].log_key)
    except CORRECTABLE as error:
        field = _FILE if _chosen_file() is not None else _PASTED
        return uncached(refused_form(error, _PAGE, typed, fields={TooManyRows.code: field}, report=None, **shown))
    return uncached(render_page(_PAGE, typed={}, report=report, n_outcomes=len(outcomes), **shown))


def _shown(experiment_id: str) -> dict[str, Any]:
    store = current_store()
    return {
        "experiment": get_experiment(store, experiment_id),
        "max_size": size(store.settings.max_body_bytes),
        "max_outcomes": MAX_OUTCOMES,
        "read_only": store.read_only,
    }


def _outcomes(pasted: str) -> list[Outcome]:
    """Those of the file, or of what was pasted.

    Raises:
        RequestInvalid: neither or both came, or it cannot be read; the field is named.
    """
    file = _chosen_file()
    if file is None and not pasted.strip():
        refuse_parameter(_FILE, "choose a file, or paste outcomes below")
    if file is not None and pasted.strip():
        refuse_parameter(_PASTED, "send a file or what is pasted, not both")
    try:
        if file is None:
            return outcomes_from_json(pasted.strip().encode("utf-8", "surrogatepass"))
        name, data = file
        if data.startswith(_PARQUET_MAGIC):
            return outcomes_from_parquet(data, limit=MAX_OUTCOMES)
        return outcomes_from_json(data) if name.lower().endswith(_JSON_SUFFIX) else outcomes_from_csv(data)
    except RequestInvalid as error:
        places = error.values.get("errors")
        refuse_parameter(_PASTED if file is None else _FILE, error_summary(places) if places else str(error))


def _chosen_file() -> tuple[str, bytes] | None:
    """Its name and content; a browser sends a part without a name where no file was chosen."""
    sent = flask.request.files.get(_FILE)
    if sent is None or not sent.filename:
        return None
    sent.stream.seek(0)
    return sent.filename, sent.stream.read()
