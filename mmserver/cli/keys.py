"""`mmserver keys`: who may use the server. Works on the data directory, beside a running server, which follows at once."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, print_rows
from mmserver.errors import KeyInvalid
from mmserver.security.scopes import SCOPES
from mmserver.setting_kinds import duration
from mmserver.settings import Settings

if TYPE_CHECKING:
    from mmserver.security.key_store import CreatedKey, Key

ACTOR = "command line"
COLUMNS = (
    "id", "label", "status", "scopes", "models", "venues", "created_at", "created_by", "expires_at", "revoked_at",
    "last_used_at", "replaced_by",
)  # fmt: skip
_DURATION = duration(1)


@click.group()
def keys() -> None:
    """API keys: make one, and from then on the server asks everybody for theirs."""


@keys.command()
@click.option("--label", required=True, help="Whose it is; the audit trail says it.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(SCOPES),
    help="What it is for; repeat for several.",
)
@click.option("--model", "models", multiple=True, help="Only models like this, such as 'btc-*'; repeat for several.")
@click.option(
    "--venue", "venues", multiple=True, help="Only venues like this, such as 'binance-*'; repeat for several."
)
@click.option("--expires", help="How long it lasts, such as 30d; for ever without it.")
@with_settings()
@json_option
def create(
    settings: Settings, *, label: str, scopes: tuple[str, ...], models: tuple[str, ...], venues: tuple[str, ...],
    expires: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a key and print it, this once, on one line."""
    from mmserver.catalog.opening import open_store
    from mmserver.security.key_store import KeyPlan, create_key, list_keys

    now = datetime.now(UTC)
    plan = KeyPlan(
        label=label,
        scopes=scopes,
        models=models or None,
        venues=venues or None,
        expires_at=_after(now, expires, "expires"),
    )
    with open_store(settings, owns_data_dir=False) as store:
        created = create_key(store.database, plan, ACTOR, now)
        is_first = len(list_keys(store.database)) == 1
    _print_created(created, as_json=as_json)
    if is_first and settings.auth != "off":
        click.echo("This is the first key: from now on the server asks for one.", err=True)


@keys.command(name="list")
@with_settings()
@json_option
def list_(settings: Settings, as_json: bool) -> None:
    """Show all keys, without their secrets, which nobody has but their owners."""
    from mmserver.catalog.opening import open_store
    from mmserver.security.key_store import list_keys

    with open_store(settings, owns_data_dir=False) as store:
        found = list_keys(store.database)
    now = datetime.now(UTC)
    print_rows([_row(key, now) for key in found], COLUMNS, as_json=as_json)


@keys.command()
@click.argument("key_id", metavar="ID")
@with_settings()
@json_option
def revoke(settings: Settings, key_id: str, as_json: bool) -> None:
    """End a key for good. A server that runs refuses it within a second."""
    from mmserver.catalog.opening import open_store
    from mmserver.security.key_store import revoke_key

    now = datetime.now(UTC)
    with open_store(settings, owns_data_dir=False) as store:
        key = revoke_key(store.database, key_id, ACTOR, now)
    if as_json:
        print_json(_row(key, now))
    else:
        click.echo(f"{key.id} ({key.label}) is revoked")


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option("--keep", help="How long the old key goes on being taken, such as 1h; without it, it ends at once.")
@with_settings()
@json_option
def rotate(settings: Settings, key_id: str, keep: str | None, as_json: bool) -> None:
    """Make a key that may do the same, print it, and end the old one."""
    from mmserver.catalog.opening import open_store
    from mmserver.security.key_store import rotate_key

    now = datetime.now(UTC)
    with open_store(settings, owns_data_dir=False) as store:
        created = rotate_key(store.database, key_id, ACTOR, now, _after(now, keep, "keep"))
    _print_created(created, as_json=as_json)


def _print_created(created: "CreatedKey", *, as_json: bool) -> None:
    """The key itself on stdout, so that `$(mmserver keys create …)` is the key; what a person should know on stderr."""
    if as_json:
        print_json({"key": created.text, **_row(created.key, created.key.created_at)})
    else:
        click.echo(created.text)
    click.echo(f"Key {created.key.id} ({created.key.label}). Keep it: it is shown this once.", err=True)


def _row(key: "Key", now: datetime) -> dict[str, object]:
    status = key.status(now)
    return {column: status if column == "status" else getattr(key, column) for column in COLUMNS}


def _after(now: datetime, text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        return now + timedelta(seconds=_DURATION.parse(text))
    except ValueError as error:
        raise KeyInvalid(field=option, reason=f"{text!r} is not {_DURATION.expects}") from error
