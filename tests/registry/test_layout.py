"""The directory of registered models: what is in it, that it follows, and that nobody who reads it sees half of anything."""

import errno
import functools
import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from mmserver.catalog.catalog import Actor
from mmserver.errors import ReadOnly, SettingInvalid
from mmserver.jobs import Jobs
from mmserver.registry.annotating import annotate_version, update_metrics
from mmserver.registry.layout import Follower, sync_directory
from mmserver.registry.owned_files import locked_directory, opened_root
from mmserver.registry.removing import delete_version
from mmserver.registry.stages import promote, retire, rollback, set_stage
from mmserver.storage.tables import UsedLabelRow

TEST = Actor("test")
OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink")


def tree(directory: Path) -> dict[str, Any]:
    """Everything in it: bytes of files, targets of links, None for directories."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


def assert_whole(version_dir: Path) -> dict[str, Any]:
    """The metadata of a version all of whose files are there with the content that it promises."""
    metadata: dict[str, Any] = json.loads((version_dir / "metadata.json").read_bytes())
    assert metadata["files"]
    for file in metadata["files"]:
        assert hashlib.sha256((version_dir / file["path"]).read_bytes()).hexdigest() == file["sha256"]
    return metadata


def assert_links_whole(directory: Path) -> None:
    for link in (*directory.glob("*/production"), *directory.glob("*/staging")):
        target = link.parent / os.readlink(link)
        assert assert_whole(target)["version"] == target.name.removeprefix("v")


def in_child(work: Callable[[], object]) -> int:
    """How a forked process that does the work ended: its status, or the signal as a negative number."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            logging.exception("child")
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def shown(open_bench: Callable[..., Any], models: Path) -> Any:
    """A bench with a directory."""
    return open_bench(registry_dir=models)


# --- what is in it ---------------------------------------------------------------------------------------------------------


def test_a_version_is_a_directory_with_the_file_as_it_was_handed_in(shown: Any, models: Path) -> None:
    shown.register("1.0.0", 0, description="first", metrics={"sharpe": 1.5}, training_params={"epochs": 3},
                   tags={"desk": "fx"})  # fmt: skip
    assert (models / "hybrid" / "v1.0.0" / "model.tiny").read_bytes() == shown.contents[0]
    metadata = assert_whole(models / "hybrid" / "v1.0.0")
    expected = {"name": "hybrid", "version": "1.0.0", "stage": "None", "model_type": "tiny", "description": "first",
                "metrics": {"sharpe": 1.5}, "training_params": {"epochs": 3}, "tags": {"desk": "fx"}, "parity": None,
                "factors": ["momentum", "volume", "spread"], "size_bytes": len(shown.contents[0])}  # fmt: skip
    assert {name: metadata[name] for name in expected} == expected
    assert {"sha256", "created_at", "updated_at", "size_mb"} <= metadata.keys()


def test_files_beside_the_model_keep_their_names_and_give_way_to_ours(shown: Any, models: Path) -> None:
    files = {"data/weights.bin": b"w", "metadata.json": b"theirs", "model.tiny/x": b"x", "files/y": b"y"}
    shown.register("1.0.0", 0, files=files)
    version = models / "hybrid" / "v1.0.0"
    metadata = assert_whole(version)
    assert (version / "data/weights.bin").read_bytes() == b"w"
    assert (version / "files/metadata.json").read_bytes() == b"theirs"
    assert {file["name"]: file["role"] for file in metadata["files"]} == {
        "hybrid.tiny": "model",
        **dict.fromkeys(files, "data"),
    }


def test_links_follow_the_stages(shown: Any, models: Path) -> None:
    shown.register_all("1.0.0", "1.1.0", "1.2.0")
    promote(shown.store, "hybrid", "1.0.0", TEST)
    set_stage(shown.store, "hybrid", "1.1.0", "staging", TEST)
    assert os.readlink(models / "hybrid/production") == "v1.0.0"
    assert os.readlink(models / "hybrid/staging") == "v1.1.0"
    promote(shown.store, "hybrid", "staging", TEST)
    assert os.readlink(models / "hybrid/production") == "v1.1.0"
    assert not (models / "hybrid/staging").is_symlink()
    stages = {path.parent.name: json.loads(path.read_bytes())["stage"] for path in models.rglob("v*/metadata.json")}
    assert stages == {"v1.0.0": "Archived", "v1.1.0": "Production", "v1.2.0": "None"}
    rollback(shown.store, "hybrid", TEST)
    assert os.readlink(models / "hybrid/production") == "v1.0.0"
    set_stage(shown.store, "hybrid", "1.0.0", None, TEST)
    assert not (models / "hybrid/production").is_symlink()
    retire(shown.store, "hybrid", "1.2.0", TEST)
    assert assert_whole(models / "hybrid/v1.2.0")["stage"] == "Archived"


def test_metadata_follows_what_is_said(shown: Any, models: Path) -> None:
    shown.register("1.0.0")
    update_metrics(shown.store, "hybrid", "1.0.0", {"sharpe": 2}, TEST)
    annotate_version(shown.store, "hybrid", "1.0.0", TEST, description="better", tags={"a": "b"})
    metadata = assert_whole(models / "hybrid/v1.0.0")
    assert (metadata["metrics"], metadata["description"], metadata["tags"]) == ({"sharpe": 2}, "better", {"a": "b"})


def test_removed_versions_vanish_and_the_model_with_its_last(shown: Any, models: Path) -> None:
    shown.register_all("1.0.0", "1.1.0")
    delete_version(shown.store, "hybrid", "1.0.0", TEST)
    assert sorted(path.name for path in (models / "hybrid").iterdir()) == ["v1.1.0"]
    delete_version(shown.store, "hybrid", "1.1.0", TEST)
    assert list(models.iterdir()) == []


def test_without_the_setting_nothing_is_written(bench: Any, models: Path) -> None:
    bench.register("1.0.0")
    assert not models.exists()
    with pytest.raises(SettingInvalid, match="MMSERVER_REGISTRY_DIR"):
        sync_directory(bench.store)


def test_a_read_only_instance_writes_nothing(shown: Any, open_bench: Callable[..., Any], models: Path) -> None:
    shown.register("1.0.0")
    before = tree(models)
    with pytest.raises(ReadOnly):
        sync_directory(open_bench(registry_dir=models, read_only=True).store)
    assert tree(models) == before


# --- following --------------------------------------------------------------------------------------------------------------


def test_a_sync_builds_all_of_it_from_the_database_and_a_second_one_writes_nothing(
    bench: Any, open_bench: Callable[..., Any], models: Path
) -> None:
    bench.register_all("1.0.0", "1.1.0")
    promote(bench.store, "hybrid", "1.1.0", TEST)
    store = open_bench(registry_dir=models).store
    done = sync_directory(store)
    assert done.written == ["hybrid/v1.0.0", "hybrid/v1.1.0"]
    assert done.problems == done.foreign == []
    before = {path: path.lstat().st_ino for path in models.rglob("*")}
    for verifies in (False, True):
        again = sync_directory(store, verifies=verifies)
        assert not again.is_changed
        assert {path: path.lstat().st_ino for path in models.rglob("*")} == before


@pytest.mark.parametrize("verifies", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda version: (version / "model.tiny").unlink(), id="file-gone"),
        pytest.param(lambda version: (version / "model.tiny").write_bytes(b"short"), id="file-cut"),
        pytest.param(lambda version: (version.parent / "production").unlink(), id="link-gone"),
    ],
)
def test_a_sync_mends_what_was_damaged(
    shown: Any, models: Path, damage: Callable[[Path], object], verifies: bool
) -> None:
    shown.register("1.0.0")
    promote(shown.store, "hybrid", "1.0.0", TEST)
    before = tree(models)
    damage(models / "hybrid/v1.0.0")
    assert sync_directory(shown.store, verifies=verifies).is_changed
    assert tree(models) == before


@pytest.mark.parametrize("path", ["model.tiny", "metadata.json"])
def test_a_flipped_bit_is_found_by_a_verifying_sync(shown: Any, models: Path, path: str) -> None:
    shown.register("1.0.0", description="what it was")
    file = models / "hybrid/v1.0.0" / path
    right = file.read_bytes()
    file.write_bytes(right.replace(b"what", b"whom") if path == "metadata.json" else right[:-9] + b"#" + right[-8:])
    assert not sync_directory(shown.store).is_changed
    assert sync_directory(shown.store, verifies=True).updated == ["hybrid/v1.0.0"]
    assert file.read_bytes() == right


def test_the_job_follows_what_other_processes_commit(bench: Any, open_bench: Callable[..., Any], models: Path) -> None:
    server = open_bench(registry_dir=models).store
    follower = Follower(server)
    follower.follow()
    bench.register("1.0.0")
    bench.register("1.0.0", 1, model_name="other")
    server.follow_commits()
    follower.follow()
    assert sorted(path.name for path in models.iterdir()) == ["hybrid", "other"]
    (models / "other/v1.0.0/model.tiny").unlink()  # seen only where something was changed
    promote(bench.store, "hybrid", "1.0.0", TEST)
    server.follow_commits()
    follower.follow()
    assert os.readlink(models / "hybrid/production") == "v1.0.0"
    assert not (models / "other/v1.0.0/model.tiny").exists()
    delete_version(bench.store, "other", "1.0.0", TEST)
    server.follow_commits()
    follower.follow()
    assert [path.name for path in models.iterdir()] == ["hybrid"]


def test_a_label_that_was_removed_and_registered_with_another_content_is_replaced_whole(
    bench: Any, open_bench: Callable[..., Any], models: Path
) -> None:
    store = open_bench(registry_dir=models).store
    bench.register("1.0.0", 0)
    promote(bench.store, "hybrid", "1.0.0", TEST)
    sync_directory(store)
    set_stage(bench.store, "hybrid", "1.0.0", None, TEST)
    delete_version(bench.store, "hybrid", "1.0.0", TEST)
    with bench.store.database.write() as connection:
        connection.execute(delete(UsedLabelRow))  # as of a release before this was kept
    bench.register("1.0.0", 1)
    promote(bench.store, "hybrid", "1.0.0", TEST)
    sync_directory(store)
    assert (models / "hybrid/production/model.tiny").read_bytes() == bench.contents[1]
    assert_links_whole(models)


def test_a_sync_that_is_told_to_stop_ends_after_the_version_that_it_writes(
    bench: Any, open_bench: Callable[..., Any], models: Path
) -> None:
    bench.register_all("1.0.0", "1.1.0")
    promote(bench.store, "hybrid", "1.0.0", TEST)
    store = open_bench(registry_dir=models).store
    done = sync_directory(store, is_stopping=(models / "hybrid/v1.0.0").exists)
    assert done.written == ["hybrid/v1.0.0"]
    assert sorted(path.name for path in (models / "hybrid").iterdir()) == ["v1.0.0"]
    sync_directory(store)
    assert os.readlink(models / "hybrid/production") == "v1.0.0"


# --- what others put there -----------------------------------------------------------------------------------------------------


def test_what_others_put_there_is_left_alone_and_named(shown: Any, models: Path) -> None:
    shown.register_all("1.0.0", "1.1.0")
    theirs = [
        "README.md",
        "hybrid/notes.txt",
        "hybrid/v1.0.0/mine.txt",
        "hybrid/v9.0.0/model.pt",
        "foreign/v1.0.0/model.pt",
    ]
    for name in theirs:
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_text("theirs")
    delete_version(shown.store, "hybrid", "1.0.0", TEST)
    done = sync_directory(shown.store)
    assert [(models / name).read_text() for name in theirs] == ["theirs"] * len(theirs)
    assert sorted(done.foreign) == ["README.md", "foreign/v1.0.0", "hybrid/notes.txt", "hybrid/v1.0.0", "hybrid/v9.0.0"]
    assert sorted(path.name for path in (models / "hybrid/v1.0.0").iterdir()) == ["mine.txt"]


@pytest.mark.parametrize("at", ["hybrid", "hybrid/v1.0.0", "hybrid/production", "hybrid/v1.1.0/model.tiny"])
def test_a_planted_symlink_leads_nowhere(
    bench: Any, open_bench: Callable[..., Any], tmp_path: Path, models: Path, at: str
) -> None:
    """At a model's place, a version's, a link's, or a file's: what it points at is never written to, read or removed."""
    bench.register_all("1.0.0", "1.1.0")
    store = open_bench(registry_dir=models).store
    sync_directory(store)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("precious")
    planted = models / at
    if planted.is_dir():
        planted.rename(tmp_path / "moved-away")
    else:
        planted.unlink(missing_ok=True)
    planted.symlink_to(outside)
    promote(bench.store, "hybrid", "1.0.0", TEST)
    done = sync_directory(store)
    delete_version(bench.store, "hybrid", "1.1.0", TEST)
    sync_directory(store)
    assert tree(outside) == {"precious.txt": b"precious"}
    if at != "hybrid/v1.1.0/model.tiny":  # that one is mended: it is inside of what is ours
        assert os.readlink(planted) == str(outside)
        assert any(problem.startswith(f"{at}:") for problem in done.problems) or at in done.foreign
    if at not in ("hybrid", "hybrid/production"):
        assert_links_whole(models)


def test_a_foreign_version_at_our_place_is_named_and_gets_no_link(
    bench: Any, open_bench: Callable[..., Any], models: Path
) -> None:
    (models / "hybrid/v1.0.0").mkdir(parents=True)
    (models / "hybrid/v1.0.0/model.pt").write_text("theirs")
    bench.register("1.0.0")
    promote(bench.store, "hybrid", "1.0.0", TEST)
    done = sync_directory(open_bench(registry_dir=models).store)
    assert any("hybrid/v1.0.0: something else is there" in problem for problem in done.problems)
    assert tree(models) == {"hybrid": None, "hybrid/v1.0.0": None, "hybrid/v1.0.0/model.pt": b"theirs"}


def test_two_servers_with_one_directory_remove_nothing_of_each_other(
    shown: Any, open_bench: Callable[..., Any], tmp_path: Path, models: Path
) -> None:
    shown.register("1.0.0")
    other = open_bench(tmp_path / "other", registry_dir=models)
    other.register("2.0.0", 1)
    before = tree(models)
    for bench in (shown, other):
        sync_directory(bench.store)
        assert tree(models) == before


def test_what_a_restored_database_finds_is_taken_over_only_when_told(
    shown: Any, open_bench: Callable[..., Any], tmp_path: Path, models: Path
) -> None:
    shown.register("1.0.0")
    other = open_bench(tmp_path / "other", registry_dir=models).store
    assert sync_directory(other).foreign == ["hybrid/v1.0.0"]
    assert sync_directory(other, takes_over=True).removed == ["hybrid/v1.0.0", "hybrid"]
    assert list(models.iterdir()) == []


@pytest.mark.parametrize(
    "files",
    [
        pytest.param("../../../outside/precious.txt", id="dots"),
        pytest.param("/etc/hostname", id="absolute"),
        pytest.param("a/../../b", id="dots-within"),
    ],
)
def test_metadata_that_names_files_elsewhere_is_not_ours(shown: Any, models: Path, tmp_path: Path, files: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("precious")
    shown.register_all("1.0.0", "1.1.0")
    path = models / "hybrid/v1.0.0/metadata.json"
    forged = json.loads(path.read_bytes())
    forged["files"][0]["path"] = files
    path.write_text(json.dumps(forged))
    delete_version(shown.store, "hybrid", "1.0.0", TEST)
    assert "hybrid/v1.0.0" in sync_directory(shown.store).foreign
    assert tree(outside) == {"precious.txt": b"precious"}
    assert path.exists()


# --- disks that fail -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", [pytest.param("/sys/mmserver", id="read-only"), pytest.param("file/models", id="file")]
)
def test_a_change_succeeds_where_the_directory_cannot_be_written(
    open_bench: Callable[..., Any], tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no directory")
    bench = open_bench(registry_dir=tmp_path / place)
    bench.register("1.0.0")
    promote(bench.store, "hybrid", "1.0.0", TEST)
    assert bench.model.stages == {"production": "1.0.0"}
    assert "hybrid is not up to date" in caplog.text
    Follower(bench.store).follow()  # raises nothing either


def test_a_full_disk_leaves_links_whole_and_the_next_sync_goes_on(
    bench: Any, open_bench: Callable[..., Any], models: Path
) -> None:
    bench.register("1.0.0")
    promote(bench.store, "hybrid", "1.0.0", TEST)
    sync_directory(open_bench(registry_dir=models).store)
    bench.register("1.1.0", 1)
    promote(bench.store, "hybrid", "1.1.0", TEST)

    def without_space() -> None:
        store = open_bench(registry_dir=models).store
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        done = sync_directory(store)
        assert any(problem.startswith("hybrid/v1.1.0: File too large") for problem in done.problems), done

    assert in_child(without_space) == 0
    assert_links_whole(models)
    assert os.readlink(models / "hybrid/production") == "v1.0.0"  # the last good one
    assert not (models / "hybrid/v1.1.0").exists()
    assert not list(models.rglob(".mmserver-*"))
    sync_directory(open_bench(registry_dir=models).store)
    assert os.readlink(models / "hybrid/production") == "v1.1.0"
    assert_links_whole(models)


def test_where_symlinks_cannot_be_made_a_file_points_at_the_version(
    bench: Any, open_bench: Callable[..., Any], models: Path
) -> None:
    bench.register_all("1.0.0", "1.1.0")

    def no_symlinks(event: str, _: Any) -> None:
        if event == "os.symlink":
            raise PermissionError(errno.EPERM, "Operation not permitted")

    def work() -> None:
        store = open_bench(registry_dir=models).store
        sys.addaudithook(no_symlinks)
        for label in ("1.0.0", "1.1.0"):
            promote(store, "hybrid", label, TEST)
            assert sync_directory(store).problems == []
            assert not sync_directory(store).is_changed
            assert (models / "hybrid/production").read_text() == f"v{label}\n"
        set_stage(store, "hybrid", "1.1.0", None, TEST)
        assert not (models / "hybrid/production").exists()
        promote(store, "hybrid", "1.1.0", TEST)

    assert in_child(work) == 0
    store = open_bench(registry_dir=models).store
    promote(store, "hybrid", "1.0.0", TEST)  # symlinks can be made again
    assert os.readlink(models / "hybrid/production") == "v1.0.0"


# --- several processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stride", [pytest.param(7, id="some-steps"), pytest.param(1, id="every-step", marks=pytest.mark.slow)]
)
def test_killed_at_any_step_every_link_is_on_a_whole_version_and_a_sync_mends_the_rest(
    bench: Any, open_bench: Callable[..., Any], tmp_path: Path, stride: int
) -> None:
    """One sync writes a version, replaces another, removes one with a foreign file in it and one without, and moves links."""
    bench.register_all("1.0.0", "1.1.0", "1.2.0", "1.3.0")
    promote(bench.store, "hybrid", "1.0.0", TEST)
    set_stage(bench.store, "hybrid", "1.1.0", "staging", TEST)
    before = tmp_path / "before"
    sync_directory(open_bench(registry_dir=before).store)
    (before / "hybrid/v1.2.0/mine.txt").write_text("theirs")
    promote(bench.store, "hybrid", "1.1.0", TEST)
    for label in ("1.0.0", "1.2.0", "1.3.0"):
        delete_version(bench.store, "hybrid", label, TEST)
    with bench.store.database.write() as connection:
        connection.execute(delete(UsedLabelRow))  # as of a release before this was kept
    bench.register("1.0.0", 4, files={"weights/w.bin": b"w"})
    promote(bench.store, "hybrid", "1.0.0", TEST)
    set_stage(bench.store, "hybrid", "1.1.0", "staging", TEST)
    after = tmp_path / "after"
    sync_directory(open_bench(registry_dir=after).store)
    expected = {**tree(after), "hybrid/v1.2.0": None, "hybrid/v1.2.0/mine.txt": b"theirs"}
    status = -signal.SIGKILL
    n_steps = 1
    while status == -signal.SIGKILL:
        models = tmp_path / f"killed-{n_steps}"
        shutil.copytree(before, models, symlinks=True)
        status = in_child(functools.partial(killed_at, open_bench, models, n_steps))
        assert_links_whole(models)
        assert (models / "hybrid/v1.2.0/mine.txt").exists()
        sync_directory(open_bench(registry_dir=models).store)
        assert tree(models) == expected, n_steps
        n_steps += stride
    assert status == 0
    assert n_steps > 30


def killed_at(open_bench: Callable[..., Any], models: Path, n_steps: int) -> None:
    """Sync, and die by SIGKILL before the file operation of that number."""
    store = open_bench(registry_dir=models).store
    steps = iter(range(1, n_steps))

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        is_step = event in OPERATIONS and not str(arguments[0]).endswith(("-wal", "-shm", ".db"))
        if is_step and next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    sync_directory(store)
    os._exit(0)


def test_processes_that_sync_and_promote_at_once_never_show_half_a_version(
    bench: Any, open_bench: Callable[..., Any], models: Path
) -> None:
    bench.register_all("1.0.0", "1.1.0", "1.2.0")

    def work(label: str) -> None:
        own = open_bench(registry_dir=models).store
        for _ in range(15):
            promote(own, "hybrid", label, TEST)
            sync_directory(own)

    def child(label: str) -> int:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                work(label)
                status = 0
            except BaseException:
                logging.exception("child")
            finally:
                os._exit(status)
        return pid

    running = {child(label) for label in ("1.0.0", "1.1.0", "1.2.0")}
    while running:
        for pid in list(running):  # each by itself: other tests' processes may end too
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert status == 0
                running.discard(pid)
        link = models / "hybrid/production"
        if link.is_symlink():
            assert_whole(models / "hybrid" / os.readlink(link))
    store = open_bench(registry_dir=models).store
    assert not sync_directory(store).is_changed
    assert os.readlink(models / "hybrid/production") == f"v{store.model('hybrid').stages['production']}"


def test_a_change_does_not_wait_long_for_somebody_who_writes_to_its_model(
    shown: Any, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened_root(models) as root_fd, locked_directory(root_fd, "hybrid", 1.0, makes=True):
        shown.register("1.0.0")
        shown.register("1.0.0", model_name="other")  # and for no other model's
    assert shown.served == "1.0.0"
    assert "hybrid: somebody else is writing to it" in caplog.text
    assert sync_directory(shown.store).written == ["hybrid/v1.0.0"]


def test_the_jobs_of_a_server_keep_the_directory_up_to_date(
    bench: Any, open_bench: Callable[..., Any], models: Path
) -> None:
    jobs = Jobs(open_bench(registry_dir=models).store, None)
    jobs.start()
    try:
        bench.register("1.0.0")
        promote(bench.store, "hybrid", "1.0.0", TEST)
        deadline = time.monotonic() + 60
        while not (models / "hybrid/production").is_symlink():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert_links_whole(models)
    finally:
        jobs.stop()


# --- what a change costs ----------------------------------------------------------------------------------------------------


def test_a_change_looks_only_at_the_versions_that_it_changes(shown: Any, models: Path) -> None:
    shown.register_all("1.0.0", "1.1.0", "1.2.0")
    promote(shown.store, "hybrid", "1.1.0", TEST)
    (models / "hybrid/v1.0.0/model.tiny").unlink()
    promote(shown.store, "hybrid", "1.2.0", TEST)
    assert os.readlink(models / "hybrid/production") == "v1.2.0"
    assert [assert_whole(models / "hybrid" / name)["stage"] for name in ("v1.1.0", "v1.2.0")] == [
        "Archived",
        "Production",
    ]
    assert not (models / "hybrid/v1.0.0/model.tiny").exists()
    assert sync_directory(shown.store).updated == ["hybrid/v1.0.0"]


def test_a_change_brings_back_a_version_whose_directory_is_gone(shown: Any, models: Path) -> None:
    shown.register_all("1.0.0", "1.1.0")
    before = tree(models / "hybrid/v1.0.0")
    shutil.rmtree(models / "hybrid/v1.0.0")
    promote(shown.store, "hybrid", "1.1.0", TEST)
    assert tree(models / "hybrid/v1.0.0") == before


def test_a_change_brings_back_all_of_a_directory_that_another_took_the_place_of(shown: Any, models: Path) -> None:
    shown.register_all("1.0.0", "1.1.0")
    (models / "hybrid").rename(models.parent / "moved-away")
    for name in ("v1.0.0", "v1.1.0"):
        (models / "hybrid" / name).mkdir(parents=True)
    promote(shown.store, "hybrid", "1.1.0", TEST)
    assert [assert_whole(models / "hybrid" / name)["stage"] for name in ("v1.0.0", "v1.1.0")] == ["None", "Production"]


def test_a_version_that_could_not_be_written_is_written_with_the_next_change(shown: Any, models: Path) -> None:
    (models / "hybrid/v1.0.0").mkdir(parents=True)
    (models / "hybrid/v1.0.0/model.pt").write_text("theirs")
    shown.register_all("1.0.0", "1.1.0")
    shutil.rmtree(models / "hybrid/v1.0.0")
    promote(shown.store, "hybrid", "1.1.0", TEST)
    assert assert_whole(models / "hybrid/v1.0.0")["stage"] == "None"


def test_the_job_sees_a_version_that_another_process_removed_and_registered_again(
    shown: Any, open_bench: Callable[..., Any], models: Path
) -> None:
    shown.register_all("1.0.0", "1.1.0")
    follower = Follower(shown.store)
    follower.follow()
    other = open_bench()
    other.calendar.moment = shown.calendar.moment  # the times may well be the same
    delete_version(other.store, "hybrid", "1.0.0", TEST)
    other.register("1.0.0", 0, description="again")
    shown.store.follow_commits()
    follower.follow()
    assert assert_whole(models / "hybrid/v1.0.0")["description"] == "again"


@pytest.mark.parametrize("is_format_new", [False, True])
def test_metadata_that_a_change_tells_again_are_those_that_a_sync_writes(
    shown: Any, models: Path, is_format_new: bool
) -> None:
    shown.register_all("1.0.0", "1.1.0")
    if is_format_new:  # as a release before may have written them
        path = models / "hybrid/v1.0.0/metadata.json"
        before = json.loads(path.read_bytes())
        path.write_text(json.dumps({name: value for name, value in before.items() if name != "served_options"}))
    update_metrics(shown.store, "hybrid", "1.0.0", {"sharpe": 2, "ic": 0.1 + 0.2, "n": 2**60}, TEST)
    annotate_version(shown.store, "hybrid", "1.0.0", TEST, description="größer", tags={"a": "b"})
    promote(shown.store, "hybrid", "1.0.0", TEST)
    promote(shown.store, "hybrid", "1.1.0", TEST)
    metadata = assert_whole(models / "hybrid/v1.0.0")
    assert (metadata["stage"], metadata["description"], metadata["served_options"]) == ("Archived", "größer", None)
    assert not sync_directory(shown.store, verifies=True).is_changed
