"""A refresh that a person asked for: one full scan, then only what changed is looked at again until it is quiet."""

from collections.abc import Callable

from mmserver.errors import StillChanging
from mmserver.watching.scanning import Clock, Scan, restat
from mmserver.watching.settling import Observation, Watcher

_MAX_ROUNDS = 5
_GONE_POLLS = 1
"""A person who asks does not wait for more polls: settling already means two looks with settle_s between them."""
_TIMER_SLACK_S = 0.002
"""A wait may end this much early by the clock that the scans are made with."""


def settle_now(
    watcher: Watcher,
    scan: Scan,
    wait: Callable[[float], None],
    clock: Clock,
    *,
    settle_s: float | None = None,
    accept_vanished: bool = False,
) -> tuple[Scan, Observation]:
    """Observe a full scan and wait until what changed has been quiet for settle_s; the last scan and what it means.

    Raises:
        StillChanging: files were still being written after five such waits.
    """
    settle_s = watcher.settle_s if settle_s is None else settle_s
    n_rounds = 0
    while True:
        observation = watcher.observe(
            scan, settle_s=settle_s, gone_polls=_GONE_POLLS, accept_vanished=accept_vanished, ignore_backoff=True
        )
        unsettled = [key for key, reason in observation.pending.items() if reason in {"settling", "missing"}]
        if not unsettled:
            return scan, observation
        if n_rounds == _MAX_ROUNDS:
            raise StillChanging(root_path=str(scan.root_path))
        n_rounds += 1
        wait(settle_s + _TIMER_SLACK_S)
        scan = restat(scan, watcher.pending_places(), clock)
