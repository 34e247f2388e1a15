"""The rows of the audit are chained by hashes, and are never changed again."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from alembic import op

from mmserver.storage.audit_chain import CHAINED, FIRST_HEAD, HEAD_KEY, AuditHead, row_hash

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BEFORE = "audit_before"
_ROWS_AT_ONCE = 1000


def upgrade() -> None:
    """Chain what there is: from here on a change of it shows; one that was made before cannot."""
    next_id = _next_id()
    _set_aside()
    hash_column = sa.Column("hash", sa.Text(), nullable=False)
    _create_audit(hash_column)
    head = FIRST_HEAD
    insert = sa.text(f"INSERT INTO audit ({', '.join(CHAINED)}, hash) VALUES (:{', :'.join(CHAINED)}, :hash)")  # noqa: S608
    for row in _rows():
        head = AuditHead(row[0], head.n_rows + 1, row_hash(head.hash, row))
        op.get_bind().execute(insert, {**dict(zip(CHAINED, row, strict=True)), "hash": head.hash})
    _finish(next_id)
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit BEGIN"
            " SELECT RAISE(ABORT, 'the audit trail is only ever added to'); END"
        )
    op.get_bind().execute(
        sa.text("INSERT INTO meta (key, value) VALUES (:key, :value)"), {"key": HEAD_KEY, "value": head.text()}
    )


def downgrade() -> None:
    """Forget the chain; the rows stay."""
    for verb in ("UPDATE", "DELETE"):
        op.execute(f"DROP TRIGGER IF EXISTS audit_no_{verb.lower()}")
    next_id = _next_id()
    _set_aside()
    _create_audit()
    op.execute(f"INSERT INTO audit SELECT {', '.join(CHAINED)} FROM {_BEFORE}")  # noqa: S608
    _finish(next_id)
    op.get_bind().execute(sa.text("DELETE FROM meta WHERE key = :key"), {"key": HEAD_KEY})


def _set_aside() -> None:
    op.drop_index("ix_audit_target", table_name="audit")
    op.rename_table("audit", _BEFORE)


def _create_audit(*added: sa.Column[str]) -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        *added,
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )


def _rows() -> Iterable[tuple[Any, ...]]:
    """In parts: a trail may be long, and a table cannot well be read to its end while another is written on the connection."""
    statement = sa.text(
        f"SELECT {', '.join(CHAINED)} FROM {_BEFORE} WHERE id > :last ORDER BY id LIMIT {_ROWS_AT_ONCE}"  # noqa: S608
    )
    last = -(2**63)
    while rows := op.get_bind().execute(statement, {"last": last}).fetchall():
        yield from map(tuple, rows)
        last = rows[-1][0]


def _finish(next_id: int | None) -> None:
    """A table that is made again forgets the ids of rows that were deleted, and would give them out a second time."""
    op.drop_table(_BEFORE)
    op.create_index("ix_audit_target", "audit", ["target", "action", "at"], unique=False)
    if next_id is not None:
        op.execute("DELETE FROM sqlite_sequence WHERE name = 'audit'")
        statement = sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES ('audit', :seq)")
        op.get_bind().execute(statement, {"seq": next_id})


def _next_id() -> int | None:
    found = op.get_bind().execute(sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'audit'")).scalar()
    return None if found is None else int(found)
