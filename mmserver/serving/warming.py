"""Loading models before they are asked for: those that the settings name, and the successors of those that are in use."""

import logging
from collections.abc import Callable, Iterator

from sqlalchemy import select

from mmserver.catalog.catalog import Catalog, Group
from mmserver.catalog.store import Store
from mmserver.errors import MmserverError
from mmserver.serving.predictors import Predictors
from mmserver.storage.tables import GroupRow

ALL = "all"
_IDS_A_QUERY = 5000
log = logging.getLogger(__name__)


class Warming:
    """Keeps what is loaded in step with the catalog. One thread at a time calls it."""

    def __init__(self, store: Store, predictors: Predictors) -> None:
        self._store = store
        self._predictors = predictors
        self._kept_up_with = Catalog()
        self._is_current = False

    def keep_up(self, is_stopping: Callable[[], bool]) -> None:
        """After a change: let go of what is not stored any more, and load what will be asked for. Cheap if there was none.

        Ends early when `is_stopping`, or when the catalog changes again; the next call goes on.
        """
        catalog = self._store.catalog
        if self._is_current and catalog is self._kept_up_with:
            return
        served_ids = {group.id for model in catalog.models.values() for group in model.serving.groups.values()}
        self._let_go_of_removed(served_ids)
        for group in self._wanted(catalog):
            if is_stopping() or self._store.catalog is not catalog:
                return
            try:
                if not self._predictors.warm(group, served_ids):
                    log.warning("predictor_cache_bytes is full: %s and more are not loaded ahead", group.group_key)
                    break
            except MmserverError as error:
                log.warning("%s is not loaded ahead: %s", group.group_key, error)
        self._kept_up_with, self._is_current = catalog, True

    def _wanted(self, catalog: Catalog) -> Iterator[Group]:
        """Served groups that can predict: successors of loaded ones first, then those that the settings name."""
        in_use = {loaded.group.id for loaded in self._predictors.loaded()}
        for name, before in self._kept_up_with.models.items():
            after = catalog.models.get(name)
            if after is None or after.serving is before.serving:
                continue
            for key, group in before.serving.groups.items():
                successor = after.serving.groups.get(key)
                if group.id in in_use and successor is not None and successor.can_predict:
                    yield successor
        warm = self._store.settings.warm
        for name in catalog.models if ALL in warm else warm:
            model = catalog.models.get(name)
            if model is not None:
                yield from (group for group in model.serving.groups.values() if group.can_predict)

    def _let_go_of_removed(self, served_ids: set[int]) -> None:
        """Groups that are not served may still be asked for by their version's label, as long as they are stored."""
        asked = sorted(self._predictors.known_ids() - served_ids)
        stored: set[int] = set()
        with self._store.database.read() as connection:
            for start in range(0, len(asked), _IDS_A_QUERY):
                query = select(GroupRow.id).where(GroupRow.id.in_(asked[start : start + _IDS_A_QUERY]))
                stored.update(connection.execute(query).scalars())
        self._predictors.let_go(set(asked) - stored)
