"""The revision of the schema that this mmserver reads and writes; changed together with each new migration."""

from mmserver.errors import SchemaOutdated, SchemaTooNew

HEAD = "0007"  # of migrations/versions; a constant here, so that a start does not load Alembic


def check_revision(found: str) -> None:
    """Compare with HEAD. Revisions are numbers of four digits, in order.

    Raises:
        SchemaTooNew: it is later, or not one of ours.
        SchemaOutdated: it is earlier.
    """
    if found == HEAD:
        return
    if found.isdecimal() and len(found) == len(HEAD) and found < HEAD:
        raise SchemaOutdated(found=found, known=HEAD)
    raise SchemaTooNew(found=found, known=HEAD)
