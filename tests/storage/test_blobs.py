"""Blobs: what comes back is what was put, or an error."""

import gzip
import hashlib
import os
from collections.abc import Callable

import pytest
import zstandard
from sqlalchemy import Connection, delete, func, select, text, update

from mmserver.errors import BlobCorrupt, BlobNotFound
from mmserver.storage.blobs import delete_orphan_blobs, get_blob, get_stored_blob, put_blob, put_encoded_blob
from mmserver.storage.database import Database
from mmserver.storage.tables import BlobRow, FactorListRow, GroupFileRow, GroupRow, MembershipRow, VersionRow

TEXT = b'{"learner": [1, 2, 3]}' * 500


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("data", "codec"),
    [
        pytest.param(TEXT, "zstd", id="shrinks"),
        pytest.param(os.urandom(5000), "raw", id="does-not-shrink"),
        pytest.param(b"", "raw", id="empty"),
    ],
)
def test_what_was_put_comes_back_and_is_stored_as_small_as_it_gets(database: Database, data: bytes, codec: str) -> None:
    with database.write() as connection:
        sha256 = put_blob(connection, data)
        assert put_blob(connection, data) == sha256 == sha256_of(data)
    with database.read() as connection:
        assert get_blob(connection, sha256) == data
        stored = get_stored_blob(connection, sha256)
        assert (stored.codec, stored.size_bytes) == (codec, len(data))
        assert len(stored.content) <= len(data)
        assert connection.scalar(select(func.count()).select_from(BlobRow)) == 1


@pytest.mark.parametrize(
    ("codec", "content"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("gzip", gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:])),
        ("zstd", zstandard.compress(TEXT)),
        ("raw", TEXT),
    ],
    ids=["gzip", "gzip-of-two-members", "zstd", "raw"],
)
def test_compressed_bytes_are_stored_as_they_are(database: Database, codec: str, content: bytes) -> None:
    with database.write() as connection:
        put_encoded_blob(connection, sha256=sha256_of(TEXT), codec=codec, content=content, size_bytes=len(TEXT))
    with database.read() as connection:
        stored = get_stored_blob(connection, sha256_of(TEXT))
        assert (stored.codec, stored.content, stored.size_bytes) == (codec, content, len(TEXT))
        assert get_blob(connection, sha256_of(TEXT)) == TEXT


GZIP = gzip.compress(TEXT)
ZSTD = zstandard.compress(TEXT)


@pytest.mark.parametrize(
    ("codec", "content", "size_bytes"),
    [
        pytest.param("gzip", GZIP[:-9], len(TEXT), id="gzip-cut-off"),
        pytest.param("gzip", GZIP + b"x", len(TEXT), id="gzip-with-more-behind-it"),
        pytest.param("gzip", GZIP, len(TEXT) - 1, id="gzip-longer-than-said"),
        pytest.param("gzip", gzip.compress(TEXT[:-1] + b"!"), len(TEXT), id="other-bytes"),
        pytest.param("zstd", ZSTD[:-1], len(TEXT), id="zstd-cut-off"),
        pytest.param("zstd", ZSTD + b"x", len(TEXT), id="zstd-with-more-behind-it"),
        pytest.param("zstd", ZSTD, len(TEXT) + 1, id="zstd-shorter-than-said"),
        pytest.param("zstd", b"", len(TEXT), id="nothing"),
        pytest.param("raw", TEXT[:-1], len(TEXT), id="raw-cut-off"),
        pytest.param("lzma", TEXT, len(TEXT), id="unknown-codec"),
    ],
)
def test_content_that_is_not_what_its_hash_says_is_neither_stored_nor_given(
    database: Database, codec: str, content: bytes, size_bytes: int
) -> None:
    sha256 = sha256_of(TEXT)
    with database.write() as connection:
        with pytest.raises(BlobCorrupt, match=sha256):
            put_encoded_blob(connection, sha256=sha256, codec=codec, content=content, size_bytes=size_bytes)
        with pytest.raises(BlobNotFound):
            get_stored_blob(connection, sha256)
        put_blob(connection, TEXT)
        connection.execute(update(BlobRow).values(codec=codec, content=content, size_bytes=size_bytes))
        with pytest.raises(BlobCorrupt, match=sha256):
            get_blob(connection, sha256)


def test_a_small_file_that_unpacks_to_much_is_refused_without_unpacking_it(database: Database) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with database.write() as connection, pytest.raises(BlobCorrupt):
        put_encoded_blob(connection, sha256="0" * 64, codec="gzip", content=bomb, size_bytes=10)


def test_only_what_nothing_refers_to_is_deleted(
    database: Database, fill_every_table: Callable[[Connection], None]
) -> None:
    with database.write() as connection:
        fill_every_table(connection)
        orphan = put_blob(connection, b"nobody wants this")
        kept = set(connection.scalars(select(BlobRow.sha256))) - {orphan}
        assert delete_orphan_blobs(connection) == 1
        assert set(connection.scalars(select(BlobRow.sha256))) == kept
        connection.execute(delete(MembershipRow).where(MembershipRow.group_id == 2))
        assert delete_orphan_blobs(connection) == 1
        assert set(connection.scalars(select(GroupRow.id))) == {1, 3}
        assert set(connection.scalars(select(GroupFileRow.group_id))) == {1, 3}
        assert connection.scalar(select(func.count()).select_from(FactorListRow)) == 2
        assert connection.scalar(select(func.count()).select_from(VersionRow)) == 3


def test_orphans_beside_many_groups_are_deleted_without_a_scan_for_each(database: Database) -> None:
    series = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
    with database.write() as connection:
        for statement in (
            f"INSERT INTO blobs {series} SELECT printf('%064d', i), 'raw', 0, '' FROM n",
            "INSERT INTO factor_lists VALUES ('f', '[]')",
            "INSERT INTO models (name, kind, status, registered_at, refreshed_at) VALUES ('m', 'watched', 'ok', '', '')",
            "INSERT INTO groups (sha256, group_key, symbol, return_name, dim, factors_sha256, detail_sha256, integrity)"
            f" {series} SELECT i, 'k', 's', 'r', 1, 'f', printf('%064d', i), 'unverified' FROM n WHERE i <= 10000",
            "INSERT INTO memberships (model_id, group_id, first_seq) SELECT 1, id, 1 FROM groups",
        ):
            connection.execute(text(statement))
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        raw = connection.connection.driver_connection
        raw.set_progress_handler(count, 1000)
        assert delete_orphan_blobs(connection) == 10_000
        raw.set_progress_handler(None, 0)
    assert steps < 20_000  # thousands of SQLite's own instructions; a scan for each takes a hundred times as many


def test_ids_are_never_used_twice(database: Database, fill_every_table: Callable[[Connection], None]) -> None:
    with database.write() as connection:
        fill_every_table(connection)
        connection.execute(delete(MembershipRow).where(MembershipRow.group_id == 3))
        delete_orphan_blobs(connection)
        row = connection.execute(select(GroupRow.__table__).where(GroupRow.id == 1)).one()._asdict()
        del row["id"]
        inserted = connection.execute(GroupRow.__table__.insert().values(row | {"sha256": "new"}))
        assert inserted.inserted_primary_key == (4,)
