"""Content codings and entity tags."""

import pytest

from mmserver.web.negotiation import choose_encoding, opaque_tags


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        ("", "identity"),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("deflate", "identity"),
        ("identity", "identity"),
        ("*", "gzip"),
        ("*;q=0", "identity"),
        ("gzip;q=0, *", "identity"),
        ("gzip, deflate", "gzip"),
        ("gzip, deflate, br, zstd", "gzip"),
        ("br, zstd", "zstd"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=1.0, br;q=0.5", "gzip"),
        ("br;q=0.2, gzip;q=0.8, zstd;q=0.1", "gzip"),
        ("gzip;q=0", "identity"),
        ("gzip ; q = 0.5", "gzip"),
        ("gzip;q=0, br;q=0.1", "br"),
        ("gzip;q=0.5, identity;q=1", "identity"),
        ("gzip;q=0.5, identity;q=0.5", "gzip"),
        ("gzip, identity;q=0", "gzip"),
        ("gzip;q=banana", "identity"),
        ("gzip;q=7", "identity"),
        (",,;q=1,", "identity"),
    ],
)
def test_the_coding_is_the_clients_favourite_among_ours(accept_encoding: str, expected: str) -> None:
    assert choose_encoding(accept_encoding) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", ()),
        ('"a"', ("a",)),
        ('W/"a"', ("a",)),
        ('"a", W/"b" ,"c"', ("a", "b", "c")),
        ("*", ("*",)),
        ("bare", ("bare",)),
        (",,", ()),
    ],
)
def test_entity_tags_are_read_with_and_without_weakness(header: str, expected: tuple[str, ...]) -> None:
    assert opaque_tags(header) == expected
