"""Where the bodies of requests wait until they are whole, and how large they may be."""

import tempfile
from pathlib import Path
from typing import IO, Any, NamedTuple

from waitress.buffers import OverflowableBuffer, TempfileBasedBuffer

from mmserver.settings import Settings
from mmserver.web.late_routes import MAX_UPLOAD_FIELDS_BYTES, UPLOAD_MEDIA_TYPE, UPLOAD_RULES


class UploadRules(NamedTuple):
    """What holds for the one kind of request that may be larger than all others."""

    max_file_bytes: int
    directory: Path | None
    """Where the body waits; None is the system's directory for temporary files."""

    @classmethod
    def of(cls, settings: Settings) -> "UploadRules":
        """Those that the settings name."""
        is_kept_here = settings.snapshot is None and not settings.read_only
        return cls(settings.max_artifact_bytes, settings.data_dir if is_kept_here else None)

    @property
    def max_bytes(self) -> int:
        """Of the whole body; the application counts the files' bytes exactly."""
        return self.max_file_bytes + MAX_UPLOAD_FIELDS_BYTES

    def takes(self, method: str, path: str, content_type: str) -> bool:
        """Whether a request with this head is an upload."""
        return path in UPLOAD_RULES and method == "POST" and content_type.lower().startswith(UPLOAD_MEDIA_TYPE)


class BodyRules(NamedTuple):
    """What holds for the bodies of one server's requests."""

    max_bytes: int
    uploads: UploadRules | None = None

    @property
    def most_bytes(self) -> int:
        """That any body may have."""
        return max(self.max_bytes, self.uploads.max_bytes if self.uploads else 0)


class BodyBuffer(OverflowableBuffer):  # type: ignore[misc]
    """waitress's, which begins a file when the body grows large: here one without a name, in a directory of our choice."""

    buf: Any

    def __init__(self, overflow: int, directory: Path | None = None) -> None:
        super().__init__(overflow)
        self._directory = directory

    def _set_large_buffer(self) -> None:
        """Called by waitress, once at most: a request's body is never pruned."""
        small = self.buf
        self.buf = _FileBuffer(self._directory, small)
        self.overflowed = True
        if small is not None:
            small.close()


class _FileBuffer(TempfileBasedBuffer):  # type: ignore[misc]
    """The file has no name from its first moment on, where the system can do that: nothing is left of it, however the process ends."""

    file: IO[bytes]

    def __init__(self, directory: Path | None, small: Any) -> None:
        self._directory = directory
        super().__init__(small)

    def newfile(self) -> IO[bytes]:
        """Called by waitress."""
        return tempfile.TemporaryFile("w+b", dir=self._directory, suffix=".tmp")

    def close(self) -> None:
        """Also where the disk is full: closing tries once more to write what could not be written."""
        try:
            super().close()
        except OSError:
            self.remain = 0
