"""What came of predictions: each outcome is counted once, when its horizon is over, whatever is sent how often and when.

The first outcome of a prediction stays. The same again changes nothing; another one is a conflict and is refused.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from mmserver.experiments.observations.adding import add_changes
from mmserver.experiments.observations.dead_bands import DeadBands
from mmserver.experiments.observations.model_sums import ModelChanges
from mmserver.experiments.observations.reports import MAX_SHOWN_ID, OutcomeReport
from mmserver.experiments.observations.store import DUE_UNTIL, ObservationStore, mark
from mmserver.experiments.observations.sums import Answer, Changes, Counted
from mmserver.experiments.observations.tables import insert_rows
from mmserver.experiments.observations.values import LABELS, Outcome, is_finite_number

_AT_ONCE = 20_000
SKEW_S = 5.0
"""How far the clock of whoever reports may be ahead of ours."""
MAX_RETURN = 1e6
"""A larger one, up or down, is a mistake of units, and its square would drown all others."""

_CODES = {name: code for code, name in enumerate(LABELS)}
_COLUMNS = ("prediction", "label", "realized_return", "at_us", "received_us")


class Checked(NamedTuple):
    """One outcome that is possible by itself."""

    place: int
    prediction_id: str
    label: int | None
    realized_return: float | None
    at_us: int


class _Model(NamedTuple):
    """What predicted."""

    name: str
    version: str


class _Found(NamedTuple):
    """What the store knows of a prediction; `direction` is None too where it failed."""

    key: int
    at_us: int
    due_us: int
    experiment: int | None
    model: _Model
    direction: int | None
    counted: Counted | None
    label: int | None
    realized_return: float | None
    has_outcome: bool


def add_outcomes(
    store: ObservationStore,
    outcomes: Iterable[Outcome],
    *,
    flush: Callable[[], None],
    now: float,
    experiment_key: int | None = None,
    dead_bands: DeadBands | None = None,
) -> OutcomeReport:
    """Add outcomes, some thousands in each transaction, so that a million of them neither fill memory nor hold up others long.

    Args:
        flush: moves what waits in journals; called at most once, when a prediction is not found.
        now: the wall clock, seconds since the epoch.
        experiment_key: predictions of others count as unknown.
        dead_bands: what an outcome's label is that has a return and no label; None leaves it without one.

    Raises:
        DatabaseBusy, DiskFull, ObservationsCorrupt, WritesStopped: what came before in the call is added; send it again whole.
    """
    report = OutcomeReport()
    is_flushed = False
    indexed = enumerate(outcomes)
    while some := list(islice(indexed, _AT_ONCE)):
        checked = list(_checked(some, now, report))
        missing = _missing(store, checked)
        if missing and not is_flushed:
            flush()
            is_flushed = True
            report.n_waiting += len(missing) - len(_missing(store, missing))
        with store.write() as raw:
            add_checked(raw, checked, report, now=now, experiment_key=experiment_key, dead_bands=dead_bands)
    report.errors.sort(key=lambda error: error.index)  # of some thousands, what is impossible by itself was found first
    return report


def add_checked(
    raw: Any,
    outcomes: Sequence[Checked],
    report: OutcomeReport,
    *,
    now: float,
    experiment_key: int | None = None,
    dead_bands: DeadBands | None = None,
) -> None:
    """Add outcomes that are possible by themselves, in the caller's transaction."""
    due_until_us = mark(raw, DUE_UNTIL)
    changes, models = Changes(due_until_us), ModelChanges()
    found = _predictions(raw, outcomes)
    changed: dict[int, _Found] = {}
    received_us = int(now * 1e6)
    rows: dict[int, tuple[int, int | None, float | None, int, int]] = {}
    for outcome in outcomes:
        held = found.get(outcome.prediction_id)
        if held is None or (experiment_key is not None and held.experiment != experiment_key):
            report.refuse(outcome.place, outcome.prediction_id, "unknown", "no such prediction is known here")
            continue
        held = changed.get(held.key, held)
        if outcome.at_us < held.due_us:
            wait_s = (held.due_us - outcome.at_us) / 1e6
            message = f"its horizon was over {wait_s:g} s later; send it again then"
            report.refuse(outcome.place, outcome.prediction_id, "premature", message)
            continue
        outcome = _labelled(outcome, held, dead_bands)  # noqa: PLW2901 (what is known of it grows)
        conflict = _conflict(held, outcome)
        if conflict:
            report.refuse(outcome.place, outcome.prediction_id, "conflict", conflict)
            continue
        label = outcome.label if held.label is None else None
        realized_return = outcome.realized_return if held.realized_return is None else None
        if label is None and realized_return is None:
            report.n_duplicates += 1
            continue
        report.n_accepted += 1
        report.n_late += not held.has_outcome and held.due_us <= due_until_us
        if held.counted is not None:
            changes.add_outcome(held.counted, label, realized_return, is_first=not held.has_outcome)
        elif held.experiment is None and held.direction is not None:
            models.add_outcome(*held.model, held.at_us, held.direction, label=label, realized_return=realized_return)
        merged = held._replace(
            label=held.label if label is None else label,
            realized_return=held.realized_return if realized_return is None else realized_return,
            has_outcome=True,
        )
        changed[held.key] = merged
        rows[held.key] = (held.key, merged.label, merged.realized_return, outcome.at_us, received_us)
    insert_rows(raw, "outcomes", _COLUMNS, list(rows.values()), verb="INSERT OR REPLACE")
    add_changes(raw, changes)
    models.write(raw)


def _labelled(outcome: Checked, held: _Found, dead_bands: DeadBands | None) -> Checked:
    """With the label that its return gives it; a label that is there already is nobody's to judge again."""
    if outcome.label is not None or outcome.realized_return is None or dead_bands is None or held.label is not None:
        return outcome
    return outcome._replace(label=dead_bands.label(outcome.realized_return, held.model.name, held.experiment))


def _checked(outcomes: Sequence[tuple[int, Outcome]], now: float, report: OutcomeReport) -> Iterator[Checked]:
    for index, outcome in outcomes:
        label, realized_return, at = outcome.label, outcome.realized_return, outcome.at
        reason = _impossible(outcome)
        if reason:
            report.refuse(index, outcome.prediction_id, "invalid", reason)
            continue
        if at is not None and at > now + SKEW_S:
            message = f"its time is {at - now:.0f} s ahead of the clock; send it again then"
            report.refuse(index, outcome.prediction_id, "in_future", message)
            continue
        code = _CODES[label] if isinstance(label, str) else label
        number = None if realized_return is None else float(realized_return)
        yield Checked(index, outcome.prediction_id, code, number, int((now if at is None else min(at, now)) * 1e6))


def _impossible(outcome: Outcome) -> str | None:
    """Why an outcome cannot be one, whatever it is of; Structs that were made without decoding are not checked before."""
    label, realized_return, at = outcome.label, outcome.realized_return, outcome.at
    reason = None
    if not isinstance(outcome.prediction_id, str) or not outcome.prediction_id:
        reason = "it has no prediction_id"
    elif len(outcome.prediction_id) > MAX_SHOWN_ID:
        reason = f"its prediction_id has {len(outcome.prediction_id)} characters, which no id has"
    elif not _is_text(outcome.prediction_id):
        reason = "its prediction_id has half a surrogate pair, which no id has"
    elif label is None and realized_return is None:
        reason = "it has neither a label nor a realized_return"
    elif label is not None and not _is_label(label):
        reason = f"the label {str(label)[:50]!r} is none of BUY, SELL, HOLD, 0, 1, 2"
    elif realized_return is not None and not is_finite_number(realized_return):
        reason = f"the realized_return {str(realized_return)[:50]} is not a finite number"
    elif realized_return is not None and abs(realized_return) > MAX_RETURN:
        reason = f"the realized_return {realized_return:g} is more than {MAX_RETURN:g}"
    elif at is not None and not (is_finite_number(at) and at >= 0):
        reason = f"the time {str(at)[:50]} is not seconds since the epoch"
    return reason


def _is_label(value: object) -> bool:
    return value in _CODES if isinstance(value, str) else type(value) is int and 0 <= value < len(LABELS)


def _is_text(value: str) -> bool:
    """Whether UTF-8 has all of it; `\\ud800` alone in JSON is no character."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _conflict(held: _Found, outcome: Checked) -> str | None:
    if outcome.label is not None and held.label is not None and outcome.label != held.label:
        return f"its label is {LABELS[held.label]} already, and stays"
    known = held.realized_return
    if outcome.realized_return is not None and known is not None and outcome.realized_return != known:
        return f"its realized_return is {known!r} already, and stays"
    return None


# --- what the store knows -----------------------------------------------------------------------------------------------

_SELECT = """
SELECT predictions.id, prediction_id, predictions.at_us, due_us, experiment, phase, arm, unit, symbol, direction, latency_us,
  error IS NOT NULL, is_washed_out, shadow_direction, shadow_latency_us, shadow_error IS NOT NULL,
  outcomes.label, outcomes.realized_return, outcomes.prediction IS NOT NULL, model_name, version
FROM json_each(?) AS asked CROSS JOIN predictions ON predictions.prediction_id = asked.value
LEFT JOIN outcomes ON outcomes.prediction = predictions.id
"""


def _predictions(raw: Any, outcomes: Sequence[Checked]) -> dict[str, _Found]:
    rows = raw.execute(_SELECT, (_ids(outcomes),)).fetchall()
    return {row[1]: _found(row) for row in rows}


def _found(row: Sequence[Any]) -> _Found:
    key, _, at_us, due_us, experiment, phase, arm, unit, symbol, direction, latency_us, has_failed, is_washed_out = row[
        :13
    ]
    shadow_direction, shadow_latency_us, shadow_has_failed, label, realized_return, has_outcome = row[13:19]
    counted = None
    if experiment is not None and arm is not None:
        shadow = None
        if shadow_latency_us is not None:
            shadow = Answer(shadow_direction, shadow_latency_us, bool(shadow_has_failed))
        answer = Answer(direction, latency_us, bool(has_failed))
        counted = Counted(experiment, phase, arm, unit, symbol, at_us, due_us, bool(is_washed_out), answer, shadow)
    return _Found(
        key=key,
        at_us=at_us,
        due_us=due_us,
        experiment=experiment,
        model=_Model(*row[19:]),
        direction=None if has_failed else direction,
        counted=counted,
        label=label,
        realized_return=realized_return,
        has_outcome=bool(has_outcome),
    )


def _missing(store: ObservationStore, outcomes: Sequence[Checked]) -> list[Checked]:
    """Those whose prediction the store does not have."""
    with store.read() as raw:
        known = {
            prediction_id
            for (prediction_id,) in raw.execute(
                "SELECT prediction_id FROM json_each(?) AS asked "
                "CROSS JOIN predictions ON predictions.prediction_id = asked.value",
                (_ids(outcomes),),
            ).fetchall()
        }
    return [outcome for outcome in outcomes if outcome.prediction_id not in known]


def _ids(outcomes: Sequence[Checked]) -> str:
    return msgspec.json.encode([outcome.prediction_id for outcome in outcomes]).decode()
