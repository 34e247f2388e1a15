"""What a route can ask for, and what a key can be for: each scope stands by itself, except that `admin` is all of them.

| scope | what it opens |
|---|---|
| `read` | what is served and known: payloads, lists, histories, results, pages |
| `predict` | predictions, in every protocol |
| `manage` | every change: registering, refreshing, promoting, experiments, outcomes, venues, loading |
| `admin` | all of these, and what is about the server itself |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

Scope: TypeAlias = Literal["read", "predict", "manage", "admin"]
Permission: TypeAlias = Literal["open", "read", "predict", "manage", "admin"]
"""A scope, or `open`: for everybody, whatever the settings say."""

SCOPES: tuple[Scope, ...] = ("read", "predict", "manage", "admin")
PERMISSIONS: tuple[Permission, ...] = ("open", *SCOPES)

NEEDS_ATTRIBUTE = "mmserver_needs"
IN_VIEW = "in view"
FLAT_NAME = "flat name"
IN_ADDRESS = frozenset({"model_name", "venue", "experiment_id"})
View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Needs:
    """What a route asks of whoever calls it.

    `limited_by` says how the model or venue is found that the call is about, so that keys which are limited to some can use the
    route: the name of the address's part that names it (`model_name`, `venue`, `experiment_id`), `FLAT_NAME` where the part
    `name` is as the inference protocols have it, or `IN_VIEW` where the view checks by itself. None: such keys are refused.
    """

    permission: Permission
    limited_by: str | None = None


def needs(permission: Permission, limited_by: str | None = None) -> Callable[[View], View]:
    """Declare what a view asks for; a server with a route that does not declare it does not start.

    Use it under the route's own decorator: `@blueprint.get("/mine")`, then `@needs("read")`.
    """
    if permission not in PERMISSIONS:
        raise ValueError(f"{permission!r} is not one of {', '.join(PERMISSIONS)}")

    def declare(view: View) -> View:
        setattr(view, NEEDS_ATTRIBUTE, Needs(permission, limited_by))
        return view

    return declare
