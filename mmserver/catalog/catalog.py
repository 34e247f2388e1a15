"""What is served, as one immutable value: readers take `store.catalog` once and keep it to the end of their request."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Literal, TypeAlias

from mmserver.catalog.running import NO_EXPERIMENTS, RunningExperiment

ModelKind: TypeAlias = Literal["watched", "registered"]
"""watched: its versions come from a directory that is polled; registered: they are handed in one by one."""

Stage: TypeAlias = Literal["production", "staging"]

ModelStatus: TypeAlias = Literal["ok", "degraded", "stale", "frozen"]
"""ok; degraded: something in the directory is refused and was never served; stale: so is newer content of something that is
served as it was, or the last refresh as a whole; frozen: most of the directory vanished, and nothing is taken away until it
is back."""


@dataclass(frozen=True, slots=True)
class Group:
    """One group_key of a version. Its table, info and payload are blobs, read when they are asked for."""

    id: int
    sha256: str
    group_key: str
    symbol: str
    return_name: str
    dim: int
    factors: tuple[str, ...]
    train_samples: int | None
    ic_mean: float | None
    detail_sha256: str
    payload_sha256: str | None
    """SHA-256 of the payload's JSON text before compression; None when there is no model to serve."""
    manifest_sha256: str | None
    no_model_reason: str | None
    integrity: str
    model_sha256: str | None = None
    """SHA-256 of the model's own content; None where the payload carries it, or there is no model."""

    @property
    def has_model(self) -> bool:
        """Whether the model has a payload; one whose kind no plugin gives as JSON may have other forms."""
        return self.payload_sha256 is not None

    @property
    def download_sha256(self) -> str | None:
        """The content that every form of the model is made of; None where no model is stored."""
        return self.payload_sha256 or self.model_sha256

    @property
    def can_predict(self) -> bool:
        """Whether a model is stored; some have no payload, because no plugin gives their kind as JSON."""
        return self.download_sha256 is not None


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable state of a model."""

    id: int
    model_name: str
    seq: int
    label: str
    sha256: str
    created_at: datetime
    reason: str
    groups: Mapping[str, Group]
    """By group key, in sorted order."""
    group_keys_by_symbol: Mapping[str, tuple[str, ...]]
    """By the symbol's comparison form, see `symbols.comparable_symbol`."""
    factors: tuple[str, ...]
    """The deduplicated union, in order of first appearance."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An artifact that is not served, and why; the last good content of its group is."""

    group_key: str
    file: str
    reason: str
    detail: str
    since: datetime
    attempts: int
    is_content: bool
    """True if files were read and refused; False for what a look without reading found, such as a named pipe."""


@dataclass(frozen=True, slots=True)
class Model:
    """A name that predicts, and the version of it that is served."""

    id: int
    name: str
    kind: ModelKind
    root_path: str | None
    """The directory of a watched model; None for a registered one."""
    status: ModelStatus
    error: str | None
    registered_at: datetime
    refreshed_at: datetime
    serving: Version
    newest_label: str
    """Of the version that came last; differs from `serving.label` after a rollback, and where a stage says what is served."""
    refusals: tuple[Refusal, ...]
    stages: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Labels by stage; what is in production is `serving`."""
    is_retired: bool = False
    """Every version of a registered model was retired: `serving` is the last one, and answers to its own label only."""

    @property
    def is_watched(self) -> bool:
        """Whether a directory is behind it."""
        return self.kind == "watched"

    @property
    def trouble(self) -> str | None:
        """What is wrong, in a sentence: the model's own error, else the first refusal and how many more there are."""
        if self.error is not None or not self.refusals:
            return self.error
        first = self.refusals[0]
        more = f" (and {len(self.refusals) - 1} more)" if len(self.refusals) > 1 else ""
        return f"{first.file}: {first.reason}: {first.detail}{more}"


@dataclass(frozen=True, slots=True)
class Venue:
    """Order-size thresholds of one venue: symbol → (medium, large) in quote notional."""

    name: str
    pkl_path: str
    updated_at: datetime
    status: str
    error: str | None
    symbols: Mapping[str, tuple[float, float]]
    symbol_by_comparable: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that is served at one moment."""

    models: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    venues: Mapping[str, Venue] = field(default_factory=lambda: MappingProxyType({}))
    experiments: Mapping[str, tuple[RunningExperiment, ...]] = field(default_factory=lambda: NO_EXPERIMENTS)
    """Those that run, by the control's model; empty most of the time."""

    def with_model(self, model: Model) -> "Catalog":
        """The same catalog but for one model, in the order of their names."""
        models = {**self.models, model.name: model}
        return replace(self, models=MappingProxyType(dict(sorted(models.items()))))

    def without_model(self, model_name: str) -> "Catalog":
        """The same catalog without that model."""
        models = {name: model for name, model in self.models.items() if name != model_name}
        return replace(self, models=MappingProxyType(models))


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asked for a change, for the audit."""

    name: str
    request_id: str | None = None
