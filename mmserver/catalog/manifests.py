"""The producer's manifest: which files it meant to be there, with their hashes; the only guard against silent corruption."""

from collections.abc import Mapping, Sequence

import msgspec

from mmserver.errors import ArtifactInvalid, ArtifactUnstable
from mmserver.watching.beneath import RootHandle
from mmserver.watching.identities import join_relpath
from mmserver.watching.reading import ReadFile, read_file

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
VERIFIED = "verified"
UNVERIFIED = "unverified"


class ManifestFile(msgspec.Struct, frozen=True):
    """One file as the producer wrote it."""

    name: str
    sha256: str
    size: int | None = None


class Manifest(msgspec.Struct, frozen=True):
    """`manifest.json` beside the artifacts, written last; other members are the producer's own."""

    files: list[ManifestFile]


def read_manifest(root: RootHandle, directory: str) -> Mapping[str, ManifestFile] | None:
    """The files that the directory's manifest names; None when it has none.

    Raises:
        ArtifactUnstable: there is one that cannot be read now, or is still being written.
    """
    path = join_relpath(directory, MANIFEST_NAME)
    try:
        found = read_file(root, path, MAX_MANIFEST_BYTES)
    except ArtifactUnstable as error:
        if error.values["reason"] == "vanished":
            return None
        raise
    except ArtifactInvalid as error:
        raise ArtifactUnstable(file=path, reason="manifest_invalid", detail=error.values["detail"]) from error
    try:
        manifest = msgspec.json.decode(found.data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactUnstable(file=path, reason="manifest_invalid", detail=str(error)) from error
    return {entry.name: entry for entry in manifest.files}


def integrity_of(files: Sequence[ReadFile], manifest: Mapping[str, ManifestFile] | None, *, is_required: bool) -> str:
    """`verified` when the manifest vouches for every file, else `unverified`.

    Raises:
        ArtifactUnstable: a hash differs, or a manifest is required and does not name the file; the manifest is written
            last, so it may agree at a later look.
    """
    entries = manifest or {}
    for file in files:
        entry = entries.get(file.name)
        if entry is not None and entry.sha256.lower() != file.sha256:
            detail = f"its SHA-256 is {file.sha256}, the producer's {MANIFEST_NAME} says {entry.sha256}"
            raise ArtifactUnstable(file=file.name, reason="manifest_mismatch", detail=detail)
        if entry is None and is_required:
            reason = "no_manifest" if manifest is None else "not_in_manifest"
            raise ArtifactUnstable(file=file.name, reason=reason, detail=f"no {MANIFEST_NAME} vouches for it")
    return VERIFIED if manifest is not None and all(file.name in entries for file in files) else UNVERIFIED
