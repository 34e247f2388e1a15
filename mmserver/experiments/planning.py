"""What an experiment is set up with, checked before it is kept; what does not fit is named by its field."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, cast

from sqlalchemy import Connection, Row, or_, select

from mmserver.catalog.registering import check_name
from mmserver.catalog.running import ArmVersion
from mmserver.catalog.symbols import ALL_SYMBOLS, comparable_symbol
from mmserver.errors import NameInvalid, RequestInvalid
from mmserver.experiments.assignment import NamespaceSlice, UnitKind
from mmserver.experiments.experiments import Mode
from mmserver.experiments.policies import Policy, PolicyInvalid, policy_from
from mmserver.registry.finding import find_model, find_version
from mmserver.storage.tables import GroupRow, MembershipRow

TRAFFIC_SPLIT = "traffic_split"
_SHARE_DIGITS = 12
"""Of what is left of 1: 1 - 0.9 is 0.09999999999999998 in binary."""
BLOCK_S: Mapping[Mode, float] = {"split": 3600.0, "shadow": 86400.0}
"""How long a block is unless that is said. In the shadow nothing is drawn by lot: neighbouring hours of two models that are better
by turns resemble each other, and counted as independent they make chance look certain; days do so far less."""
MAX_BLOCK_S = 366 * 86400.0
UNITS: Mapping[str, UnitKind] = {
    "symbol|time-block": "symbol|time-block",
    "symbol_block": "symbol|time-block",
    "prediction": "prediction",
    "symbol": "symbol",
    "unit_id": "unit_id",
    "caller": "unit_id",
}
"""Kinds of unit by the words that mean them."""
MODES = ("split", "shadow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How an experiment is to be; each arm is a model's name and a version's label, stage or `latest`."""

    experiment_id: str
    control: tuple[str, str]
    treatment: tuple[str, str]
    treatment_weight: float
    mode: Mode
    unit: UnitKind
    block_s: float
    horizon_s: float
    slice: NamespaceSlice | None
    policy: Policy
    auto: bool
    deadline_at: datetime | None


def checked_plan(
    *,
    experiment_id: str,
    control: tuple[str, str],
    treatment: tuple[str, str],
    treatment_weight: float,
    mode: str = "split",
    unit: str = "symbol|time-block",
    block_s: float | None = None,
    horizon_s: float = 0.0,
    namespace: tuple[str, float, float] | None = None,
    policy: Any = None,
    auto: bool = False,
    deadline_at: datetime | None = None,
) -> Plan:
    """The plan, if every part of it fits.

    Args:
        block_s: None for the mode's own.

    Raises:
        RequestInvalid: one does not; the message names it.
    """
    if mode not in MODES:
        _refuse("mode", f"must be {' or '.join(MODES)}")
    known_mode = cast(Mode, mode)
    if unit not in UNITS:
        _refuse("unit", f"must be one of {', '.join(UNITS)}")
    if block_s is None:
        block_s = BLOCK_S[known_mode]
    if not (math.isfinite(block_s) and 0.0 < block_s <= MAX_BLOCK_S):
        _refuse("block_s", f"must be above 0 and at most {MAX_BLOCK_S:g} seconds")
    longest_s = block_s if UNITS[unit] == "symbol|time-block" else MAX_BLOCK_S
    if not (math.isfinite(horizon_s) and 0.0 <= horizon_s < longest_s):
        _refuse("horizon_s", f"must be from 0 to below {longest_s:g} seconds")
    return Plan(
        experiment_id=_checked_id(experiment_id),
        control=control,
        treatment=treatment,
        treatment_weight=checked_weight(treatment_weight, TRAFFIC_SPLIT),
        mode=known_mode,
        unit=UNITS[unit],
        block_s=float(block_s),
        horizon_s=float(horizon_s),
        slice=None if namespace is None else _checked_slice(*namespace),
        policy=_checked_policy(policy),
        auto=auto,
        deadline_at=deadline_at,
    )


def checked_weight(weight: float, where: str) -> float:
    """The weight, within 0 and 1.

    Raises:
        RequestInvalid: it is not; `where` is the field that it was given in.
    """
    if not 0.0 <= weight <= 1.0:
        _refuse(where, f"must be from 0 to 1, not {given_share(weight, where):g}")
    return float(weight)


def given_share(weight: float, where: str) -> float:
    """The treatment's weight as the field `where` has it: `traffic_split` is the control's share, any other the treatment's."""
    return rest_of(weight) if where == TRAFFIC_SPLIT else weight


def rest_of(share: float) -> float:
    """What is left of 1."""
    return round(1.0 - share, _SHARE_DIGITS)


def resolved_arms(
    connection: Connection, control: tuple[str, str], treatment: tuple[str, str]
) -> tuple[ArmVersion, ArmVersion]:
    """Both arms with the labels that their references mean now.

    Raises:
        ModelNotFound, VersionNotFound
        RequestInvalid: they are one version, or have no symbol in common.
    """
    (control_model, control_version), (treatment_model, treatment_version) = (
        (model, find_version(connection, model, reference))
        for model, reference in ((find_model(connection, name), reference) for name, reference in (control, treatment))
    )
    if control_version.id == treatment_version.id:
        _refuse("treatment_version", f"the control is {control_model.name} {control_version.label} too")
    ours = _symbols(connection, control_model, control_version)
    theirs = _symbols(connection, treatment_model, treatment_version)
    if not (ALL_SYMBOLS in ours or ALL_SYMBOLS in theirs or ours & theirs):
        _refuse(
            "treatment_model", f"{treatment_model.name} {treatment_version.label} has none of the control's symbols"
        )
    return (
        ArmVersion(control_model.name, control_version.label),
        ArmVersion(treatment_model.name, treatment_version.label),
    )


def _symbols(connection: Connection, model: Row[Any], version: Row[Any]) -> set[str]:
    query = (
        select(GroupRow.symbol)
        .join(MembershipRow, MembershipRow.group_id == GroupRow.id)
        .where(
            MembershipRow.model_id == model.id,
            MembershipRow.first_seq <= version.seq,
            or_(MembershipRow.last_seq.is_(None), MembershipRow.last_seq >= version.seq),
        )
    )
    return {comparable_symbol(symbol) for symbol in connection.execute(query).scalars()}


def _checked_id(experiment_id: str) -> str:
    try:
        check_name(experiment_id)
    except NameInvalid as error:
        _refuse("experiment_id", str(error.values["reason"]))
    return experiment_id


def _checked_slice(namespace: str, start: float, end: float) -> NamespaceSlice:
    try:
        check_name(namespace)
        return NamespaceSlice(namespace, float(start), float(end))
    except NameInvalid as error:
        _refuse("namespace.name", str(error.values["reason"]))
    except ValueError:
        _refuse("namespace", "must have 0 <= start < end <= 1")


def _checked_policy(policy: Any) -> Policy:
    """`sequential`, `classic`, or an object with `policy` and the numbers that are to be others than the defaults."""
    if policy is None or isinstance(policy, str):
        policy = {"policy": policy or "sequential"}
    try:
        return policy_from(policy)
    except PolicyInvalid as error:
        _refuse(f"policy.{error.part}" if error.part else "policy", str(error))


def _refuse(where: str, problem: str) -> NoReturn:
    raise RequestInvalid(f"{where}: {problem}", errors=[{"loc": where, "msg": problem}])
