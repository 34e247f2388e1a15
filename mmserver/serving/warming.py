"""Loading models before they are asked for: those that the settings name, the arms of experiments, and the successors of those that
are in use.
"""

import itertools
import logging
from collections.abc import Callable, Iterator

from sqlalchemy import select

from mmserver.catalog.catalog import Catalog
from mmserver.catalog.history import resolve_version
from mmserver.catalog.store import Store
from mmserver.errors import MmserverError
from mmserver.serving.predictors import Predictors
from mmserver.serving.resolving import Resolved
from mmserver.serving.unloading import ModelIds, Unloading
from mmserver.storage.tables import GroupRow

ALL = "all"
MAX_ARM_GROUPS = 200
"""Groups of one arm of an experiment that are loaded ahead, those of symbols in use first; the others are at their first use."""
_IDS_A_QUERY = 5000
log = logging.getLogger(__name__)


class Warming:
    """Keeps what is loaded in step with the catalog, and with what was unloaded on purpose. One thread at a time calls it."""

    def __init__(self, store: Store, predictors: Predictors, unloading: Unloading) -> None:
        self._store = store
        self._predictors = predictors
        self._unloading = unloading
        self._kept_up_with = Catalog()
        self._unloaded: ModelIds | None = None
        """When it last kept up; None before the first time."""

    def keep_up(self, is_stopping: Callable[[], bool]) -> None:
        """After a change: let go of what is not stored any more, and load what will be asked for, but nothing that was unloaded.
        Cheap if there was none.

        Ends early when `is_stopping`, or when the catalog changes again; the next call goes on.
        """
        catalog, unloaded = self._store.catalog, self._unloading.model_ids
        if catalog is self._kept_up_with and unloaded is self._unloaded:
            return
        arms = [arm for arm in self._arms(catalog) if not self._is_unloaded(arm)]
        served_ids = self._served_ids(catalog) | {arm.group.id for arm in arms}
        self._let_go_of_removed(served_ids)
        for wanted in itertools.chain(arms, self._wanted(catalog)):
            if is_stopping() or self._store.catalog is not catalog:
                return
            if not self._is_unloaded(wanted) and not self._warm(wanted, served_ids):
                break
        self._kept_up_with, self._unloaded = catalog, unloaded

    def _warm(self, wanted: Resolved, served_ids: set[int]) -> bool:
        """False if there is no room for it, nor for others."""
        group = wanted.group
        try:
            if not self._predictors.warm(group, served_ids):
                log.warning("predictor_cache_bytes is full: %s and more are not loaded ahead", group.group_key)
                return False
        except MmserverError as error:
            log.warning("%s is not loaded ahead: %s", group.group_key, error)
        self._unloading.let_go_if_unloaded(wanted)
        return True

    def _is_unloaded(self, wanted: Resolved) -> bool:
        return self._unloading.is_unloaded(wanted.version.model_name, wanted.group.group_key)

    def _served_ids(self, catalog: Catalog) -> set[int]:
        """What any model may predict with; what was unloaded from all that had it is let go of."""
        served_ids: set[int] = set()
        unloaded_ids: set[int] = set()
        for name, model in catalog.models.items():
            for key, group in model.serving.groups.items():
                (unloaded_ids if self._unloading.is_unloaded(name, key) else served_ids).add(group.id)
        self._predictors.let_go(unloaded_ids - served_ids)
        return served_ids

    def _arms(self, catalog: Catalog) -> Iterator[Resolved]:
        """Groups that both arms of each running experiment predict with; a version that is gone says so in the experiment."""
        in_use = {loaded.group.symbol for loaded in self._predictors.loaded()} if catalog.experiments else set()
        experiments = [one for ones in catalog.experiments.values() for one in ones if one.overruled_by is None]
        for arm in {arm: None for one in experiments for arm in (one.control, one.treatment)}:
            try:
                version = resolve_version(self._store, arm.model_name, arm.version)
            except MmserverError as error:
                log.warning("an arm of an experiment is not loaded ahead: %s", error)
                continue
            groups = [group for group in version.groups.values() if group.can_predict]
            groups.sort(key=lambda group: group.symbol not in in_use)
            yield from (Resolved(version, group) for group in groups[:MAX_ARM_GROUPS])

    def _wanted(self, catalog: Catalog) -> Iterator[Resolved]:
        """Served groups that can predict: successors of loaded ones first, then those that the settings name."""
        in_use = {loaded.group.id for loaded in self._predictors.loaded()}
        for name, before in self._kept_up_with.models.items():
            after = catalog.models.get(name)
            if after is None or after.serving is before.serving:
                continue
            for key, group in before.serving.groups.items():
                successor = after.serving.groups.get(key)
                if group.id in in_use and successor is not None and successor.can_predict:
                    yield Resolved(after.serving, successor)
        warm = self._store.settings.warm
        for name in catalog.models if ALL in warm else warm:
            model = catalog.models.get(name)
            if model is not None:
                groups = model.serving.groups.values()
                yield from (Resolved(model.serving, group) for group in groups if group.can_predict)

    def _let_go_of_removed(self, served_ids: set[int]) -> None:
        """Groups that are not served may still be asked for by their version's label, as long as they are stored."""
        asked = sorted(self._predictors.known_ids() - served_ids)
        stored: set[int] = set()
        with self._store.database.read() as connection:
            for start in range(0, len(asked), _IDS_A_QUERY):
                query = select(GroupRow.id).where(GroupRow.id.in_(asked[start : start + _IDS_A_QUERY]))
                stored.update(connection.execute(query).scalars())
        self._predictors.let_go(set(asked) - stored)
