"""Groups keep the content of models whose payload does not carry it, so that they can predict."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEEPS_AUTOINCREMENT = {"sqlite_autoincrement": True}


def upgrade() -> None:
    """Add `groups.model_sha256`, null for every group that is there: what the payload carries is enough for those."""
    next_id = _next_id()
    with op.batch_alter_table("groups", recreate="always", table_kwargs=_KEEPS_AUTOINCREMENT) as batch:
        batch.add_column(sa.Column("model_sha256", sa.Text(), nullable=True), insert_after="manifest_sha256")
        batch.create_foreign_key(op.f("fk_groups_model_sha256_blobs"), "blobs", ["model_sha256"], ["sha256"])
        batch.create_index(op.f("ix_groups_model_sha256"), ["model_sha256"], unique=False)
    _keep_next_id(next_id)


def downgrade() -> None:
    """Drop the column; the contents in it go with the next retention."""
    next_id = _next_id()
    with op.batch_alter_table("groups", recreate="always", table_kwargs=_KEEPS_AUTOINCREMENT) as batch:
        batch.drop_index(op.f("ix_groups_model_sha256"))
        batch.drop_constraint(op.f("fk_groups_model_sha256_blobs"), type_="foreignkey")
        batch.drop_column("model_sha256")
    _keep_next_id(next_id)


def _next_id() -> int | None:
    """A table that is made again forgets the ids of rows that were deleted, and would give them out a second time."""
    found = op.get_bind().execute(sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'groups'")).scalar()
    return None if found is None else int(found)


def _keep_next_id(next_id: int | None) -> None:
    if next_id is not None:
        connection = op.get_bind()
        connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = 'groups'"))
        statement = sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES ('groups', :seq)")
        connection.execute(statement, {"seq": next_id})
