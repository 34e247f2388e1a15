"""Routes whose modules are imported at their first request: what serving pages and payloads can start without.

A view is named `module:function`; it takes the rule's arguments and returns a response, like any other.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flask

from mmserver.security.scopes import FLAT_NAME, IN_VIEW, NEEDS_ATTRIBUTE, Needs, Permission

blueprint = flask.Blueprint("late", __name__)


class LateRoute(NamedTuple):
    """One route: its method, its rule, where its view is, and what it needs: see `Needs`."""

    method: str
    rule: str
    view: str
    permission: Permission
    limited_by: str | None = None


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
    LateRoute("POST", "/predict", f"{_PREDICTIONS}:post_predict", "predict", IN_VIEW),
    LateRoute("POST", "/predict/batch", f"{_PREDICTIONS}:post_predict_batch", "predict", IN_VIEW),
    LateRoute("POST", "/api/ml/predict", f"{_PREDICTIONS}:post_ml_predict", "predict", IN_VIEW),
    LateRoute("POST", "/api/ml/predict/batch", f"{_PREDICTIONS}:post_ml_predict_batch", "predict", IN_VIEW),
    LateRoute("GET", "/api/ml/models", f"{_LISTINGS}:get_ml_models", "read"),
    LateRoute("POST", "/api/ml/models/reload", f"{_LISTINGS}:post_ml_reload", "manage"),
    LateRoute(
        "POST", "/api/ml/models/<model_name>/reload", f"{_LISTINGS}:post_ml_model_reload", "manage", "model_name"
    ),
    LateRoute("GET", "/api/ml/health", f"{_LISTINGS}:get_ml_health", "read"),
    LateRoute("GET", "/health", f"{_LISTINGS}:get_health", "read"),
    LateRoute("GET", "/models", f"{_LISTINGS}:get_models", "read"),
    LateRoute("GET", "/models/<model_name>/versions", f"{_LISTINGS}:get_model_versions", "read", "model_name"),
    LateRoute("GET", "/v2", f"{_V2}:get_server", "read"),
    LateRoute("GET", "/v2/", f"{_V2}:get_server", "read"),
    LateRoute("GET", "/v2/health/live", f"{_V2}:get_live", "open"),
    LateRoute("GET", "/v2/health/ready", f"{_V2}:get_ready", "open"),
    LateRoute("GET", "/v2/models", f"{_V2}:get_models", "read", IN_VIEW),
    LateRoute("GET", "/v2/models/stats", f"{_V2}:get_all_stats", "read"),
    LateRoute("GET", "/v2/models/<name>", f"{_V2}:get_model", "read", FLAT_NAME),
    LateRoute("GET", "/v2/models/<name>/versions/<version>", f"{_V2}:get_model", "read", FLAT_NAME),
    LateRoute("GET", "/v2/models/<name>/ready", f"{_V2}:get_model_ready", "read", FLAT_NAME),
    LateRoute("GET", "/v2/models/<name>/versions/<version>/ready", f"{_V2}:get_model_ready", "read", FLAT_NAME),
    LateRoute("POST", "/v2/models/<name>/infer", f"{_V2}:post_infer", "predict", FLAT_NAME),
    LateRoute("POST", "/v2/models/<name>/versions/<version>/infer", f"{_V2}:post_infer", "predict", FLAT_NAME),
    LateRoute("GET", "/v2/models/<name>/config", f"{_V2}:get_config", "read", FLAT_NAME),
    LateRoute("GET", "/v2/models/<name>/versions/<version>/config", f"{_V2}:get_config", "read", FLAT_NAME),
    LateRoute("GET", "/v2/models/<name>/stats", f"{_V2}:get_stats", "read", FLAT_NAME),
    LateRoute("GET", "/v2/models/<name>/versions/<version>/stats", f"{_V2}:get_stats", "read", FLAT_NAME),
    LateRoute("POST", "/v2/repository/index", f"{_V2}:post_index", "read"),
    LateRoute("POST", "/v2/repository/models/<name>/load", f"{_V2}:post_load", "manage", FLAT_NAME),
    LateRoute("POST", "/v2/repository/models/<name>/unload", f"{_V2}:post_unload", "manage", FLAT_NAME),
    LateRoute("POST", "/invocations", f"{_INVOCATIONS}:post_invocations", "predict", IN_VIEW),
    LateRoute(
        "POST", "/models/<model_name>/invocations", f"{_INVOCATIONS}:post_model_invocations", "predict", FLAT_NAME
    ),
    LateRoute(
        "POST",
        "/models/<model_name>/versions/<version>/invocations",
        f"{_INVOCATIONS}:post_model_invocations",
        "predict",
        FLAT_NAME,
    ),
    LateRoute("GET", "/ping", f"{_INVOCATIONS}:get_ping", "open"),
    LateRoute("GET", "/version", f"{_INVOCATIONS}:get_version", "read"),
    LateRoute("POST", REGISTER_RULE, f"{_REGISTRY}:post_model", "manage"),
    LateRoute("GET", REGISTER_RULE, f"{_REGISTRY}:get_models", "read"),
    LateRoute("GET", _MODEL_RULE, f"{_REGISTRY}:get_model", "read", "model_name"),
    LateRoute("GET", f"{_MODEL_RULE}/compare", f"{_REGISTRY}:get_comparison", "read", "model_name"),
    LateRoute("POST", f"{_MODEL_RULE}/rollback", f"{_REGISTRY}:post_rollback", "manage", "model_name"),
    LateRoute("GET", _VERSION_RULE, f"{_REGISTRY}:get_version", "read", "model_name"),
    LateRoute("PATCH", _VERSION_RULE, f"{_REGISTRY}:patch_version", "manage", "model_name"),
    LateRoute("DELETE", _VERSION_RULE, f"{_REGISTRY}:delete_version", "manage", "model_name"),
    LateRoute("PUT", f"{_VERSION_RULE}/stage", f"{_REGISTRY}:put_stage", "manage", "model_name"),
    LateRoute("POST", f"{_VERSION_RULE}/promote", f"{_REGISTRY}:post_promotion", "manage", "model_name"),
    LateRoute("POST", f"{_VERSION_RULE}/retire", f"{_REGISTRY}:post_retirement", "manage", "model_name"),
    LateRoute("PATCH", f"{_VERSION_RULE}/metrics", f"{_REGISTRY}:patch_metrics", "manage", "model_name"),
    LateRoute("POST", f"{_VERSION_RULE}/optimize", f"{_OPTIMIZATIONS}:post_optimization", "manage", "model_name"),
    LateRoute("GET", f"{_VERSION_RULE}/optimizations", f"{_OPTIMIZATIONS}:get_optimizations", "read", "model_name"),
    LateRoute("POST", EXPERIMENTS_RULE, f"{_EXPERIMENTS}:post_experiment", "manage"),
    LateRoute("GET", EXPERIMENTS_RULE, f"{_EXPERIMENTS}:get_experiments", "read"),
    LateRoute("GET", _EXPERIMENT_RULE, f"{_EXPERIMENTS}:get_one", "read", "experiment_id"),
    LateRoute("PATCH", _EXPERIMENT_RULE, f"{_EXPERIMENTS}:patch_experiment", "manage"),
    LateRoute("POST", f"{_EXPERIMENT_RULE}/start", f"{_EXPERIMENTS}:post_start", "manage", "experiment_id"),
    LateRoute("POST", f"{_EXPERIMENT_RULE}/ramp", f"{_EXPERIMENTS}:post_ramp", "manage", "experiment_id"),
    LateRoute("POST", f"{_EXPERIMENT_RULE}/stop", f"{_EXPERIMENTS}:post_stop", "manage", "experiment_id"),
    LateRoute("POST", f"{_EXPERIMENT_RULE}/apply", f"{_EXPERIMENTS}:post_apply", "manage", "experiment_id"),
    LateRoute("GET", f"{_EXPERIMENT_RULE}/analysis", f"{_EXPERIMENTS}:get_analysis", "read", "experiment_id"),
    LateRoute("GET", f"{_EXPERIMENT_RULE}/evaluations", f"{_EXPERIMENTS}:get_evaluations", "read", "experiment_id"),
    LateRoute(
        "GET",
        f"{_EXPERIMENT_RULE}/evaluations/<evaluation_id>",
        f"{_EXPERIMENTS}:get_one_evaluation",
        "read",
        "experiment_id",
    ),
    LateRoute("POST", f"{_EXPERIMENT_RULE}/outcomes", f"{_OUTCOMES}:post_outcomes", "manage", "experiment_id"),
    LateRoute("POST", "/api/ml/outcomes", f"{_OUTCOMES}:post_any_outcomes", "manage"),
    LateRoute("POST", "/api/ml/outcomes/prices", f"{_OUTCOMES}:post_prices", "manage"),
    LateRoute("GET", REGISTER_PAGE_RULE, f"{_REGISTRY_PAGES}:get_register_page", "read"),
    LateRoute("POST", REGISTER_PAGE_RULE, f"{_REGISTRY_PAGES}:post_register", "manage"),
    LateRoute("GET", f"{_MODEL_PAGE_RULE}/compare", f"{_REGISTRY_PAGES}:get_compare_page", "read", "model_name"),
    LateRoute(
        "GET", f"{_MODEL_PAGE_RULE}/production/rollback", f"{_REGISTRY_PAGES}:get_rollback_page", "read", "model_name"
    ),
    LateRoute(
        "POST", f"{_MODEL_PAGE_RULE}/production/rollback", f"{_REGISTRY_PAGES}:post_rollback", "manage", "model_name"
    ),
    LateRoute("GET", _VERSION_PAGE_RULE, f"{_REGISTRY_PAGES}:get_version_page", "read", "model_name"),
    LateRoute("GET", f"{_VERSION_PAGE_RULE}/stage", f"{_REGISTRY_PAGES}:get_stage_page", "read", "model_name"),
    LateRoute("POST", f"{_VERSION_PAGE_RULE}/stage", f"{_REGISTRY_PAGES}:post_stage", "manage", "model_name"),
    LateRoute("GET", f"{_VERSION_PAGE_RULE}/edit", f"{_REGISTRY_EDITS}:get_edit_page", "read", "model_name"),
    LateRoute("POST", f"{_VERSION_PAGE_RULE}/edit", f"{_REGISTRY_EDITS}:post_edit", "manage", "model_name"),
    LateRoute("GET", f"{_VERSION_PAGE_RULE}/delete", f"{_REGISTRY_EDITS}:get_removal_page", "read", "model_name"),
    LateRoute("POST", f"{_VERSION_PAGE_RULE}/delete", f"{_REGISTRY_EDITS}:post_removal", "manage", "model_name"),
    LateRoute(
        "GET", f"{_VERSION_PAGE_RULE}/optimize", f"{_OPTIMIZATION_PAGES}:get_optimize_page", "read", "model_name"
    ),
    LateRoute("POST", f"{_VERSION_PAGE_RULE}/optimize", f"{_OPTIMIZATION_PAGES}:post_optimize", "manage", "model_name"),
    LateRoute("GET", "/ui/experiments", f"{_EXPERIMENT_PAGES}:get_experiments_page", "read"),
    LateRoute("GET", _EXPERIMENT_PAGE_RULE, f"{_EXPERIMENT_PAGES}:get_experiment_page", "read", "experiment_id"),
    LateRoute(
        "GET", f"{_EXPERIMENT_PAGE_RULE}/report", f"{_EXPERIMENT_PAGES}:get_report_page", "read", "experiment_id"
    ),
    LateRoute(
        "GET",
        f"{_EXPERIMENT_PAGE_RULE}/charts/<chart_name>.csv",
        f"{_EXPERIMENT_PAGES}:get_chart_csv",
        "read",
        "experiment_id",
    ),
    LateRoute("GET", _NEW_EXPERIMENT_RULE, f"{_EXPERIMENT_FORMS}:get_create_page", "read"),
    LateRoute("POST", _NEW_EXPERIMENT_RULE, f"{_EXPERIMENT_FORMS}:post_create", "manage"),
    LateRoute("GET", f"{_EXPERIMENT_PAGE_RULE}/edit", f"{_EXPERIMENT_FORMS}:get_edit_page", "read", "experiment_id"),
    LateRoute("POST", f"{_EXPERIMENT_PAGE_RULE}/edit", f"{_EXPERIMENT_FORMS}:post_edit", "manage"),
    LateRoute(
        "GET", f"{_EXPERIMENT_PAGE_RULE}/start", f"{_EXPERIMENT_ACTIONS}:get_start_page", "read", "experiment_id"
    ),
    LateRoute("POST", f"{_EXPERIMENT_PAGE_RULE}/start", f"{_EXPERIMENT_ACTIONS}:post_start", "manage", "experiment_id"),
    LateRoute("GET", f"{_EXPERIMENT_PAGE_RULE}/ramp", f"{_EXPERIMENT_ACTIONS}:get_ramp_page", "read", "experiment_id"),
    LateRoute("POST", f"{_EXPERIMENT_PAGE_RULE}/ramp", f"{_EXPERIMENT_ACTIONS}:post_ramp", "manage", "experiment_id"),
    LateRoute("GET", f"{_EXPERIMENT_PAGE_RULE}/stop", f"{_EXPERIMENT_ACTIONS}:get_stop_page", "read", "experiment_id"),
    LateRoute("POST", f"{_EXPERIMENT_PAGE_RULE}/stop", f"{_EXPERIMENT_ACTIONS}:post_stop", "manage", "experiment_id"),
    LateRoute(
        "GET", f"{_EXPERIMENT_PAGE_RULE}/apply", f"{_EXPERIMENT_ACTIONS}:get_apply_page", "read", "experiment_id"
    ),
    LateRoute("POST", f"{_EXPERIMENT_PAGE_RULE}/apply", f"{_EXPERIMENT_ACTIONS}:post_apply", "manage", "experiment_id"),
    LateRoute(
        "GET", f"{_EXPERIMENT_PAGE_RULE}/outcomes", f"{_OUTCOME_PAGES}:get_outcomes_page", "read", "experiment_id"
    ),
    LateRoute(
        "POST", f"{_EXPERIMENT_PAGE_RULE}/outcomes", f"{_OUTCOME_PAGES}:post_outcomes", "manage", "experiment_id"
    ),
    LateRoute("GET", "/api/ml/audit", f"{_AUDIT}:get_audit", "admin"),
    LateRoute("GET", "/ui/audit", f"{_AUDIT}:get_audit_page", "admin"),
    LateRoute("GET", "/openapi.json", f"{_OPENAPI}:get_openapi", "read"),
    LateRoute("GET", "/docs", f"{_OPENAPI}:get_docs", "read"),
    LateRoute("GET", "/redoc", f"{_OPENAPI}:get_redoc", "read"),
)


def late_view(route: LateRoute) -> Callable[..., flask.Response]:
    """The view, imported when it is first called."""
    module_name, _, name = route.view.partition(":")

    def call(**arguments: Any) -> flask.Response:
        response: flask.Response = getattr(importlib.import_module(module_name), name)(**arguments)
        return response

    call.__name__ = name
    setattr(call, NEEDS_ATTRIBUTE, Needs(route.permission, route.limited_by))
    return call


for _route in LATE_ROUTES:
    blueprint.add_url_rule(
        _route.rule,
        endpoint=f"{_route.method} {_route.rule}".replace(".", "_"),
        view_func=late_view(_route),
        methods=[_route.method],
    )
