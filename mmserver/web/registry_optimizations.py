"""`…/optimize` and `…/optimizations`: smaller and quicker forms of registered versions, and what came of them."""

from contextlib import AbstractContextManager

import flask

from mmserver.conversion.reading import ModelReader
from mmserver.registry.finding import reference_from_text
from mmserver.registry.optimizing import Wish, list_optimizations, optimize_version
from mmserver.registry.versions import get_version
from mmserver.serving.nested_rows import flat_rows
from mmserver.web.current import current_actor, current_model_reader, current_store
from mmserver.web.optimization_bodies import OptimizeVersion, RegistryOptimizations, item_from_optimization
from mmserver.web.requests import read_body
from mmserver.web.responses import json_response


def post_optimization(model_name: str, version: str) -> flask.Response:
    """Make forms of a version, and register those that pass."""
    body = read_body(flask.request, OptimizeVersion)
    store, reference = current_store(), reference_from_text(version)
    rows = None
    if body.rows is not None:
        source = get_version(store, model_name, reference)
        rows = flat_rows(body.rows, "rows", source.input_shape or (source.n_features,))
    wish = Wish(variants=body.variants, benchmark=body.benchmark, register=body.register, rows=rows)
    done = optimize_version(store, _readers, model_name, reference, wish=wish, by=current_actor())
    items = [item_from_optimization(one) for one in done.optimizations if one.variant in body.variants]
    return json_response(RegistryOptimizations(items))


def get_optimizations(model_name: str, version: str) -> flask.Response:
    """What came of every form of a version."""
    found = list_optimizations(current_store(), model_name, reference_from_text(version))
    return json_response(RegistryOptimizations([item_from_optimization(one) for one in found]))


def _readers() -> AbstractContextManager[ModelReader]:
    return current_model_reader().turn()
