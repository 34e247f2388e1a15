"""One row of a registered network and of its INT8 form over HTTP, one connection, one server: the version is made as users make it."""

import json
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np

from benchmarks.batches import JSON, LENGTH_HEADER
from benchmarks.contest import Contender, Figures, Rules, interleaved
from benchmarks.load import Asked
from benchmarks.servers import SMOKE_OPTIONS, Server, mmserver
from mmserver.catalog.catalog import Actor
from mmserver.catalog.opening import open_store
from mmserver.catalog.stored_models import stored_model
from mmserver.conversion.graph_rewriting import opened
from mmserver.conversion.reading import ModelReader
from mmserver.formats import FloatRows, ModelSource
from mmserver.registry.optimizing import Wish, optimize_version
from mmserver.registry.registering import NewVersion, register_version
from mmserver.registry.versions import get_version
from mmserver.settings import Settings

NAME, EXACT, INT8 = "network", "1.0.0", "1.0.0+int8"
CLASSES = ("SELL", "HOLD", "BUY")
BODIES = ("/predict, JSON", "/v2/…/infer, binary tensors")
RULES = Rules(n_connections=(1,), n_rounds=5, round_s=3.0)
SMOKE_RULES = Rules(n_connections=(1,), n_rounds=1, round_s=1.0, warm_up_s=0.0)
BY = Actor("benchmarks", None)

Served = Mapping[tuple[str, str], Figures]
"""By version and body."""


def served_figures(work: Path, content: bytes, rows: FloatRows, *, is_smoke: bool) -> Served:
    """Both versions and both bodies in turns; every answer has to be the row's own. A smoke test goes on without the form.

    Shapes:
        rows: n_rows × the shape of a row, to judge the form by; the first is asked for.

    Raises:
        SystemExit: the form was kept out, or an answer is another one.
    """
    int8 = _registered(work / "data", content, rows, is_smoke=is_smoke)
    graphs = {EXACT: opened(content)} | ({} if int8 is None else {INT8: opened(int8)})
    with mmserver(work / "data", *(SMOKE_OPTIONS if is_smoke else ())) as server:
        contenders = {}
        for version, graph in graphs.items():
            (expected,) = graph.run(rows[:1]).values()
            for body, asked in zip(BODIES, _asked(server, version, rows[:1]), strict=True):
                contenders[version, body] = Contender(f"{version} {body}", server, asked)
                _check(asked, expected[0])
        results = interleaved(list(contenders.values()), SMOKE_RULES if is_smoke else RULES)
    return {key: results[contender.name, 1] for key, contender in contenders.items()}


def _registered(data_dir: Path, content: bytes, rows: FloatRows, *, is_smoke: bool) -> bytes | None:
    """The INT8 form as it was registered; None where it was kept out."""
    source = ModelSource(file_name="network.onnx", files={"network.onnx": content}, options={"classes": list(CLASSES)})
    new = NewVersion(model_name=NAME, label=EXACT, source=source, info={"output": "logits"})
    with (
        open_store(Settings(data_dir=data_dir)) as store,
        closing(ModelReader(store.settings, store.plugins)) as reader,
    ):

        @contextmanager
        def readers() -> Iterator[ModelReader]:
            yield reader

        register_version(store, reader, new, BY)
        wish = Wish(variants=("int8_dynamic",), rows=rows)
        [made] = optimize_version(store, readers, NAME, EXACT, wish=wish, by=BY).optimizations
        if made.label is None and is_smoke:
            return None
        if made.label is None:
            raise SystemExit(f"INT8 was kept out: {made.report['reasons']}")
        return stored_model(store.database, get_version(store, NAME, INT8).group).model.content


def _asked(server: Server, version: str, row: FloatRows) -> tuple[Asked, Asked]:
    by_name = {"model_name": NAME, "symbol": "SP500", "features": row[0].tolist(), "model_version": version}
    tensor = {"name": "features", "shape": list(row.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": row.nbytes}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(header))}
    infer = f"{server.url}/v2/models/{NAME}/versions/{quote(version, safe='')}/infer"
    return (
        Asked(f"{server.url}/predict", JSON, "POST", json.dumps(by_name).encode()),
        Asked(infer, headers, "POST", header + row.tobytes()),
    )


def _check(asked: Asked, expected: FloatRows) -> None:
    """Raises SystemExit where the tensor has another bit than the graph gives here, or the direction is of another class."""
    request = urllib.request.Request(asked.url, asked.body, asked.headers, method=asked.method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        received, length = answer.read(), answer.headers.get(LENGTH_HEADER)
    if length is not None:
        found = np.frombuffer(received[int(length) :], "<f4")
        is_same = np.array_equal(found, expected)
    else:
        direction = json.loads(received)["prediction"]["direction"]
        is_same = direction == CLASSES[int(expected.argmax())]
    if not is_same:
        raise SystemExit(f"{asked.url} answers something else than the graph: {received[:300]!r}")
