"""The database schema: one class a table, and nothing else.

Times are text, RFC 3339 UTC with microseconds, so that they sort and read the same everywhere. A watched model's content is
kept as intervals: a membership says that a group belonged to its model from version `first_seq` up to and including
`last_seq` (null: still does). A refresh that changes one group of ten thousand writes two rows.
"""

from sqlalchemy import ForeignKey, Index, LargeBinary, MetaData, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# Without it SQLite gives the id of the last deleted row to the next one, and a cache by id in another process is then wrong.
NEVER_REUSE_IDS = {"sqlite_autoincrement": True}


class Row(DeclarativeBase):
    """What all tables share: the naming of constraints, so that migrations can name them too."""

    metadata = MetaData(naming_convention=NAMING)


class MetaRow(Row):
    """Facts about the database itself, such as its `generation_id` (new in every restored copy)."""

    __tablename__ = "meta"

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class BlobRow(Row):
    """Bytes under the SHA-256 of what they are before compression; written once, never changed."""

    __tablename__ = "blobs"

    sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    codec: Mapped[str] = mapped_column(Text)  # "raw" | "zstd" | "gzip"
    size_bytes: Mapped[int]
    content: Mapped[bytes] = mapped_column(LargeBinary)


class ModelRow(Row):
    """A name that predicts; `kind` says how it gets its versions."""

    __tablename__ = "models"
    __table_args__ = NEVER_REUSE_IDS

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    kind: Mapped[str] = mapped_column(Text)  # "watched"
    root_path: Mapped[str | None] = mapped_column(Text)
    root_dev: Mapped[int | None]
    status: Mapped[str] = mapped_column(Text)  # "ok" | "degraded" | "stale" | "frozen"
    error: Mapped[str | None] = mapped_column(Text)
    registered_at: Mapped[str] = mapped_column(Text)
    refreshed_at: Mapped[str] = mapped_column(Text)


class FactorListRow(Row):
    """An ordered list of factor names, shared by all groups that have it. `factors` is a JSON array."""

    __tablename__ = "factor_lists"

    sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    factors: Mapped[str] = mapped_column(Text)


class GroupRow(Row):
    """The content of one group: immutable, and shared by all versions (and models) that contain the same bytes.

    `sha256` covers the group key, the roles and hashes of its files, and the version of the parser that read them.
    """

    __tablename__ = "groups"
    __table_args__ = NEVER_REUSE_IDS

    id: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(Text, unique=True)
    group_key: Mapped[str] = mapped_column(Text)
    symbol: Mapped[str] = mapped_column(Text)
    return_name: Mapped[str] = mapped_column(Text)
    dim: Mapped[int]
    train_samples: Mapped[int | None]
    ic_mean: Mapped[float | None]
    factors_sha256: Mapped[str] = mapped_column(ForeignKey("factor_lists.sha256"), index=True)
    # ic_table, info, artifacts, model summary
    detail_sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    # null: no model to serve
    payload_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    manifest_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    no_model_reason: Mapped[str | None] = mapped_column(Text)
    integrity: Mapped[str] = mapped_column(Text)  # "verified" by a producer's manifest | "unverified"


class GroupFileRow(Row):
    """One source file of a group, with its bytes as they were."""

    __tablename__ = "group_files"

    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    role: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    size_bytes: Mapped[int]


class VersionRow(Row):
    """One immutable state of a model. `added`, `removed`, `updated` are JSON arrays of group keys against the one before."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("model_id", "seq"), UniqueConstraint("model_id", "label"), NEVER_REUSE_IDS)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"))
    seq: Mapped[int]
    label: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)  # "registered" | "refreshed" | …
    added: Mapped[str] = mapped_column(Text)
    removed: Mapped[str] = mapped_column(Text)
    updated: Mapped[str] = mapped_column(Text)
    symbol_count: Mapped[int]
    group_count: Mapped[int]
    factor_count: Mapped[int]


class MembershipRow(Row):
    """A group belonged to a model in versions first_seq … last_seq; last_seq null: it still does."""

    __tablename__ = "memberships"
    __table_args__ = (
        Index("ix_memberships_model_last", "model_id", "last_seq"),
        Index("ix_memberships_group", "group_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"))
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id"))
    first_seq: Mapped[int]
    last_seq: Mapped[int | None]


class ServingRow(Row):
    """Which version a model served from `since` on; the last row is what it serves now. Append-only, for `as_of`."""

    __tablename__ = "servings"

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), index=True)
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id", ondelete="SET NULL"), index=True)
    version_label: Mapped[str] = mapped_column(Text)  # still there when retention has taken the version away
    since: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)  # "registered" | "refreshed" | "rolled_back"


class WatchedFileRow(Row):
    """The identity that a loaded file had when it was read, so that a restart reads only what changed since."""

    __tablename__ = "watched_files"

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(Text, primary_key=True)  # relative to the root
    group_key: Mapped[str] = mapped_column(Text)
    dev: Mapped[int]
    ino: Mapped[int]
    size_bytes: Mapped[int]
    mtime_ns: Mapped[int]
    ctime_ns: Mapped[int]
    read_at_ns: Mapped[int]  # wall clock, to be compared with the file's own timestamps only
    sha256: Mapped[str] = mapped_column(Text)


class RefusalRow(Row):
    """Content that was looked at and refused; it is not tried again until it changes."""

    __tablename__ = "refusals"

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    group_key: Mapped[str] = mapped_column(Text, primary_key=True)
    files_sha256: Mapped[str] = mapped_column(Text)
    file: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    detail: Mapped[str] = mapped_column(Text)
    since: Mapped[str] = mapped_column(Text)
    attempts: Mapped[int]


class VenueRow(Row):
    """A venue whose order quantiles are watched."""

    __tablename__ = "venues"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    pkl_path: Mapped[str] = mapped_column(Text)
    quantiles_id: Mapped[int] = mapped_column(ForeignKey("venue_quantiles.id"))
    updated_at: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)  # "ok" | "stale"
    error: Mapped[str | None] = mapped_column(Text)
    refused_sha256: Mapped[str | None] = mapped_column(Text)
    file_identity: Mapped[str] = mapped_column(Text)  # JSON [dev, ino, size_bytes, mtime_ns, ctime_ns]


class VenueQuantilesRow(Row):
    """One table of thresholds, never overwritten. `symbols` is JSON {symbol: [medium, large]}, in quote notional."""

    __tablename__ = "venue_quantiles"
    __table_args__ = NEVER_REUSE_IDS

    id: Mapped[int] = mapped_column(primary_key=True)
    venue: Mapped[str] = mapped_column(Text, index=True)
    sha256: Mapped[str] = mapped_column(Text)
    since: Mapped[str] = mapped_column(Text)
    symbols: Mapped[str] = mapped_column(Text)


class AuditRow(Row):
    """One row for each change, written in the change's own transaction; order is by id, not by time."""

    __tablename__ = "audit"
    __table_args__ = NEVER_REUSE_IDS

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)  # "model.registered", "venue.set", …
    target: Mapped[str] = mapped_column(Text)
    detail: Mapped[str] = mapped_column(Text)  # JSON object
    request_id: Mapped[str | None] = mapped_column(Text)


class LeaseRow(Row):
    """Which process runs the scheduled jobs; `epoch` grows with every change of holder."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    holder: Mapped[str] = mapped_column(Text)
    epoch: Mapped[int]
    expires_at: Mapped[float]  # seconds of CLOCK_BOOTTIME-like monotonic clock shared by processes of one machine
