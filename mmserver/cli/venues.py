"""`mmserver venues`: order-size thresholds from the command line."""

from pathlib import Path

import click

from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_rows
from mmserver.settings import Settings


@click.group()
def venues() -> None:
    """Order quantiles of venues: which order is medium, which is large."""


@venues.command(name="set")
@click.argument("venue")
@click.argument("pkl_path", type=click.Path(path_type=Path))
@with_settings("plugins_dir")
def set_(settings: Settings, venue: str, pkl_path: Path) -> None:
    """Read the thresholds of VENUE from a file, from now on watched."""
    from mmserver.catalog.catalog import Actor
    from mmserver.catalog.opening import open_store
    from mmserver.catalog.venues import set_quantiles

    with open_store(settings, owns_data_dir=False) as store:
        found = set_quantiles(store, venue, str(pkl_path.absolute()), Actor("command line"))
    click.echo(f"{venue}: {len(found.symbols)} symbols")


@venues.command()
@click.argument("venue", required=False)
@with_settings()
@json_option
def show(settings: Settings, venue: str | None, as_json: bool) -> None:
    """Show all venues, or the thresholds of one."""
    from mmserver.catalog.opening import open_store
    from mmserver.catalog.venues import find_venue

    with open_store(settings, owns_data_dir=False) as store:
        catalog = store.catalog
    if venue is None:
        rows = [
            {
                "venue": v.name,
                "symbols": len(v.symbols),
                "status": v.status,
                "updated_at": v.updated_at,
                "pkl_path": v.pkl_path,
                "error": v.error,
            }
            for v in catalog.venues.values()
        ]
        print_rows(rows, ("venue", "symbols", "status", "updated_at", "pkl_path", "error"), as_json=as_json)
        return
    thresholds = [
        {"symbol": symbol, "medium_notional_threshold": medium, "large_notional_threshold": large}
        for symbol, (medium, large) in sorted(find_venue(catalog, venue).symbols.items())
    ]
    columns = ("symbol", "medium_notional_threshold", "large_notional_threshold")
    print_rows(thresholds, columns, as_json=as_json)
