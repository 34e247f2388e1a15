"""The operation that says who changed what."""

from mmserver.web.api_description.operations import (
    OF_A_QUERY,
    OF_STORED_DATA,
    QUERY_TEXT,
    Answer,
    Operation,
    Parameter,
)
from mmserver.web.audit import DEFAULT_LIMIT, MAX_LIMIT, AuditItems

AUDIT = "Audit"

_ENDING_ANY = "; with an `*` at the end, what begins like that."
_TIME = {"type": "string", "format": "date-time"}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", "/api/ml/audit", "list_audit", AUDIT, "Who changed what, and what was refused, the newest first",
        description="One entry for each change, written with it; refused attempts have the action `refused` and come a moment "
        "after their answer. Each `hash` is of the entry and of the hash before it; `mmserver audit verify` checks them all.",
        parameters=(
            Parameter("actor", f"Only what this one did{_ENDING_ANY}", QUERY_TEXT, example="key:*"),
            Parameter("action", f"Only this action{_ENDING_ANY}", QUERY_TEXT, example="model.*"),
            Parameter("target", f"Only what was done to this{_ENDING_ANY}", QUERY_TEXT),
            Parameter("since", "Only what was at or after this time.", _TIME),
            Parameter("until", "Only what was before this time.", _TIME),
            Parameter(
                "limit", "How many at most.",
                {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
            ),
            Parameter("cursor", "`next_cursor` of the page before.", QUERY_TEXT),
        ),
        answers=(Answer.json(AuditItems, "A page of the list."),),
        errors=(*OF_A_QUERY, *OF_STORED_DATA),
    ),
)  # fmt: skip
