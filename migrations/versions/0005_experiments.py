"""Experiments: two versions compared on live requests, their phases, and what was decided about them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "experiments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("experiment_id", sa.Text(), nullable=False),
        sa.Column("log_key", sa.BigInteger(), nullable=False),
        sa.Column("control_model", sa.Text(), nullable=False),
        sa.Column("control_version", sa.Text(), nullable=False),
        sa.Column("treatment_model", sa.Text(), nullable=False),
        sa.Column("treatment_version", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("block_s", sa.Double(), nullable=False),
        sa.Column("horizon_s", sa.Double(), nullable=False),
        sa.Column("hash_version", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=True),
        sa.Column("slice_start", sa.Double(), nullable=True),
        sa.Column("slice_end", sa.Double(), nullable=True),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("auto", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("applied", sa.Text(), nullable=True),
        sa.Column("audit_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Text(), nullable=True),
        sa.Column("stopped_at", sa.Text(), nullable=True),
        sa.Column("applied_at", sa.Text(), nullable=True),
        sa.Column("deadline_at", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiments")),
        sa.UniqueConstraint("experiment_id", name=op.f("uq_experiments_experiment_id")),
        sa.UniqueConstraint("log_key", name=op.f("uq_experiments_log_key")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_experiments_status"), "experiments", ["status"], unique=False)
    op.create_table(
        "experiment_phases",
        sa.Column("experiment_key", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column("treatment_weight", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["experiment_key"],
            ["experiments.id"],
            name=op.f("fk_experiment_phases_experiment_key_experiments"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("experiment_key", "phase", name=op.f("pk_experiment_phases")),
    )
    op.create_table(
        "experiment_evaluations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("experiment_key", sa.Integer(), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("inputs", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_key"],
            ["experiments.id"],
            name=op.f("fk_experiment_evaluations_experiment_key_experiments"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiment_evaluations")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_experiment_evaluations_experiment_key"), "experiment_evaluations", ["experiment_key"], unique=False
    )


def downgrade() -> None:
    """Drop them, with all experiments."""
    op.drop_index(op.f("ix_experiment_evaluations_experiment_key"), table_name="experiment_evaluations")
    op.drop_table("experiment_evaluations")
    op.drop_table("experiment_phases")
    op.drop_index(op.f("ix_experiments_status"), table_name="experiments")
    op.drop_table("experiments")
