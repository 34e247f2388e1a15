"""Proving a parsed model before it is stored: it loads into its library and predicts there what we say it predicts."""

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from mmserver.errors import ArtifactInvalid
from mmserver.formats import ArtifactFormat, FloatRows, ModelFile, Parsed, Probes
from mmserver.plugin_loading import Plugins

TREES = "xgboost"
"""The kind of model whose content is an XGBoost document, whichever plugin parsed it."""


def proven_model(parsed: Mapping[str, tuple[ArtifactFormat, Parsed]], plugins: Plugins) -> tuple[str, ModelFile | None]:
    """(its file's name, the model), proven to load and predict; ("", None) where there is none.

    Two forms of it (JSON beside a pickle) are proven to be one model: their bits agree on every probe row.

    Raises:
        ArtifactInvalid: ambiguous, self_check_failed, inconsistent_pair.
    """
    found = [(name, claim, value) for name, (claim, value) in parsed.items() if isinstance(value, ModelFile)]
    if not found:
        return "", None
    sources = [entry for entry in found if entry[1].derived_from is None]
    derived = [entry for entry in found if entry[1].derived_from is not None]
    if len(sources) > 1 or len(derived) > 1:
        names = " and ".join(name for name, _, _ in found)
        raise ArtifactInvalid(file=found[0][0], reason="ambiguous", detail=f"{names} are several models; keep one")
    proven = {name: proven_alone(name, model, plugins) for name, _, model in found}
    name = (sources or derived)[0][0]
    if sources and derived:
        _check_same_model(name, proven[name], derived[0][0], proven[derived[0][0]], plugins)
    return name, proven[name]


def proven_alone(name: str, model: ModelFile, plugins: Plugins) -> ModelFile:
    """The model with what the library itself predicts on its probe rows and, for trees, what shall run it.

    Raises:
        ArtifactInvalid: self_check_failed, when its plugin claims other outputs for the rows, in a single bit, than the library's.
    """
    predictor = plugins.load_predictor(model)
    if model.kind == TREES:
        from mmserver.trees.proving import engine_facts

        model = msgspec.structs.replace(model, summary={**model.summary, **engine_facts(model, predictor)})
    if predictor is None or model.probes is None:
        return model
    rows = array_from_rows(model.probes.rows)
    outputs = {key: np.asarray(value, dtype=np.float32) for key, value in predictor.predict(rows).items()}
    for key, claimed in model.probes.outputs.items():
        expected = np.asarray(claimed, dtype=np.float32)
        if key in outputs and not _same_bits(expected, outputs[key]):
            differ = int((expected != outputs[key].reshape(expected.shape)).any(axis=-1).sum())
            detail = (
                f"{differ} of {len(rows)} probe rows predict something else than {model.kind} {model.library_version}"
            )
            raise ArtifactInvalid(file=name, reason="self_check_failed", detail=detail)
    probes = Probes(rows=model.probes.rows, outputs={key: value.tolist() for key, value in outputs.items()})
    return msgspec.structs.replace(model, probes=probes)


def _check_same_model(name: str, model: ModelFile, other_name: str, other: ModelFile, plugins: Plugins) -> None:
    if other.missing is None:  # XGBoost's own file cannot say it
        other = msgspec.structs.replace(other, missing=model.missing)
    predictor = plugins.load_predictor(other)
    if model.content == other.content or predictor is None or model.probes is None:
        return
    same = model.n_features == other.n_features
    if same:
        rows = array_from_rows(model.probes.rows)
        outputs = predictor.predict(rows)
        same = all(
            _same_bits(np.asarray(value, dtype=np.float32), np.asarray(outputs[key], dtype=np.float32))
            for key, value in model.probes.outputs.items()
            if key in outputs
        )
    if not same:
        detail = f"it predicts something else than {name}; delete the one that is wrong"
        raise ArtifactInvalid(file=other_name, reason="inconsistent_pair", detail=detail)


def _same_bits(first: FloatRows, second: FloatRows) -> bool:
    return first.size == second.size and first.tobytes() == np.ascontiguousarray(second).tobytes()


def array_from_rows(rows: list[list[float | None]]) -> FloatRows:
    """Probe rows as predictors take them; None becomes NaN."""
    return np.array([[math.nan if cell is None else cell for cell in row] for row in rows], dtype=np.float32)
