"""A torch network (60 × 110 inputs, a convolution, two LSTM layers of 256, three classes) beside its ONNX forms: in one process, and over HTTP.

python -m benchmarks.optimizer [--smoke]
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measuring import Goal, machine, median, print_goals, print_table
from benchmarks.served_forms import INT8, Served, served_figures
from mmserver.conversion.benchmarking import timed_models
from mmserver.conversion.exporting import import_torch, one_torch_thread, torch_outputs
from mmserver.conversion.graph_rewriting import opened
from mmserver.conversion.judging import VARIANTS, Variant
from mmserver.conversion.optimizing import Optimization, SyncONNXOptimizer
from mmserver.errors import ExtraMissing
from mmserver.formats import FloatRows

N_ROUNDS, N_CALLS, SMOKE_CALLS = 5, 200, 5
N_ROWS, SMOKE_ROWS = 1000, 50
SEEN, UNSEEN = 1_000_000, 2_000_000  # seeds
TORCH, ONNX = "torch, eager", "onnx fp32, as exported"
GOAL_PARITY, GOAL_AGREEMENT, GOAL_RATIO, GOAL_SERVED_MS = 1e-5, 0.99, 0.5, 3.0


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizer", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few calls, a network that was hardly trained, two forms")
    is_smoke = parser.parse_args(arguments).smoke
    try:
        measure(is_smoke=is_smoke)
    except ExtraMissing as error:
        print(f"\nskipped: {error}")


def measure(*, is_smoke: bool) -> None:
    """All forms in turns.

    Raises:
        ExtraMissing: torch, or what it exports with, is not installed.
    """
    import_torch()
    from benchmarks.cnn_lstm import INPUT_SHAPE, N_STEPS, drifting_rows, trained_cnn_lstm

    n_calls, n_rows = (SMOKE_CALLS, SMOKE_ROWS) if is_smoke else (N_CALLS, N_ROWS)
    variants: tuple[Variant, ...] = ("fp32", "int8_dynamic") if is_smoke else VARIANTS
    module = trained_cnn_lstm(1 if is_smoke else N_STEPS)
    rows, _ = drifting_rows(n_rows, SEEN)
    found = SyncONNXOptimizer(n_rounds=n_calls).export_and_optimize(module, INPUT_SHAPE, rows, variants=variants)
    models = {ONNX: found.content} | {
        one.report.variant: one.content for one in found.candidates if one.content is not None
    }
    p50_ms: dict[str, list[float]] = {name: [] for name in (TORCH, *models)}
    p99_ms: dict[str, list[float]] = {name: [] for name in p50_ms}
    with one_torch_thread():
        for _ in range(1 if is_smoke else N_ROUNDS):
            beside = {TORCH: lambda: torch_outputs(module, rows[:1])}
            for name, timing in timed_models(models, rows, beside=beside, n_rounds=n_calls).items():
                p50_ms[name].append(timing.p50_ms)
                p99_ms[name].append(timing.p99_ms)
        unseen, labels = drifting_rows(n_rows, UNSEEN)
        decided = {TORCH: torch_outputs(module, unseen)[0].argmax(axis=1)}
    decided |= {name: _classes(content, unseen) for name, content in models.items()}
    right = {name: float((classes == labels).mean()) for name, classes in decided.items()}
    same = {name: float((classes == decided[TORCH]).mean()) for name, classes in decided.items()}
    sizes = {name: len(content) for name, content in models.items()}
    rounds = f"{N_ROUNDS if not is_smoke else 1} rounds of {n_calls} calls each, in turns, one thread"
    print(f"\n{machine()}; {rounds}")
    table = [
        (
            name,
            sizes.get(name, "-"),
            median(p50_ms[name]),
            median(p99_ms[name]),
            median(p50_ms[TORCH]) / median(p50_ms[name]),
            f"{same[name]:.2%}",
            f"{right[name]:.1%}",
        )
        for name in p50_ms
    ]
    columns = ("what", "bytes", "p50 ms", "p99 ms", "times as fast", "class as torch's, unseen rows", "right class")
    print_table("A CNN-LSTM, one row", columns, table)
    _print_verdicts(found)
    with tempfile.TemporaryDirectory() as temporary:
        served = served_figures(Path(temporary), found.content, rows, is_smoke=is_smoke)
    _print_served(served)
    print_goals(_goals(found, same, served, median(p50_ms["int8_dynamic"]) / median(p50_ms[TORCH])))


def _classes(content: bytes, rows: FloatRows) -> npt.NDArray[np.int64]:
    (values,) = opened(content).run(rows).values()
    return values.argmax(axis=1)


def _print_verdicts(found: Optimization) -> None:
    rows = []
    for one in found.candidates:
        report = one.report
        far = "-" if report.parity is None else f"{report.parity.max_abs_difference:.2g}"
        agreement = "-" if report.class_agreement is None else f"{report.class_agreement:.2%}"
        boundary = "-" if report.boundary_agreement is None else f"{report.boundary_agreement:.2%}"
        rows.append((report.variant, far, agreement, boundary, "; ".join(report.reasons) or "accepted"))
    columns = ("form", "largest difference", "same class", "same class, the least clear tenth", "verdict")
    n_rows = next((one.report.parity.n_rows for one in found.candidates if one.report.parity is not None), 0)
    print_table(f"What became of each form, judged by {n_rows:,} rows", columns, rows)


def _print_served(served: Served) -> None:
    rows = [
        (
            version,
            body,
            figures.requests_per_s,
            figures.p50_s * 1e3,
            figures.p99_s * 1e3,
            figures.cpu_s_per_request * 1e3,
        )
        for (version, body), figures in served.items()
    ]
    columns = ("version", "asked", "requests/s", "p50 ms", "p99 ms", "CPU ms/request")
    tool = next(iter(served.values())).tool
    print_table(f"The same row over HTTP, registered and optimised, 1 connection, {tool}", columns, rows)


def _goals(found: Optimization, same: Mapping[str, float], served: Served, ratio: float) -> list[Goal]:
    dynamic = next(one.report for one in found.candidates if one.report.variant == "int8_dynamic")
    far, agreement = found.comparison.parity.max_abs_difference, dynamic.class_agreement
    not_found = float("nan")
    return [
        Goal("fp32, largest difference to torch", not_found if far is None else far, at_most=GOAL_PARITY),
        Goal(
            "int8 dynamic, same class as fp32, rows between classes too",
            not_found if agreement is None else agreement,
            at_least=GOAL_AGREEMENT,
        ),
        Goal("int8 dynamic, same class as torch, unseen rows", same["int8_dynamic"], at_least=GOAL_AGREEMENT),
        Goal("int8 dynamic p50, in that of torch eager", ratio, at_most=GOAL_RATIO),
        *(
            Goal(f"int8 dynamic p50 by {body}, 1 connection", figures.p50_s * 1e3, at_most=GOAL_SERVED_MS, unit="ms")
            for (version, body), figures in served.items()
            if version == INT8
        ),
    ]


if __name__ == "__main__":
    main()
