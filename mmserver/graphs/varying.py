"""Whether what a graph costs depends on the numbers of a row, and not on their count alone, which is always the same.

What ordinary exports do (sizes made of other sizes, as the first state of an LSTM) costs every row the same, and was tried when the
model was read. A loop that runs as often as an input says, or a tensor as long, was not: a row could take for ever, or all memory.
"""

from collections.abc import Iterable, Mapping
from itertools import zip_longest

from mmserver.errors import Undecodable
from mmserver.graphs.nodes import Body, Graph, Node, graph_from_content

FIXED, BOUNDED, FREE = 0, 1, 2
"""The same for every row; within bounds that the graph has (a count, an index, a class); any number."""
_SIZES = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,), "CropAndResize": (3,),
    "DFT": (1,), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "MaxUnpool": (2,), "MelWeightMatrix": (0, 1),
    "OneHot": (1,), "Pad": (1,), "Range": (0, 1, 2), "Resize": (1, 2, 3), "STFT": (1, 3), "Tile": (1, 2), "Upsample": (1,),
}  # fmt: skip
"""Operators that make more than they get, and which of their inputs say how much."""
_PARTS = {
    "Compress": (1,), "NonMaxSuppression": (0, 1, 2, 3, 4), "NonZero": (0,), "RemovePadding": (1,), "Reshape": (1,),
    "RestorePadding": (1,), "SequenceAt": (1,), "SequenceErase": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "SplitToSequence": (1,),
    "TopK": (1,), "Unique": (0,),
}  # fmt: skip
"""Operators that give a part of what they get, or the same in another shape, and which of their inputs say which."""
_OF_SHAPES = ("SequenceLength", "Shape", "Size")
_WITHIN_BOUNDS = (
    "And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "HardSigmoid", "IsInf", "IsNaN", "Less", "LessOrEqual", "NonMaxSuppression",
    "NonZero", "Not", "Or", "Sigmoid", "Sign", "Softmax", "Tanh", "Xor",
)  # fmt: skip
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")

Level = tuple[int, int]
"""How far the numbers of a value depend on the row's numbers, and how far its shape does."""
_STILL: Level = (FIXED, FIXED)


def varies(content: bytes, input_name: str) -> bool:
    """Whether some row may cost far more than another.

    Raises:
        Undecodable: unsupported: a size is whatever number a row has, without a bound.
    """
    graph = graph_from_content(content)
    tracing = _Tracing(graph)
    tracing.body(graph.main, {input_name: (FREE, FIXED)})
    return tracing.varies


class _Tracing:
    """Follows the row's numbers through the nodes."""

    def __init__(self, graph: Graph) -> None:
        self._functions = graph.functions
        self._called: dict[tuple[tuple[str, str], tuple[Level, ...]], tuple[Level, ...]] = {}
        self.varies = False

    def body(self, body: Body, known: Mapping[str, Level]) -> tuple[Level, ...]:
        """The levels of its outputs; `known` are those of its inputs, and of what lies around it."""
        levels = dict(known)
        has_changed = True
        while has_changed:  # the nodes need not be in order
            has_changed = False
            for node in body.nodes:
                for name, level in zip(node.outputs, self._node(node, levels), strict=False):
                    before = levels.get(name, _STILL)
                    levels[name] = _joined([before, level])
                    has_changed |= levels[name] != before
        return tuple(levels.get(name, _STILL) for name in body.outputs)

    def _node(self, node: Node, levels: Mapping[str, Level]) -> Iterable[Level]:
        inputs = tuple(levels.get(name, _STILL) for name in node.inputs)
        key = (node.domain, node.operator)
        if key in self._functions:
            return self._call(key, inputs)
        if node.operator == "If":
            return self._branches(node, inputs, levels)
        if node.operator == "Loop":
            return self._loop(node, inputs, levels)
        if node.bodies:
            return self._repeated(node, inputs, levels)
        level = self._plain(node, inputs)
        return [level] * len(node.outputs)

    def _plain(self, node: Node, inputs: tuple[Level, ...]) -> Level:
        operator = node.operator
        numbers, shape = _joined(inputs)
        numbers = max(numbers, shape)  # a sum over a tensor says how long it is
        said = max((inputs[at][0] for at in _SIZES.get(operator, ()) if at < len(inputs)), default=FIXED)
        if said == FREE:
            raise Undecodable("unsupported", _refusal(node))
        parts = max((inputs[at][0] for at in _PARTS.get(operator, ()) if at < len(inputs)), default=FIXED)
        shape = max(shape, said, min(parts, BOUNDED))
        self.varies |= shape != FIXED
        if operator in _RANDOM:
            return FREE, shape
        if operator in _OF_SHAPES:
            return shape, FIXED
        is_bounded = (
            operator in _WITHIN_BOUNDS
            or (operator == "Min" and any(level[0] != FREE for level in inputs))
            or (operator == "Mod" and inputs[-1][0] != FREE)
            or (operator == "Clip" and len(inputs) == 3 and bool(node.inputs[2]) and inputs[2][0] != FREE)
        )
        return (min(numbers, BOUNDED) if is_bounded else numbers), shape

    def _call(self, key: tuple[str, str], inputs: tuple[Level, ...]) -> tuple[Level, ...]:
        if (key, inputs) not in self._called:
            function = self._functions[key]
            self._called[key, inputs] = self.body(function, dict(zip(function.inputs, inputs, strict=False)))
        return self._called[key, inputs]

    def _branches(self, node: Node, inputs: tuple[Level, ...], levels: Mapping[str, Level]) -> list[Level]:
        given = [self.body(body, levels) for body in node.bodies.values()]
        return [self._chosen(min(inputs[0][0], BOUNDED), level) for level in _columns(given)]

    def _loop(self, node: Node, inputs: tuple[Level, ...], levels: Mapping[str, Level]) -> list[Level]:
        """How often it runs: as the first input says, at most, and as long as the condition holds that its body gives first."""
        (body,) = node.bodies.values()
        n_carried = max(0, len(body.inputs) - 2)
        has_count = bool(node.inputs) and bool(node.inputs[0])
        count, condition = (inputs[0][0] if has_count else FIXED), (inputs[1][0] if len(inputs) > 1 else FIXED)
        carried = [*inputs[2:], *[_STILL] * (n_carried - len(inputs[2:]))]
        while True:
            chosen = max(count, min(condition, BOUNDED) if has_count else FREE * bool(condition))
            own = [(chosen, FIXED), (condition, FIXED), *carried]
            kept, *given = self.body(body, {**levels, **dict(zip(body.inputs, own, strict=False))})
            joined = [_joined(pair) for pair in zip(carried, given, strict=False)]
            if joined == carried and kept[0] <= condition:
                return [self._chosen(chosen, level) for level in [*carried, *given[n_carried:]]]
            carried, condition = joined, max(condition, kept[0])

    def _repeated(self, node: Node, inputs: tuple[Level, ...], levels: Mapping[str, Level]) -> list[Level]:
        """Scan and the like: as often as a sequence is long, everything taken for as free as the freest."""
        level = _joined(inputs)
        self.varies |= level[1] != FIXED or node.operator not in ("Scan", "SequenceMap")
        while True:
            given = [self.body(body, {**levels, **dict.fromkeys(body.inputs, level)}) for body in node.bodies.values()]
            joined = _joined([level, *(one for outputs in given for one in outputs)])
            if joined == level:
                return [level] * len(node.outputs)
            level = joined

    def _chosen(self, by: int, level: Level) -> Level:
        """Of what is given or not, or more or less often, as `by` says."""
        if by == FIXED:
            return level
        self.varies = True
        return max(by, level[0]), max(BOUNDED, level[1])


def _joined(levels: Iterable[Level]) -> Level:
    numbers = shape = FIXED
    for level in levels:
        numbers, shape = max(numbers, level[0]), max(shape, level[1])
    return numbers, shape


def _columns(given: list[tuple[Level, ...]]) -> Iterable[Level]:
    return [_joined(levels) for levels in zip_longest(*given, fillvalue=_STILL)]


def _refusal(node: Node) -> str:
    named = f"{node.operator} {node.name!r}" if node.name else f"{node.operator} that gives {node.outputs[0]!r}"
    return (
        f"how much its node {named} makes depends on the numbers in the row, without a bound: one request could take all memory; "
        "make sizes of shapes, or bound the number with Min or Clip"
    )
