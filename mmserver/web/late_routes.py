"""Routes whose modules are imported at their first request: what serving pages and payloads can start without.

A view is named `module:function`; it takes the rule's arguments and returns a response, like any other.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flask

blueprint = flask.Blueprint("late", __name__)


class LateRoute(NamedTuple):
    """One route: its method, its rule and where its view is."""

    method: str
    rule: str
    view: str


_PREDICTIONS = "mmserver.web.predictions"
_LISTINGS = "mmserver.web.model_listings"
_V2 = "mmserver.web.open_inference"
_INVOCATIONS = "mmserver.web.invocations"
_OPENAPI = "mmserver.web.openapi"
_REGISTRY = "mmserver.web.registry"
_OPTIMIZATIONS = "mmserver.web.registry_optimizations"
_REGISTRY_PAGES = "mmserver.web.registry_pages"
_REGISTRY_EDITS = "mmserver.web.registry_edits"
_OPTIMIZATION_PAGES = "mmserver.web.optimization_pages"
_EXPERIMENTS = "mmserver.web.experiments"
_OUTCOMES = "mmserver.web.outcomes"
_AUDIT = "mmserver.web.audit"
_EXPERIMENT_PAGES = "mmserver.web.experiment_pages"
_EXPERIMENT_FORMS = "mmserver.web.experiment_forms"
_EXPERIMENT_ACTIONS = "mmserver.web.experiment_actions"
_OUTCOME_PAGES = "mmserver.web.outcome_pages"
EXPERIMENTS_RULE = "/api/ml/experiments"
REGISTER_RULE = "/api/ml/registry/models"
REGISTER_PAGE_RULE = "/ui/register"
UPLOAD_RULES = frozenset({REGISTER_RULE, REGISTER_PAGE_RULE})
"""Where files are uploaded to; the server lets larger bodies through here."""
UPLOAD_MEDIA_TYPE = "multipart/form-data"
MAX_UPLOAD_FIELDS_BYTES = 1 << 20
"""What an upload may have besides its files: its fields, and what stands between its parts."""
_EXPERIMENT_RULE = f"{EXPERIMENTS_RULE}/<experiment_id>"
_MODEL_RULE = f"{REGISTER_RULE}/<model_name>"
_VERSION_RULE = f"{_MODEL_RULE}/<version>"
_MODEL_PAGE_RULE = "/ui/models/<model_name>"
_VERSION_PAGE_RULE = f"{_MODEL_PAGE_RULE}/versions/<version>"
_NEW_EXPERIMENT_RULE = "/ui/create-experiment"
_EXPERIMENT_PAGE_RULE = "/ui/experiments/<experiment_id>"

LATE_ROUTES: tuple[LateRoute, ...] = (
    LateRoute("POST", "/predict", f"{_PREDICTIONS}:post_predict"),
    LateRoute("POST", "/predict/batch", f"{_PREDICTIONS}:post_predict_batch"),
    LateRoute("POST", "/api/ml/predict", f"{_PREDICTIONS}:post_ml_predict"),
    LateRoute("POST", "/api/ml/predict/batch", f"{_PREDICTIONS}:post_ml_predict_batch"),
    LateRoute("GET", "/api/ml/models", f"{_LISTINGS}:get_ml_models"),
    LateRoute("POST", "/api/ml/models/reload", f"{_LISTINGS}:post_ml_reload"),
    LateRoute("POST", "/api/ml/models/<model_name>/reload", f"{_LISTINGS}:post_ml_model_reload"),
    LateRoute("GET", "/api/ml/health", f"{_LISTINGS}:get_ml_health"),
    LateRoute("GET", "/health", f"{_LISTINGS}:get_health"),
    LateRoute("GET", "/models", f"{_LISTINGS}:get_models"),
    LateRoute("GET", "/models/<model_name>/versions", f"{_LISTINGS}:get_model_versions"),
    LateRoute("GET", "/v2", f"{_V2}:get_server"),
    LateRoute("GET", "/v2/", f"{_V2}:get_server"),
    LateRoute("GET", "/v2/health/live", f"{_V2}:get_live"),
    LateRoute("GET", "/v2/health/ready", f"{_V2}:get_ready"),
    LateRoute("GET", "/v2/models", f"{_V2}:get_models"),
    LateRoute("GET", "/v2/models/stats", f"{_V2}:get_all_stats"),
    LateRoute("GET", "/v2/models/<name>", f"{_V2}:get_model"),
    LateRoute("GET", "/v2/models/<name>/versions/<version>", f"{_V2}:get_model"),
    LateRoute("GET", "/v2/models/<name>/ready", f"{_V2}:get_model_ready"),
    LateRoute("GET", "/v2/models/<name>/versions/<version>/ready", f"{_V2}:get_model_ready"),
    LateRoute("POST", "/v2/models/<name>/infer", f"{_V2}:post_infer"),
    LateRoute("POST", "/v2/models/<name>/versions/<version>/infer", f"{_V2}:post_infer"),
    LateRoute("GET", "/v2/models/<name>/config", f"{_V2}:get_config"),
    LateRoute("GET", "/v2/models/<name>/versions/<version>/config", f"{_V2}:get_config"),
    LateRoute("GET", "/v2/models/<name>/stats", f"{_V2}:get_stats"),
    LateRoute("GET", "/v2/models/<name>/versions/<version>/stats", f"{_V2}:get_stats"),
    LateRoute("POST", "/v2/repository/index", f"{_V2}:post_index"),
    LateRoute("POST", "/v2/repository/models/<name>/load", f"{_V2}:post_load"),
    LateRoute("POST", "/v2/repository/models/<name>/unload", f"{_V2}:post_unload"),
    LateRoute("POST", "/invocations", f"{_INVOCATIONS}:post_invocations"),
    LateRoute("POST", "/models/<model_name>/invocations", f"{_INVOCATIONS}:post_model_invocations"),
    LateRoute("POST", "/models/<model_name>/versions/<version>/invocations", f"{_INVOCATIONS}:post_model_invocations"),
    LateRoute("GET", "/ping", f"{_INVOCATIONS}:get_ping"),
    LateRoute("GET", "/version", f"{_INVOCATIONS}:get_version"),
    LateRoute("POST", REGISTER_RULE, f"{_REGISTRY}:post_model"),
    LateRoute("GET", REGISTER_RULE, f"{_REGISTRY}:get_models"),
    LateRoute("GET", _MODEL_RULE, f"{_REGISTRY}:get_model"),
    LateRoute("GET", f"{_MODEL_RULE}/compare", f"{_REGISTRY}:get_comparison"),
    LateRoute("POST", f"{_MODEL_RULE}/rollback", f"{_REGISTRY}:post_rollback"),
    LateRoute("GET", _VERSION_RULE, f"{_REGISTRY}:get_version"),
    LateRoute("PATCH", _VERSION_RULE, f"{_REGISTRY}:patch_version"),
    LateRoute("DELETE", _VERSION_RULE, f"{_REGISTRY}:delete_version"),
    LateRoute("PUT", f"{_VERSION_RULE}/stage", f"{_REGISTRY}:put_stage"),
    LateRoute("POST", f"{_VERSION_RULE}/promote", f"{_REGISTRY}:post_promotion"),
    LateRoute("POST", f"{_VERSION_RULE}/retire", f"{_REGISTRY}:post_retirement"),
    LateRoute("PATCH", f"{_VERSION_RULE}/metrics", f"{_REGISTRY}:patch_metrics"),
    LateRoute("POST", f"{_VERSION_RULE}/optimize", f"{_OPTIMIZATIONS}:post_optimization"),
    LateRoute("GET", f"{_VERSION_RULE}/optimizations", f"{_OPTIMIZATIONS}:get_optimizations"),
    LateRoute("POST", EXPERIMENTS_RULE, f"{_EXPERIMENTS}:post_experiment"),
    LateRoute("GET", EXPERIMENTS_RULE, f"{_EXPERIMENTS}:get_experiments"),
    LateRoute("GET", _EXPERIMENT_RULE, f"{_EXPERIMENTS}:get_one"),
    LateRoute("PATCH", _EXPERIMENT_RULE, f"{_EXPERIMENTS}:patch_experiment"),
    LateRoute("POST", f"{_EXPERIMENT_RULE}/start", f"{_EXPERIMENTS}:post_start"),
    LateRoute("POST", f"{_EXPERIMENT_RULE}/ramp", f"{_EXPERIMENTS}:post_ramp"),
    LateRoute("POST", f"{_EXPERIMENT_RULE}/stop", f"{_EXPERIMENTS}:post_stop"),
    LateRoute("POST", f"{_EXPERIMENT_RULE}/apply", f"{_EXPERIMENTS}:post_apply"),
    LateRoute("GET", f"{_EXPERIMENT_RULE}/analysis", f"{_EXPERIMENTS}:get_analysis"),
    LateRoute("GET", f"{_EXPERIMENT_RULE}/evaluations", f"{_EXPERIMENTS}:get_evaluations"),
    LateRoute("GET", f"{_EXPERIMENT_RULE}/evaluations/<evaluation_id>", f"{_EXPERIMENTS}:get_one_evaluation"),
    LateRoute("POST", f"{_EXPERIMENT_RULE}/outcomes", f"{_OUTCOMES}:post_outcomes"),
    LateRoute("POST", "/api/ml/outcomes", f"{_OUTCOMES}:post_any_outcomes"),
    LateRoute("POST", "/api/ml/outcomes/prices", f"{_OUTCOMES}:post_prices"),
    LateRoute("GET", REGISTER_PAGE_RULE, f"{_REGISTRY_PAGES}:get_register_page"),
    LateRoute("POST", REGISTER_PAGE_RULE, f"{_REGISTRY_PAGES}:post_register"),
    LateRoute("GET", f"{_MODEL_PAGE_RULE}/compare", f"{_REGISTRY_PAGES}:get_compare_page"),
    LateRoute("GET", f"{_MODEL_PAGE_RULE}/production/rollback", f"{_REGISTRY_PAGES}:get_rollback_page"),
    LateRoute("POST", f"{_MODEL_PAGE_RULE}/production/rollback", f"{_REGISTRY_PAGES}:post_rollback"),
    LateRoute("GET", _VERSION_PAGE_RULE, f"{_REGISTRY_PAGES}:get_version_page"),
    LateRoute("GET", f"{_VERSION_PAGE_RULE}/stage", f"{_REGISTRY_PAGES}:get_stage_page"),
    LateRoute("POST", f"{_VERSION_PAGE_RULE}/stage", f"{_REGISTRY_PAGES}:post_stage"),
    LateRoute("GET", f"{_VERSION_PAGE_RULE}/edit", f"{_REGISTRY_EDITS}:get_edit_page"),
    LateRoute("POST", f"{_VERSION_PAGE_RULE}/edit", f"{_REGISTRY_EDITS}:post_edit"),
    LateRoute("GET", f"{_VERSION_PAGE_RULE}/delete", f"{_REGISTRY_EDITS}:get_removal_page"),
    LateRoute("POST", f"{_VERSION_PAGE_RULE}/delete", f"{_REGISTRY_EDITS}:post_removal"),
    LateRoute("GET", f"{_VERSION_PAGE_RULE}/optimize", f"{_OPTIMIZATION_PAGES}:get_optimize_page"),
    LateRoute("POST", f"{_VERSION_PAGE_RULE}/optimize", f"{_OPTIMIZATION_PAGES}:post_optimize"),
    LateRoute("GET", "/ui/experiments", f"{_EXPERIMENT_PAGES}:get_experiments_page"),
    LateRoute("GET", _EXPERIMENT_PAGE_RULE, f"{_EXPERIMENT_PAGES}:get_experiment_page"),
    LateRoute("GET", f"{_EXPERIMENT_PAGE_RULE}/report", f"{_EXPERIMENT_PAGES}:get_report_page"),
    LateRoute("GET", f"{_EXPERIMENT_PAGE_RULE}/charts/<chart_name>.csv", f"{_EXPERIMENT_PAGES}:get_chart_csv"),
    LateRoute("GET", _NEW_EXPERIMENT_RULE, f"{_EXPERIMENT_FORMS}:get_create_page"),
    LateRoute("POST", _NEW_EXPERIMENT_RULE, f"{_EXPERIMENT_FORMS}:post_create"),
    LateRoute("GET", f"{_EXPERIMENT_PAGE_RULE}/edit", f"{_EXPERIMENT_FORMS}:get_edit_page"),
    LateRoute("POST", f"{_EXPERIMENT_PAGE_RULE}/edit", f"{_EXPERIMENT_FORMS}:post_edit"),
    LateRoute("GET", f"{_EXPERIMENT_PAGE_RULE}/start", f"{_EXPERIMENT_ACTIONS}:get_start_page"),
    LateRoute("POST", f"{_EXPERIMENT_PAGE_RULE}/start", f"{_EXPERIMENT_ACTIONS}:post_start"),
    LateRoute("GET", f"{_EXPERIMENT_PAGE_RULE}/ramp", f"{_EXPERIMENT_ACTIONS}:get_ramp_page"),
    LateRoute("POST", f"{_EXPERIMENT_PAGE_RULE}/ramp", f"{_EXPERIMENT_ACTIONS}:post_ramp"),
    LateRoute("GET", f"{_EXPERIMENT_PAGE_RULE}/stop", f"{_EXPERIMENT_ACTIONS}:get_stop_page"),
    LateRoute("POST", f"{_EXPERIMENT_PAGE_RULE}/stop", f"{_EXPERIMENT_ACTIONS}:post_stop"),
    LateRoute("GET", f"{_EXPERIMENT_PAGE_RULE}/apply", f"{_EXPERIMENT_ACTIONS}:get_apply_page"),
    LateRoute("POST", f"{_EXPERIMENT_PAGE_RULE}/apply", f"{_EXPERIMENT_ACTIONS}:post_apply"),
    LateRoute("GET", f"{_EXPERIMENT_PAGE_RULE}/outcomes", f"{_OUTCOME_PAGES}:get_outcomes_page"),
    LateRoute("POST", f"{_EXPERIMENT_PAGE_RULE}/outcomes", f"{_OUTCOME_PAGES}:post_outcomes"),
    LateRoute("GET", "/api/ml/audit", f"{_AUDIT}:get_audit"),
    LateRoute("GET", "/ui/audit", f"{_AUDIT}:get_audit_page"),
    LateRoute("GET", "/openapi.json", f"{_OPENAPI}:get_openapi"),
    LateRoute("GET", "/docs", f"{_OPENAPI}:get_docs"),
    LateRoute("GET", "/redoc", f"{_OPENAPI}:get_redoc"),
)


def late_view(view: str) -> Callable[..., flask.Response]:
    """The view, imported when it is first called."""
    module_name, _, name = view.partition(":")

    def call(**arguments: Any) -> flask.Response:
        response: flask.Response = getattr(importlib.import_module(module_name), name)(**arguments)
        return response

    call.__name__ = name
    return call


for _route in LATE_ROUTES:
    blueprint.add_url_rule(
        _route.rule,
        endpoint=f"{_route.method} {_route.rule}".replace(".", "_"),
        view_func=late_view(_route.view),
        methods=[_route.method],
    )
