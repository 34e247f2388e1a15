"""The audit trail is written with the change or not at all."""

import pytest
from sqlalchemy import insert, select

from mmserver.storage.audit import list_audit, record_audit
from mmserver.storage.database import Database
from mmserver.storage.tables import MetaRow


def test_entries_come_newest_first_and_in_pages(database: Database) -> None:
    for i in range(5):
        with database.write() as connection:
            record_audit(
                connection,
                at="2026-11-20T14:03:22.000000Z",
                actor="key:abc",
                action="model.registered",
                target=f"m{i}",
                detail={"symbols": ["BTC", "ÉTH"], "n": i},
                request_id="r" if i else None,
            )
    with database.read() as connection:
        first = list_audit(connection, 3)
        rest = list_audit(connection, 3, before_id=first[-1].id)
    assert [entry.target for entry in first + rest] == ["m4", "m3", "m2", "m1", "m0"]
    assert rest[-1].detail == {"symbols": ["BTC", "ÉTH"], "n": 0}
    assert (rest[-1].request_id, rest[-1].actor, rest[-1].action) == (None, "key:abc", "model.registered")


def test_a_change_whose_audit_row_cannot_be_written_is_not_made(database: Database) -> None:
    with pytest.raises(ValueError, match="JSON"), database.write() as connection:
        connection.execute(insert(MetaRow).values(key="changed", value=""))
        record_audit(connection, at="", actor="", action="", target="", detail={"x": float("nan")}, request_id=None)
    with database.read() as connection:
        assert connection.scalar(select(MetaRow.key).where(MetaRow.key == "changed")) is None
        assert list_audit(connection, 10) == []
