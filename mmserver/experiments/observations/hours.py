"""What both arms did hour by hour, for charts: kept beside the totals, so that reading it costs the hours and not the predictions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import msgspec

from mmserver.experiments.latencies import Latencies
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.sums import ARMS
from mmserver.experiments.observations.tables import insert_rows


@dataclass(frozen=True, slots=True)
class HourSums:
    """What one arm did in one hour (UTC), of what counts in comparisons.

    Fields:
        n_returns, total_return: of matured outcomes of the hour's predictions, however late they came.
    """

    n_returns: int = 0
    total_return: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)

    def merge(self, other: Self) -> Self:
        """Both parts together."""
        return type(self)(
            self.n_returns + other.n_returns,
            self.total_return + other.total_return,
            self.latencies.merge(other.latencies),
        )


class Hour(NamedTuple):
    """One hour of one phase; `number` is whole hours since the epoch."""

    phase: int
    number: int
    control: HourSums
    treatment: HourSums


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(HourSums).decode


def add_hours(raw: Any, key: tuple[int, int], arms: Sequence[Mapping[int, HourSums]]) -> None:
    """Add to the hours of one phase, of each arm, in the caller's transaction."""
    rows = [
        (*key, number, arm, _encode(_before(raw, (*key, number, arm)).merge(added)))
        for arm, hours in enumerate(arms)
        for number, added in hours.items()
    ]
    insert_rows(raw, "hour_sums", ("experiment", "phase", "hour", "arm", "sums"), rows, verb="INSERT OR REPLACE")


def read_hours(store: ObservationStore, experiment_key: int) -> list[Hour]:
    """All hours in which something was predicted, in their order."""
    with store.read() as raw:
        rows = raw.execute(
            "SELECT phase, hour, arm, sums FROM hour_sums WHERE experiment = ? ORDER BY hour, phase, arm",
            (experiment_key,),
        ).fetchall()
    return _hours(rows)


def _hours(rows: Iterable[tuple[int, int, int, bytes]]) -> list[Hour]:
    found: dict[tuple[int, int], list[HourSums]] = {}
    for phase, number, arm, sums in rows:
        found.setdefault((phase, number), [HourSums()] * len(ARMS))[arm] = _decode(sums)
    return [Hour(*key, *arms) for key, arms in found.items()]


def _before(raw: Any, key: tuple[int, int, int, int]) -> HourSums:
    row = raw.execute(
        "SELECT sums FROM hour_sums WHERE experiment = ? AND phase = ? AND hour = ? AND arm = ?", key
    ).fetchone()
    return _decode(row[0]) if row else HourSums()
