"""Tables that sort, filter and page on the server, by links and one form; no script is needed."""

import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import flask

from mmserver.web.requests import query_choice, query_number, query_text

Row = TypeVar("Row")
ROWS_PER_PAGE = 200
_MAX_PAGE = 1_000_000


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """One column: its key in links, its heading, and what to sort by."""

    key: str
    title: str
    value: Callable[[Row], Any]
    is_number: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Listing(Generic[Row]):
    """One page of sorted and filtered rows, and how to get to the others."""

    columns: tuple[Column[Row], ...]
    rows: Sequence[Row]
    total: int
    matching: int
    page: int
    page_count: int
    sort: str
    order: str
    query: str
    kept: dict[str, str]

    def link(self, **changes: object) -> str:
        """The address of this listing with some parameters changed; the page starts over unless it is named."""
        parameters = {**self.kept, "sort": self.sort, "order": self.order, "q": self.query, "page": ""}
        parameters.update({name: str(value) for name, value in changes.items()})
        return "?" + urllib.parse.urlencode({name: value for name, value in parameters.items() if value})

    def sort_link(self, column: Column[Row]) -> str:
        """Sort by the column, or the other way round if it is sorted by already; numbers start with the largest."""
        if column.key == self.sort:
            order = "asc" if self.order == "desc" else "desc"
        else:
            order = "desc" if column.is_number else "asc"
        return self.link(sort=column.key, order=order)

    def aria_sort(self, column: Column[Row]) -> str:
        """The value of the heading's `aria-sort`, empty for columns that are not sorted by."""
        if column.key != self.sort:
            return ""
        return "descending" if self.order == "desc" else "ascending"


def listing_from_request(
    request: flask.Request,
    rows: Iterable[Row],
    columns: tuple[Column[Row], ...],
    *,
    matches: Callable[[Row, str], bool],
    kept: Iterable[str] = (),
    rows_per_page: int = ROWS_PER_PAGE,
) -> Listing[Row]:
    """What `?q=&sort=&order=&page=` ask for; the order of `rows` is the one that nobody has to ask for.

    Raises:
        RequestInvalid: no such column, order or page number.
    """
    everything = list(rows)
    query = query_text(request, "q") or ""
    found = [row for row in everything if matches(row, query)] if query else everything
    sort = query_choice(request, "sort", ("", *(column.key for column in columns)))
    order = query_choice(request, "order", ("asc", "desc"))
    column = next((column for column in columns if column.key == sort), None)
    if column is not None:
        found = sorted_rows(found, column.value, descending=order == "desc")
    page_count = max(1, -(-len(found) // rows_per_page))
    page = min(query_number(request, "page", 1, 1, _MAX_PAGE), page_count)
    return Listing(
        columns=columns,
        rows=found[(page - 1) * rows_per_page : page * rows_per_page],
        total=len(everything),
        matching=len(found),
        page=page,
        page_count=page_count,
        sort=sort,
        order=order if sort else "",
        query=query,
        kept={name: request.args[name] for name in kept if request.args.get(name)},
    )


def sorted_rows(rows: Iterable[Row], value: Callable[[Row], Any], *, descending: bool) -> list[Row]:
    """Sorted, text without regard to case; what has no value comes last either way."""
    with_value, without = [], []
    for row in rows:
        key = value(row)
        if key is None:
            without.append(row)
        else:
            with_value.append((key.casefold() if isinstance(key, str) else key, row))
    with_value.sort(key=lambda pair: pair[0], reverse=descending)
    return [row for _, row in with_value] + without
