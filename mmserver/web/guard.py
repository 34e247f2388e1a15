"""Who may call which route: every request passes here before its view, and every route has said what it needs.

The quick routes, which answer without Flask, ask the same `Access`, and leave whatever they do not let through to Flask.
"""

import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING

import flask
import msgspec

from mmserver.errors import KeyInAddress, MmserverError, OutsideKeyLimits, PluginInvalid, ScopeMissing
from mmserver.security.access import Access, Identity
from mmserver.security.keys import has_key
from mmserver.security.scopes import FLAT_NAME, IN_ADDRESS, IN_VIEW, NEEDS_ATTRIBUTE, Needs
from mmserver.web.current import ACCESS_KEY, IDENTITY_KEY, current_identity, current_serving, current_store

if TYPE_CHECKING:
    from mmserver.serving.predictions import Asked

NEEDS_KEY = "mmserver.needs"


def declared_needs(app: flask.Flask) -> Mapping[str, Needs]:
    """What each endpoint needs.

    Raises:
        PluginInvalid: a route does not say it.
    """
    found = {}
    for rule in app.url_map.iter_rules():
        declared = getattr(app.view_functions[rule.endpoint], NEEDS_ATTRIBUTE, None)
        if not isinstance(declared, Needs):
            plugin = rule.endpoint.partition(".")[0]
            reason = f"its route {rule.rule} does not say who may call it: decorate the view with mmserver.needs"
            raise PluginInvalid(plugin=plugin, reason=reason)
        if declared.limited_by in IN_ADDRESS and declared.limited_by not in rule.arguments:
            raise PluginInvalid(
                plugin=rule.endpoint.partition(".")[0], reason=f"its route {rule.rule} has no {declared.limited_by}"
            )
        found[rule.endpoint] = declared
    return found


def check_access() -> None:
    """Let the request through, or refuse it; runs before every request.

    Raises:
        KeyInAddress: a key is where it is seen, logged and remembered.
        Unauthenticated: no valid key came.
        Forbidden: the key is for other things, or other models and venues.
    """
    request = flask.request
    if b"mm_" in request.query_string or "mm_" in request.path:
        _refuse_key_in_address(request)
    access: Access = flask.current_app.extensions[ACCESS_KEY]
    if not access.is_enforced or request.endpoint is None:  # nothing is there: 404 or 405
        return
    needed: Needs = flask.current_app.extensions[NEEDS_KEY][request.endpoint]
    if access.is_public(needed.permission):
        return
    identity = access.identify(request.headers.get("Authorization", ""), request.headers.get("X-API-Key", ""))
    request.environ[IDENTITY_KEY] = identity  # also for the trail of what is refused
    if not identity.has_scope(needed.permission):
        raise ScopeMissing(scope=needed.permission)
    if identity.is_limited:
        _check_limits(needed, request.view_args or {}, identity)


def may_see_details() -> bool:
    """Whether whoever calls an open route could read the same elsewhere."""
    access: Access = flask.current_app.extensions[ACCESS_KEY]
    headers = flask.request.headers
    try:
        identity = access.decide("read", headers.get("Authorization", ""), headers.get("X-API-Key", ""))
    except MmserverError:
        return False
    return identity is None or not identity.is_limited


def check_model(model_name: str) -> None:
    """For views that find out by themselves which model they are about.

    Raises:
        OutsideKeyLimits: it is not one of the key's.
    """
    identity = current_identity()
    if identity is not None and not identity.may_use_model(model_name):
        raise OutsideKeyLimits


def may_see_model(model_name: str) -> bool:
    """Whether a list shows this model to whoever asks."""
    identity = current_identity()
    return identity is None or identity.may_use_model(model_name)


def within_limits(asked: "Asked") -> "Asked":
    """What is asked for, with the model named that it means, so that no other answers; as it is, without a limited key.

    Raises:
        OutsideKeyLimits: the model is not one of the key's, or cannot be told.
    """
    identity = current_identity()
    if identity is None or not identity.is_limited:
        return asked
    name = asked.model_name
    if name is None:
        try:
            name = current_serving().resolve(asked.symbol, None, asked.version, asked.as_of).version.model_name
        except MmserverError as error:  # which may name models that the key is not for
            raise OutsideKeyLimits from error
    if not identity.may_use_model(name):
        raise OutsideKeyLimits
    return msgspec.structs.replace(asked, model_name=name)


def _check_limits(needed: Needs, arguments: Mapping[str, str], identity: Identity) -> None:
    limited_by = needed.limited_by
    if limited_by == IN_VIEW:
        return
    if limited_by == "model_name":
        is_within = identity.may_use_model(arguments["model_name"])
    elif limited_by == "venue":
        is_within = identity.may_use_venue(arguments["venue"])
    elif limited_by == FLAT_NAME:
        is_within = _is_flat_name_within(arguments, identity)
    elif limited_by == "experiment_id":
        is_within = _is_experiment_within(arguments["experiment_id"], identity)
    else:
        is_within = False
    if not is_within:
        raise OutsideKeyLimits


def _is_flat_name_within(arguments: Mapping[str, str], identity: Identity) -> bool:
    """Whether the model is within that a protocol's one name for model and symbol means."""
    from mmserver.serving.naming import split_name

    name = arguments.get("name") or arguments["model_name"]
    if "name" not in arguments and "version" not in arguments and "@" in name:
        name = name.rpartition("@")[0]
    try:
        model_name, _ = split_name(current_store().catalog.models, name)
    except MmserverError:
        return False
    return identity.may_use_model(model_name)


def _is_experiment_within(experiment_id: str, identity: Identity) -> bool:
    """Whether both of its models are."""
    from mmserver.experiments.experiments import get_experiment

    try:
        experiment = get_experiment(current_store(), experiment_id)
    except MmserverError:
        return False
    return all(identity.may_use_model(arm.model_name) for arm in (experiment.control, experiment.treatment))


def _refuse_key_in_address(request: flask.Request) -> None:
    query = urllib.parse.unquote(request.query_string.decode("latin-1"))
    if has_key(query) or has_key(request.path):
        raise KeyInAddress
