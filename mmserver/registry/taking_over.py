"""Versions that come from elsewhere, one after the other: registered, and put into the stages that they had.

What cannot be taken is named with the reason, and the rest goes on; a second time nothing is changed. What is in production or
staging here is never replaced: an import may fill an empty stage, nothing else.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mmserver.catalog.catalog import Actor
from mmserver.catalog.store import Store
from mmserver.errors import (
    ArtifactInvalid,
    ExtraMissing,
    MmserverError,
    ModelNotFound,
    RequestInvalid,
    VersionInvalid,
    VersionNotFound,
    VersionTaken,
)
from mmserver.registry.registering import NewVersion, Reader, is_content_of, register_version
from mmserver.registry.semantic_versions import check_label, precedence
from mmserver.registry.stage_names import ModelStage
from mmserver.registry.stages import retire, set_stage, stage_from_text
from mmserver.registry.versions import RegisteredVersion, get_version


@dataclass(slots=True)
class TakenOver:
    """What came of an import. Each text begins with `model version:` or with a path."""

    registered: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    staged: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was taken in another way than it was there, or left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A version that was found somewhere. `read` gives what to register, and another form to fall back to, or none."""

    label: str
    stage: ModelStage
    read: Callable[[], "Readable"]
    derived_from: str | None = None
    sha256: str | None = None
    """Of its content, where a registry said so: a version that is here with it need not be read."""


@dataclass(frozen=True, slots=True)
class Readable:
    """A version as it was read where it was found."""

    new: NewVersion
    fallback: NewVersion | None = None
    notes: Sequence[str] = ()
    no_fallback: str = ""
    """Why another form that is there cannot be fallen back to."""


class Importer:
    """Registers what is found elsewhere, and notes in `done` what came of it."""

    def __init__(self, store: Store, reader: Reader, by: Actor) -> None:
        self.store = store
        self.done = TakenOver()
        self._reader = reader
        self._by = by

    def take_over(self, model_name: str, candidates: Mapping[str, Candidate]) -> None:
        """Register versions of one model, by label. What was in production comes first: nothing else is served meanwhile."""
        for candidate in _in_order(candidates):
            with self.skipping(f"{model_name} {candidate.label}"):
                self._take(model_name, candidate)

    @contextmanager
    def skipping(self, what: str) -> Iterator[None]:
        """What hinders this is noted, and the rest goes on."""
        try:
            yield
        except MmserverError as error:
            self.done.skipped.append(f"{what}: {error}")
        except OSError as error:
            self.done.skipped.append(f"{what}: {error.strerror or error}")

    def _take(self, model_name: str, candidate: Candidate) -> None:
        check_label(candidate.label)
        what = f"{model_name} {candidate.label}"
        present = _present(self.store, model_name, candidate.label)
        is_new = False
        if present is None or candidate.sha256 != present.sha256:
            found = candidate.read()
            is_new, notes = self._register(self._as_registered(found, candidate.sha256))
            self.done.notes += [f"{what}: {note}" for note in (*found.notes, *notes)]
        (self.done.registered if is_new else self.done.unchanged).append(what)
        if candidate.stage in (ModelStage.PRODUCTION, ModelStage.STAGING):
            self._fill_stage(model_name, candidate)
        elif candidate.stage is ModelStage.ARCHIVED and is_new:
            retire(self.store, model_name, candidate.label, self._by)
            self.done.staged.append(f"{what}: {candidate.stage}")

    def _as_registered(self, found: Readable, sha256: str | None) -> Readable:
        """Without factors, where none were given when it was registered: those told of it since are the model's own, and with them
        the same content would have another hash.
        """
        bare = dataclasses.replace(found.new, factors=None)
        if sha256 is not None and is_content_of(self.store, bare, sha256):
            return dataclasses.replace(found, new=bare)
        return found

    def _register(self, found: Readable) -> tuple[bool, list[str]]:
        try:
            return self._registered(found.new)
        except VersionTaken:
            if found.fallback is None:
                raise
            # An earlier import may have fallen back; any other content is refused here again.
            return self._registered(found.fallback)
        except (RequestInvalid, ArtifactInvalid, ExtraMissing) as error:
            if found.fallback is None:
                if not found.no_fallback:
                    raise
                problem = f"{error}; {found.no_fallback}"
                raise RequestInvalid(problem, errors=[{"loc": "file", "msg": problem}]) from error
            is_new, notes = self._registered(found.fallback)
            source, unreadable = found.fallback.source.file_name, found.new.source.file_name
            return is_new, [f"taken from {source}, because {unreadable} cannot be read here: {error}", *notes]

    def _registered(self, new: NewVersion) -> tuple[bool, list[str]]:
        done = register_version(self.store, self._reader, new, self._by, only_content=True)
        return done.is_new, [f"its {', '.join(done.unlike)} are others here, and stay"] if done.unlike else []

    def _fill_stage(self, model_name: str, candidate: Candidate) -> None:
        there = _present(self.store, model_name, candidate.stage.lower())
        what = f"{model_name} {candidate.label}"
        if there is None:
            set_stage(self.store, model_name, candidate.label, stage_from_text(candidate.stage), self._by)
            self.done.staged.append(f"{what}: {candidate.stage}")
        elif there.label != candidate.label:
            self.done.notes.append(f"{what}: not put into {candidate.stage}, {there.label} is there")


def _present(store: Store, model_name: str, reference: str) -> RegisteredVersion | None:
    try:
        return get_version(store, model_name, reference)
    except (ModelNotFound, VersionNotFound):
        return None


def _in_order(candidates: Mapping[str, Candidate]) -> Iterator[Candidate]:
    """Production first, then from the oldest on; each after the one that it was derived from."""
    given: set[str] = set()

    def with_source(candidate: Candidate) -> Iterator[Candidate]:
        if candidate.label in given:
            return
        given.add(candidate.label)
        source = candidates.get(candidate.derived_from or "")
        if source is not None:
            yield from with_source(source)
        yield candidate

    for label in sorted(candidates, key=lambda label: _place(candidates[label])):
        yield from with_source(candidates[label])


def _place(candidate: Candidate) -> tuple[Any, ...]:
    """Labels that are none come last, in the order of their text."""
    try:
        check_label(candidate.label)
    except VersionInvalid:
        return (2, candidate.label)
    return (candidate.stage is not ModelStage.PRODUCTION, precedence(candidate.label))
