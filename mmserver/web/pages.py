"""The pages under `/ui/`: plain HTML made on the server, which work without a script."""

import flask
from werkzeug.wrappers import Response

from mmserver.catalog import diffing, groups, history, venues
from mmserver.catalog.catalog import Group, Model, Venue, Version
from mmserver.catalog.running import running_of
from mmserver.catalog.symbols import comparable_symbol
from mmserver.security.scopes import needs
from mmserver.web.current import current_actor, current_store
from mmserver.web.diff_rows import member_changes, shift_table
from mmserver.web.factor_rows import FactorRow, factor_table
from mmserver.web.listing import Column, listing_from_request
from mmserver.web.requests import query_number, query_text, required_text
from mmserver.web.responses import render_page
from mmserver.web.symbols import asked_version

blueprint = flask.Blueprint("pages", __name__, template_folder="templates")

VERSIONS_SHOWN = 20
VERSIONS_TO_COMPARE = 100
GROUPS_A_DIFF_PAGE = 20
_MAX_SEQ = 2**62
_STATUS_ORDER = {"frozen": 0, "stale": 1, "degraded": 2, "ok": 3}

MODEL_COLUMNS: tuple[Column[Model], ...] = (
    Column("name", "Model", lambda model: model.name),
    Column("kind", "Kind", lambda model: model.kind),
    Column("status", "Status", lambda model: _STATUS_ORDER.get(model.status, 0)),
    Column("version", "Serves", lambda model: model.serving.label),
    Column("production", "Production", lambda model: model.stages.get(history.PRODUCTION)),
    Column("staging", "Staging", lambda model: model.stages.get(history.STAGING)),
    Column("symbols", "Symbols", lambda model: len(model.serving.group_keys_by_symbol), is_number=True),
    Column("factors", "Factors", lambda model: len(model.serving.factors), is_number=True),
    Column("refreshed", "Refreshed (UTC)", lambda model: model.refreshed_at, is_number=True),
)
GROUP_COLUMNS: tuple[Column[Group], ...] = (
    Column("symbol", "Symbol", lambda group: group.symbol),
    Column("return", "Return", lambda group: group.return_name),
    Column("dim", "Dim", lambda group: group.dim, is_number=True),
    Column("samples", "Train samples", lambda group: group.train_samples, is_number=True),
    Column("ic", "Mean IC", lambda group: group.ic_mean, is_number=True),
    Column("model", "Model", lambda group: group.can_predict),
)
VENUE_COLUMNS: tuple[Column[tuple[str, tuple[float, float]]], ...] = (
    Column("symbol", "Symbol", lambda row: row[0]),
    Column("medium", "Medium notional", lambda row: row[1][0], is_number=True),
    Column("large", "Large notional", lambda row: row[1][1], is_number=True),
    Column("ratio", "Large / medium", lambda row: row[1][1] / row[1][0], is_number=True),
)
FACTOR_COLUMNS: tuple[Column[FactorRow], ...] = (
    Column("dim", "Dim", lambda row: row.dim, is_number=True),
    Column("factor", "Factor", lambda row: row.name),
    Column("ic", "IC", lambda row: row.ic, is_number=True),
    Column("tau", "Kendall τ", lambda row: row.tau, is_number=True),
    Column("ic_size", "|IC|", lambda row: None if row.ic is None else abs(row.ic), is_number=True),
    Column("tau_size", "|τ|", lambda row: None if row.tau is None else abs(row.tau), is_number=True),
)


@blueprint.get("/")
@needs("read")
def get_root() -> Response:
    """The pages live under /ui/."""
    return flask.redirect(flask.url_for("pages.get_models_page"))


@blueprint.get("/ui/")
@needs("read")
def get_models_page() -> flask.Response:
    """Every model, those that need attention first."""
    models = current_store().catalog.models.values()
    urgent_first = sorted(models, key=lambda model: (_STATUS_ORDER.get(model.status, 0), model.name))
    listing = listing_from_request(
        flask.request, urgent_first, MODEL_COLUMNS,
        matches=lambda model, query: query.casefold() in model.name.casefold(),
    )  # fmt: skip
    return render_page("models.html", listing=listing, read_only=current_store().read_only)


@blueprint.get("/ui/models/<model_name>")
@needs("read", "model_name")
def get_model_page(model_name: str) -> Response:
    """One model: its state, its symbols, what was refused, and its versions."""
    store = current_store()
    model = store.model(model_name)
    if not model.is_watched:
        from mmserver.web.registry_pages import get_registered_model_page  # not needed to start

        return get_registered_model_page(model)
    version = _shown_version(model)
    listing = listing_from_request(
        flask.request, version.groups.values(), GROUP_COLUMNS, matches=_group_matches, kept=("version", "as_of")
    )
    before_seq = query_number(flask.request, "before", 0, 0, _MAX_SEQ) or None
    # one more than is shown: the last one shown is compared with it
    records = history.list_versions(store, model_name, VERSIONS_SHOWN + 1, before_seq)
    return render_page(
        "model.html", model=model, version=version, listing=listing, records=records, shown=VERSIONS_SHOWN,
        before_seq=before_seq, read_only=store.read_only, experiments=running_of(store.catalog.experiments, model_name),
    )  # fmt: skip


@blueprint.get("/ui/models/<model_name>/symbols/<path:symbol>")
@needs("read", "model_name")
def get_symbol_page(model_name: str, symbol: str) -> flask.Response:
    """One symbol: every factor with its IC and tau, the info file, the model and its files."""
    store = current_store()
    model = store.model(model_name)
    version = _shown_version(model)
    group = groups.find_group(
        version, symbol, query_text(flask.request, "group_key"), store.model(version.model_name).refusals
    )
    detail = groups.group_detail(store, group)
    table = factor_table(detail.record)
    listing = listing_from_request(
        flask.request, table.rows, FACTOR_COLUMNS,
        matches=lambda row, query: query.casefold() in row.name.casefold(),
        kept=("version", "as_of", "group_key"), rows_per_page=1000,
    )  # fmt: skip
    return render_page(
        "symbol.html", model=model, version=version, group=group, detail=detail, table=table, listing=listing,
        forms=store.payloads.forms(group),
    )  # fmt: skip


@blueprint.get("/ui/models/<model_name>/diff")
@needs("read", "model_name")
def get_diff_page(model_name: str) -> flask.Response:
    """What changed between two versions; without parameters, between the one before and the newest."""
    store = current_store()
    model = store.model(model_name)
    records = history.list_versions(store, model_name, VERSIONS_TO_COMPARE, None)
    to_reference = query_text(flask.request, "to") or records[0].label
    from_reference = query_text(flask.request, "from") or records[min(1, len(records) - 1)].label
    old = history.resolve_version(store, model_name, from_reference, None)
    new = history.resolve_version(store, model_name, to_reference, None)
    diff = diffing.diff_versions(store, old, new)
    listing = listing_from_request(
        flask.request, diff.groups, (), kept=("from", "to"), rows_per_page=GROUPS_A_DIFF_PAGE,
        matches=lambda group, query: query.casefold() in group.group_key.casefold(),
    )  # fmt: skip
    counts = {
        change: sum(group.change == change for group in diff.groups) for change in ("added", "removed", "updated")
    }
    shifts = {group.group_key: shift_table(group) for group in listing.rows}
    info_changes = {group.group_key: member_changes(group) for group in listing.rows}
    return render_page(
        "diff.html",
        model=model,
        diff=diff,
        listing=listing,
        counts=counts,
        shifts=shifts,
        info_changes=info_changes,
        labels=_labels(records, old, new),
    )


@blueprint.get("/ui/models/<model_name>/rollback")
@needs("read", "model_name")
def get_rollback_page(model_name: str) -> flask.Response:
    """Ask once more before an older version is served."""
    store = current_store()
    model = store.model(model_name)
    version = history.resolve_version(store, model_name, required_text(flask.request, "version"), None)
    return render_page("rollback.html", model=model, version=version, read_only=store.read_only)


@blueprint.post("/ui/models/<model_name>/rollback")
@needs("manage", "model_name")
def post_rollback(model_name: str) -> Response:
    """Serve the older version, then show the model."""
    from mmserver.web.forms import read_form  # not needed to start

    typed = read_form(flask.request, ("version",))
    history.rollback_model(current_store(), model_name, typed["version"], current_actor())
    return flask.redirect(flask.url_for("pages.get_model_page", model_name=model_name), 303)


@blueprint.get("/ui/venues")
@needs("read")
def get_venues_page() -> flask.Response:
    """Every venue that has thresholds."""
    known: list[Venue] = [venue for _, venue in sorted(current_store().catalog.venues.items())]
    return render_page("venues.html", venues=known)


@blueprint.get("/ui/venues/<venue>")
@needs("read", "venue")
def get_venue_page(venue: str) -> flask.Response:
    """One venue's thresholds."""
    found = venues.find_venue(current_store().catalog, venue)
    listing = listing_from_request(
        flask.request, sorted(found.symbols.items()), VENUE_COLUMNS,
        matches=lambda row, query: comparable_symbol(query) in comparable_symbol(row[0]),
    )  # fmt: skip
    return render_page("venue.html", venue=found, listing=listing)


def _shown_version(model: Model) -> Version:
    """The version that is asked for, else what is served, or was served last before all were retired."""
    if model.is_retired and not (query_text(flask.request, "version") or query_text(flask.request, "as_of")):
        return model.serving
    return asked_version(model.name)


def _group_matches(group: Group, query: str) -> bool:
    wanted = comparable_symbol(query)
    return wanted in comparable_symbol(group.group_key) or query.casefold() in group.return_name.casefold()


def _labels(records: list[history.VersionRecord], *chosen: Version) -> list[str]:
    """The labels to choose from, with those that are compared even if they are older than the list."""
    labels = [record.label for record in records]
    return labels + sorted({version.label for version in chosen} - set(labels), reverse=True)
