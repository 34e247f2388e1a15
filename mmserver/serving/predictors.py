"""Models that are loaded and ready: one for each group, least recently used first out, bounded in bytes."""

from dataclasses import dataclass

from mmserver.catalog.catalog import Group
from mmserver.catalog.store import Store
from mmserver.formats import ModelFile
from mmserver.serving.engines import Engine


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """One group's model, ready to run. Requests keep the one that they were given to the end."""

    group: Group
    model: ModelFile
    """Without its content."""
    engine: Engine
    size_bytes: int
    row_cost_ns: int
    """Measured at loading, for one row: the least of a few."""


class Predictors:
    """All loaded models of one process."""

    def __init__(self, store: Store) -> None:
        raise NotImplementedError

    def get(self, group: Group) -> LoadedModel:
        """The group's model; the first thread loads it from the database, others wait for that.

        Raises:
            GroupHasNoModel: there is none, or no plugin runs its kind.
            PredictorUnloadable: it does not load; not tried again for the same content until it is reloaded.
        """
        raise NotImplementedError

    def held(self, group: Group) -> LoadedModel | None:
        """The same without waiting: None unless it is loaded."""
        raise NotImplementedError
