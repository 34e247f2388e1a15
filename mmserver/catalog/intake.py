"""Taking in settled groups: read to private bytes, checked against the manifest, parsed in the guarded worker, several at once."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from mmserver.catalog.ingest import INGEST_GROUP, IngestedGroup, IngestRequest, SourceFile
from mmserver.catalog.manifests import ManifestFile, integrity_of, read_manifest
from mmserver.catalog.publishing import GroupContent, GroupFile, group_sha256, stored_group_id
from mmserver.catalog.store import Store
from mmserver.errors import ArtifactInvalid, ArtifactUnstable, Invalid, WorkerCrashed
from mmserver.watching.beneath import RootHandle
from mmserver.watching.identities import GroupFiles
from mmserver.watching.reading import ReadFile, read_group

UNREAD = "unread"
"""Stands for the hash of files that could not even be read."""


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
    if len(groups) == 1:
        yield intake.taken(groups[0])
        return
    n_ahead = 2 * store.settings.sandbox_workers
    with ThreadPoolExecutor(store.settings.sandbox_workers, thread_name_prefix="intake") as pool:
        pending: list[Future[Taken]] = []
        try:
            for group in groups:
                pending.append(pool.submit(intake.taken, group))
                if len(pending) > n_ahead:
                    yield pending.pop(0).result()
            while pending:
                yield pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()


class _Intake:
    """What the threads of one intake share."""

    def __init__(self, store: Store, root: RootHandle, refused: Mapping[str, str]) -> None:
        self._store = store
        self._root = root
        self._refused = refused
        self._manifests: dict[str, Mapping[str, ManifestFile] | None] = {}
        self._manifests_lock = threading.Lock()

    def taken(self, group: GroupFiles) -> Taken:
        files: tuple[ReadFile, ...] = ()
        sha256 = UNREAD
        try:
            files = tuple(read_group(self._root, group, self._store.settings.max_artifact_bytes))
            used = self._used(files)
            manifest = self._manifest(group.directory)
            integrity = integrity_of(files, manifest, is_required=self._store.settings.require_manifest)
            sha256 = group_sha256(group.group_key, ((file.name, file.sha256) for file in used), integrity)
            if self._refused.get(group.group_key) == sha256:
                error = ArtifactInvalid(file=group.group_key, reason="known", detail="refused before")
                return Taken(group, files, None, error, sha256)
            return Taken(group, files, self._content(group.group_key, used, integrity, sha256), None, sha256)
        except (ArtifactInvalid, ArtifactUnstable) as error:
            return Taken(group, files, None, error, sha256)

    def _content(self, group_key: str, files: Sequence[ReadFile], integrity: str, sha256: str) -> GroupContent:
        with self._store.database.read() as connection:
            is_stored = stored_group_id(connection, sha256) is not None
        roles = {file.name: self._role(file.name) for file in files}
        stored_files = tuple(GroupFile(file.name, roles[file.name], file.sha256, file.data) for file in files)
        if is_stored:
            return GroupContent(sha256, (), integrity, None)
        return GroupContent(sha256, stored_files, integrity, self._ingested(group_key, files))

    def _ingested(self, group_key: str, files: Sequence[ReadFile]) -> IngestedGroup:
        request = IngestRequest(group_key, tuple(SourceFile(file.name, file.data) for file in files))
        try:
            answer = self._store.sandbox.run(INGEST_GROUP, msgspec.msgpack.encode(request))
            group = msgspec.msgpack.decode(answer, type=IngestedGroup)
        except ArtifactInvalid:
            raise
        except Invalid as error:  # a plugin's predictor or converter failed on it
            reason, detail = str(error.values.get("reason", error.code)), str(error.values.get("detail", error))
            raise ArtifactInvalid(file=group_key, reason=reason, detail=detail) from error
        except WorkerCrashed as error:
            reason = f"crashed({error.values['how']})"
            raise ArtifactInvalid(file=group_key, reason=reason, detail="the worker that read it died") from error
        except msgspec.MsgspecError as error:
            raise ArtifactInvalid(
                file=group_key, reason="crashed", detail="the worker's answer makes no sense"
            ) from error
        if group.group_key != group_key:
            raise ArtifactInvalid(file=group_key, reason="crashed", detail="the worker answered for another group")
        return group

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
