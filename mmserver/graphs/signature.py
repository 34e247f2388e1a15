"""What an ONNX graph takes and gives, and whether that can be served: rows of float32 in, rows of numbers out."""

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from mmserver.errors import Undecodable

if TYPE_CHECKING:
    import onnxruntime

_INPUT_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
"""What float32 can become without changing."""
_OUTPUT_TYPES = ("tensor(float)", "tensor(double)", "tensor(float16)")
_LABEL_TYPES = ("tensor(int64)", "tensor(int32)", "tensor(string)", "tensor(bool)")
MAX_INPUTS = 1 << 24
"""Numbers in one row; 64 MiB of it."""


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """The one input, and the outputs that are given; `left_out` are labels, which the probabilities beside them say better."""

    input_name: str
    dtype: str
    shape: tuple[int, ...]
    has_fixed_batch: bool
    """Its batch is fixed to one row."""
    outputs: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def n_features(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape)


def signature_of(
    session: "onnxruntime.InferenceSession",
    *,
    input_shape: Sequence[int] | None = None,
    outputs: Collection[str] | None = None,
) -> Signature:
    """What is served of the graph.

    input_shape: of one row, where the graph leaves axes open. outputs: those to give, where not all of them shall be.

    Raises:
        Undecodable: unsupported, and what to export otherwise.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        named = ", ".join(f"{one.name} {one.type}" for one in inputs) or "none"
        raise _unsupported(f"it has {len(inputs)} inputs ({named}); a model takes one, with a row for each prediction")
    (taken,) = inputs
    if taken.type not in _INPUT_TYPES:
        raise _unsupported(f"its input {taken.name} is {taken.type}; rows are float32, so let it take tensor(float)")
    shape, has_fixed_batch = _row_shape(taken, input_shape)
    given, left_out = _outputs(session.get_outputs(), outputs)
    return Signature(
        input_name=taken.name,
        dtype=_INPUT_TYPES[taken.type],
        shape=shape,
        has_fixed_batch=has_fixed_batch,
        outputs=given,
        left_out=left_out,
    )


def _row_shape(taken: Any, wanted: Sequence[int] | None) -> tuple[tuple[int, ...], bool]:
    declared = list(taken.shape)
    if len(declared) < 2:
        raise _unsupported(f"its input {taken.name} has the shape {declared}; the first axis has to be the batch")
    batch, rest = declared[0], declared[1:]
    if isinstance(batch, int) and batch != 1:
        detail = f"its batch is fixed to {batch} rows; export it with a dynamic first axis, or with 1"
        raise _unsupported(detail)
    if wanted is not None:
        fits = len(wanted) == len(rest) and all(
            not isinstance(axis, int) or axis == size for axis, size in zip(rest, wanted, strict=True)
        )
        if not fits or not all(isinstance(size, int) and not isinstance(size, bool) for size in wanted):
            raise _unsupported(f"input_shape {list(wanted)} does not fit its input {taken.name} {declared}")
        rest = list(wanted)
    if not all(isinstance(axis, int) and axis > 0 for axis in rest):
        detail = f"its input {taken.name} is {declared}; every axis after the first must be fixed, or said in the option input_shape"
        raise _unsupported(detail)
    if math.prod(rest) > MAX_INPUTS:
        raise Undecodable("too_large", f"a row of its input has {math.prod(rest)} numbers, more than {MAX_INPUTS}")
    return tuple(rest), isinstance(batch, int)


def _outputs(declared: Sequence[Any], wanted: Collection[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    known = {one.name: one.type for one in declared}
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        raise _unsupported(f"it has no output {unknown[0]!r}; it has {', '.join(known)}")
    chosen = {name: kind for name, kind in known.items() if wanted is None or name in wanted}
    for name, kind in chosen.items():
        if kind.startswith(("seq(", "map(", "optional(")):
            hint = "export it without ZipMap (skl2onnx: options={'zipmap': False}), so that it gives a tensor"
            raise _unsupported(f"its output {name} is {kind}; {hint}")
        if kind not in _OUTPUT_TYPES and kind not in _LABEL_TYPES:
            raise _unsupported(f"its output {name} is {kind}, not a tensor of numbers")
    given = tuple(name for name, kind in chosen.items() if kind in _OUTPUT_TYPES)
    if not given:
        found = ", ".join(f"{name} {kind}" for name, kind in chosen.items()) or "none"
        raise _unsupported(f"it gives no floating-point output, only {found}")
    return given, tuple(name for name in known if name not in given)


def _unsupported(detail: str) -> Undecodable:
    return Undecodable("unsupported", detail)
