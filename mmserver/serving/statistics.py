"""How often each served model ran and what its time went to: counters that cost a request half a microsecond."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import msgspec

from mmserver.catalog.catalog import Group, Version
from mmserver.serving.siblings import SharedPlace, Siblings

MAX_ENTRIES = 20_000
"""Beyond it, those that were begun first are forgotten."""
PUBLISH_INTERVAL_S = 1.0
Key: TypeAlias = tuple[int, int]
"""Of a version and of a group in it."""


class Duration(msgspec.Struct, frozen=True):
    """How often, and nanoseconds in all."""

    count: int
    ns: int


class ModelStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What one group did in one version of one model.

    `inference_count` counts rows, `execution_count` calls of the engine; `last_inference_ms` is milliseconds since 1970, 0
    for never.
    """

    model_name: str
    version: str
    group_key: str
    symbol: str
    inference_count: int
    execution_count: int
    last_inference_ms: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class Counts(NamedTuple):
    """What is counted of one group in one version; `queue_ns` is what requests waited for a thread."""

    successes: int = 0
    fails: int = 0
    rows: int = 0
    executions: int = 0
    fail_ns: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    last_s: float = 0.0


_ENCODER = msgspec.msgpack.Encoder()
_ITEMS = msgspec.msgpack.Decoder(list[tuple[int, int, Counts]])


_NONE = Counts()


class _Counters:
    """Of one group in one version; guarded by its own lock."""

    __slots__ = ("executions", "fail_ns", "fails", "group_key", "infer_ns", "input_ns", "is_noted", "last_s", "lock",
                 "model_name", "output_ns", "queue_ns", "rows", "successes", "symbol", "version")  # fmt: skip

    def __init__(self, version: Version, group: Group, *, is_noted: bool) -> None:
        """`is_noted`: that they have changed needs no note; it is there already, or nobody asks for it."""
        self.is_noted = is_noted
        self.model_name, self.version = version.model_name, version.label
        self.group_key, self.symbol = group.group_key, group.symbol
        self.lock = threading.Lock()
        self.successes = self.fails = self.rows = self.executions = 0
        self.fail_ns = self.queue_ns = self.input_ns = self.infer_ns = self.output_ns = 0
        self.last_s = 0.0

    def counts(self) -> Counts:
        """All of one moment."""
        with self.lock:
            return self._counts()

    def taken(self) -> Counts:
        """The same; the next change is to be noted again."""
        with self.lock:
            self.is_noted = False
            return self._counts()

    def _counts(self) -> Counts:
        return Counts(
            self.successes, self.fails, self.rows, self.executions, self.fail_ns, self.queue_ns,
            self.input_ns, self.infer_ns, self.output_ns, self.last_s,
        )  # fmt: skip


class Statistics:
    """All counters of one process, and beside them those of the others of its server; safe for all threads."""

    def __init__(self, siblings: Siblings | None = None) -> None:
        self._counters: dict[Key, _Counters] = {}
        self._changed: deque[Key] = deque()
        """What the other processes were not told of yet: counted, or forgotten."""
        self._lock = threading.Lock()
        self._sharing = _Sharing(siblings) if siblings is not None else None
        self._next_publication = 0.0

    def publish(self) -> None:
        """Tell the other processes, if it is time, what this one has counted; the work is that for what has changed."""
        now = time.monotonic()
        if self._sharing is not None and now >= self._next_publication:
            self._next_publication = now + PUBLISH_INTERVAL_S
            self._sharing.publish(self._take_changes)

    def gather(self) -> None:
        """Take in what the other processes have told, for `of` to count in.

        This one's are told first: what an answer has counted in, no later answer of another process may lack.
        """
        if self._sharing is not None:
            self._sharing.publish(self._take_changes)
            self._sharing.gather()

    def succeeded(
        self,
        version: Version,
        group: Group,
        *,
        n_rows: int,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
        queue_ns: int = 0,
    ) -> None:
        """One call of the engine that was answered."""
        key = version.id, group.id
        counters = self._counters.get(key) or self._begun(version, group)
        now_s = time.time()
        with counters.lock:
            counters.successes += 1
            counters.executions += 1
            counters.rows += n_rows
            counters.queue_ns += queue_ns
            counters.input_ns += input_ns
            counters.infer_ns += infer_ns
            counters.output_ns += output_ns
            counters.last_s = now_s
            if not counters.is_noted:
                counters.is_noted = True
                self._changed.append(key)

    def failed(self, version: Version, group: Group, ns: int) -> None:
        """One request that was resolved and then refused."""
        key = version.id, group.id
        counters = self._counters.get(key) or self._begun(version, group)
        with counters.lock:
            counters.fails += 1
            counters.fail_ns += ns
            if not counters.is_noted:
                counters.is_noted = True
                self._changed.append(key)

    def of(self, version: Version, group: Group) -> ModelStatistics:
        """The counters of one group in one version, of all processes as `gather` last found them; all zero if it was never asked.

        This process's count in as it told them: a count that the others do not know of yet could be missing in their next answer.
        """
        key = version.id, group.id
        counters = self._counters.get(key) or _Counters(version, group, is_noted=True)
        counts = counters.counts() if self._sharing is None else _sum(self._sharing.of(key))
        return _statistics(counters, counts)

    def all(self) -> list[ModelStatistics]:
        """Everything that this process was ever asked, by model name, version and group key."""
        with self._lock:
            counters: Iterable[_Counters] = list(self._counters.values())
        found = [_statistics(one, one.counts()) for one in counters]
        return sorted(found, key=lambda one: (one.model_name, one.version, one.group_key))

    def _take_changes(self) -> Iterator[tuple[Key, Counts | None]]:
        """What has changed since the last call, None where it was forgotten. For one thread at a time."""
        for _ in range(len(self._changed)):
            key = self._changed.popleft()
            counters = self._counters.get(key)
            yield key, counters.taken() if counters is not None else None

    def _begun(self, version: Version, group: Group) -> _Counters:
        is_alone = self._sharing is None
        with self._lock:
            while len(self._counters) >= MAX_ENTRIES:
                forgotten = next(iter(self._counters))
                del self._counters[forgotten]
                if not is_alone:
                    self._changed.append(forgotten)
            return self._counters.setdefault((version.id, group.id), _Counters(version, group, is_noted=is_alone))


class _Sharing:
    """What one process tells the others of its server and hears from them: counters only, each of which only grows."""

    def __init__(self, siblings: Siblings) -> None:
        self._own_place = siblings.statistics[siblings.own]
        self._of_predecessors = _read(self._own_place)[1]
        """By those who had this process's place and died."""
        self._told = dict(self._of_predecessors)
        """What stands in this process's place."""
        self._untold: dict[Key, Counts | None] = {}
        self._encoded = {key: _encoded(key, counts) for key, counts in self._told.items()}
        self._others = [place for at, place in enumerate(siblings.statistics) if at != siblings.own]
        self._found: list[tuple[int, Mapping[Key, Counts]]] = [(0, {})] * len(self._others)
        self._lock = threading.Lock()

    def publish(self, take_changes: Callable[[], Iterable[tuple[Key, Counts | None]]]) -> None:
        """Only what has changed is encoded anew; the rest is copied. What could not be told is told the next time."""
        with self._lock:
            for key, own in take_changes():
                known = [counts for counts in (own, self._of_predecessors.get(key)) if counts is not None]
                counts = self._untold[key] = _sum(known) if known else None
                if counts is not None:
                    self._encoded[key] = _encoded(key, counts)
                else:
                    self._encoded.pop(key, None)
            if self._untold:
                self._own_place.replace(_ENCODER.encode(list(self._encoded.values())))
                self._tell()

    def _tell(self) -> None:
        for key, counts in self._untold.items():
            if counts is not None:
                self._told[key] = counts
            else:
                self._told.pop(key, None)
        self._untold = {}

    def gather(self) -> None:
        with self._lock:
            self._found = [
                _read(place) if place.number() != known[0] else known
                for place, known in zip(self._others, self._found, strict=True)
            ]

    def of(self, key: Key) -> list[Counts]:
        return [found.get(key, _NONE) for found in (self._told, *(counts for _, counts in self._found))]


def _encoded(key: Key, counts: Counts) -> msgspec.Raw:
    return msgspec.Raw(_ENCODER.encode((*key, counts)))


def _read(place: SharedPlace) -> tuple[int, Mapping[Key, Counts]]:
    number, content = place.read_numbered()
    items = _ITEMS.decode(content) if content else []
    return number, {(version_id, group_id): counts for version_id, group_id, counts in items}


def _sum(counts: Iterable[Counts]) -> Counts:
    *columns, last_s = zip(*counts, strict=True)
    return Counts._make([*map(sum, columns), max(last_s)])


def _statistics(of: _Counters, counts: Counts) -> ModelStatistics:
    n = counts.successes
    return ModelStatistics(
        model_name=of.model_name,
        version=of.version,
        group_key=of.group_key,
        symbol=of.symbol,
        inference_count=counts.rows,
        execution_count=counts.executions,
        last_inference_ms=int(counts.last_s * 1000),
        success=Duration(n, counts.queue_ns + counts.input_ns + counts.infer_ns + counts.output_ns),
        fail=Duration(counts.fails, counts.fail_ns),
        queue=Duration(n, counts.queue_ns),
        compute_input=Duration(n, counts.input_ns),
        compute_infer=Duration(n, counts.infer_ns),
        compute_output=Duration(n, counts.output_ns),
    )
