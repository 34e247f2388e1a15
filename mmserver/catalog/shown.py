"""What this process last saw of registered models in the registry's directory, so that a change costs what it changes."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ShownVersion:
    """A version as the database has it; it has to be looked at again when any of this is another."""

    version_id: int
    sha256: str
    stage: str
    updated_at: str


@dataclass(frozen=True, slots=True)
class ShownModel:
    """The versions whose directories were as they should be, by label, and which directory they were in."""

    directory: tuple[int, int]
    """Device and inode: in another one nothing is known."""
    versions: dict[str, ShownVersion] = field(default_factory=dict)
