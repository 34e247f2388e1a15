"""An ONNX graph as the model that is stored and served: whole, understood, and tried on rows of its own."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mmserver.errors import Undecodable
from mmserver.formats import Conversion, FloatRows, ModelFile, Probes
from mmserver.graphs.external_data import whole_graph
from mmserver.graphs.probing import probe_rows
from mmserver.graphs.running import STEP, GraphRunner, batch_difference
from mmserver.graphs.sessions import open_session, runtime
from mmserver.graphs.signature import Signature, signature_of
from mmserver.graphs.varying import varies

if TYPE_CHECKING:
    import onnxruntime

KIND = "onnx"
MAX_BATCH_DIFFERENCE = 1e-3
"""Between a row in a batch and the same row alone, relative: more is no rounding, but a graph that mixes rows.

Source:
    measured with onnxruntime 1.31 on float32 matrix products and LSTMs: up to 2e-6.
"""
_ADAPTIVE = b"DynamicQuantize"
"""Operators of this name take their scale from all rows of a batch at once; alone, each row has its own, which is finer."""
_MAX_TEXT = 200


def model_file_from_onnx(
    content: bytes,
    *,
    files: Mapping[str, bytes] | None = None,
    input_shape: Sequence[int] | None = None,
    outputs: Collection[str] | None = None,
    feature_names: tuple[str, ...] | None = None,
    library_version: str = "",
    conversion: Conversion | None = None,
    probes: Probes | None = None,
    summary: Mapping[str, Any] | None = None,
) -> ModelFile:
    """The model in a graph, which is opened, checked and run here; runs in the guarded worker.

    files: what else was handed in, by name, for weights that lie outside. input_shape: of one row, for axes that the graph
        leaves open. outputs: those to give, of several. probes: rows and what the source of a conversion gives for them;
        without any, rows are made, and their outputs are the graph's own. summary: more to show.

    Raises:
        Undecodable: malformed, incomplete, unsupported, not_deterministic, batch_dependent, not_finite, …
        ExtraMissing: weights lie outside, and the package that can read them is not installed.
    """
    content = whole_graph(content, files or {})
    session = open_session(content)
    signature = signature_of(session, input_shape=input_shape, outputs=outputs)
    may_take_long = varies(content, signature.input_name)
    if may_take_long:
        session = open_session(content, varies=True)
    rows = probe_rows(signature.n_features)
    difference = _tried(
        session, signature, rows, is_adaptive=_ADAPTIVE in content, source=_of_source(conversion, probes)
    )
    widths = {name: values.shape[1] for name, values in GraphRunner(session, signature).run(rows[:1]).items()}
    runs_together = difference is None and not signature.has_fixed_batch
    return ModelFile(
        kind=KIND,
        content=content,
        n_features=signature.n_features,
        n_outputs=widths[signature.outputs[0]],
        objective="",
        library_version=library_version or f"onnxruntime {runtime().__version__}",
        feature_names=feature_names,
        input_shape=signature.shape if len(signature.shape) > 1 else None,
        conversion=conversion,
        summary={
            **(summary or {}),
            "graph": msgspec.json.decode(msgspec.json.encode(signature)),
            "accepts_missing": False,  # until a comparison with a source proves it
            "runs_together": runs_together and not may_take_long,
            "may_take_long": may_take_long,
            "batch_difference": difference,
            "outputs": widths,
            "written_by": _written_by(session),
        },
        probes=probes or Probes(rows=_listed(rows), outputs={}),
    )


def stated_classes(options: Mapping[str, Any], widths: Mapping[str, int]) -> list[str | float] | None:
    """The option `classes`, names or codes in class order; None where it was not given.

    A list that fits no output would be left unread, and the usual order taken instead: another direction than was meant.

    widths: of each output; where all are one number, that is of the second of two classes.

    Raises:
        Undecodable: option_invalid: it is no list of different names or codes, as many as an output has classes.
    """
    given = options.get("classes")
    if given is None and "classes" not in options:
        return None
    lengths = sorted({width for width in widths.values() if width > 1}) or [2]
    is_list = isinstance(given, list) and all(map(_is_class, given))
    if not isinstance(given, list) or not is_list or len(given) not in lengths or len(set(given)) != len(given):
        detail = f"the option classes is to be a list of {' or '.join(map(str, lengths))} different names or codes, in the order"
        raise Undecodable("option_invalid", f"{detail} of the output's numbers; it is {given!r}"[:300])
    return given


def stated_output_names(options: Mapping[str, Any], own: Sequence[str]) -> list[str]:
    """What the outputs are called, in their order: as the option `output_names` calls them (own name → name), else by their own.

    Raises:
        Undecodable: option_invalid: it is no mapping of outputs that there are to texts, or two would have one name.
    """
    called = options.get("output_names", {})
    is_said = isinstance(called, dict) and all(isinstance(name, str) and name.strip() for name in called.values())
    if not is_said or not set(called) <= set(own):
        detail = f'the option output_names is to say what some of {", ".join(own)} shall be called, as {{"{own[0]}": "probabilities"}}'
        raise Undecodable("option_invalid", f"{detail}; it is {called!r}"[:300])
    names = [str(called.get(name, name)) for name in own]
    if len(set(names)) != len(names):
        raise Undecodable("option_invalid", f"the option output_names gives two outputs one name: {called!r}"[:300])
    return names


def _tried(
    session: "onnxruntime.InferenceSession", signature: Signature, rows: FloatRows, *, is_adaptive: bool, source: str
) -> float | None:
    """As `batch_difference`, once every row has the same finite result twice; `source` is said of one that is never finite."""
    try:
        alone = GraphRunner(session, signature)
        first, second = alone.run(rows), alone.run(rows)
    except Exception as error:  # the library's own classes, and what `run` raises
        raise Undecodable("not_runnable", f"rows of usual numbers fail: {error}"[:300]) from error
    for name, values in first.items():
        if values.tobytes() != second[name].tobytes():
            detail = f"its output {name} is another one for the same rows; is it in training mode?"
            raise Undecodable("not_deterministic", detail)
    if not any(np.isfinite(values).all(axis=1).any() for values in first.values()):
        detail = f"it gives no finite number for any of the {len(rows)} rows that it was tried with{source}"
        raise Undecodable("not_finite", detail)
    if signature.has_fixed_batch:
        return None
    try:
        difference = batch_difference(session, signature, rows[:STEP])
    except Exception as error:  # the same
        raise Undecodable("batch_dependent", f"rows run alone, but not together: {error}"[:300]) from error
    if difference is not None and difference > MAX_BATCH_DIFFERENCE and not is_adaptive:
        detail = f"a row's result moves by {difference:.3g} with the rows beside it; does an operator work along the batch axis?"
        raise Undecodable("batch_dependent", detail)
    return difference


def _of_source(conversion: Conversion | None, probes: Probes | None) -> str:
    """What is to be said beside it of a converted model that gives nothing: how its source does."""
    if conversion is None or probes is None or not probes.outputs:
        return ""
    finite = [np.isfinite(np.asarray(values, np.float32)).all(axis=1) for values in probes.outputs.values()]
    counted = f"{int(np.all(finite, axis=0).sum())} of {len(probes.rows)}"
    return f"; {conversion.source} gives one for {counted}: what it computes is lost in the conversion or in its single precision"


def _written_by(session: "onnxruntime.InferenceSession") -> dict[str, str]:
    """What the file says of itself, cut to what can be shown."""
    said = session.get_modelmeta()
    facts = {"producer": said.producer_name, "graph_name": said.graph_name, "description": said.description}
    return {name: str(value)[:_MAX_TEXT] for name, value in facts.items() if value}


def _listed(rows: FloatRows) -> list[list[float | None]]:
    listed: list[list[float | None]] = rows.tolist()
    return listed


def _is_class(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return type(value) is int or (type(value) is float and math.isfinite(value))
