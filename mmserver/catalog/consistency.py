"""Checking that the files of one group belong together: the same factors, in the same order, everywhere."""

from mmserver.catalog.info import InfoFacts
from mmserver.errors import ArtifactInvalid
from mmserver.formats import FactorList, InfoRecord, ModelFile

MAX_FACTORS = 100_000
"""As many inputs as a model may have; every page and every catalog in memory lists them."""


def factors_of_group(
    group_key: str, factor_list: tuple[str, FactorList] | None, model: ModelFile | None, facts: InfoFacts
) -> tuple[str, ...]:
    """Factor names in input order: from the factors file, else from the model, else from the info file, else f0, f1, …"""
    if factor_list:
        return factor_list[1].factors
    if model and model.feature_names:
        return model.feature_names
    if facts.factors and (model is None or len(facts.factors) == model.n_features):
        return facts.factors
    if model:
        return tuple(f"f{dim}" for dim in range(model.n_features))
    detail = "neither a factors file nor a model is there"
    raise ArtifactInvalid(file=group_key, reason="incomplete", detail=detail)


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
    if model and model.n_features != len(factors):
        refuse(model_name, f"the model has {model.n_features} inputs, {source} has {len(factors)} factors")
    if info and facts.dim is not None and facts.dim != len(factors):
        refuse(info[0], f"it says dim {facts.dim}, {source} has {len(factors)} factors")
    if model and model.feature_names and model.feature_names != factors:
        refuse(model_name, _names_differ(model.feature_names, factors, source))
    if info and facts.factors and len(facts.factors) == len(factors) and facts.factors != factors:
        refuse(info[0], _names_differ(facts.factors, factors, source))


def _names_differ(names: tuple[str, ...], factors: tuple[str, ...], source: str) -> str:
    at = next(dim for dim, (name, factor) in enumerate(zip(names, factors, strict=True)) if name != factor)
    if set(names) == set(factors):
        return f"its factors are those of {source} in another order, first at dim {at}"
    return f"dim {at} is {names[at]!r}, in {source} it is {factors[at]!r}"
