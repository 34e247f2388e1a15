"""Content codings and entity tags (RFC 9110 §12.5.3, §13.1.2), as far as stored payloads need them."""

import functools

from mmserver.catalog.payloads import Encoding

PREFERENCE: tuple[Encoding, ...] = ("gzip", "zstd", "br")
"""Who offers several alike gets the first: payloads are stored as gzip, the others are made when a client prefers them."""


@functools.lru_cache(maxsize=256)
def choose_encoding(accept_encoding: str) -> Encoding:
    """The coding to answer with: the client's favourite among ours, `identity` where it names none of ours.

    A client that says nothing gets `identity`; one that says `*` gets gzip, which everybody can read.
    """
    weights: dict[str, float] = {}
    for member in accept_encoding.split(","):
        name, _, parameters = member.partition(";")
        weights[name.strip().lower()] = _quality(parameters)
    if "x-gzip" in weights:
        weights.setdefault("gzip", weights["x-gzip"])
    best = max(PREFERENCE, key=lambda encoding: weights.get(encoding, 0.0))
    if weights.get(best, 0.0) > 0.0:
        # a client that would rather have it plain says so with a weight above the codings'
        return best if weights.get("identity", 0.0) <= weights[best] else "identity"
    if "gzip" not in weights and weights.get("*", 0.0) > weights.get("identity", 0.0):
        return "gzip"
    return "identity"


def _quality(parameters: str) -> float:
    """The weight of one member: 1 unless it says otherwise, 0 where what it says makes no sense."""
    text = parameters.strip().lower()
    if not text:
        return 1.0
    name, _, value = text.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0


def opaque_tags(header: str) -> tuple[str, ...]:
    """The entity tags of an If-None-Match header without quotes and `W/`; `*` stays itself."""
    tags = []
    for member in header.split(","):
        tag = member.strip()
        tag = tag.removeprefix("W/")
        if len(tag) >= 2 and tag[0] == tag[-1] == '"':
            tag = tag[1:-1]
        if tag:
            tags.append(tag)
    return tuple(tags)
