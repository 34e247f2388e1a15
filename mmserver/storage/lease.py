"""The lease: of several processes on one database, one runs the scheduled jobs; if it dies, another takes over."""

from collections.abc import Callable

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects.sqlite import insert

from mmserver.errors import LeaseLost
from mmserver.storage.database import Database
from mmserver.storage.tables import LeaseRow


class Lease:
    """One process's claim to a named lease. Renew it well before `ttl_s` is over, and `check` it in each write made under it.

    `clock` gives seconds that all processes of the machine share and that nobody can set, such as
    `time.clock_gettime(time.CLOCK_BOOTTIME)`. All claims to one name use the same `ttl_s`. Not for several threads at once.
    """

    def __init__(self, database: Database, name: str, holder: str, ttl_s: float, clock: Callable[[], float]) -> None:
        self._database = database
        self._name = name
        self._holder = holder
        self._ttl_s = ttl_s
        self._clock = clock
        self.epoch: int | None = None  # of the claim that this object holds, as far as it knows

    def acquire_or_renew(self) -> bool:
        """Whether this process has the lease, for `ttl_s` from now on.

        Raises:
            DatabaseBusy, DiskFull: it could not be written; what was held is held until it expires.
        """
        with self._database.write() as connection:
            row, now = self._row(connection), self._clock()
            if row is not None and self._is_ours(row):
                epoch = row.epoch
            elif row is not None and now < row.expires_at <= now + self._ttl_s:
                # Expiry further away than a claim can last was written before a reboot: that holder is gone.
                self.epoch = None
                return False
            else:
                epoch = 1 if row is None else row.epoch + 1
            values = {"holder": self._holder, "epoch": epoch, "expires_at": now + self._ttl_s}
            statement = insert(LeaseRow).values(name=self._name, **values)
            connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))
        self.epoch = epoch
        return True

    def release(self) -> None:
        """Let another process have it at once."""
        with self._database.write() as connection:
            row = self._row(connection)
            if row is not None and self._is_ours(row):
                connection.execute(update(LeaseRow).where(LeaseRow.name == self._name).values(expires_at=0.0))
        self.epoch = None

    def check(self, connection: Connection) -> None:
        """Make sure, inside a write transaction, that nobody has taken over; then nobody can until it ends.

        Raises:
            LeaseLost: somebody has; the transaction must not be committed.
        """
        row = self._row(connection)
        if row is None or not self._is_ours(row):
            raise LeaseLost(name=self._name)

    def _row(self, connection: Connection) -> Row[str, int, float] | None:
        query = select(LeaseRow.holder, LeaseRow.epoch, LeaseRow.expires_at).where(LeaseRow.name == self._name)
        return connection.execute(query).one_or_none()

    def _is_ours(self, row: Row[str, int, float]) -> bool:
        return bool(row.holder == self._holder and row.epoch == self.epoch)
