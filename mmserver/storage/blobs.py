"""Blobs: bytes under the SHA-256 of what they are before compression, stored once and never changed."""

import hashlib

import zstandard
from sqlalchemy import Column, Connection, Select, delete, select, union_all
from sqlalchemy.dialects.sqlite import insert

from mmserver.errors import BlobNotFound
from mmserver.storage.decoding import Codec, StoredBlob, decoded_blob
from mmserver.storage.tables import BlobRow, FactorListRow, GroupRow, MembershipRow, Row

ZSTD_LEVEL = 3  # levels 4 to 9 gain 1 % on model JSON for four times the time (measured)
_HASHES_A_QUERY = 5000  # below SQLite's limit of bound values in one statement


def put_blob(connection: Connection, data: bytes) -> str:
    """Store bytes, unless they are stored already.

    Returns:
        their SHA-256, hex
    """
    sha256 = hashlib.sha256(data).hexdigest()
    content = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)
    if len(content) < len(data):
        _insert(connection, sha256, StoredBlob("zstd", content, len(data)))
    else:
        _insert(connection, sha256, StoredBlob("raw", data, len(data)))
    return sha256


def put_encoded_blob(connection: Connection, *, sha256: str, codec: Codec, content: bytes, size_bytes: int) -> str:
    """Store bytes that are compressed already; bytes that are stored already keep the codec that they have.

    Raises:
        BlobCorrupt: the content does not decode to `size_bytes` bytes with that SHA-256; nothing was stored.
    """
    blob = StoredBlob(codec, content, size_bytes)
    decoded_blob(sha256, blob)
    _insert(connection, sha256, blob)
    return sha256


def get_blob(connection: Connection, sha256: str) -> bytes:
    """The bytes, decoded and checked against their hash.

    Raises:
        BlobNotFound: there are none with that hash.
        BlobCorrupt: what is stored is not what was stored.
    """
    return decoded_blob(sha256, get_stored_blob(connection, sha256))


def get_stored_blob(connection: Connection, sha256: str) -> StoredBlob:
    """The bytes as they are stored, neither decoded nor checked.

    Raises:
        BlobNotFound: there are none with that hash.
    """
    row = connection.execute(
        select(BlobRow.codec, BlobRow.content, BlobRow.size_bytes).where(BlobRow.sha256 == sha256)
    ).one_or_none()
    if row is None:
        raise BlobNotFound(sha256=sha256)
    return StoredBlob(row.codec, row.content, row.size_bytes)


def delete_orphan_blobs(connection: Connection) -> int:
    """Delete the groups that no version has, the factor lists that no group has, and the blobs that nothing has.

    Returns:
        the number of blobs deleted
    """
    connection.execute(delete(GroupRow).where(GroupRow.id.not_in(select(MembershipRow.group_id))))
    connection.execute(delete(FactorListRow).where(FactorListRow.sha256.not_in(select(GroupRow.factors_sha256))))
    used = [_used_values(column) for column in _columns_that_refer_to_blobs()]
    return connection.execute(delete(BlobRow).where(BlobRow.sha256.not_in(union_all(*used)))).rowcount


def _insert(connection: Connection, sha256: str, blob: StoredBlob) -> None:
    row = {"sha256": sha256, "codec": blob.codec, "content": blob.content, "size_bytes": blob.size_bytes}
    connection.execute(insert(BlobRow).on_conflict_do_nothing(), row)


def _columns_that_refer_to_blobs() -> list[Column[str]]:
    """Found through the foreign keys, so that a new table cannot be forgotten here."""
    return [
        column
        for table in Row.metadata.sorted_tables
        for column in table.columns
        if any(key.column.table.name == BlobRow.__tablename__ for key in column.foreign_keys)
    ]


def _used_values(column: Column[str]) -> Select[str]:
    return select(column).where(column.is_not(None))  # one null would make every NOT IN unknown
