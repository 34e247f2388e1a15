"""`/api/models/{model}/versions`, `…/diff`, `…/rollback`: a watched model through time."""

import base64
import binascii
import re

import flask
import msgspec

from mmserver.catalog import diffing, history
from mmserver.catalog.history import VersionRecord
from mmserver.security.scopes import needs
from mmserver.web.current import current_actor, current_store
from mmserver.web.models import item_from_model
from mmserver.web.requests import query_number, query_text, read_body, refuse_parameter, required_text
from mmserver.web.responses import json_response

blueprint = flask.Blueprint("versions", __name__)

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
_CURSOR = re.compile(r"before:([0-9]{1,18})")


class RollbackModel(msgspec.Struct, frozen=True):
    """The body of `POST …/rollback`."""

    version: str


@blueprint.get("/api/models/<model_name>/versions")
@needs("read", "model_name")
def list_versions(model_name: str) -> flask.Response:
    """The versions, newest first, `limit` at a time; `next_cursor` is null on the last page."""
    limit = query_number(flask.request, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    cursor = query_text(flask.request, "cursor")
    before_seq = None if cursor is None else seq_from_cursor(cursor)
    records = history.list_versions(current_store(), model_name, limit + 1, before_seq)
    page = records[:limit]
    next_cursor = cursor_from_seq(page[-1].seq) if len(records) > limit else None
    return json_response({"items": [_item_from_record(record) for record in page], "next_cursor": next_cursor})


@blueprint.get("/api/models/<model_name>/diff")
@needs("read", "model_name")
def diff_versions(model_name: str) -> flask.Response:
    """What changed between two versions, group by group."""
    store = current_store()
    old = history.resolve_version(store, model_name, required_text(flask.request, "from"), None)
    new = history.resolve_version(store, model_name, required_text(flask.request, "to"), None)
    return json_response(diffing.diff_versions(store, old, new))


@blueprint.post("/api/models/<model_name>/rollback")
@needs("manage", "model_name")
def rollback_model(model_name: str) -> flask.Response:
    """Serve an older version until the files change again; answers with the model's item."""
    body = read_body(flask.request, RollbackModel)
    model = history.rollback_model(current_store(), model_name, body.version, current_actor())
    return json_response(item_from_model(model))


def cursor_from_seq(seq: int) -> str:
    """An opaque cursor for what is older than the version with that number."""
    return base64.urlsafe_b64encode(f"before:{seq}".encode()).decode().rstrip("=")


def seq_from_cursor(cursor: str) -> int:
    """The number in a cursor that we gave.

    Raises:
        RequestInvalid: we did not give it.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None:
        refuse_parameter("cursor", "not a cursor from this list")
    return int(match[1])


def _item_from_record(record: VersionRecord) -> dict[str, object]:
    return {
        "version": record.label,
        "created_at": record.created_at,
        "reason": record.reason,
        "added": record.added,
        "removed": record.removed,
        "updated": record.updated,
        "stages": record.stages,
    }
