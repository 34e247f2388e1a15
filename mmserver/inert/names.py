"""Every global that a pickle may mention; what is not here is refused by name."""

import re
from collections.abc import Mapping
from typing import Any

from mmserver.errors import Undecodable
from mmserver.inert import arrays, arrow_text, frames, pandas_arrays, plain
from mmserver.inert.arrays import bytes_from, malformed
from mmserver.inert.machine import Global, Machine, Maker, Pending
from mmserver.inert.pandas_arrays import key_from_name
from mmserver.inert.records import Instance, Value

BOOSTER = "xgboost.core.Booster"
_ESTIMATORS = ("XGBModel", "XGBRegressor", "XGBClassifier", "XGBRanker", "XGBRFRegressor", "XGBRFClassifier")
_CALLBACKS = ("EarlyStopping", "EvaluationMonitor", "LearningRateScheduler", "TrainingCheckPoint")
_OTHERS = (
    "xgboost.compat.XGBoostLabelEncoder",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMModel",
    "lightgbm.sklearn.LGBMRegressor",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRanker",
    "catboost.core.CatBoostRegressor",
    "catboost.core.CatBoostClassifier",
)
_SKLEARN_MODULE = re.compile(r"sklearn(\.[a-z_][a-z0-9_]{0,60}){1,5}")
_CLASS_NAME = re.compile(r"[A-Z][A-Za-z0-9]{0,60}")
_MAX_NAME_LENGTH = 120


def find_global(module: str, name: str) -> Value:
    """What stands in for that global here; nothing is imported.

    Raises:
        Undecodable: `forbidden_global`, with the dotted name.
    """
    if (module, name) in _TABLE:
        return _TABLE[module, name]
    found = pandas_arrays.offset_from_name(module, name) or _sklearn_class(module, name)
    if found is None:
        raise Undecodable("forbidden_global", _shown(f"{module}.{name}"))
    return found


def _shown(text: str) -> str:
    plain_text = "".join(c if c.isprintable() else "?" for c in text[:_MAX_NAME_LENGTH])
    return plain_text + ("…" if len(text) > _MAX_NAME_LENGTH else "")


def _sklearn_class(module: str, name: str) -> Global | None:
    """Any scikit-learn class, as opaque data, so that callers can say what the file holds."""
    if not _SKLEARN_MODULE.fullmatch(module) or not _CLASS_NAME.fullmatch(name):
        return None
    maker = _opaque(f"{module}.{name}")
    return Global(f"{module}.{name}", reduce=maker, new=maker)


def _opaque(name: str) -> Maker:
    def make(machine: Machine, args: tuple[Value, ...]) -> Instance:
        return machine.opened(Instance(name, args))

    return make


def _without_args(name: str) -> Maker:
    def make(machine: Machine, args: tuple[Value, ...]) -> Instance:
        if args:
            raise malformed(f"{name} with arguments")
        return machine.opened(Instance(name))

    return make


def _booster(machine: Machine, args: tuple[Value, ...]) -> Pending:
    if args:
        raise malformed(f"{BOOSTER} with arguments")
    machine.outermost = machine.outermost or BOOSTER
    return Pending(BOOSTER, _finish_booster)


def _finish_booster(machine: Machine, state: Value) -> Instance:
    fields = pandas_arrays.state_dict(state, BOOSTER)
    machine.budget.spend_bytes(64 * len(fields))
    handle = fields.get("handle")
    if handle is not None:
        handle = bytes(bytes_from(handle, "the content of a Booster"))
    return Instance(BOOSTER, (), {**fields, "handle": handle})


def _table() -> Mapping[tuple[str, str], Any]:
    opaque = [f"xgboost.sklearn.{name}" for name in _ESTIMATORS]
    opaque += [f"xgboost.callback.{name}" for name in _CALLBACKS]
    found: dict[tuple[str, str], Any] = {}
    for dotted in (*opaque, *_OTHERS):
        found[key_from_name(dotted)] = Global(dotted, new=_without_args(dotted))
    found[key_from_name(BOOSTER)] = Global(BOOSTER, new=_booster)
    for table in (plain.GLOBALS, arrays.GLOBALS, pandas_arrays.GLOBALS, arrow_text.GLOBALS, frames.GLOBALS):
        found.update(table)
    return found


_TABLE = _table()
