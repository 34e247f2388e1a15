"""What the request at hand works with: the store, and who is asking."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import flask

from mmserver.catalog.catalog import Actor
from mmserver.catalog.store import Store
from mmserver.errors import Overloaded
from mmserver.storage.audit import record_audit_alone
from mmserver.storage.times import text_from_datetime
from mmserver.web.framing import REQUEST_ID_KEY, WAITED_NS_KEY

if TYPE_CHECKING:
    from mmserver.conversion.reading import ModelReader
    from mmserver.experiments.observations.log import ObservationLog
    from mmserver.experiments.observations.reports import LogStatus
    from mmserver.experiments.raw_outputs import RawExperimenter
    from mmserver.experiments.service import Experimenter
    from mmserver.security.access import Access, Identity
    from mmserver.serving.predictions import Serving
    from mmserver.serving.siblings import Siblings
    from mmserver.web.quick import QuickRoutes

STORE_KEY = "mmserver.store"
ACCESS_KEY = "mmserver.access"
IDENTITY_KEY = "mmserver.identity"
"""In the environment of a request: whom its key stands for."""
SERVING_KEY = "mmserver.serving"
QUICK_KEY = "mmserver.quick"
EXPERIMENTER_KEY = "mmserver.experimenter"
REFUSALS_KEY = "mmserver.refusals"
MODEL_READER_KEY = "mmserver.model_reader"
TURN_S = 5.0
"""How long a registration waits for its turn: longer would take the threads that others wait for."""


class LateObservations:
    """As `LateServing`, for what is logged of predictions; most servers never need it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._made: ObservationLog | None = None

    def __call__(self) -> "ObservationLog":
        """This process's observation log, opened at the first call."""
        with self._lock:
            if self._made is None:
                from mmserver.experiments.observations.log import ObservationLog

                self._made = ObservationLog.from_settings(self._store.settings)
                self._made.start()
            return self._made

    @property
    def status(self) -> "LogStatus | None":
        """How it goes; None where this process has logged nothing and read nothing of it."""
        return None if self._made is None else self._made.status

    def close(self) -> None:
        """End the log, after the last answer."""
        with self._lock:
            if self._made is not None:
                self._made.close()


class LateServing:
    """Makes the prediction service, and imports what it is made of, at the first call; one for all threads."""

    def __init__(self, store: Store, siblings: "Siblings | None", observations: LateObservations) -> None:
        self._store = store
        self._siblings = siblings
        self._observations = observations
        self._lock = threading.Lock()
        self.made: Serving | None = None
        """None until it was asked for."""

    def __call__(self) -> "Serving":
        if self.made is None:
            with self._lock:
                if self.made is None:
                    from mmserver.serving.predictions import Serving

                    serving = Serving(self._store, self._siblings)
                    self._observe(serving)
                    self.made = serving
        return self.made

    def _observe(self, serving: "Serving") -> None:
        settings = self._store.settings
        if not settings.observations_sample or self._store.read_only:  # which could log nothing
            return
        from mmserver.experiments.observing import Observing

        share, horizon_s = settings.observations_sample, settings.observations_horizon_s
        serving.observer = Observing(serving, self._observations(), share=share, horizon_s=horizon_s)


class LateExperimenter:
    """As `LateServing`, for predictions while experiments run; most servers never need it."""

    def __init__(self, store: Store, serving: LateServing, observations: LateObservations) -> None:
        self._store = store
        self._serving = serving
        self.log = observations
        self._lock = threading.RLock()
        self.made: Experimenter | None = None
        self.made_raw: RawExperimenter | None = None

    def __call__(self) -> "Experimenter":
        if self.made is None:
            serving = self._serving()
            with self._lock:
                if self.made is None:
                    from mmserver.experiments.service import Experimenter

                    self.made = Experimenter(serving, self.log())
        return self.made

    def raw(self) -> "RawExperimenter":
        """The same for requests for raw outputs."""
        if self.made_raw is None:
            experimenter, serving = self(), self._serving()
            with self._lock:
                if self.made_raw is None:
                    from mmserver.experiments.raw_outputs import RawExperimenter

                    self.made_raw = RawExperimenter(experimenter, serving, self.log())
        return self.made_raw

    def keep_up(self) -> None:
        """Be ready before the first request of an experiment; nothing while none runs."""
        if self.made_raw is None and self._store.catalog.experiments and not self._store.read_only:
            self.raw()

    def close(self) -> None:
        """End the log, after the last answer."""
        self.log.close()


class LateQuickRoutes:
    """As `LateServing`, for what is answered without Flask; an I/O thread uses `made` and leaves the making to others."""

    def __init__(self, serving: LateServing, experimenter: LateExperimenter, access: "Access") -> None:
        self._serving = serving
        self._experimenter = experimenter
        self._access = access
        self._lock = threading.Lock()
        self.made: QuickRoutes | None = None

    def __call__(self) -> "QuickRoutes":
        if self.made is None:
            serving = self._serving()
            with self._lock:
                if self.made is None:
                    from mmserver.web.quick import QuickRoutes

                    self.made = QuickRoutes(serving, self._experimenter, self._access)
        return self.made


class LateModelReader:
    """Makes what reads models that are handed in, at the first one, and lets only some be read at a time: each is in memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(max(1, store.settings.threads // 4))
        self._made: ModelReader | None = None

    @contextmanager
    def turn(self) -> Iterator["ModelReader"]:
        """The reader, for one registration.

        Raises:
            Overloaded: others are busy with theirs.
        """
        if not self._turns.acquire(timeout=TURN_S):
            raise Overloaded(what="registering a model")
        try:
            yield self._reader()
        finally:
            self._turns.release()

    def close(self) -> None:
        """End its processes."""
        with self._lock:
            if self._made is not None:
                self._made.close()

    def _reader(self) -> "ModelReader":
        with self._lock:
            if self._made is None:
                from mmserver.conversion.reading import ModelReader

                self._made = ModelReader(self._store.settings, self._store.plugins)
            return self._made


def current_model_reader() -> LateModelReader:
    """What this application reads models with that are registered one by one."""
    reader: LateModelReader = flask.current_app.extensions[MODEL_READER_KEY]
    return reader


def current_serving() -> "Serving":
    """What this application predicts with."""
    serving: Serving = flask.current_app.extensions[SERVING_KEY]()
    return serving


def current_experimenter() -> LateExperimenter:
    """What this application makes of experiments."""
    experimenter: LateExperimenter = flask.current_app.extensions[EXPERIMENTER_KEY]
    return experimenter


def current_predicting() -> "Experimenter | Serving":
    """What answers predictions now: the experiments while any runs; they cost nothing otherwise."""
    store = current_store()
    runs_any = store.catalog.experiments and not store.read_only  # which could log nothing
    return current_experimenter()() if runs_any else current_serving()


def current_raw_experimenter(model_name: str) -> "RawExperimenter | None":
    """What requests for the raw outputs of the model go through while an experiment runs on it; None while none does."""
    store = current_store()
    runs_any = model_name in store.catalog.experiments and not store.read_only
    return current_experimenter().raw() if runs_any else None


def current_waited_ns() -> int:
    """How long the request waited for a thread."""
    waited_ns: int = flask.request.environ.get(WAITED_NS_KEY, 0)
    return waited_ns


def current_store() -> Store:
    """The store that this application serves."""
    store: Store = flask.current_app.extensions[STORE_KEY]
    return store


def record_by_current_actor(action: str, target: str, detail: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Keep in the audit what whoever asks does to this server's memory alone; a read-only one has nowhere to."""
    store = current_store()
    if not store.read_only:
        by = current_actor()
        record_audit_alone(store.database, at=text_from_datetime(store.now()), actor=by.name, action=action,
                           target=target, detail=dict(detail), request_id=by.request_id)  # fmt: skip


def current_identity() -> "Identity | None":
    """Whom the request's key stands for; None where it needed none."""
    identity: Identity | None = flask.request.environ.get(IDENTITY_KEY)
    return identity


def current_actor() -> Actor:
    """Who asks for a change. Without keys there is only an address to go by."""
    request = flask.request
    identity = current_identity()
    name = f"anonymous@{request.remote_addr or 'local'}" if identity is None else identity.actor
    return Actor(name, request.environ.get(REQUEST_ID_KEY))
