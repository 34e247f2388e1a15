"""The observation file: made whole, refused where it is not ours, and its damage named."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmserver.errors import DatabaseBusy, ObservationsCorrupt, SchemaTooNew, SettingInvalid
from mmserver.experiments.observations.store import ObservationStore
from mmserver.storage.sqlite import connect

MAKE = """
import sys
from pathlib import Path
from mmserver.experiments.observations.store import ObservationStore
sys.stdin.read(1)
ObservationStore(Path(sys.argv[1])).close()
print("ok")
"""


def test_it_is_made_with_all_its_tables_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    store = ObservationStore(tmp_path / "new" / "o.sqlite")
    with store.read() as raw:
        tables = {row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()}
        assert raw.execute("PRAGMA auto_vacuum").fetchone()[0] == 2
    assert tables >= {"predictions", "outcomes", "units", "phase_totals", "symbol_totals", "prices", "journals"}
    store.close()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"o.sqlite", "o.sqlite.lock"}


def test_processes_that_make_it_at_the_same_time_agree(tmp_path: Path) -> None:
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE, tmp_path / "o.sqlite"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    assert [maker.communicate(b"x")[0] for maker in makers] == [b"ok\n"] * 2
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_that_is_not_ours_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    for content in (b"", b"rubbish" * 1000):
        path.write_bytes(content)
        with pytest.raises(ObservationsCorrupt, match=r"o\.sqlite"):
            ObservationStore(path)
        assert path.read_bytes() == content


def test_damage_is_named_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    ObservationStore(path).close()
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = b"\xff" * (len(content) - 4096 * 2)
    path.write_bytes(content)
    with pytest.raises(ObservationsCorrupt, match="move it away"):
        ObservationStore(path).quick_check()


def test_a_file_of_a_newer_mmserver_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    ObservationStore(path).close()
    connection = connect(path, "rw")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(SchemaTooNew):
        ObservationStore(path)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingInvalid):
        ObservationStore(tmp_path / "file" / "o.sqlite")


def test_a_write_that_another_process_holds_up_is_busy_and_changes_nothing(tmp_path: Path) -> None:
    store = ObservationStore(tmp_path / "o.sqlite", busy_timeout_ms=20)
    other = connect(tmp_path / "o.sqlite", "rw")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusy), store.write() as raw:
        raw.execute("DELETE FROM marks")
    other.execute("ROLLBACK")
    other.close()
    with store.write() as raw:
        raw.execute("DELETE FROM marks")
    store.close()
