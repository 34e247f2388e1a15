"""Decoding a stored blob and checking it against its hash; needs no database, so that a snapshot's checker can use it."""

import hashlib
import zlib
from dataclasses import dataclass
from typing import Literal

import zstandard

from mmserver.errors import BlobCorrupt

Codec = Literal["raw", "gzip", "zstd"]


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as it is stored: `content` is encoded with `codec`, `size_bytes` is what it decodes to."""

    codec: Codec
    content: bytes
    size_bytes: int


def decoded_blob(sha256: str, blob: StoredBlob) -> bytes:
    """Decode and check; never more than `size_bytes` is decoded, whatever the content claims.

    Raises:
        BlobCorrupt: the content does not decode to `size_bytes` bytes with that SHA-256.
    """
    try:
        if blob.codec == "raw":
            data = blob.content
        elif blob.codec == "zstd":
            data = _bytes_from_zstd(blob)
        elif blob.codec == "gzip":
            data = _bytes_from_gzip(blob)
        else:
            raise BlobCorrupt(sha256=sha256, reason=f"unknown codec {blob.codec!r}")
    except (zstandard.ZstdError, zlib.error) as error:
        raise BlobCorrupt(sha256=sha256, reason=str(error)) from error
    if len(data) != blob.size_bytes:
        raise BlobCorrupt(sha256=sha256, reason=f"it does not decode to {blob.size_bytes} bytes")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BlobCorrupt(sha256=sha256, reason="its bytes have another SHA-256")
    return data


def _bytes_from_zstd(blob: StoredBlob) -> bytes:
    parameters = zstandard.get_frame_parameters(blob.content)
    if parameters.content_size != blob.size_bytes:
        return b""  # refused by its length, before anything is allocated
    return zstandard.ZstdDecompressor().decompress(blob.content, allow_extra_data=False)


def _bytes_from_gzip(blob: StoredBlob) -> bytes:
    data, rest = b"", blob.content
    while rest:  # a gzip file may have several members
        decoder = zlib.decompressobj(wbits=31)
        data += decoder.decompress(rest, blob.size_bytes + 1 - len(data))
        if not decoder.eof:
            raise zlib.error("the gzip stream is cut off, or longer than it says")
        rest = decoder.unused_data
    return data
