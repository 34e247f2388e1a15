"""How one experiment stands: how it was set up, and what keeps its arms from answering now, as the answering process sees it."""

import msgspec

from mmserver.experiments.experiments import RUNNING, Experiment
from mmserver.experiments.troubles import ArmTrouble, troubles_of
from mmserver.web.current import current_serving, current_store
from mmserver.web.experiment_bodies import ExperimentItem, item_from_experiment


class ExperimentStanding(ExperimentItem, frozen=True, kw_only=True):
    """One experiment. `troubles`: what keeps its arms from answering, or from answering for some symbols, while it runs."""

    troubles: list[ArmTrouble]


def standing_of(experiment: Experiment) -> ExperimentStanding:
    """The experiment as it stands."""
    item = item_from_experiment(experiment)
    return ExperimentStanding(**msgspec.structs.asdict(item), troubles=current_troubles(experiment))


def current_troubles(experiment: Experiment) -> list[ArmTrouble]:
    """What keeps the arms of a running experiment from answering in this process."""
    if experiment.status != RUNNING:
        return []
    return troubles_of(current_store(), current_serving().predictors, experiment)
