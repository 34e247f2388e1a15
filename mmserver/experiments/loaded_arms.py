"""The models of an experiment's arms, found and loaded, and whether one may be asked what was written for the other."""

from typing import NamedTuple

from mmserver.serving.predictions import Resolved
from mmserver.serving.predictors import LoadedModel

INPUTS_DIFFER = "inputs_differ"
"""Why a treatment did not answer: its factors are others than the control's, and the request gave numbers without names."""


class Ready(NamedTuple):
    """A model that is found and loaded."""

    resolved: Resolved
    loaded: LoadedModel


class LoadedArms(NamedTuple):
    """Both arms; without a treatment where that cannot answer anyway."""

    control: Ready
    treatment: Ready | None


def inputs_differ(control: LoadedModel, treatment: LoadedModel) -> bool:
    """Whether numbers without names mean something else to the treatment: it would predict from them, and be wrong."""
    ours, theirs = control.layout, treatment.layout
    return ours.row_shape != theirs.row_shape or ours.factors != theirs.factors
