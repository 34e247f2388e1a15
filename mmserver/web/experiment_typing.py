"""What people type into the form of an experiment, as the body that the API would take, and back again."""

import math
import re
import urllib.parse
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from mmserver.errors import RequestInvalid
from mmserver.experiments.experiments import Experiment
from mmserver.experiments.planning import checked_weight, rest_of
from mmserver.experiments.policies import SequentialPolicy
from mmserver.web.experiment_bodies import CreateExperiment, NamespaceBody
from mmserver.web.requests import error_summary, refuse_parameter

SHARE = "treatment_share"
NUMBERS: Mapping[str, float | int | None] = MappingProxyType(
    {name: getattr(SequentialPolicy(), name) for name in SequentialPolicy.__struct_fields__}
)
"""The numbers of the policies with their defaults; the other policy has some of them, with the same defaults."""
FIRST_TYPED: Mapping[str, str] = MappingProxyType(
    {
        "experiment_id": "",
        "control_model": "",
        "control_version": "latest",
        "treatment_model": "",
        "treatment_version": "",
        "mode": "split",
        SHARE: "0.1",
        "unit": "symbol|time-block",
        "block_s": "",
        "horizon_s": "0",
        "deadline_at": "",
        "auto": "",
        "policy": "sequential",
        **dict.fromkeys(NUMBERS, ""),
        "namespace_name": "",
        "namespace_start": "",
        "namespace_end": "",
    }
)
"""Every field of the form, with what stands in it before anybody typed."""
FIELDS: tuple[str, ...] = tuple(FIRST_TYPED)
PLACES: Mapping[str, str] = MappingProxyType(
    {
        "traffic_split": SHARE,
        "namespace.name": "namespace_name",
        "namespace": "namespace_start",
        **{f"policy.{name}": name for name in NUMBERS},
    }
)
"""The form's fields by what the API calls them, where that is otherwise."""
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?"
)
_NAMESPACE = ("namespace_start", "namespace_end")


def experiment_path(experiment_id: str) -> str:
    """Where an experiment's page is."""
    return f"/ui/experiments/{urllib.parse.quote(experiment_id, safe='')}"


def body_from_typed(typed: Mapping[str, str]) -> CreateExperiment:
    """What was typed; which number and word is allowed where is for others to say.

    Raises:
        RequestInvalid: something that is needed is missing, or a number or time is none; every such field is named.
    """
    texts = {name: text.strip() for name, text in typed.items()}
    said = _Said(texts)
    for name in ("experiment_id", "control_model", "control_version", "treatment_model", "treatment_version"):
        if not texts[name]:
            said.refuse(name, "it is needed")
    share = said.number(SHARE, 0.0, is_needed=True)
    body = CreateExperiment(
        experiment_id=texts["experiment_id"],
        control_model=texts["control_model"],
        control_version=texts["control_version"],
        treatment_model=texts["treatment_model"],
        treatment_version=texts["treatment_version"],
        traffic_split=rest_of(share),
        unit=texts["unit"],
        mode=texts["mode"],
        block_s=said.number("block_s", 0.0) if texts["block_s"] else None,
        horizon_s=said.number("horizon_s", 0.0),
        namespace=said.namespace(),
        policy={"policy": texts["policy"] or "sequential", **{n: said.number(n, 0.0) for n in NUMBERS if texts[n]}},
        auto=said.tick("auto"),
        deadline_at=said.moment("deadline_at"),
    )
    said.check()
    checked_weight(share, SHARE)
    return body


def share_from_text(text: str) -> float:
    """The treatment's share, typed by itself.

    Raises:
        RequestInvalid
    """
    said = _Said({SHARE: text.strip()})
    share = float(said.number(SHARE, 0.0, is_needed=True))
    said.check()
    return share


def is_ticked(name: str, text: str) -> bool:
    """Whether a box was ticked.

    Raises:
        RequestInvalid: it says something else than boxes do.
    """
    if text not in ("", "true"):
        refuse_parameter(name, "Expected true")
    return bool(text)


def typed_from_experiment(experiment: Experiment) -> dict[str, str]:
    """What would have to be typed for it; a policy's number that is the default is left out."""
    part, policy = experiment.slice, experiment.policy
    numbers = {name: getattr(policy, name, None) for name in NUMBERS}
    typed = {
        "experiment_id": experiment.experiment_id,
        "control_model": experiment.control.model_name,
        "control_version": experiment.control.version,
        "treatment_model": experiment.treatment.model_name,
        "treatment_version": experiment.treatment.version,
        "mode": experiment.mode,
        SHARE: text_of_number(experiment.treatment_weight),
        "unit": experiment.unit,
        "block_s": text_of_number(experiment.block_s),
        "horizon_s": text_of_number(experiment.horizon_s),
        "deadline_at": "" if experiment.deadline_at is None else _text_of_moment(experiment.deadline_at),
        "auto": "true" if experiment.auto else "",
        "policy": policy.name,
        **{
            name: "" if value is None or value == NUMBERS[name] else text_of_number(value)
            for name, value in numbers.items()
        },
        "namespace_name": "" if part is None else part.namespace,
        "namespace_start": "" if part is None else text_of_number(part.start),
        "namespace_end": "" if part is None else text_of_number(part.end),
    }
    assert typed.keys() == FIRST_TYPED.keys()  # noqa: S101 (a field that is not filled in would be lost)
    return typed


def text_of_number(value: float) -> str:
    """Every digit, and no more."""
    return repr(value).removesuffix(".0")


class _Said:
    """What was typed, read field by field; what is wrong is said of all fields together."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._faults: list[dict[str, str]] = []

    def refuse(self, name: str, problem: str) -> None:
        self._faults.append({"loc": name, "msg": problem})

    def check(self) -> None:
        if self._faults:
            raise RequestInvalid(error_summary(self._faults), errors=self._faults)

    def number(self, name: str, default: float, *, is_needed: bool = False) -> Any:
        """The number, a whole one as an int; `default` where nothing was typed, or what is none."""
        text = self._texts[name]
        if not text:
            if is_needed:
                self.refuse(name, "it is needed")
            return default
        if not _NUMBER.fullmatch(text):
            self.refuse(name, f"expected a number such as 0.1, not {text[:40]!r}")
            return default
        value = float(text)
        if not math.isfinite(value):
            self.refuse(name, f"{text[:40]} is too large")
            return default
        return int(text) if _WHOLE.fullmatch(text) else value

    def tick(self, name: str) -> bool:
        try:
            return is_ticked(name, self._texts[name])
        except RequestInvalid as error:
            self._faults += error.values["errors"]
            return False

    def moment(self, name: str) -> datetime | None:
        """A time, in UTC where it has no offset."""
        text = self._texts[name]
        if not text:
            return None
        try:
            found = datetime.fromisoformat(text if _MOMENT.fullmatch(text) else "")
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            self.refuse(name, "expected a time such as 2026-12-31 12:00")
            return None

    def namespace(self) -> NamespaceBody | None:
        """All three fields of it, or none."""
        if not self._texts["namespace_name"] and not any(self._texts[name] for name in _NAMESPACE):
            return None
        if not self._texts["namespace_name"]:
            self.refuse("namespace_name", "it is needed, where a part of it is named")
        start, end = (self.number(name, 0.0, is_needed=True) for name in _NAMESPACE)
        return NamespaceBody(self._texts["namespace_name"], start, end)


def _text_of_moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(sep=" ").replace("+00:00", "Z")
