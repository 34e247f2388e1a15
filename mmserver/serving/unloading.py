"""Which groups were unloaded on purpose: under one model's name, whatever other models or versions share their content."""

import threading
from types import MappingProxyType

from mmserver.catalog.catalog import Group
from mmserver.catalog.store import Store
from mmserver.errors import NotReady
from mmserver.serving.predictors import Predictors
from mmserver.serving.resolving import Resolved


class Unloading:
    """Of one process; safe for all threads. Readers take no lock.

    A group stays unloaded through new versions of its model, until it is loaded again or the model is removed.
    """

    def __init__(self, store: Store, predictors: Predictors) -> None:
        self._store = store
        self._predictors = predictors
        self._model_ids = MappingProxyType[tuple[str, str], int]({})
        """By model name and group key; a model that was removed and registered again has another id."""
        self._lock = threading.Lock()

    def is_unloaded(self, model_name: str, group_key: str) -> bool:
        """Whether it must not predict."""
        if not self._model_ids:
            return False
        model_id = self._model_ids.get((model_name, group_key))
        model = self._store.catalog.models.get(model_name)
        return model_id is not None and model is not None and model.id == model_id

    def check(self, resolved: Resolved) -> None:
        """Raises NotReady if it was unloaded and not loaded since."""
        if self._model_ids and self.is_unloaded(resolved.version.model_name, resolved.group.group_key):
            raise NotReady(what=f"{resolved.version.model_name}: {resolved.group.group_key} was unloaded; it")

    def unload(self, resolved: Resolved) -> None:
        """Predict with it no more; its memory is given back unless another model predicts with the same content."""
        model_name = resolved.version.model_name
        model = self._store.model(model_name)
        with self._lock:
            unloaded = {**self._model_ids, (model_name, resolved.group.group_key): model.id}
            self._model_ids = MappingProxyType(unloaded)
        if not self._is_served(resolved.group):
            self._predictors.let_go({resolved.group.id})

    def allow(self, resolved: Resolved) -> None:
        """Predict with it again."""
        self._allow({(resolved.version.model_name, resolved.group.group_key)})

    def allow_all(self, model_name: str) -> None:
        """Predict with all groups of the model again."""
        self._allow({key for key in self._model_ids if key[0] == model_name})

    def _allow(self, keys: set[tuple[str, str]]) -> None:
        with self._lock:
            left = {key: model_id for key, model_id in self._model_ids.items() if key not in keys}
            self._model_ids = MappingProxyType(left)

    def _is_served(self, group: Group) -> bool:
        return any(
            served.id == group.id and not self.is_unloaded(model.name, served.group_key)
            for model in self._store.catalog.models.values()
            for served in (model.serving.groups.get(group.group_key),)
            if served is not None
        )
