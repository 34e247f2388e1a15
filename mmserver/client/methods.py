"""The table of calls: each is described once, and is a method of both clients: plain in the one, awaitable in the other."""

import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from mmserver.client import downloads, experiments, inference, models, predicting, registry
from mmserver.client.calls import Call, Flow
from mmserver.client.downloads import Downloading, ModelDownload

P = ParamSpec("P")
T = TypeVar("T")


class SyncCaller(ABC):
    """Makes calls in the calling thread."""

    downloading: Downloading

    @abstractmethod
    def call(self, call: Call[T]) -> T:
        """Make one call."""

    @abstractmethod
    def run(self, flow: Flow[T]) -> T:
        """Make the calls of a flow."""

    @abstractmethod
    def iterate(self, flow: Flow[None]) -> Generator[Any, None, None]:
        """What a flow finds, as it is found."""


class AsyncCaller(ABC):
    """Makes calls in the event loop."""

    downloading: Downloading

    @abstractmethod
    async def call(self, call: Call[T]) -> T:
        """Make one call."""

    @abstractmethod
    async def run(self, flow: Flow[T]) -> T:
        """Make the calls of a flow."""

    @abstractmethod
    def iterate(self, flow: Flow[None]) -> AsyncGenerator[Any, None]:
        """What a flow finds, as it is found."""


class _Method:
    """A described call that is a method of whichever client it is looked up on."""

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    def _bind(self, caller: Any, method: Callable[..., Any]) -> Any:
        """The method, kept in the client itself, where it is found from then on."""
        bound = functools.wraps(self._build)(method)
        caller.__dict__[self._build.__name__] = bound
        return bound


class OneCall(_Method, Generic[P, T]):
    """A method that is one call."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        super().__init__(build)

    @overload
    def __get__(self, caller: None, owner: type) -> Self: ...
    @overload
    def __get__(self, caller: SyncCaller, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, caller: AsyncCaller, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, caller: Any, owner: type) -> Any:
        if caller is None:
            return self
        return self._bind(caller, _calling(caller.call, self._build))


class SeveralCalls(_Method, Generic[P, T]):
    """A method that is a flow of calls."""

    def __init__(self, build: Callable[P, Flow[T]]) -> None:
        super().__init__(build)

    @overload
    def __get__(self, caller: None, owner: type) -> Self: ...
    @overload
    def __get__(self, caller: SyncCaller, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, caller: AsyncCaller, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, caller: Any, owner: type) -> Any:
        if caller is None:
            return self
        return self._bind(caller, _calling(caller.run, self._build))


class Download(_Method, Generic[P]):
    """A method that is a flow of calls around the client's cache."""

    def __init__(self, build: Callable[Concatenate[Downloading, P], Flow[ModelDownload]]) -> None:
        super().__init__(build)

    @overload
    def __get__(self, caller: None, owner: type) -> Self: ...
    @overload
    def __get__(self, caller: SyncCaller, owner: type) -> Callable[P, ModelDownload]: ...
    @overload
    def __get__(self, caller: AsyncCaller, owner: type) -> Callable[P, Coroutine[Any, Any, ModelDownload]]: ...
    def __get__(self, caller: Any, owner: type) -> Any:
        if caller is None:
            return self
        return self._bind(caller, _calling(caller.run, self._build, caller.downloading))


class Watch(_Method, Generic[P]):
    """A method that gives a model again and again."""

    def __init__(self, build: Callable[Concatenate[Downloading, P], Flow[None]]) -> None:
        super().__init__(build)

    @overload
    def __get__(self, caller: None, owner: type) -> Self: ...
    @overload
    def __get__(self, caller: SyncCaller, owner: type) -> Callable[P, Generator[ModelDownload, None, None]]: ...
    @overload
    def __get__(self, caller: AsyncCaller, owner: type) -> Callable[P, AsyncGenerator[ModelDownload, None]]: ...
    def __get__(self, caller: Any, owner: type) -> Any:
        if caller is None:
            return self
        return self._bind(caller, _calling(caller.iterate, self._build, caller.downloading))


def _calling(make: Callable[[Any], Any], build: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    """A function that builds what its arguments describe, and has it made."""

    def method(*args: Any, **keywords: Any) -> Any:
        return make(build(*first, *args, **keywords))

    return method


class Calls:
    """Every call of the API."""

    predict = OneCall(predicting.predict)
    batch_predict = OneCall(predicting.batch_predict)

    infer = OneCall(inference.infer)
    get_metadata = OneCall(inference.get_metadata)
    is_model_ready = OneCall(inference.is_model_ready)
    load_model = OneCall(inference.load_model)
    unload_model = OneCall(inference.unload_model)

    health_check = OneCall(models.health_check)
    list_models = OneCall(models.list_models)
    reload_model = OneCall(models.reload_model)
    openapi = OneCall(models.openapi)

    list_catalog = OneCall(models.list_catalog)
    get_model = OneCall(models.get_model)
    add_model = OneCall(models.add_model)
    remove_model = OneCall(models.remove_model)
    refresh_model = OneCall(models.refresh_model)
    rollback_model = OneCall(models.rollback_model)
    list_versions = OneCall(models.list_versions)
    diff_versions = OneCall(models.diff_versions)
    list_symbols = OneCall(models.list_symbols)
    list_factors = OneCall(models.list_factors)
    get_symbol = OneCall(models.get_symbol)
    download_model = Download(downloads.download_model)
    watch = Watch(downloads.watch)

    list_venues = OneCall(models.list_venues)
    get_quantiles = OneCall(models.get_quantiles)
    get_symbol_quantiles = OneCall(models.get_symbol_quantiles)
    set_quantiles = OneCall(models.set_quantiles)

    register_version = SeveralCalls(registry.register_version)
    register_path = OneCall(registry.register_path)
    list_registered = OneCall(registry.list_registered)
    get_registered = OneCall(registry.get_registered)
    get_version = OneCall(registry.get_version)
    compare_versions = OneCall(registry.compare_versions)
    set_stage = OneCall(registry.set_stage)
    promote_version = OneCall(registry.promote_version)
    retire_version = OneCall(registry.retire_version)
    rollback_promotion = OneCall(registry.rollback_promotion)
    delete_version = OneCall(registry.delete_version)
    update_metrics = OneCall(registry.update_metrics)
    annotate_version = OneCall(registry.annotate_version)
    optimize = OneCall(registry.optimize)
    optimizations = OneCall(registry.optimizations)

    create_ab_test = OneCall(experiments.create_ab_test)
    get_ab_test_analysis = OneCall(experiments.get_ab_test_analysis)
    get_ab_test_evaluations = OneCall(experiments.get_ab_test_evaluations)
    stop_ab_test = OneCall(experiments.stop_ab_test)
    add_outcomes = OneCall(experiments.add_outcomes)
