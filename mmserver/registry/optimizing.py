"""Smaller and quicker forms of a registered ONNX model: each is made and judged in a process of its own; one that passes becomes a version.

What came of every try is kept with the version that it was made of, whether the form passed or not.
"""

import fcntl
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, get_args

import msgspec
import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from mmserver.catalog.catalog import Actor
from mmserver.catalog.store import Store
from mmserver.catalog.stored_models import StoredModel, stored_model
from mmserver.conversion.benchmarking import N_ROUNDS
from mmserver.conversion.judging import Optimised, Variant
from mmserver.conversion.optimizing import Candidate
from mmserver.conversion.optimizing_job import (
    MAX_FILE_BYTES,
    MAX_OPEN_FILES,
    MAX_PROCESSES,
    OptimizationRequest,
    candidate_of,
    check_installed,
)
from mmserver.errors import (
    Conflict,
    Invalid,
    NotOptimizable,
    Overloaded,
    RequestInvalid,
    Unavailable,
    VersionNotFound,
    VersionTaken,
)
from mmserver.formats import ModelSource
from mmserver.registry.finding import find_registered_model, find_version
from mmserver.registry.registering import NewVersion, Reader, register_version
from mmserver.registry.version_files import options_of_graph
from mmserver.registry.versions import ListedVersion, Optimization, RegisteredVersion, get_version
from mmserver.sandbox.limits import JobLimits
from mmserver.settings import Settings
from mmserver.storage.audit import record_audit
from mmserver.storage.tables import OptimizationRow, VersionRow
from mmserver.storage.times import text_from_datetime

Readers = Callable[[], AbstractContextManager[Reader]]

LOCK_FILE = "optimizing.lock"
JUDGING_ROUNDS = 50
"""Calls in turns with the source, enough to see which is quicker."""
BENCHMARK_ROUNDS = 5 * N_ROUNDS
"""Enough for a p99 that is not the longest call."""
SUFFIXES: Mapping[Variant, str] = MappingProxyType(
    {"fp32": "fp32", "int8_dynamic": "int8", "int8_static": "int8-static"}
)
_FORMS: Mapping[Variant, str] = MappingProxyType(
    {"fp32": "simplified", "int8_dynamic": "INT8, dynamic", "int8_static": "INT8, static"}
)
_KIND, _FILE = "onnx", "model.onnx"
_EXACT = {"xgboost": "its trees are run exactly as they are already, without any rounding to save"}
_NO_MISSING = "it takes no missing values, which its source does"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be made. `benchmark`: measure long enough for a p99. `register`: keep the report, and what passes as a version.

    Shapes:
        rows: to judge by, n_rows × n_features; None: made-up ones.
    """

    variants: Sequence[str]
    benchmark: bool = False
    register: bool = True
    rows: npt.NDArray[Any] | None = None


def optimize_version(
    store: Store, readers: Readers, model_name: str, reference: str, *, wish: Wish, by: Actor
) -> RegisteredVersion:
    """Make forms of the version, one after the other, and register those that are accepted as `LABEL+fp32`, `+int8`, `+int8-static`.

    `readers` gives what a form is read with when it is registered, like any other model.

    Returns:
        the version, with what came of every form that was ever tried; without `register` nothing of this try is kept

    Raises:
        ModelNotFound, WrongModelKind, VersionNotFound, ReadOnly
        RequestInvalid: no such form, or no rows for this model.
        NotOptimizable: not an ONNX model, or a form of one already.
        ExtraMissing: what makes forms is not installed.
        Overloaded: another model is being optimised here.
    """
    store.check_writable()
    variants = checked_variants(wish.variants)
    source = get_version(store, model_name, reference)
    if source.kind != _KIND:
        reason = _EXACT.get(
            source.kind, f"only ONNX models have other forms, and this is one of the kind {source.kind}"
        )
        raise NotOptimizable(model_name=model_name, version=source.label, reason=reason)
    if is_form(source):
        reason = f"it is a form of {source.derived_from} already; optimise {source.derived_from} instead"
        raise NotOptimizable(model_name=model_name, version=source.label, reason=reason)
    check_installed()
    with _turn(store):
        stored = stored_model(store.database, source.group)
        tried: dict[str, Optimization] = {}
        for variant in variants:
            request = _request(stored, variant, wish)
            candidate = candidate_of(request, _limits(store.settings))
            report = _noted(candidate.report, stored)
            label = None
            if wish.register and report.accepted and candidate.content is not None:
                label, report = _registered(store, readers, source, stored, Candidate(candidate.content, report), by=by)
            if wish.register:
                _keep(store, source, report, label, by)
            else:
                told = msgspec.to_builtins(report)
                tried[variant] = Optimization(variant=variant, label=None, report=told, created_at=store.now())
    found = get_version(store, model_name, source.label)
    kept = {one.variant: one for one in found.optimizations}
    return replace(found, optimizations=tuple(one for _, one in sorted({**kept, **tried}.items())))


def list_optimizations(store: Store, model_name: str, reference: str) -> Sequence[Optimization]:
    """What came of the last try of each form of the version.

    Raises:
        ModelNotFound, WrongModelKind, VersionNotFound
    """
    return get_version(store, model_name, reference).optimizations


def checked_variants(variants: Sequence[str]) -> list[Variant]:
    """Each once, in their order.

    Raises:
        RequestInvalid: none, or an unknown one.
    """
    known: tuple[Variant, ...] = get_args(Variant)
    unknown = [(at, name) for at, name in enumerate(variants) if name not in known]
    if unknown or not variants:
        at, what = (f"variants.{unknown[0][0]}", repr(unknown[0][1][:100])) if unknown else ("variants", "nothing")
        problem = f"{what} is none of {', '.join(known)}"
        raise RequestInvalid(f"{at}: {problem}", errors=[{"loc": at, "msg": problem}])
    return [name for name in known if name in variants]


def label_of_form(label: str, variant: Variant) -> str:
    """What a form of the version of that label is called: it is the same version, built otherwise."""
    return f"{label}{'.' if '+' in label else '+'}{SUFFIXES[variant]}"


def is_form(version: ListedVersion) -> bool:
    """Whether it is what optimising the version that it is derived from gave, by its label."""
    if version.derived_from is None:
        return False
    names = tuple(label_of_form(version.derived_from, variant) for variant in SUFFIXES)
    return version.label in names or version.label.startswith(tuple(f"{name}." for name in names))


# --- the form ---------------------------------------------------------------------------------------------------------


def _request(stored: StoredModel, variant: Variant, wish: Wish) -> OptimizationRequest:
    model = stored.model
    rows = b""
    if wish.rows is not None:
        if not len(wish.rows) or wish.rows.size != len(wish.rows) * model.n_features:
            problem = f"{len(wish.rows)} rows of {wish.rows.shape[1:]} for a model that takes {model.row_shape}"
            raise RequestInvalid(f"rows: {problem}", errors=[{"loc": "rows", "msg": problem}])
        with np.errstate(over="ignore"):  # rows with numbers that float32 does not hold are left out, and that is noted
            rows = np.ascontiguousarray(wish.rows, np.float32).tobytes()
    return OptimizationRequest(
        content=model.content,
        variant=variant,
        input_shape=model.row_shape,
        outputs=tuple(model.summary["graph"]["outputs"]),
        rows=rows,
        n_rounds=BENCHMARK_ROUNDS if wish.benchmark else JUDGING_ROUNDS,
    )


def _limits(settings: Settings) -> JobLimits:
    return JobLimits(
        memory_bytes=settings.conversion_memory_bytes,
        cpu_s=max(1, int(settings.conversion_timeout_s)),
        wall_s=settings.conversion_timeout_s,
        max_open_files=MAX_OPEN_FILES,
        max_written_file_bytes=MAX_FILE_BYTES,
        max_processes=MAX_PROCESSES,
    )


def _noted(report: Optimised, stored: StoredModel) -> Optimised:
    if not stored.model.summary.get("accepts_missing"):
        return report
    return msgspec.structs.replace(report, notes=(*report.notes, _NO_MISSING))


@contextmanager
def _turn(store: Store) -> Iterator[None]:
    """One at a time for all processes that use the data directory: each needs a processor and the memory of several models.

    Raises:
        Overloaded
    """
    path = store.settings.data_dir / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Overloaded(what="optimising a model") from error
    try:
        yield
    finally:
        os.close(descriptor)


# --- what is kept -----------------------------------------------------------------------------------------------------


def _registered(
    store: Store,
    readers: Readers,
    source: RegisteredVersion,
    stored: StoredModel,
    candidate: Candidate,
    *,
    by: Actor,
) -> tuple[str | None, Optimised]:
    """(the label, the report); where it cannot be registered, the report says why and that it is kept out."""
    report = candidate.report
    new = _new_version(source, stored, candidate)
    try:
        with readers() as reader:
            return _registered_label(store, reader, new, by), report
    except (Invalid, Conflict, Unavailable) as error:
        reasons = (*report.reasons, f"not registered: {error}")
        return None, msgspec.structs.replace(report, accepted=False, reasons=reasons)


def _registered_label(store: Store, reader: Reader, new: NewVersion, by: Actor) -> str:
    """The label that it got: where one with other content was removed, `1.0.0+int8.2`, because `1.0.0+int8` means that for ever."""
    numbered = (replace(new, label=f"{new.label}.{number}") for number in itertools.count(2))
    for form in itertools.chain([new], numbered):
        try:
            return register_version(store, reader, form, by, only_content=True).version.label
        except VersionTaken:
            if _has_version(store, form.model_name, form.label):
                raise
    raise AssertionError  # there is always another number


def _has_version(store: Store, model_name: str, label: str) -> bool:
    try:
        get_version(store, model_name, label)
    except VersionNotFound:
        return False
    return True


def _new_version(source: RegisteredVersion, stored: StoredModel, candidate: Candidate) -> NewVersion:
    """The form with everything that decides what its outputs mean, which a graph alone does not say."""
    model, variant = stored.model, candidate.report.variant
    options = options_of_graph(model.row_shape, model.objective, model.summary)
    return NewVersion(
        model_name=source.model_name,
        label=label_of_form(source.label, variant),
        source=ModelSource(file_name=_FILE, files={_FILE: candidate.content or b""}, options=options),
        model_type=_KIND,
        description=f"A form of {source.label}: {_FORMS[variant]}",
        training_params=source.training_params,
        tags=source.tags,
        factors=source.factors,
        info=stored.record.info,
        derived_from=source.label,
        parity=msgspec.to_builtins(candidate.report.parity),
    )


def _keep(store: Store, source: RegisteredVersion, report: Optimised, label: str | None, by: Actor) -> None:
    at = text_from_datetime(store.now())
    with store.database.write() as connection:
        model = find_registered_model(connection, source.model_name)
        # Somebody may have removed either meanwhile, or registered something else under the label.
        if find_version(connection, model, source.label).id != source.version_id:
            raise VersionNotFound(model_name=source.model_name, which=repr(source.label))
        of_label = select(VersionRow.id).where(VersionRow.model_id == model.id, VersionRow.label == label)
        result = connection.execute(of_label).scalar()
        _upsert(connection, source.version_id, report, result, at)
        detail = {"version": source.label, "variant": report.variant, "accepted": report.accepted, "result": label}
        detail |= {"reasons": list(report.reasons)} if report.reasons else {}
        record_audit(connection, at=at, actor=by.name, action="version.optimized", target=source.model_name,
                     detail=detail, request_id=by.request_id)  # fmt: skip


def _upsert(connection: Connection, version_id: int, report: Optimised, result_id: int | None, at: str) -> None:
    values = {"report": msgspec.json.encode(report).decode(), "result_id": result_id, "created_at": at}
    row = insert(OptimizationRow).values(version_id=version_id, variant=report.variant, **values)
    connection.execute(row.on_conflict_do_update(index_elements=["version_id", "variant"], set_=values))
