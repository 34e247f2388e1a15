"""Which groups were unloaded on purpose: under one model's name, whatever other models or versions share their content."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TypeAlias

import msgspec

from mmserver.catalog.catalog import Group
from mmserver.catalog.store import Store
from mmserver.errors import NotReady
from mmserver.serving.predictors import Predictors
from mmserver.serving.resolving import Resolved
from mmserver.serving.siblings import SharedPlace

ModelIds: TypeAlias = Mapping[tuple[str, str], int]
"""By model name and group key; a model that was removed and registered again has another id."""


class Unloading:
    """Of one process, or of all that share a place for it; safe for all threads. Readers take no lock.

    A group stays unloaded through new versions of its model, until it is loaded again, the model is removed or the server ends.
    """

    def __init__(self, store: Store, predictors: Predictors, shared: SharedPlace | None = None) -> None:
        """`shared`: where all processes of the server keep it; what is there already holds here too."""
        self._store = store
        self._predictors = predictors
        self._shared = shared
        self._number = 0
        """Of what was last read there."""
        self._model_ids: ModelIds = MappingProxyType({})
        self._lock = threading.Lock()
        self.follow()

    def follow(self) -> None:
        """Take over what other processes have unloaded and loaded since; cheap if they have not."""
        if self._shared is None or self._shared.number() == self._number:
            return
        with self._lock:
            self._hold(self._read(self._shared))

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

    @property
    def model_ids(self) -> ModelIds:
        """All that is unloaded now; another one after each change."""
        return self._model_ids

    def let_go_if_unloaded(self, resolved: Resolved) -> None:
        """To be called after each load: an unload that came meanwhile found nothing to let go of."""
        if self.is_unloaded(resolved.version.model_name, resolved.group.group_key):
            self._let_go(resolved.group)

    def unload(self, resolved: Resolved) -> None:
        """Predict with it no more; its memory is given back unless another model predicts with the same content."""
        model_name = resolved.version.model_name
        model = self._store.model(model_name)
        with self._changing() as model_ids:
            model_ids[model_name, resolved.group.group_key] = model.id
        self._let_go(resolved.group)

    def allow(self, resolved: Resolved) -> None:
        """Predict with it again."""
        with self._changing() as model_ids:
            model_ids.pop((resolved.version.model_name, resolved.group.group_key), None)

    def allow_all(self, model_name: str) -> None:
        """Predict with all groups of the model again."""
        with self._changing() as model_ids:
            for key in [key for key in model_ids if key[0] == model_name]:
                del model_ids[key]

    @contextmanager
    def _changing(self) -> Iterator[dict[tuple[str, str], int]]:
        """A copy of what is unloaded in all processes, to be changed; after the block it holds in this one, and soon in all."""
        with self._lock:
            if self._shared is None:
                changed = dict(self._model_ids)
                yield changed
            else:
                with self._shared.alone():
                    changed = self._read(self._shared)
                    before = dict(changed)
                    yield changed
                    if changed != before:
                        items = [(*key, model_id) for key, model_id in changed.items()]
                        self._number = self._shared.replace(msgspec.json.encode(items))
            self._hold(changed)

    def _hold(self, model_ids: ModelIds) -> None:
        """Make it hold here; what was not unloaded before is let go of."""
        before = self._model_ids
        if model_ids == before:
            return
        self._model_ids = MappingProxyType(dict(model_ids))
        for model_name, group_key in model_ids.keys() - before.keys():
            model = self._store.catalog.models.get(model_name)
            group = model.serving.groups.get(group_key) if model is not None else None
            if group is not None:
                self._let_go(group)

    def _read(self, shared: SharedPlace) -> dict[tuple[str, str], int]:
        self._number, content = shared.read_numbered()
        items = msgspec.json.decode(content, type=list[tuple[str, str, int]]) if content else []
        return {(model_name, group_key): model_id for model_name, group_key, model_id in items}

    def _let_go(self, group: Group) -> None:
        if not self._is_served(group):
            self._predictors.let_go({group.id})

    def _is_served(self, group: Group) -> bool:
        return any(
            served.id == group.id and not self.is_unloaded(model.name, served.group_key)
            for model in self._store.catalog.models.values()
            for served in (model.serving.groups.get(group.group_key),)
            if served is not None
        )
