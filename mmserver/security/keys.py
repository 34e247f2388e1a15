"""The text of an API key: `mm_<id>_<secret>_<checksum>`. The id is public, the secret is shown once and kept as its SHA-256 only.

A plain hash is enough, because the secret is 256 random bits: nobody finds it by trying.
"""

import base64
import hashlib
import hmac
import re
import secrets
import zlib
from typing import NamedTuple

from mmserver.errors import KeyMalformed

ID_LENGTH = 10
SECRET_BYTES = 32
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""Without what looks alike: ids are read aloud and typed."""
_KEY = re.compile(r"mm_([a-z2-9]{10})_([A-Za-z0-9_-]{43})_([0-9a-f]{8})")
_LIKE_A_KEY = re.compile(r"mm_([a-z2-9]{10})_[A-Za-z0-9_-]{12,}")
"""Also one that was cut off or mistyped: what is left of its secret is nobody's business either."""
_NOBODYS_SHA256 = hashlib.sha256(b"").hexdigest()


class KeyParts(NamedTuple):
    """What a key's text says, its checksum correct."""

    key_id: str
    secret: str


class NewKey(NamedTuple):
    """A key that was just made: `text` is for its owner only, `sha256` is what is kept."""

    key_id: str
    text: str
    sha256: str


def generate_key() -> NewKey:
    """A key that nobody has."""
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_LENGTH))
    secret = base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).rstrip(b"=").decode()
    return NewKey(key_id, f"mm_{key_id}_{secret}_{_checksum(key_id, secret)}", secret_sha256(secret))


def parts_from_key(text: str) -> KeyParts:
    """The id and the secret.

    Raises:
        KeyMalformed: it is no key, or mistyped: anybody can compute the checksum, so to say so gives nothing away.
    """
    match = _KEY.fullmatch(text)
    if match is None or match[3] != _checksum(match[1], match[2]):
        raise KeyMalformed
    return KeyParts(match[1], match[2])


def secret_sha256(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret_of(secret: str, sha256: str | None) -> bool:
    """Whether this is the secret that was kept; as long to say for an id that nobody has, which is None."""
    is_same = hmac.compare_digest(secret_sha256(secret), sha256 or _NOBODYS_SHA256)
    return is_same and sha256 is not None


def has_key(text: str) -> bool:
    """Whether something in the text looks like a key."""
    return "mm_" in text and _LIKE_A_KEY.search(text) is not None


def without_keys(text: str) -> str:
    """The text with what is secret in it left out."""
    return _LIKE_A_KEY.sub(r"mm_\1_[redacted]", text) if "mm_" in text else text


def _checksum(key_id: str, secret: str) -> str:
    return f"{zlib.crc32(f'{key_id}_{secret}'.encode()):08x}"
