"""What a process that was killed left half done in the database, cleared away at the next start."""

from sqlalchemy import delete, select

from mmserver.catalog.store import Store
from mmserver.storage.blobs import delete_orphan_blobs
from mmserver.storage.tables import ModelRow, VersionRow


def drop_unfinished(store: Store) -> None:
    """Clear away what a registration left that was killed; only for the process that holds the data directory."""
    with store.database.write() as connection:
        unfinished = delete(ModelRow).where(~select(VersionRow.id).where(VersionRow.model_id == ModelRow.id).exists())
        if connection.execute(unfinished).rowcount:
            delete_orphan_blobs(connection)
