"""What a route can ask for, and what a key can be for: each scope stands by itself, except that `admin` is all of them.

| scope | what it opens |
|---|---|
| `read` | what is served and known: payloads, lists, histories, results, pages |
| `predict` | predictions, in every protocol |
| `manage` | every change: registering, refreshing, promoting, experiments, outcomes, venues, loading |
| `admin` | all of these, and what is about the server itself |
"""

from typing import Literal, TypeAlias

Scope: TypeAlias = Literal["read", "predict", "manage", "admin"]
Permission: TypeAlias = Literal["open", "read", "predict", "manage", "admin"]
"""A scope, or `open`: for everybody, whatever the settings say."""

SCOPES: tuple[Scope, ...] = ("read", "predict", "manage", "admin")
PERMISSIONS: tuple[Permission, ...] = ("open", *SCOPES)
