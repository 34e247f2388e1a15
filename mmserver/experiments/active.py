"""Whether a request belongs to a running experiment, and which arm it gets: from the catalog of the moment, without a lock.

Every process has the same catalog soon after a commit, and the arm follows from names and times alone, so all of them agree.
"""

import functools
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, cast

from mmserver.catalog.catalog import Catalog
from mmserver.catalog.history import CURRENT
from mmserver.catalog.running import ArmVersion, RunningExperiment
from mmserver.catalog.symbols import comparable_symbol
from mmserver.errors import FieldsInvalid
from mmserver.experiments.assignment import Arm, NamespaceSlice, TimeBlocks, UnitKind, arm_of, unit_of
from mmserver.serving.predictions import Asked

BY_PREDICTION: UnitKind = "prediction"
BY_TIME: UnitKind = "symbol|time-block"
_MAX_REMEMBERED = 256
_MAX_ARMS = 4096
"""Of units with names as short as `_MAX_REMEMBERED`."""


class Assignment(NamedTuple):
    """A request that belongs to an experiment."""

    experiment: RunningExperiment
    arm: Arm
    unit: str
    symbol: str
    """In the form in which symbols compare."""
    at: datetime
    is_washed_out: bool
    """It lies in the first horizon of its block, where what the block before did still works."""
    prediction_id: str

    @property
    def version(self) -> ArmVersion:
        """What the arm predicts with."""
        return self.experiment.treatment if self.arm == "treatment" else self.experiment.control


def candidates(catalog: Catalog, asked: Asked, model_name: str | None) -> Sequence[RunningExperiment]:
    """The running experiments that the request may belong to: the one that it names, else those of its model.

    None where the request names a version or a moment, and where somebody has put another version into service since.

    Args:
        model_name: of the model that is meant, as far as that is known.

    Raises:
        FieldsInvalid: the request names a running experiment, and a model or version that is not the experiment's to choose.
    """
    if asked.experiment_id is not None:
        named = [
            one for ones in catalog.experiments.values() for one in ones if one.experiment_id == asked.experiment_id
        ]
        for one in named:
            _check_named(one, asked)
        found: Sequence[RunningExperiment] = named
    elif asked.as_of is not None or asked.version not in CURRENT or model_name is None:
        return ()
    else:
        found = catalog.experiments.get(model_name, ())
    return [one for one in found if one.overruled_by is None]


def assigned(experiment: RunningExperiment, asked: Asked, prediction_id: str, now: datetime) -> Assignment | None:
    """The request's arm; None where its unit is another experiment's.

    A request without a `unit_id` is in no experiment by `unit_id`, unless it names that.

    Raises:
        FieldsInvalid: it names the experiment, and has no `unit_id`.
    """
    kind = cast(UnitKind, experiment.unit)
    if kind == "unit_id" and not asked.unit_id:
        if asked.experiment_id is None:
            return None
        problem = f"the experiment {experiment.experiment_id} needs it to choose an arm"
        raise FieldsInvalid(reason=f"unit_id: {problem}", errors=[{"loc": "unit_id", "msg": problem}])
    symbol = comparable_symbol(asked.symbol)
    if not symbol and kind in ("symbol", BY_TIME):
        return None  # a name of separators alone, which a model of all symbols answers
    epoch_s = now.timestamp()
    horizon_s = experiment.horizon_s if kind == BY_TIME else 0.0
    blocks, share = _drawn_by(experiment.block_s, horizon_s, experiment.namespace)
    unit = unit_of(
        kind, prediction_id=prediction_id, symbol=symbol, epoch_s=epoch_s, blocks=blocks, unit_id=asked.unit_id
    )
    if share is not None and not share.has(unit):
        return None
    draw = arm_of if kind == BY_PREDICTION or len(unit) > _MAX_REMEMBERED else _remembered_arm_of
    arm = draw(salt=experiment.salt, unit=unit, treatment_weight=experiment.treatment_weight)
    return Assignment(
        experiment=experiment,
        arm="control" if experiment.mode == "shadow" else arm,
        unit=unit,
        symbol=symbol,
        at=now,
        is_washed_out=kind == BY_TIME and blocks.is_washed_out(epoch_s),
        prediction_id=prediction_id,
    )


@functools.lru_cache(maxsize=_MAX_REMEMBERED)
def _drawn_by(
    block_s: float, horizon_s: float, namespace: tuple[str, float, float] | None
) -> tuple[TimeBlocks, NamespaceSlice | None]:
    return TimeBlocks(block_s, horizon_s), None if namespace is None else NamespaceSlice(*namespace)


_remembered_arm_of = functools.lru_cache(maxsize=_MAX_ARMS)(arm_of)
"""Of units that have many predictions."""


def _check_named(experiment: RunningExperiment, asked: Asked) -> None:
    if asked.model_name not in (None, experiment.control.model_name):
        _refuse("model_name", f"the experiment {experiment.experiment_id} is on {experiment.control.model_name}")
    if asked.version not in CURRENT:
        _refuse("model_version", f"the experiment {experiment.experiment_id} chooses the version")
    if asked.as_of is not None:
        _refuse("as_of", f"the experiment {experiment.experiment_id} predicts now")


def _refuse(where: str, problem: str) -> None:
    raise FieldsInvalid(reason=f"{where}: {problem}", errors=[{"loc": where, "msg": problem}])
