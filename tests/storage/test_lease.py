"""One holder at a time, a successor when it dies, and no write by one that was overtaken."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmserver.errors import LeaseLost
from mmserver.storage.database import Database, open_database
from mmserver.storage.lease import Lease


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def other_database(database: Database) -> Iterator[Database]:
    opened = open_database(database.path)
    yield opened
    opened.close()


def lease(database: Database, holder: str, clock: Callable[[], float]) -> Lease:
    return Lease(database, "scheduler", holder, 10, clock)


def test_there_is_one_holder_until_it_stops_renewing(
    database: Database, other_database: Database, clock: Clock
) -> None:
    first, second = lease(database, "a", clock), lease(other_database, "b", clock)
    for _ in range(5):
        assert first.acquire_or_renew()
        assert not second.acquire_or_renew()
        clock.now_s += 9
    clock.now_s += 1
    assert second.acquire_or_renew()
    assert not first.acquire_or_renew()
    assert (first.epoch, second.epoch) == (None, 2)


def test_an_overtaken_holder_cannot_write(database: Database, other_database: Database, clock: Clock) -> None:
    first, second = lease(database, "a", clock), lease(other_database, "b", clock)
    first.acquire_or_renew()
    with database.write() as connection:
        first.check(connection)
    clock.now_s += 11
    second.acquire_or_renew()
    with pytest.raises(LeaseLost), database.write() as connection:
        first.check(connection)
    first.release()
    with database.write() as connection:
        second.check(connection)


def test_a_holder_with_the_same_name_after_a_restart_is_another(
    database: Database, other_database: Database, clock: Clock
) -> None:
    before, after = lease(database, "host", clock), lease(other_database, "host", clock)
    before.acquire_or_renew()
    assert not after.acquire_or_renew()
    clock.now_s += 11
    assert after.acquire_or_renew()
    with pytest.raises(LeaseLost), database.write() as connection:
        before.check(connection)


def test_a_released_lease_is_free_at_once(database: Database, other_database: Database, clock: Clock) -> None:
    first, second = lease(database, "a", clock), lease(other_database, "b", clock)
    first.acquire_or_renew()
    first.release()
    assert second.acquire_or_renew()


def test_a_lease_from_before_a_reboot_does_not_block(
    database: Database, other_database: Database, clock: Clock
) -> None:
    assert lease(database, "a", clock).acquire_or_renew()
    clock.now_s = 5  # the clock of the machine began again
    assert lease(other_database, "b", clock).acquire_or_renew()


def test_the_lease_of_a_killed_process_is_taken_over_after_its_time_and_not_before(
    database: Database, start_script: Callable[..., subprocess.Popen[str]], clock: Clock
) -> None:
    holder = start_script(
        """
import sys
from pathlib import Path
from mmserver.storage.database import open_database
from mmserver.storage.lease import Lease
lease = Lease(open_database(Path(sys.argv[1])), "scheduler", "a", 10, lambda: float(sys.argv[2]))
print(lease.acquire_or_renew(), flush=True)
sys.stdin.read()
""",
        database.path,
        clock.now_s,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    holder.kill()
    holder.wait()
    successor = lease(database, "b", clock)
    clock.now_s += 9.9
    assert not successor.acquire_or_renew()
    clock.now_s += 0.1
    assert successor.acquire_or_renew()


RACE = """
import sys, time
from pathlib import Path
from mmserver.storage.database import open_database
from mmserver.storage.lease import Lease

path, holder, last_epoch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
clock = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
lease = Lease(open_database(path, busy_timeout_ms=20000), "scheduler", holder, 0.05, clock)
print("ready", flush=True)
sys.stdin.readline()
while (lease.epoch or 0) < last_epoch:
    asked_at = clock()
    if lease.acquire_or_renew():
        print(lease.epoch, holder, asked_at, flush=True)
        # held without renewing, so that it is lost again and again
        while clock() < asked_at + 0.06:
            pass
"""


def test_of_processes_that_race_for_it_each_epoch_has_one_holder(
    database_path: Path, start_script: Callable[..., subprocess.Popen[str]]
) -> None:
    racers = [start_script(RACE, database_path, holder, 12) for holder in "abc"]
    assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * 3
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    claims = [line.split() for racer in racers for line in racer.communicate()[0].splitlines()]
    holders_by_epoch: dict[str, set[str]] = {}
    for epoch, holder, _ in claims:
        holders_by_epoch.setdefault(epoch, set()).add(holder)
    assert len(holders_by_epoch) >= 12
    assert all(len(holders) == 1 for holders in holders_by_epoch.values())
