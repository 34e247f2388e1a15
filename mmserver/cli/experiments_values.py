"""What the commands of experiments take and print: arms, moments, slices and policies, and experiments as rows and JSON."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from mmserver.cli.output import print_json, print_rows
from mmserver.cli.registry_values import PairType, once
from mmserver.errors import ObservationsCorrupt

if TYPE_CHECKING:
    from mmserver.catalog.catalog import Actor
    from mmserver.catalog.store import Store
    from mmserver.experiments.experiments import Experiment
    from mmserver.experiments.observations.log import ObservationLog
    from mmserver.settings import Settings

POLICIES = ("sequential", "classic")
STATUSES = ("draft", "running", "stopped", "applied")


ARM = PairType("MODEL:VERSION", ":")


class _Moment(click.ParamType[datetime]):
    """A time with its offset from UTC."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from mmserver.storage.times import datetime_from_text

        if isinstance(value, datetime):
            return value
        try:
            return datetime_from_text(value)
        except ValueError:
            self.fail(f"{value!r} is not a time with an offset, such as 2026-12-01T08:00:00Z", param, ctx)


MOMENT = _Moment()


class _Slice(click.ParamType[tuple[str, float, float]]):
    """`NAME:FROM:TO`."""

    name = "NAME:FROM:TO"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float, float]:
        if isinstance(value, tuple):
            return value
        try:
            namespace, start, end = value.split(":")
            return namespace, float(start), float(end)
        except ValueError:
            self.fail(f"{value!r} is not NAME:FROM:TO, such as desk:0:0.5", param, ctx)


SLICE = _Slice()


def policy_object(name: str | None, numbers: tuple[tuple[str, str], ...], whole: dict[str, Any] | None) -> Any:
    """The policy as it would stand in a request; None for the default."""
    if whole is None:
        found = {field: number(field, text) for field, text in once(numbers, "policy").items()}
        return {"policy": name or POLICIES[0], **found} if name or found else None
    if name or numbers:
        raise click.UsageError("--policy-json says all of the policy: leave out --policy and --set")
    return whole


def number(field: str, text: str) -> float:
    """Raises click.UsageError for what is no number."""
    try:
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    except ValueError:
        raise click.UsageError(f"{field} is {text!r}; it must be a number") from None


def actor() -> "Actor":
    """Who acts here, for the audit."""
    from mmserver.catalog.catalog import Actor

    return Actor("command line")


@contextmanager
def opened(settings: "Settings") -> "Iterator[tuple[Store, ObservationLog]]":
    """The state and what was observed, beside a running server too."""
    from mmserver.catalog.opening import open_store
    from mmserver.experiments.observations.log import ObservationLog

    with open_store(settings, owns_data_dir=False) as store, ExitStack() as to_close:
        observations = ObservationLog.from_settings(settings)
        if not store.read_only:
            to_close.callback(observations.close)
        try:
            yield store, observations
        except ObservationsCorrupt:
            to_close.pop_all()  # it has let go of the file, and to close it would say the same again
            raise


def print_experiment(experiment: "Experiment", *, as_json: bool, **more: Any) -> None:
    """As the API gives it, or one line for each of its fields, and of what else there is to say."""
    from mmserver.web.experiment_bodies import item_from_experiment

    item = item_from_experiment(experiment)
    if as_json:
        print_json(item)
        return
    phases = [f"{phase.phase}: {phase.traffic_split:g}" for phase in item.phases]
    told = {**msgspec.structs.asdict(item), "phases": phases, **more}
    rows = [{"field": name, "value": _told(value)} for name, value in told.items()]
    print_rows(rows, ("field", "value"), as_json=False)


def _told(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={part}" for name, part in value.items() if part is not None)
    return value
