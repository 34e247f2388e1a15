"""What a model serves and why, and what a rollback would put in its place."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from mmserver.catalog.history import PRODUCTION
from mmserver.catalog.store import Store
from mmserver.registry.finding import find_model, in_stage
from mmserver.registry.stages import promotion_before
from mmserver.storage.tables import ServingRow, StageRow, VersionRow
from mmserver.storage.times import datetime_from_text


@dataclass(frozen=True, slots=True)
class Standing:
    """Labels; None where there is no such version."""

    production: str | None
    production_since: datetime | None
    before: str | None
    """What a rollback puts into production."""
    serving_since: datetime
    serving_reason: str
    """Why the served version took the place of the one before: `registered`, `promoted`, `rolled_back`, …"""


def find_standing(store: Store, model_name: str) -> Standing:
    """How the model stands, whichever kind it is.

    Raises:
        ModelNotFound
    """
    with store.database.read() as connection:
        model = find_model(connection, model_name)
        of_model = select(ServingRow.since, ServingRow.reason).where(ServingRow.model_id == model.id)
        serving = connection.execute(of_model.order_by(ServingRow.id.desc()).limit(1)).one()
        present = in_stage(connection, model.id, PRODUCTION)
        since = before = None
        if present is not None:
            of_stage = select(StageRow.since).where(StageRow.model_id == model.id, StageRow.stage == PRODUCTION)
            since = datetime_from_text(connection.execute(of_stage).scalar_one())
            promotion = promotion_before(connection, model.id, present.id)
            if promotion is not None:
                label = select(VersionRow.label).where(VersionRow.id == promotion.version_id)
                before = connection.execute(label).scalar_one()
    return Standing(
        production=present.label if present is not None else None,
        production_since=since,
        before=before,
        serving_since=datetime_from_text(serving.since),
        serving_reason=serving.reason,
    )
