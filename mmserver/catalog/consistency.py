"""Checking that the files of one group belong together: the same factors, in the same order, everywhere."""

import math

from mmserver.catalog.info import InfoFacts
from mmserver.errors import ArtifactInvalid
from mmserver.formats import FactorList, InfoRecord, ModelFile

MAX_FACTORS = 100_000
"""As many as a model may have; every page and every catalog in memory lists them."""
MAX_INPUTS = 1_000_000
"""Numbers of one row; that of a model with timesteps has each factor many times. As JSON it is some 20 MB."""


def factors_of_group(
    group_key: str, factor_list: tuple[str, FactorList] | None, model: ModelFile | None, facts: InfoFacts
) -> tuple[str, ...]:
    """Factor names in input order: from the factors file, else from the model, else from the info file, else f0, f1, …

    They name the last axis of a model whose input is not flat.
    """
    if factor_list:
        return factor_list[1].factors
    if model and model.feature_names:
        return model.feature_names
    if facts.factors and (model is None or len(facts.factors) == model.row_shape[-1]):
        return facts.factors
    if model:
        return tuple(f"f{dim}" for dim in range(model.row_shape[-1]))
    detail = "neither a factors file nor a model is there"
    raise ArtifactInvalid(file=group_key, reason="incomplete", detail=detail)


def n_factors_of(model: ModelFile) -> int:
    """How many factors the model takes: its inputs, or the last axis of a row such as timesteps × factors."""
    return model.input_shape[-1] if model.input_shape else model.n_features


def check_dimensions(
    *,
    factors: tuple[str, ...],
    factor_list: tuple[str, FactorList] | None,
    model_name: str,
    model: ModelFile | None,
    info: tuple[str, InfoRecord] | None,
    facts: InfoFacts,
) -> None:
    def refuse(file: str, detail: str) -> None:
        raise ArtifactInvalid(file=file, reason="inconsistent_pair", detail=detail)

    source = factor_list[0] if factor_list else model_name
    if not factors:
        raise ArtifactInvalid(file=source, reason="malformed", detail="the model has no inputs")
    if len(factors) > MAX_FACTORS:
        raise ArtifactInvalid(
            file=source, reason="too_large", detail=f"{len(factors)} factors, more than {MAX_FACTORS}"
        )
    if len(set(factors)) < len(factors):
        raise ArtifactInvalid(file=source, reason="malformed", detail="a factor stands there twice")
    if model:
        _check_shape(model_name, model)
    if model and model.row_shape[-1] != len(factors):
        refuse(model_name, f"the model has {model.row_shape[-1]} inputs, {source} has {len(factors)} factors")
    if info and facts.dim is not None and facts.dim != len(factors):
        refuse(info[0], f"it says dim {facts.dim}, {source} has {len(factors)} factors")
    if model and model.feature_names and model.feature_names != factors:
        refuse(model_name, _names_differ(model.feature_names, factors, source))
    if info and facts.factors and len(facts.factors) == len(factors) and facts.factors != factors:
        refuse(info[0], _names_differ(facts.factors, factors, source))


def _check_shape(model_name: str, model: ModelFile) -> None:
    """Raises ArtifactInvalid unless the shape of a row, if it is not flat, has as many numbers as the model says."""
    shape = model.row_shape
    if model.n_features > MAX_INPUTS:
        detail = f"a row of {model.n_features} numbers, more than {MAX_INPUTS}"
        raise ArtifactInvalid(file=model_name, reason="too_large", detail=detail)
    if model.input_shape is not None and (min(shape) < 1 or math.prod(shape) != model.n_features):
        detail = f"a row of the shape {list(shape)} does not have the {model.n_features} inputs that the model has"
        raise ArtifactInvalid(file=model_name, reason="malformed", detail=detail)


def _names_differ(names: tuple[str, ...], factors: tuple[str, ...], source: str) -> str:
    at = next(dim for dim, (name, factor) in enumerate(zip(names, factors, strict=True)) if name != factor)
    if set(names) == set(factors):
        return f"its factors are those of {source} in another order, first at dim {at}"
    return f"dim {at} is {names[at]!r}, in {source} it is {factors[at]!r}"
