"""The first schema: models, their versions and groups, blobs, venues, the audit trail, the lease."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("codec", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blobs")),
    )
    op.create_table(
        "factor_lists",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("factors", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_factor_lists")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_meta")),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("root_path", sa.Text(), nullable=True),
        sa.Column("root_dev", sa.Integer(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("registered_at", sa.Text(), nullable=False),
        sa.Column("refreshed_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("name", name=op.f("uq_models_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "venue_quantiles",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("venue", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("since", sa.Text(), nullable=False),
        sa.Column("symbols", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_venue_quantiles")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_venue_quantiles_venue"), "venue_quantiles", ["venue"], unique=False)
    op.create_table(
        "groups",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("group_key", sa.Text(), nullable=False),
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("return_name", sa.Text(), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("train_samples", sa.Integer(), nullable=True),
        sa.Column("ic_mean", sa.Double(), nullable=True),
        sa.Column("factors_sha256", sa.Text(), nullable=False),
        sa.Column("detail_sha256", sa.Text(), nullable=False),
        sa.Column("payload_sha256", sa.Text(), nullable=True),
        sa.Column("manifest_sha256", sa.Text(), nullable=True),
        sa.Column("no_model_reason", sa.Text(), nullable=True),
        sa.Column("integrity", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["detail_sha256"], ["blobs.sha256"], name=op.f("fk_groups_detail_sha256_blobs")),
        sa.ForeignKeyConstraint(
            ["factors_sha256"], ["factor_lists.sha256"], name=op.f("fk_groups_factors_sha256_factor_lists")
        ),
        sa.ForeignKeyConstraint(["manifest_sha256"], ["blobs.sha256"], name=op.f("fk_groups_manifest_sha256_blobs")),
        sa.ForeignKeyConstraint(["payload_sha256"], ["blobs.sha256"], name=op.f("fk_groups_payload_sha256_blobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_groups")),
        sa.UniqueConstraint("sha256", name=op.f("uq_groups_sha256")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_groups_detail_sha256"), "groups", ["detail_sha256"], unique=False)
    op.create_index(op.f("ix_groups_factors_sha256"), "groups", ["factors_sha256"], unique=False)
    op.create_index(op.f("ix_groups_manifest_sha256"), "groups", ["manifest_sha256"], unique=False)
    op.create_index(op.f("ix_groups_payload_sha256"), "groups", ["payload_sha256"], unique=False)
    op.create_table(
        "refusals",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("group_key", sa.Text(), nullable=False),
        sa.Column("files_sha256", sa.Text(), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("since", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_refusals_model_id_models"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("model_id", "group_key", name=op.f("pk_refusals")),
    )
    op.create_table(
        "venues",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("pkl_path", sa.Text(), nullable=False),
        sa.Column("quantiles_id", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("refused_sha256", sa.Text(), nullable=True),
        sa.Column("file_identity", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["quantiles_id"], ["venue_quantiles.id"], name=op.f("fk_venues_quantiles_id_venue_quantiles")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_venues")),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("added", sa.Text(), nullable=False),
        sa.Column("removed", sa.Text(), nullable=False),
        sa.Column("updated", sa.Text(), nullable=False),
        sa.Column("symbol_count", sa.Integer(), nullable=False),
        sa.Column("group_count", sa.Integer(), nullable=False),
        sa.Column("factor_count", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_versions_model_id_models"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("model_id", "label", name=op.f("uq_versions_model_id_label")),
        sa.UniqueConstraint("model_id", "seq", name=op.f("uq_versions_model_id_seq")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "watched_files",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("group_key", sa.Text(), nullable=False),
        sa.Column("dev", sa.Integer(), nullable=False),
        sa.Column("ino", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("mtime_ns", sa.Integer(), nullable=False),
        sa.Column("ctime_ns", sa.Integer(), nullable=False),
        sa.Column("read_at_ns", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_watched_files_model_id_models"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("model_id", "path", name=op.f("pk_watched_files")),
    )
    op.create_index("ix_watched_files_group", "watched_files", ["model_id", "group_key"], unique=False)
    op.create_table(
        "group_files",
        sa.Column("group_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["groups.id"], name=op.f("fk_group_files_group_id_groups"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name=op.f("fk_group_files_sha256_blobs")),
        sa.PrimaryKeyConstraint("group_id", "name", name=op.f("pk_group_files")),
    )
    op.create_index(op.f("ix_group_files_sha256"), "group_files", ["sha256"], unique=False)
    op.create_table(
        "memberships",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("group_id", sa.Integer(), nullable=False),
        sa.Column("first_seq", sa.Integer(), nullable=False),
        sa.Column("last_seq", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"], name=op.f("fk_memberships_group_id_groups")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_memberships_model_id_models"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_memberships")),
    )
    op.create_index("ix_memberships_group", "memberships", ["group_id"], unique=False)
    op.create_index("ix_memberships_model_first", "memberships", ["model_id", "first_seq"], unique=False)
    op.create_index("ix_memberships_model_last", "memberships", ["model_id", "last_seq"], unique=False)
    op.create_table(
        "servings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("version_label", sa.Text(), nullable=False),
        sa.Column("since", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_servings_model_id_models"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_servings_version_id_versions"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_servings")),
    )
    op.create_index(op.f("ix_servings_model_id"), "servings", ["model_id"], unique=False)
    op.create_index(op.f("ix_servings_version_id"), "servings", ["version_id"], unique=False)


def downgrade() -> None:
    """Refuse: before the first schema there is nothing that could hold the data."""
    raise RuntimeError("there is no schema before the first; delete the data directory instead")
