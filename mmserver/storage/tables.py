"""The database schema: one class a table, and nothing else.

Times are text, RFC 3339 UTC with microseconds, so that they sort and read the same everywhere. A watched model's content is
kept as intervals: a membership says that a group belonged to its model from version `first_seq` up to and including
`last_seq` (null: still does). A refresh that changes one group of ten thousand writes two rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapped

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# Without it SQLite gives the id of the last deleted row to the next one, and a cache by id in another process is then wrong.
NEVER_REUSE_IDS = {"sqlite_autoincrement": True}


def required(*args: Any, **options: Any) -> Any:
    """A column that is never null."""
    return Column(*args, nullable=False, **options)


def optional(*args: Any, **options: Any) -> Any:
    """A column that may be null."""
    return Column(*args, nullable=True, **options)


class _RowType(type):
    """Lets a row class stand for its table in a statement."""

    __table__: Table

    def __clause_element__(cls) -> Table:
        return cls.__table__


class Row(metaclass=_RowType):
    """What makes a table of a class with columns. SQLAlchemy's own mapping does too, but its import costs a third of the start."""

    metadata: ClassVar[MetaData] = MetaData(naming_convention=NAMING)
    __table__: ClassVar[Table]
    __tablename__: ClassVar[str]
    __table_args__: ClassVar[tuple[Any, ...]] = ()

    def __init_subclass__(cls) -> None:
        columns = {name: value for name, value in vars(cls).items() if isinstance(value, Column)}
        for name, column in columns.items():
            column.name = column.key = name
        options = [part for part in cls.__table_args__ if isinstance(part, dict)]
        constraints = [part for part in cls.__table_args__ if not isinstance(part, dict)]
        keywords = options[0] if options else {}
        cls.__table__ = Table(cls.__tablename__, cls.metadata, *columns.values(), *constraints, **keywords)


class MetaRow(Row):
    """Facts about the database itself, such as its `generation_id` (new in every restored copy)."""

    __tablename__ = "meta"

    key: Mapped[str] = required(Text, primary_key=True)
    value: Mapped[str] = required(Text)


class BlobRow(Row):
    """Bytes under the SHA-256 of what they are before compression; written once, never changed."""

    __tablename__ = "blobs"

    sha256: Mapped[str] = required(Text, primary_key=True)
    codec: Mapped[str] = required(Text)  # "raw" | "zstd" | "gzip"
    size_bytes: Mapped[int] = required(Integer)
    content: Mapped[bytes] = required(LargeBinary)


class ModelRow(Row):
    """A name that predicts; `kind` says how it gets its versions."""

    __tablename__ = "models"
    __table_args__ = (NEVER_REUSE_IDS,)

    id: Mapped[int] = required(Integer, primary_key=True)
    name: Mapped[str] = required(Text, unique=True)
    kind: Mapped[str] = required(Text)  # "watched" | "registered"
    root_path: Mapped[str | None] = optional(Text)
    root_dev: Mapped[int | None] = optional(Integer)
    status: Mapped[str] = required(Text)  # "ok" | "degraded" | "stale" | "frozen"
    error: Mapped[str | None] = optional(Text)
    registered_at: Mapped[str] = required(Text)
    refreshed_at: Mapped[str] = required(Text)


class FactorListRow(Row):
    """An ordered list of factor names, shared by all groups that have it. `factors` is a JSON array."""

    __tablename__ = "factor_lists"

    sha256: Mapped[str] = required(Text, primary_key=True)
    factors: Mapped[str] = required(Text)


class GroupRow(Row):
    """The content of one group: immutable, and shared by all versions (and models) that contain the same bytes.

    `sha256` covers the group key, the roles and hashes of its files, and the version of the parser that read them.
    """

    __tablename__ = "groups"
    __table_args__ = (NEVER_REUSE_IDS,)

    id: Mapped[int] = required(Integer, primary_key=True)
    sha256: Mapped[str] = required(Text, unique=True)
    group_key: Mapped[str] = required(Text)
    symbol: Mapped[str] = required(Text)
    return_name: Mapped[str] = required(Text)
    dim: Mapped[int] = required(Integer)
    train_samples: Mapped[int | None] = optional(Integer)
    ic_mean: Mapped[float | None] = optional(Double)
    factors_sha256: Mapped[str] = required(Text, ForeignKey("factor_lists.sha256"), index=True)
    # ic_table, info, artifacts, model summary
    detail_sha256: Mapped[str] = required(Text, ForeignKey("blobs.sha256"), index=True)
    # null: no model to serve
    payload_sha256: Mapped[str | None] = optional(Text, ForeignKey("blobs.sha256"), index=True)
    manifest_sha256: Mapped[str | None] = optional(Text, ForeignKey("blobs.sha256"), index=True)
    # the ModelFile's content; null where the payload's model_json is that content, or there is no model
    model_sha256: Mapped[str | None] = optional(Text, ForeignKey("blobs.sha256"), index=True)
    no_model_reason: Mapped[str | None] = optional(Text)
    integrity: Mapped[str] = required(Text)  # "verified" by a producer's manifest | "unverified"


class GroupFileRow(Row):
    """One source file of a group, with its bytes as they were."""

    __tablename__ = "group_files"

    group_id: Mapped[int] = required(Integer, ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = required(Text, primary_key=True)
    role: Mapped[str] = required(Text)
    sha256: Mapped[str] = required(Text, ForeignKey("blobs.sha256"), index=True)
    size_bytes: Mapped[int] = required(Integer)


class VersionRow(Row):
    """One immutable state of a model. `added`, `removed`, `updated` are JSON arrays of group keys against the one before."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("model_id", "seq"), UniqueConstraint("model_id", "label"), NEVER_REUSE_IDS)

    id: Mapped[int] = required(Integer, primary_key=True)
    model_id: Mapped[int] = required(Integer, ForeignKey("models.id", ondelete="CASCADE"))
    seq: Mapped[int] = required(Integer)
    label: Mapped[str] = required(Text)
    sha256: Mapped[str] = required(Text)
    created_at: Mapped[str] = required(Text)
    reason: Mapped[str] = required(Text)  # "registered" | "refreshed" | …
    added: Mapped[str] = required(Text)
    removed: Mapped[str] = required(Text)
    updated: Mapped[str] = required(Text)
    symbol_count: Mapped[int] = required(Integer)
    group_count: Mapped[int] = required(Integer)
    factor_count: Mapped[int] = required(Integer)


class MembershipRow(Row):
    """A group belonged to a model in versions first_seq … last_seq; last_seq null: it still does."""

    __tablename__ = "memberships"
    __table_args__ = (
        Index("ix_memberships_model_first", "model_id", "first_seq"),
        Index("ix_memberships_model_last", "model_id", "last_seq"),
        Index("ix_memberships_group", "group_id"),
    )

    id: Mapped[int] = required(Integer, primary_key=True)
    model_id: Mapped[int] = required(Integer, ForeignKey("models.id", ondelete="CASCADE"))
    group_id: Mapped[int] = required(Integer, ForeignKey("groups.id"))
    first_seq: Mapped[int] = required(Integer)
    last_seq: Mapped[int | None] = optional(Integer)


class ServingRow(Row):
    """Which version a model served from `since` on; the last row is what it serves now. Append-only, for `as_of`."""

    __tablename__ = "servings"

    id: Mapped[int] = required(Integer, primary_key=True)
    model_id: Mapped[int] = required(Integer, ForeignKey("models.id", ondelete="CASCADE"), index=True)
    version_id: Mapped[int | None] = optional(Integer, ForeignKey("versions.id", ondelete="SET NULL"), index=True)
    version_label: Mapped[str] = required(Text)  # still there when retention has taken the version away
    since: Mapped[str] = required(Text)
    # "registered" | "refreshed" | "rolled_back" | "promoted" | "unstaged" | "newest"
    reason: Mapped[str] = required(Text)


class RegisteredVersionRow(Row):
    """What was said of a version that was registered by itself; a watched model's versions have no such row.

    `metrics`, `training_params` and `tags` are JSON objects, and may be changed; what the version predicts may not.
    """

    __tablename__ = "registered_versions"

    version_id: Mapped[int] = required(Integer, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    model_type: Mapped[str] = required(Text)  # what its owner calls it, else the name of the ModelFormat that read it
    description: Mapped[str] = required(Text)
    metrics: Mapped[str] = required(Text)
    training_params: Mapped[str] = required(Text)
    tags: Mapped[str] = required(Text)
    options: Mapped[str] = required(Text)  # JSON object: what its format was told
    content_sha256: Mapped[str] = required(Text, index=True)  # over the files as they were handed in, and their options
    size_bytes: Mapped[int] = required(Integer)  # of those files
    kind: Mapped[str] = required(Text)  # of the ModelFile, as are the next two; here, so that a list reads no blobs
    n_features: Mapped[int] = required(Integer)
    input_shape: Mapped[str | None] = optional(Text)  # JSON array
    derived_from: Mapped[str | None] = optional(Text)  # the label that it is an optimised form of
    # JSON, how near it comes to that, or to what it was converted from
    parity: Mapped[str | None] = optional(Text)
    archived_at: Mapped[str | None] = optional(Text)
    updated_at: Mapped[str] = required(Text)


class UsedLabelRow(Row):
    """The content that a label of a registered model means for ever, also after its version was removed: bots may have kept it."""

    __tablename__ = "used_labels"

    model_name: Mapped[str] = required(Text, primary_key=True)
    label: Mapped[str] = required(Text, primary_key=True)
    content_sha256: Mapped[str] = required(Text)


class OptimizationRow(Row):
    """What came of the last try to make a variant of a registered version: the report, whether it was accepted or not."""

    __tablename__ = "optimizations"

    version_id: Mapped[int] = required(Integer, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    variant: Mapped[str] = required(Text, primary_key=True)  # "fp32" | "int8_dynamic" | "int8_static"
    report: Mapped[str] = required(Text)  # JSON
    # null: kept out, not asked for, or removed since
    result_id: Mapped[int | None] = optional(Integer, ForeignKey("versions.id", ondelete="SET NULL"), index=True)
    created_at: Mapped[str] = required(Text)


class StageRow(Row):
    """The version that is in a stage of its model: one at most. Versions that were retired have `archived_at` instead.

    A watched model serves what is in its production, whatever arrives, and its newest version if nothing is.
    """

    __tablename__ = "stages"

    model_id: Mapped[int] = required(Integer, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = required(Text, primary_key=True)  # "production" | "staging"
    version_id: Mapped[int] = required(Integer, ForeignKey("versions.id"), index=True)
    since: Mapped[str] = required(Text)


class PromotionRow(Row):
    """What came into production, and what was there before; append-only. Rolling back undoes the last one not undone."""

    __tablename__ = "promotions"
    __table_args__ = (NEVER_REUSE_IDS,)

    id: Mapped[int] = required(Integer, primary_key=True)
    model_id: Mapped[int] = required(Integer, ForeignKey("models.id", ondelete="CASCADE"), index=True)
    version_id: Mapped[int | None] = optional(Integer, ForeignKey("versions.id", ondelete="SET NULL"), index=True)
    # null: nothing was in production before
    previous_id: Mapped[int | None] = optional(Integer, ForeignKey("promotions.id"), index=True)
    since: Mapped[str] = required(Text)


class WatchedFileRow(Row):
    """The identity that a loaded file had when it was read, so that a restart reads only what changed since."""

    __tablename__ = "watched_files"
    __table_args__ = (Index("ix_watched_files_group", "model_id", "group_key"),)

    model_id: Mapped[int] = required(Integer, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = required(Text, primary_key=True)  # relative to the root
    group_key: Mapped[str] = required(Text)
    dev: Mapped[int] = required(Integer)
    ino: Mapped[int] = required(Integer)
    size_bytes: Mapped[int] = required(Integer)
    mtime_ns: Mapped[int] = required(Integer)
    ctime_ns: Mapped[int] = required(Integer)
    read_at_ns: Mapped[int] = required(Integer)  # wall clock, to be compared with the file's own timestamps only
    sha256: Mapped[str] = required(Text)


class RefusalRow(Row):
    """Content that was looked at and refused; it is not tried again until it changes."""

    __tablename__ = "refusals"

    model_id: Mapped[int] = required(Integer, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    group_key: Mapped[str] = required(Text, primary_key=True)
    files_sha256: Mapped[str] = required(Text)
    file: Mapped[str] = required(Text)
    reason: Mapped[str] = required(Text)
    detail: Mapped[str] = required(Text)
    since: Mapped[str] = required(Text)
    attempts: Mapped[int] = required(Integer)


class VenueRow(Row):
    """A venue whose order quantiles are watched."""

    __tablename__ = "venues"

    name: Mapped[str] = required(Text, primary_key=True)
    pkl_path: Mapped[str] = required(Text)
    quantiles_id: Mapped[int] = required(Integer, ForeignKey("venue_quantiles.id"))
    updated_at: Mapped[str] = required(Text)
    status: Mapped[str] = required(Text)  # "ok" | "stale"
    error: Mapped[str | None] = optional(Text)
    refused_sha256: Mapped[str | None] = optional(Text)
    file_identity: Mapped[str] = required(Text)  # JSON [dev, ino, size_bytes, mtime_ns, ctime_ns]


class VenueQuantilesRow(Row):
    """One table of thresholds, never overwritten. `symbols` is JSON {symbol: [medium, large]}, in quote notional."""

    __tablename__ = "venue_quantiles"
    __table_args__ = (NEVER_REUSE_IDS,)

    id: Mapped[int] = required(Integer, primary_key=True)
    venue: Mapped[str] = required(Text, index=True)
    sha256: Mapped[str] = required(Text)
    since: Mapped[str] = required(Text)
    symbols: Mapped[str] = required(Text)


class ExperimentRow(Row):
    """Two versions compared on live requests. Versions are named, not referred to: what was found out outlives them."""

    __tablename__ = "experiments"
    __table_args__ = (NEVER_REUSE_IDS,)

    id: Mapped[int] = required(Integer, primary_key=True)
    experiment_id: Mapped[str] = required(Text, unique=True)
    # drawn at random: the log of observations has a file of its own, and a restored database must not meet another's sums there
    log_key: Mapped[int] = required(BigInteger, unique=True)
    control_model: Mapped[str] = required(Text)
    control_version: Mapped[str] = required(Text)
    treatment_model: Mapped[str] = required(Text)
    treatment_version: Mapped[str] = required(Text)
    mode: Mapped[str] = required(Text)  # "split" | "shadow"
    unit: Mapped[str] = required(Text)  # "symbol|time-block" | "prediction" | "symbol" | "unit_id"
    block_s: Mapped[float] = required(Double)
    horizon_s: Mapped[float] = required(Double)
    hash_version: Mapped[int] = required(Integer)
    # null: it shares its units with no other
    namespace: Mapped[str | None] = optional(Text)
    slice_start: Mapped[float | None] = optional(Double)
    slice_end: Mapped[float | None] = optional(Double)
    policy: Mapped[str] = required(Text)  # JSON object, every number in it
    auto: Mapped[int] = required(Integer)  # 1: what its policy says is done without asking
    status: Mapped[str] = required(Text, index=True)  # "draft" | "running" | "stopped" | "applied"
    # "promote" | "rollback" | "keep": what was done at its end
    applied: Mapped[str | None] = optional(Text)
    # the last row of the audit when it started: what was done to the control's model since then overrules it
    audit_id: Mapped[int | None] = optional(Integer)
    created_at: Mapped[str] = required(Text)
    created_by: Mapped[str] = required(Text)
    started_at: Mapped[str | None] = optional(Text)
    stopped_at: Mapped[str | None] = optional(Text)
    applied_at: Mapped[str | None] = optional(Text)
    deadline_at: Mapped[str | None] = optional(Text)


class ExperimentPhaseRow(Row):
    """A stretch of an experiment with one weight. While the salt stays, a greater weight only adds treated units."""

    __tablename__ = "experiment_phases"

    experiment_key: Mapped[int] = required(Integer, ForeignKey("experiments.id", ondelete="CASCADE"), primary_key=True)
    phase: Mapped[int] = required(Integer, primary_key=True)
    salt: Mapped[str] = required(Text)
    treatment_weight: Mapped[float] = required(Double)
    started_at: Mapped[str | None] = optional(Text)  # null: of a draft


class ExperimentEvaluationRow(Row):
    """What was decided about an experiment, from which numbers, by which code; append-only."""

    __tablename__ = "experiment_evaluations"
    __table_args__ = (NEVER_REUSE_IDS,)

    id: Mapped[int] = required(Integer, primary_key=True)
    experiment_key: Mapped[int] = required(Integer, ForeignKey("experiments.id", ondelete="CASCADE"), index=True)
    at: Mapped[str] = required(Text)
    reason: Mapped[str] = required(Text)  # "scheduled" | "asked" | "stopped" | "applied"
    inputs: Mapped[str] = required(Text)  # JSON: decides the same when it is decided again
    decision: Mapped[str] = required(Text)  # JSON
    code_version: Mapped[str] = required(Text)


class AuditRow(Row):
    """One row for each change, written in the change's own transaction; order is by id, not by time.

    Triggers keep rows from being changed or deleted, and `hash` chains them: see `audit_chain`.
    """

    __tablename__ = "audit"
    # what was done to one thing in a span of time is looked for by predictions as of a moment
    __table_args__ = (Index("ix_audit_target", "target", "action", "at"), NEVER_REUSE_IDS)

    id: Mapped[int] = required(Integer, primary_key=True)
    at: Mapped[str] = required(Text)
    actor: Mapped[str] = required(Text)
    action: Mapped[str] = required(Text)  # "model.registered", "venue.set", …
    target: Mapped[str] = required(Text)
    detail: Mapped[str] = required(Text)  # JSON object
    request_id: Mapped[str | None] = optional(Text)
    hash: Mapped[str] = required(Text)


class ApiKeyRow(Row):
    """An API key. Rows stay: one that was revoked still says that keys are in use here."""

    __tablename__ = "api_keys"

    key_id: Mapped[str] = required(Text, primary_key=True)
    label: Mapped[str] = required(Text)
    sha256: Mapped[str] = required(Text)  # of the secret
    scopes: Mapped[str] = required(Text)  # JSON array
    models: Mapped[str | None] = optional(Text)  # JSON array of patterns; both null: no limit
    venues: Mapped[str | None] = optional(Text)
    created_at: Mapped[str] = required(Text)
    created_by: Mapped[str] = required(Text)
    expires_at: Mapped[str | None] = optional(Text)
    revoked_at: Mapped[str | None] = optional(Text)
    last_used_at: Mapped[str | None] = optional(Text)  # to the minute
    replaced_by: Mapped[str | None] = optional(Text)  # the id of the key that it was rotated to


class LeaseRow(Row):
    """Which process runs the scheduled jobs; `epoch` grows with every change of holder."""

    __tablename__ = "leases"

    name: Mapped[str] = required(Text, primary_key=True)
    holder: Mapped[str] = required(Text)
    epoch: Mapped[int] = required(Integer)
    expires_at: Mapped[float] = required(
        Double
    )  # seconds of CLOCK_BOOTTIME-like monotonic clock shared by processes of one machine
