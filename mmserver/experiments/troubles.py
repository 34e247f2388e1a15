"""What keeps an arm of a running experiment from answering: its version is gone, or models of it do not load."""

from collections.abc import Iterator

import msgspec

from mmserver.catalog.history import resolve_version
from mmserver.catalog.running import ArmVersion, RunningExperiment
from mmserver.catalog.store import Store
from mmserver.errors import MmserverError, VersionNotFound
from mmserver.experiments.assignment import Arm
from mmserver.experiments.experiments import RUNNING, Experiment
from mmserver.serving.predictors import Predictors

MAX_NAMED = 20
_ARCHIVED = "version_archived"


class ArmTrouble(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of trouble of one arm.

    Fields:
        detail: in words; of the first model, where there are several.
        n_groups: how many models (groups) it is of; 0 is the whole version. group_keys: the first of them.
    """

    arm: Arm
    code: str
    detail: str
    n_groups: int = 0
    group_keys: list[str] = []


def troubles_of(store: Store, predictors: Predictors | None, experiment: Experiment) -> list[ArmTrouble]:
    """What is wrong with both arms now; nothing is where the experiment does not run.

    Args:
        predictors: those of this process, which know what did not load in it; None where it serves nothing.
    """
    if experiment.status != RUNNING:
        return []
    running = (one for ones in store.catalog.experiments.values() for one in ones)
    found = next((one for one in running if one.experiment_id == experiment.experiment_id), None)
    of_control = _of_arm(store, predictors, "control", experiment.control, None)
    of_treatment = _of_arm(store, predictors, "treatment", experiment.treatment, found)
    return [*of_control, *of_treatment]


def _of_arm(
    store: Store, predictors: Predictors | None, arm: Arm, of: ArmVersion, running: RunningExperiment | None
) -> Iterator[ArmTrouble]:
    if running is not None and running.treatment_trouble == _ARCHIVED:
        yield ArmTrouble(arm=arm, code=_ARCHIVED, detail="its version was archived")
        return
    try:
        version = resolve_version(store, of.model_name, of.version)
    except MmserverError as error:
        code = VersionNotFound.code if running is None else running.treatment_trouble or error.code
        yield ArmTrouble(arm=arm, code=code, detail=str(error))
        return
    if predictors is None:
        return
    failures: dict[str, list[tuple[str, MmserverError]]] = {}
    for key, group in version.groups.items():
        failure = predictors.failure(group)
        if failure is not None:
            failures.setdefault(failure.code, []).append((key, failure))
    for code, ones in failures.items():
        keys = [key for key, _ in ones[:MAX_NAMED]]
        yield ArmTrouble(arm=arm, code=code, detail=str(ones[0][1]), n_groups=len(ones), group_keys=keys)
