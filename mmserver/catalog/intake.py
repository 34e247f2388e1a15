"""Taking in settled groups: read to private bytes, checked against the manifest, parsed in the guarded worker, several at once."""

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from mmserver.catalog.ingest import (
    INGEST_GROUPS,
    IngestedGroup,
    IngestError,
    IngestOutcome,
    IngestRequest,
    SourceFile,
)
from mmserver.catalog.manifests import ManifestFile, integrity_of, read_manifest
from mmserver.catalog.publishing import GroupContent, GroupFile, group_sha256, stored_group_id
from mmserver.catalog.store import Store
from mmserver.errors import ArtifactInvalid, ArtifactUnstable, BlobCorrupt, Invalid, WorkerCrashed
from mmserver.storage.decoding import StoredBlob, decoded_blob
from mmserver.watching.beneath import RootHandle
from mmserver.watching.identities import GroupFiles
from mmserver.watching.reading import ReadFile, read_group

MAX_BATCH_GROUPS = 16
MAX_BATCH_BYTES = 16 << 20
MAX_TOLD_CHARS = 2000
UNREAD = "unread"
"""Stands for the hash of files that could not even be read, or not in time: a verdict on them is still to come."""
CRASHED = "crashed"
NO_VERDICT = (f"{CRASHED}(timeout", f"{CRASHED}(SIGKILL (memory", f"{CRASHED}(the zygote")
"""The machine may have been too busy, or have killed the worker for its memory; the next start tries them again."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of one group: its content, or why there is none.

    `is_unstable`: try again later although nothing may change. `files_sha256` identifies what was refused.
    """

    group: GroupFiles
    files: tuple[ReadFile, ...] = ()
    content: GroupContent | None = None
    error: ArtifactInvalid | ArtifactUnstable | None = None
    files_sha256: str = UNREAD

    @property
    def is_unstable(self) -> bool:
        """True if the same files may be usable later."""
        return isinstance(self.error, ArtifactUnstable)

    @property
    def read_at_ns(self) -> int:
        """When the first of the files was read, by the wall clock."""
        return min((file.read_at_ns for file in self.files), default=0)


def take_in(
    store: Store, root: RootHandle, groups: Sequence[GroupFiles], refused: Mapping[str, str]
) -> Iterator[Taken]:
    """What comes of each group, in order, as many at once as there are worker places; never raises for an artifact.

    `refused` has the `files_sha256` of groups that were refused before; the same content is not parsed again.
    """
    intake = _Intake(store, root, refused)
    batches = list(_batches(groups))
    if len(batches) == 1:
        yield from intake.taken(batches[0])
        return
    n_ahead = 2 * store.settings.sandbox_workers
    with ThreadPoolExecutor(store.settings.sandbox_workers, thread_name_prefix="intake") as pool:
        pending: list[Future[list[Taken]]] = []
        try:
            for batch in batches:
                pending.append(pool.submit(intake.taken, batch))
                if len(pending) > n_ahead:
                    yield from pending.pop(0).result()
            while pending:
                yield from pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()


def _batches(groups: Sequence[GroupFiles]) -> Iterator[list[GroupFiles]]:
    """Groups that one worker process reads; they are of one root, so whoever writes one may write the others."""
    batch: list[GroupFiles] = []
    size_bytes = 0
    for group in groups:
        group_bytes = sum(identity.size_bytes for _, identity in group.files)
        if batch and (len(batch) == MAX_BATCH_GROUPS or size_bytes + group_bytes > MAX_BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(group)
        size_bytes += group_bytes
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Read:
    """A group that was read and is to be parsed."""

    group: GroupFiles
    files: tuple[ReadFile, ...]
    used: tuple[ReadFile, ...]
    integrity: str
    sha256: str

    def request(self) -> IngestRequest:
        return IngestRequest(self.group.group_key, tuple(SourceFile(file.name, file.data) for file in self.used))


class _Intake:
    """What the threads of one intake share."""

    def __init__(self, store: Store, root: RootHandle, refused: Mapping[str, str]) -> None:
        self._store = store
        self._root = root
        self._refused = refused
        self._manifests: dict[str, Mapping[str, ManifestFile] | None] = {}
        self._manifests_lock = threading.Lock()

    def taken(self, groups: Sequence[GroupFiles]) -> list[Taken]:
        """Read all, then parse those that are not known yet in one worker process."""
        found = [self._read(group) for group in groups]
        to_parse = [read for read in found if isinstance(read, _Read)]
        outcomes = dict(zip((read.group.group_key for read in to_parse), self._parsed(to_parse), strict=True))
        return [
            self._finished(read, outcomes[read.group.group_key]) if isinstance(read, _Read) else read for read in found
        ]

    def _read(self, group: GroupFiles) -> Taken | _Read:
        """The group to be parsed; or what came of it, where that is clear already."""
        files: tuple[ReadFile, ...] = ()
        sha256 = UNREAD
        try:
            files = tuple(read_group(self._root, group, self._store.settings.max_artifact_bytes))
            used = tuple(self._used(files))
            manifest = self._manifest(group.directory)
            integrity = integrity_of(files, manifest, is_required=self._store.settings.require_manifest)
        except (ArtifactInvalid, ArtifactUnstable) as error:
            return Taken(group, files, None, error, sha256)
        sha256 = group_sha256(group.group_key, ((file.name, file.sha256) for file in used), integrity)
        if self._refused.get(group.group_key) == self._refused_as(sha256):
            known = ArtifactInvalid(file=group.group_key, reason="known", detail="refused before")
            return Taken(group, files, None, known, self._refused_as(sha256))
        with self._store.database.read() as connection:
            is_stored = stored_group_id(connection, sha256) is not None
        if is_stored:
            return Taken(group, files, GroupContent(sha256, (), integrity, None), None, sha256)
        return _Read(group, files, used, integrity, sha256)

    def _refused_as(self, sha256: str) -> str:
        """What is remembered of refused content: other plugins, or other versions of them, may be able to read it."""
        return hashlib.sha256(f"{sha256} {self._store.plugins.identity}".encode()).hexdigest()

    def _parsed(self, reads: Sequence[_Read]) -> list[IngestOutcome]:
        """What the worker makes of each; if it dies over several, each gets a worker of its own."""
        if not reads:
            return []
        try:
            answer = self._store.sandbox.run(INGEST_GROUPS, msgspec.msgpack.encode([read.request() for read in reads]))
            outcomes = msgspec.msgpack.decode(answer, type=list[IngestOutcome])
        except (WorkerCrashed, Invalid, msgspec.MsgspecError) as error:
            if len(reads) > 1:
                return [outcome for read in reads for outcome in self._parsed([read])]
            if isinstance(error, WorkerCrashed):
                reason, detail = f"{CRASHED}({error.values['how']})", "the worker that read it died"
            else:
                reason, detail = CRASHED, f"the worker's answer makes no sense: {error}"
            return [IngestOutcome(error=IngestError(reads[0].group.group_key, reason, detail))]
        keys = [read.group.group_key for read in reads]
        if not _are_answers_for(keys, outcomes):
            told = "the worker answered something else"
            return [IngestOutcome(error=IngestError(key, CRASHED, told)) for key in keys]
        return outcomes

    def _finished(self, read: _Read, outcome: IngestOutcome) -> Taken:
        if outcome.error is not None or outcome.group is None:
            told = outcome.error or IngestError(read.group.group_key, CRASHED, "the worker said nothing of it")
            file, reason, detail = (text[:MAX_TOLD_CHARS] for text in (told.file, told.reason, told.detail))
            error = ArtifactInvalid(file=file, reason=reason, detail=detail)
            is_verdict = not told.reason.startswith(NO_VERDICT)
            return Taken(read.group, read.files, None, error, self._refused_as(read.sha256) if is_verdict else UNREAD)
        if not is_payload_whole(outcome.group):
            error = ArtifactInvalid(
                file=read.group.group_key, reason=CRASHED, detail="the worker's payload is not whole"
            )
            return Taken(read.group, read.files, None, error, self._refused_as(read.sha256))
        stored = tuple(GroupFile(file.name, self._role(file.name), file.sha256, file.data) for file in read.used)
        content = GroupContent(read.sha256, stored, read.integrity, outcome.group)
        return Taken(read.group, read.files, content, None, read.sha256)

    def _used(self, files: Sequence[ReadFile]) -> list[ReadFile]:
        """Without files that are older than the one that they are derived from: those are out of date."""
        plugins = self._store.plugins
        formats = {file.name: plugins.format_for(file.name) for file in files}
        written_ns = {claim.name: file.identity.mtime_ns for file in files if (claim := formats[file.name])}
        used = []
        for file in files:
            claim = formats[file.name]
            source_ns = written_ns.get(claim.derived_from) if claim and claim.derived_from else None
            if source_ns is None or file.identity.mtime_ns >= source_ns:
                used.append(file)
        return used

    def _role(self, name: str) -> str:
        claim = self._store.plugins.format_for(name)
        return claim.role if claim else "unknown"

    def _manifest(self, directory: str) -> Mapping[str, ManifestFile] | None:
        with self._manifests_lock:
            if directory not in self._manifests:
                self._manifests[directory] = read_manifest(self._root, directory)
            return self._manifests[directory]


def _are_answers_for(group_keys: Sequence[str], outcomes: Sequence[IngestOutcome]) -> bool:
    """Whether the worker answered for these groups, one each and in order."""
    return len(outcomes) == len(group_keys) and all(
        outcome.group is None or outcome.group.group_key == key
        for key, outcome in zip(group_keys, outcomes, strict=True)
    )


def is_payload_whole(group: IngestedGroup) -> bool:
    """Whether the payload is what the worker says that it is; a group that lies must not spoil its neighbours' commit."""
    if group.payload_gzip is None or group.payload_sha256 is None:
        return group.payload_gzip is None and group.payload_sha256 is None
    try:
        decoded_blob(group.payload_sha256, StoredBlob("gzip", group.payload_gzip, group.payload_size_bytes))
    except BlobCorrupt:
        return False
    return True
