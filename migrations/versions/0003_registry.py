"""The registry: versions that are registered one by one, stages, and what was in production when."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; no model has a stage yet."""
    op.create_table(
        "optimizations",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_optimizations_version_id_versions"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["result_id"], ["versions.id"], name=op.f("fk_optimizations_result_id_versions"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("version_id", "variant", name=op.f("pk_optimizations")),
    )
    op.create_index(op.f("ix_optimizations_result_id"), "optimizations", ["result_id"], unique=False)
    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("previous_id", sa.Integer(), nullable=True),
        sa.Column("since", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_promotions_model_id_models"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_promotions_version_id_versions"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["previous_id"], ["promotions.id"], name=op.f("fk_promotions_previous_id_promotions")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotions")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_promotions_model_id"), "promotions", ["model_id"], unique=False)
    op.create_index(op.f("ix_promotions_version_id"), "promotions", ["version_id"], unique=False)
    op.create_index(op.f("ix_promotions_previous_id"), "promotions", ["previous_id"], unique=False)
    op.create_table(
        "registered_versions",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("model_type", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("training_params", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("content_sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("n_features", sa.Integer(), nullable=False),
        sa.Column("input_shape", sa.Text(), nullable=True),
        sa.Column("derived_from", sa.Text(), nullable=True),
        sa.Column("parity", sa.Text(), nullable=True),
        sa.Column("archived_at", sa.Text(), nullable=True),
        sa.Column("updated_at", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_registered_versions_version_id_versions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_registered_versions")),
    )
    op.create_index(
        op.f("ix_registered_versions_content_sha256"), "registered_versions", ["content_sha256"], unique=False
    )
    op.create_table(
        "stages",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("since", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_stages_model_id_models"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_stages_version_id_versions")),
        sa.PrimaryKeyConstraint("model_id", "stage", name=op.f("pk_stages")),
    )
    op.create_index(op.f("ix_stages_version_id"), "stages", ["version_id"], unique=False)


def downgrade() -> None:
    """Drop the tables. Registered models are forgotten: a release before this one takes every model for a watched one."""
    connection = op.get_bind()
    op.drop_table("stages")
    op.drop_table("registered_versions")
    op.drop_table("promotions")
    op.drop_table("optimizations")
    # One by one: foreign keys, which would take these rows with their models, are not enforced in a migration.
    models = sa.table("models", sa.column("id"), sa.column("kind"))
    registered = sa.select(models.c.id).where(models.c.kind == "registered")
    for name in ("memberships", "servings", "versions"):
        table = sa.table(name, sa.column("model_id"))
        connection.execute(sa.delete(table).where(table.c.model_id.in_(registered)))
    connection.execute(sa.text("DELETE FROM models WHERE kind = 'registered'"))
