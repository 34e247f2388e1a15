"""How Alembic runs here: on the connection and in the transaction that `mmserver.storage.schema.migrate` has opened."""

from alembic import context

from mmserver.storage.tables import Row

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Row.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
