"""A registered label means one content for ever; what was done to one thing is found by an index."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, filled with the labels that are registered, and the index of the audit."""
    op.create_table(
        "used_labels",
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("content_sha256", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model_name", "label", name=op.f("pk_used_labels")),
    )
    op.execute(
        "INSERT INTO used_labels (model_name, label, content_sha256)"
        " SELECT models.name, versions.label, registered_versions.content_sha256 FROM registered_versions"
        " JOIN versions ON versions.id = registered_versions.version_id JOIN models ON models.id = versions.model_id"
    )
    op.create_index("ix_audit_target", "audit", ["target", "action", "at"], unique=False)


def downgrade() -> None:
    """Drop both: labels of versions that were removed may be given to other content again."""
    op.drop_index("ix_audit_target", table_name="audit")
    op.drop_table("used_labels")
