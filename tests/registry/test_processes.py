"""Several processes that change one model at the same time, and processes that are killed in the middle of a change."""

import os
import select as waiting
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text

from mmserver.catalog.catalog import Actor
from mmserver.catalog.store import Store, utc_now
from mmserver.errors import DatabaseBusy
from mmserver.registry.finding import in_stage, last_served_id
from mmserver.registry.registering import register_version
from mmserver.registry.removing import delete_version
from mmserver.registry.stages import promote, retire, rollback, set_stage
from mmserver.registry.versions import get_version, list_versions
from mmserver.storage.data_dir import DataDir
from mmserver.storage.tables import PromotionRow, RegisteredVersionRow, StageRow, VersionRow

TEST = Actor("test")
N_WRITERS = 8
HOOKS = ("before_cursor_execute", "commit")


def in_child(work: Callable[[], object]) -> int:
    """A process that does the work and ends; what it raises is printed."""
    child = os.fork()
    if child:
        return child
    signal.alarm(600)  # whatever it waits for
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def tried_again(work: Callable[[], Any]) -> Any:
    """Whose turn to write does not come within the timeout is told so, nothing was changed, and it tries again."""
    while True:
        with suppress(DatabaseBusy):
            return work()


def exit_status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- many processes -------------------------------------------------------------------------------------------------------


def watch_production(store: Store, stop_fd: int, begun_fd: int) -> int:
    """Look until told to stop, and tell after the first look; gives how often it looked.

    Fails when there is not exactly one version in production, when it is not what is served, or when it is archived.
    """
    n_looks = 0
    while not waiting.select([stop_fd], [], [], 0)[0]:
        with store.database.read() as connection:
            model_id = store.model("hybrid").id
            production = connection.execute(
                select(StageRow.version_id).where(StageRow.model_id == model_id, StageRow.stage == "production")
            ).scalars().all()  # fmt: skip
            assert len(production) == 1
            assert last_served_id(connection, model_id) == production[0]
            not_archived = (
                connection.execute(
                    select(RegisteredVersionRow.version_id).where(RegisteredVersionRow.archived_at.is_(None))
                )
                .scalars()
                .all()
            )
            assert not_archived.count(production[0]) == 1
        store.follow_commits()
        model = store.model("hybrid")
        assert model.stages["production"] == model.serving.label
        n_looks += 1
        if n_looks == 1:
            os.write(begun_fd, b".")
    return n_looks


@pytest.mark.parametrize(
    "n_promotions", [pytest.param(104, id="104"), pytest.param(1000, id="1000", marks=pytest.mark.slow)]
)
def test_promotions_by_eight_processes_leave_exactly_one_in_production_at_any_instant(
    bench: Any, open_bench: Any, n_promotions: int
) -> None:
    labels = [f"1.{number}.0" for number in range(2 * N_WRITERS)]
    bench.store.now = utc_now
    for label in labels:
        bench.register(label)
    promote(bench.store, "hybrid", labels[0], TEST)
    n_before = len(bench.audit())
    stop_fd, stopping_fd = os.pipe()
    looks_fd, looked_fd = os.pipe()

    def look() -> None:
        os.write(looked_fd, str(watch_production(open_bench().store, stop_fd, looked_fd)).encode())

    def write(number: int) -> None:
        own = tried_again(open_bench)
        own.store.now = utc_now
        for turn in range(n_promotions // N_WRITERS):  # of its own two in turn, so that each one changes something
            label, by = labels[2 * number + (turn + 1) % 2], Actor(f"writer {number}")
            tried_again(partial(promote, own.store, "hybrid", label, by))

    reader = in_child(look)
    assert os.read(looks_fd, 1) == b"."
    writers = [in_child(lambda number=number: write(number)) for number in range(N_WRITERS)]  # type: ignore[misc]
    assert [exit_status(writer) for writer in writers] == [0] * N_WRITERS
    os.write(stopping_fd, b".")
    assert exit_status(reader) == 0
    assert int(os.read(looks_fd, 20)) > 1
    for fd in (stop_fd, stopping_fd, looks_fd, looked_fd):
        os.close(fd)

    entries = bench.audit()[n_before - 1 :]
    assert {entry.action for entry in entries} == {"version.promoted"}
    assert len(entries) == n_promotions + 1
    for before, after in pairwise(entries):
        assert after.detail["before"] == before.detail["version"]
        assert after.at >= before.at
    with bench.store.database.read() as connection:
        promoted = connection.execute(
            select(PromotionRow.id, PromotionRow.previous_id, VersionRow.label)
            .join(VersionRow, VersionRow.id == PromotionRow.version_id)
            .order_by(PromotionRow.id)
        ).all()
        production = in_stage(connection, bench.model.id, "production")
    assert [row.label for row in promoted] == [entry.detail["version"] for entry in entries]
    assert [row.previous_id for row in promoted[1:]] == [row.id for row in promoted[:-1]]
    assert production is not None
    assert production.label == entries[-1].detail["version"]


def test_one_label_registered_by_several_processes_at_once_has_one_content(bench: Any, open_bench: Any) -> None:
    bench.read(0, 1, 2, 3)

    def write(seed: int) -> None:
        own = open_bench()
        own.register(f"1.{seed}.0", seed)
        try:
            own.register("2.0.0", seed)
        except Exception as error:
            assert type(error).__name__ == "VersionTaken"

    writers = [in_child(lambda seed=seed: write(seed)) for seed in range(4)]  # type: ignore[misc]
    assert [exit_status(writer) for writer in writers] == [0] * 4
    bench.store.follow_commits()
    versions = list_versions(bench.store, "hybrid")
    assert [version.label for version in versions] == ["2.0.0", "1.3.0", "1.2.0", "1.1.0", "1.0.0"]
    assert versions[0].sha256 in {version.sha256 for version in versions[1:]}
    assert bench.served == "2.0.0"
    assert bench.actions() == ["version.registered"] * 5


# --- kill -9 --------------------------------------------------------------------------------------------------------------


def do_register(bench: Any) -> None:
    register_version(bench.store, bench.reader, bench.new("2.0.0", 3), TEST)


def do_register_first(bench: Any) -> None:
    bench.register("1.0.0", 4, model_name="another")


CHANGES: dict[str, Callable[[Any], object]] = {
    "register": do_register,
    "register the first": do_register_first,
    "promote": lambda bench: promote(bench.store, "hybrid", "staging", TEST),
    "rollback": lambda bench: rollback(bench.store, "hybrid", TEST),
    "take out of production": lambda bench: set_stage(bench.store, "hybrid", "production", None, TEST),
    "retire": lambda bench: retire(bench.store, "hybrid", "staging", TEST),
    "delete": lambda bench: delete_version(bench.store, "hybrid", "1.0.0", TEST),
}


def state(bench: Any) -> dict[str, Any]:
    """Everything that a client can see, and the audit; without times."""
    store = bench.store
    with store.database.read() as connection:
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        n_blobs = connection.execute(text("SELECT count(*) FROM blobs")).scalar()
    for model in store.catalog.models.values():
        for version in list_versions(store, model.name):
            with store.database.read() as connection:
                assert connection.execute(text("SELECT count(*) FROM group_files")).scalar()
            assert get_version(bench.store, version.model_name, version.label).group.has_model
    return {
        "models": {
            name: (
                model.serving.label,
                dict(model.stages),
                model.is_retired,
                [(version.label, version.stage, version.sha256) for version in list_versions(store, name)],
            )
            for name, model in store.catalog.models.items()
        },
        "audit": [(entry.action, entry.target, entry.detail) for entry in bench.audit()],
        "blobs": n_blobs,
    }


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_is_killed_before_any_statement_of_it_is_there_whole_or_not_at_all(
    three: Any, open_bench: Any, tmp_path: Any, name: str
) -> None:
    promote(three.store, "hybrid", "1.9.0", TEST)
    promote(three.store, "hybrid", "1.10.0", TEST)
    promote(three.store, "hybrid", "1.9.0", TEST)
    set_stage(three.store, "hybrid", "1.0.0", "staging", TEST)
    three.read(3, 4)
    three.store.database.close()
    kept = DataDir(tmp_path / "data").database_path
    before = state(open_bench(copied(kept, tmp_path / "before")))
    changed = open_bench(copied(kept, tmp_path / "after"))
    with counted_statements() as counted:
        CHANGES[name](changed)
    after = state(changed)
    assert before != after

    seen = []
    for moment in [*moments(counted), len(counted) + 1]:
        data_dir = copied(kept, tmp_path / f"killed {moment}")
        is_done = killed_at(lambda path=data_dir: open_bench(path), CHANGES[name], moment)  # type: ignore[misc]
        assert is_done == (moment > len(counted))
        again = open_bench(data_dir)
        found = state(again)
        assert found in (before, after), moment
        seen.append(found == after)
        again.store.database.close()
        shutil.rmtree(data_dir)
    assert seen == sorted(seen)
    assert (seen[0], seen[-2], seen[-1]) == (False, True, True)


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """The kinds of events, statement or commit, in their order."""
    counted: list[str] = []
    listeners = [(hook, partial(lambda hook, *_: counted.append(hook), hook)) for hook in HOOKS]
    for hook, listener in listeners:
        event.listen(Engine, hook, listener)
    try:
        yield counted
    finally:
        for hook, listener in listeners:
            event.remove(Engine, hook, listener)


def moments(counted: list[str]) -> list[int]:
    """The numbers of the events before which to kill: around every commit of what was written, and some of all the others."""
    commits = [number for number, hook in enumerate(counted, start=1) if hook == "commit"]
    chosen = {1, len(counted), *range(3, len(counted), 8)}
    chosen.update(number + step for number in commits[:2] for step in (-1, 0, 1))
    return sorted(number for number in chosen if 0 < number <= len(counted))


def copied(database: Any, data_dir: Any) -> Any:
    data_dir.mkdir()
    shutil.copyfile(database, DataDir(data_dir).database_path)
    return data_dir


def killed_at(open_it: Callable[[], Any], change: Callable[[Any], object], moment: int) -> bool:
    """Do it in a process that kills itself before its statement (or commit) of that number; True if it came to its end."""

    def work() -> None:
        n_left = moment

        def count(*_: object) -> None:
            nonlocal n_left
            n_left -= 1
            if n_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        bench = open_it()
        for hook in HOOKS:
            event.listen(Engine, hook, count)
        change(bench)

    status = exit_status(in_child(work))
    assert status in (0, -signal.SIGKILL)
    return status == 0
