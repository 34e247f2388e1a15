"""The pages that show experiments: all of them, one as it stands, its report to print, and each chart's numbers as CSV."""

import urllib.parse
from dataclasses import dataclass
from typing import Any

import flask
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from mmserver.experiments.analysing import Analysis
from mmserver.experiments.courses import latency_course, return_course
from mmserver.experiments.evaluating import analyse_experiment
from mmserver.experiments.experiments import (
    DRAFT,
    RUNNING,
    STATUSES,
    Experiment,
    Status,
    get_experiment,
    list_experiments,
)
from mmserver.experiments.looks import has_enough, last_verdicts, list_kept_looks, look_of, read_looks
from mmserver.experiments.observations.hours import read_hours
from mmserver.web import experiment_rows
from mmserver.web.current import current_experimenter, current_store
from mmserver.web.experiment_charts import Chart
from mmserver.web.experiment_figures import CHART_NAMES, charts_of
from mmserver.web.experiment_standings import current_troubles
from mmserver.web.requests import query_number, query_text, refuse_parameter
from mmserver.web.responses import render_page

EXPERIMENTS_A_PAGE = 50
EVALUATIONS_SHOWN = 20
SYMBOLS_SHOWN = 200
_MAX_KEY = 2**62
PLOT_SCRIPTS = ("uPlot.iife.min.js", "charts.js")


@dataclass(frozen=True, slots=True)
class Shown:
    """One experiment with all that its pages show of it."""

    experiment: Experiment
    analysis: Analysis
    charts: list[Chart]


def get_experiments_page() -> Response:
    """All experiments, the newest first, or those in one status."""
    store = current_store()
    status = _asked_status()
    before = query_number(flask.request, "before", 0, 0, _MAX_KEY) or None
    found = list_experiments(store, status=status, limit=EXPERIMENTS_A_PAGE + 1, before_key=before)
    page = found[:EXPERIMENTS_A_PAGE]
    return render_page(
        "experiments.html",
        experiments=page,
        older_than=page[-1].key if len(found) > len(page) else None,
        is_newest=before is None,
        status=status,
        statuses=STATUSES,
        verdicts=last_verdicts(store, [one.key for one in page if one.status != DRAFT]),
        verdict_words=experiment_rows.VERDICTS,
        read_only=store.read_only,
    )


def get_experiment_page(experiment_id: str) -> Response:
    """One experiment: what to do and why, how sound it is, how the arms differ, and how that came about."""
    store = current_store()
    experiment = get_experiment(store, experiment_id)
    if experiment.status == DRAFT:
        return render_page("experiment.html", experiment=experiment, analysis=None, scripts=(), **_said_of(experiment))
    shown = _shown(experiment)
    is_plotted = any(chart.is_long for chart in shown.charts)
    return render_page(
        "experiment.html",
        kept=list_kept_looks(store, experiment.key, EVALUATIONS_SHOWN),
        scripts=PLOT_SCRIPTS if is_plotted else (),
        **_found_of(shown),
        **_said_of(experiment),
    )


def get_report_page(experiment_id: str) -> Response:
    """The report to print; final once the experiment is over."""
    experiment = get_experiment(current_store(), experiment_id)
    if experiment.status == DRAFT:
        return flask.redirect(f"/ui/experiments/{urllib.parse.quote(experiment_id)}")
    return render_page(
        "experiment_report.html",
        is_interim=experiment.status == RUNNING,
        at=current_store().now(),
        **_found_of(_shown(experiment)),
        **_said_of(experiment),
    )


def get_chart_csv(experiment_id: str, chart_name: str) -> Response:
    """The numbers of one chart; none yet is a table without rows."""
    if chart_name not in CHART_NAMES:
        raise NotFound
    experiment = get_experiment(current_store(), experiment_id)
    charts = [] if experiment.status == DRAFT else _shown(experiment).charts
    text = next((chart.csv for chart in charts if chart.name == chart_name), "time\n")
    name = f"{experiment.experiment_id}-{chart_name}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return flask.Response(text, headers=headers, content_type="text/csv; charset=utf-8")


# --- parts --------------------------------------------------------------------------------------------------------------


def _shown(experiment: Experiment) -> Shown:
    store, log = current_store(), current_experimenter().log()
    analysis = analyse_experiment(store, log, experiment)
    totals = log.read_totals(experiment.log_key)
    looks = read_looks(store, experiment.key)
    if experiment.status == RUNNING:
        now = look_of(totals, experiment.policy, experiment.mode, analysis.recommendation, at=store.now(), reason="now")
        looks.append(now)
    looks.sort(key=lambda look: look.at)  # clocks are set back now and then
    hours = read_hours(log.store(), experiment.log_key)
    charts = charts_of(experiment, looks, return_course(hours, totals), latency_course(hours))
    return Shown(experiment, analysis, charts)


def _found_of(shown: Shown) -> dict[str, Any]:
    experiment, analysis = shown.experiment, shown.analysis
    recommendation = analysis.recommendation
    is_over = experiment.status != RUNNING
    symbols = experiment_rows.symbol_rows(analysis, experiment.policy.alpha)
    return {
        "experiment": experiment,
        "analysis": analysis,
        "charts": shown.charts,
        "banner": experiment_rows.banner_of(recommendation, is_over=is_over),
        "other": experiment_rows.banner_of(analysis.other_policy, is_over=is_over),
        "needs": None if is_over else experiment_rows.needs_text(recommendation.needs),
        "is_enough": has_enough(recommendation),
        "health": experiment_rows.health_rows(experiment, analysis),
        "metrics": experiment_rows.metric_rows(experiment, analysis),
        "symbols": symbols[:SYMBOLS_SHOWN],
        "n_symbols": len(symbols),
    }


def _said_of(experiment: Experiment) -> dict[str, Any]:
    store = current_store()
    return {
        "unit_words": experiment_rows.UNIT_WORDS,
        "applied_words": experiment_rows.APPLIED,
        "verdict_words": experiment_rows.VERDICTS,
        "troubles": current_troubles(experiment),
        "read_only": store.read_only,
    }


def _asked_status() -> Status | None:
    text = query_text(flask.request, "status")
    found = next((one for one in STATUSES if one == text), None)
    if text is not None and found is None:
        refuse_parameter("status", f"Expected one of {', '.join(STATUSES)}")
    return found
