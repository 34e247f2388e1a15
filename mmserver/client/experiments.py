"""A/B tests between two versions, on live requests, and what came of predictions. Not every release of the server has them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import httpx
import msgspec

from mmserver.client.answers import Experiment, ExperimentAnalysis, ExperimentEvaluations, OutcomeReport
from mmserver.client.calls import Call, changing, given_fields, path, reading
from mmserver.client.errors import NotFound, error_from_answer

T = TypeVar("T")
EXPERIMENTS = "/api/ml/experiments"
NO_SUCH_ROUTE = frozenset({"not_found", "http_404"})
"""What answers where there is no route, rather than no such experiment."""


def create_ab_test(  # noqa: PLR0917 (as its users call it)
    experiment_id: str,
    control_model: str,
    control_version: str,
    treatment_model: str,
    treatment_version: str,
    traffic_split: float = 0.9,
    *,
    unit: str | None = None,
    mode: str | None = None,
    horizon_s: float | None = None,
    policy: str | Mapping[str, Any] | None = None,
    auto: bool | None = None,
    start: bool | None = None,
) -> Call[Experiment]:
    """Compare two versions on live requests; `traffic_split` is the control's share. In `mode="shadow"` both score, and the control
    answers. `policy` is its name, or a mapping with `policy` and the numbers that are to be others.
    """
    body: dict[str, Any] = {
        "experiment_id": experiment_id,
        "control_model": control_model,
        "control_version": control_version,
        "treatment_model": treatment_model,
        "treatment_version": treatment_version,
        "traffic_split": traffic_split,
        "unit": unit,
        "mode": mode,
        "horizon_s": horizon_s,
        "policy": dict(policy) if isinstance(policy, Mapping) else policy,
        "auto": auto,
        "start": start,
    }
    return _asked(changing("POST", EXPERIMENTS, Experiment, given_fields(body)))


def get_ab_test_analysis(experiment_id: str) -> Call[ExperimentAnalysis]:
    """How the two do so far, and what that recommends."""
    return _asked(reading(path(EXPERIMENTS + "/{}/analysis", experiment_id), ExperimentAnalysis))


def get_ab_test_evaluations(experiment_id: str, *, limit: int | None = None) -> Call[ExperimentEvaluations]:
    """The last decisions about it that were kept, with their inputs."""
    return _asked(reading(path(EXPERIMENTS + "/{}/evaluations", experiment_id), ExperimentEvaluations, limit=limit))


def stop_ab_test(experiment_id: str) -> Call[ExperimentAnalysis]:
    """End it; the final report."""
    return _asked(changing("POST", path(EXPERIMENTS + "/{}/stop", experiment_id), ExperimentAnalysis))


def add_outcomes(outcomes: Sequence[Mapping[str, Any]]) -> Call[OutcomeReport]:
    """Say what came of predictions, of experiments or observed outside them: each a `prediction_id` and a `realized_return` or a
    `label` or both. One that is refused stops no other; the same again changes nothing, so the call may be sent twice.
    """
    call = changing("POST", "/api/ml/outcomes", OutcomeReport, list(outcomes))
    return msgspec.structs.replace(call, is_repeatable=True)


def _asked(call: Call[T]) -> Call[T]:
    """The call, which says so where the server has no A/B tests at all."""

    def decode(answer: httpx.Response) -> T:
        if answer.status_code != 404:
            return call.decode(answer)
        error = error_from_answer(answer)
        if error.code in NO_SUCH_ROUTE:
            raise NotFound(404, error.code, "this server has no A/B tests", (), error.request_id)
        raise error

    return msgspec.structs.replace(call, decode=decode, also=(404,))
