"""Asynchronous faces of classes that work synchronously: each method is written once, and awaited from a thread."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

Sync_co = TypeVar("Sync_co", covariant=True)
Own = TypeVar("Own")
Given = ParamSpec("Given")
Found = TypeVar("Found")


class HasSync(Protocol[Sync_co]):
    """An asynchronous face: it holds the object that does the work."""

    @property
    def sync(self) -> Sync_co:
        """The object that does the work."""


def in_thread(
    method: Callable[Concatenate[Own, Given], Found],
) -> Callable[Concatenate[HasSync[Own], Given], Coroutine[Any, Any, Found]]:
    """The method for an asynchronous class: it runs in a thread, so that the event loop goes on meanwhile."""

    @functools.wraps(method)
    async def awaited(self: HasSync[Own], /, *args: Given.args, **kwargs: Given.kwargs) -> Found:
        return await asyncio.to_thread(method, self.sync, *args, **kwargs)

    return awaited
