"""How often each served model ran and what its time went to: counters that cost a request half a microsecond."""

import threading
import time
from collections.abc import Iterable

import msgspec

from mmserver.catalog.catalog import Group, Version

MAX_ENTRIES = 20_000
"""Beyond it, those that were begun first are forgotten."""


class Duration(msgspec.Struct, frozen=True):
    """How often, and nanoseconds in all."""

    count: int
    ns: int


class ModelStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What one group did in one version of one model, in this process.

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


class _Counters:
    """Of one group in one version; guarded by its own lock."""

    __slots__ = ("executions", "fail_ns", "fails", "group_key", "infer_ns", "input_ns", "last_s", "lock", "model_name",
                 "output_ns", "queue_ns", "rows", "successes", "symbol", "version")  # fmt: skip

    def __init__(self, version: Version, group: Group) -> None:
        self.model_name, self.version = version.model_name, version.label
        self.group_key, self.symbol = group.group_key, group.symbol
        self.lock = threading.Lock()
        self.successes = self.fails = self.rows = self.executions = 0
        self.fail_ns = self.queue_ns = self.input_ns = self.infer_ns = self.output_ns = 0
        self.last_s = 0.0


class Statistics:
    """All counters of one process; safe for all threads."""

    def __init__(self) -> None:
        self._counters: dict[tuple[int, int], _Counters] = {}
        self._lock = threading.Lock()

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
        counters = self._counters.get((version.id, group.id)) or self._begun(version, group)
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

    def failed(self, version: Version, group: Group, ns: int) -> None:
        """One request that was resolved and then refused."""
        counters = self._counters.get((version.id, group.id)) or self._begun(version, group)
        with counters.lock:
            counters.fails += 1
            counters.fail_ns += ns

    def of(self, version: Version, group: Group) -> ModelStatistics:
        """The counters of one group in one version; all zero if it was never asked."""
        counters = self._counters.get((version.id, group.id))
        return _read(counters if counters is not None else _Counters(version, group))

    def all(self) -> list[ModelStatistics]:
        """Everything that was ever asked, by model name, version and group key."""
        with self._lock:
            counters: Iterable[_Counters] = list(self._counters.values())
        return sorted(map(_read, counters), key=lambda found: (found.model_name, found.version, found.group_key))

    def _begun(self, version: Version, group: Group) -> _Counters:
        with self._lock:
            while len(self._counters) >= MAX_ENTRIES:
                del self._counters[next(iter(self._counters))]
            return self._counters.setdefault((version.id, group.id), _Counters(version, group))


def _read(counters: _Counters) -> ModelStatistics:
    with counters.lock:
        n = counters.successes
        return ModelStatistics(
            model_name=counters.model_name,
            version=counters.version,
            group_key=counters.group_key,
            symbol=counters.symbol,
            inference_count=counters.rows,
            execution_count=counters.executions,
            last_inference_ms=int(counters.last_s * 1000),
            success=Duration(n, counters.queue_ns + counters.input_ns + counters.infer_ns + counters.output_ns),
            fail=Duration(counters.fails, counters.fail_ns),
            queue=Duration(n, counters.queue_ns),
            compute_input=Duration(n, counters.input_ns),
            compute_infer=Duration(n, counters.infer_ns),
            compute_output=Duration(n, counters.output_ns),
        )
