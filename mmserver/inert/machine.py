"""The pickle machine: opcodes in, values out; a global is only ever looked up in our own table, never imported."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmserver.errors import Undecodable
from mmserver.inert.keys import KeyGuard
from mmserver.inert.limits import Budget
from mmserver.inert.records import Instance, Value

_OPS_PER_CHECK = 2048
_ITEMS_PER_CHECK = 256
_MAX_NAME_BYTES = 255
_MAX_ARGS = 64
_SET_BYTES = 216  # of memory, where the opcode is one byte
_OBJECT_BYTES = 256
_ENTRY_BYTES = 64
_PROTOCOLS = range(2, 6)


class Pending:
    """An object whose state has not come yet; the BUILD that brings it replaces this by the finished value."""

    __slots__ = ("done", "finish", "name", "value")

    def __init__(self, name: str, finish: "Callable[[Machine, Value], Value]") -> None:
        self.name = name
        self.finish = finish
        self.done = False
        self.value: Value = None


Maker = Callable[["Machine", tuple[Value, ...]], Value]


@dataclass(frozen=True, eq=False)
class Global:
    """A name that a pickle may mention, and our own code that stands in for calling it (`reduce`) or making one (`new`)."""

    name: str
    reduce: Maker | None = None
    new: Maker | None = None


class Machine:
    """Decodes one pickle stream that starts at `pos` in `data`; a nested stream shares its budget, not its memo."""

    def __init__(
        self, data: bytes, pos: int, budget: Budget, find_global: Callable[[str, str], Value], depth: int = 0
    ) -> None:
        self.data = data
        self.pos = pos
        self.budget = budget
        self.depth = depth
        self.outermost: str | None = None
        self._keys = KeyGuard()
        self._find_global = find_global
        self._stack: list[Value] = []
        self._marks: list[list[Value]] = []
        self._memo: dict[int, Value] = {}
        self._fresh: dict[int, Instance] = {}

    def run(self) -> Value:
        """Decode up to STOP, leaving `pos` after it.

        Raises:
            Undecodable: see `mmserver.inert.decoding.decode`.
        """
        self._read_protocol()
        data, table = self.data, self._TABLE
        try:
            while True:
                self.budget.spend_ops(_OPS_PER_CHECK)
                for _ in range(_OPS_PER_CHECK):
                    opcode = data[self.pos]
                    self.pos += 1
                    if opcode == 0x2E:
                        return self._stop()
                    table[opcode](self)
        except IndexError as error:
            if self.pos >= len(data):
                raise Undecodable("torn", "the pickle ends before its STOP") from error
            raise Undecodable("malformed", f"stack underflow at byte {self.pos}") from error

    def take(self, n_bytes: int) -> bytes:
        """The next bytes of the stream; refused as torn where fewer are left."""
        end = self.pos + n_bytes
        if end > len(self.data):
            raise Undecodable(
                "torn", f"{n_bytes} bytes are announced at byte {self.pos}, {len(self.data) - self.pos} left"
            )
        piece = self.data[self.pos : end]
        self.pos = end
        return piece

    def run_nested(self) -> Value:
        """Decode a pickle that stands inline at `pos`, under the same budget."""
        if self.depth >= self.budget.limits.max_nested_pickles:
            raise Undecodable("too_complex", f"pickles nested deeper than {self.budget.limits.max_nested_pickles}")
        inner = Machine(self.data, self.pos, self.budget, self._find_global, self.depth + 1)
        value = inner.run()
        self.pos = inner.pos
        return value

    def opened(self, instance: Instance) -> Instance:
        """Hand out an instance that may be given its state once."""
        self._fresh[id(instance)] = instance
        self.outermost = self.outermost or instance.global_name
        return instance

    # --- framing ------------------------------------------------------------------------------------------------------

    def _read_protocol(self) -> None:
        head = self.take(2)
        if head[0] != 0x80:
            raise Undecodable("malformed", "not a pickle of protocol 2 or later")
        if head[1] not in _PROTOCOLS:
            raise Undecodable("unsupported", f"pickle protocol {head[1]}")

    def _stop(self) -> Value:
        if self._marks or len(self._stack) != 1:
            raise Undecodable("malformed", "STOP with an unfinished stack")
        return self._stack[0]

    def _frame(self) -> None:
        (size,) = struct.unpack("<Q", self.take(8))
        if size > len(self.data) - self.pos:
            raise Undecodable("torn", f"a frame of {size} bytes is announced, {len(self.data) - self.pos} left")

    # --- numbers and text ---------------------------------------------------------------------------------------------

    def _none(self) -> None:
        self._stack.append(None)

    def _true(self) -> None:
        self._stack.append(True)

    def _false(self) -> None:
        self._stack.append(False)

    def _int4(self) -> None:
        self._stack.append(int.from_bytes(self.take(4), "little", signed=True))

    def _int1(self) -> None:
        self._stack.append(self.data[self.pos])
        self.pos += 1

    def _int2(self) -> None:
        self._stack.append(int.from_bytes(self.take(2), "little"))

    def _long1(self) -> None:
        self._push_long(self.take(1)[0])

    def _long4(self) -> None:
        self._push_long(int.from_bytes(self.take(4), "little"))

    def _push_long(self, n_bytes: int) -> None:
        if n_bytes > self.budget.limits.max_long_bytes:
            raise Undecodable("too_large", f"an integer of {n_bytes} bytes")
        self._stack.append(int.from_bytes(self.take(n_bytes), "little", signed=True))

    def _float(self) -> None:
        self._stack.append(struct.unpack(">d", self.take(8))[0])

    def _text(self, length_size: int) -> None:
        raw = self.take(int.from_bytes(self.take(length_size), "little"))
        try:
            self._stack.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise Undecodable("malformed", f"text that is not UTF-8 at byte {self.pos - len(raw)}") from error

    def _text1(self) -> None:
        self._text(1)

    def _text4(self) -> None:
        self._text(4)

    def _text8(self) -> None:
        self._text(8)

    def _bytes1(self) -> None:
        self._stack.append(self.take(self.take(1)[0]))

    def _bytes4(self) -> None:
        self._stack.append(self.take(int.from_bytes(self.take(4), "little")))

    def _bytes8(self) -> None:
        self._stack.append(self.take(int.from_bytes(self.take(8), "little")))

    def _bytearray8(self) -> None:
        self._stack.append(bytearray(self.take(int.from_bytes(self.take(8), "little"))))

    # --- containers ---------------------------------------------------------------------------------------------------

    def _mark(self) -> None:
        if len(self._marks) >= self.budget.limits.max_depth:
            raise Undecodable("too_complex", f"nested deeper than {self.budget.limits.max_depth}")
        self._marks.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Value]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _empty_tuple(self) -> None:
        self._stack.append(())

    def _tuple(self) -> None:
        items = self._pop_mark()
        self._stack.append(tuple(items))

    def _tuple1(self) -> None:
        self._stack[-1] = (self._stack[-1],)

    def _tuple2(self) -> None:
        last = self._stack.pop()
        self._stack[-1] = (self._stack[-1], last)

    def _tuple3(self) -> None:
        last = self._stack.pop()
        middle = self._stack.pop()
        self._stack[-1] = (self._stack[-1], middle, last)

    def _empty_list(self) -> None:
        self._stack.append([])

    def _empty_dict(self) -> None:
        self._stack.append({})

    def _empty_set(self) -> None:
        self.budget.spend_bytes(_SET_BYTES)
        self._stack.append(set())

    def _append(self) -> None:
        item = self._stack.pop()
        self._target(list).append(item)

    def _appends(self) -> None:
        items = self._pop_mark()
        self._target(list).extend(items)

    def _setitem(self) -> None:
        value = self._stack.pop()
        key = self._stack.pop()
        self.fill_dict(self._target(dict), [key, value])

    def _setitems(self) -> None:
        items = self._pop_mark()
        self.fill_dict(self._target(dict), items)

    def _additems(self) -> None:
        items = self._pop_mark()
        self.fill_set(self._target(set), items)

    def _frozenset(self) -> None:
        filled: set[Value] = set()
        self.fill_set(filled, self._pop_mark())
        self._stack.append(frozenset(filled))

    def _target(self, kind: type) -> Any:
        target = self._stack[-1]
        if type(target) is not kind:
            raise Undecodable("malformed", f"items for a {kind.__name__} are given to a {type(target).__name__}")
        return target

    def fill_dict(self, target: dict[Value, Value], items: list[Value]) -> None:
        """Put alternating keys and values into a dict, in steps short enough to notice the deadline between them."""
        if len(items) % 2:
            raise Undecodable("malformed", "a dict key without a value")
        self.budget.spend_bytes(_ENTRY_BYTES * len(items) // 2)
        for start in range(0, len(items), 2 * _ITEMS_PER_CHECK):
            for at in range(start, min(start + 2 * _ITEMS_PER_CHECK, len(items)), 2):
                self._keys.check(target, items[at])
                target[items[at]] = items[at + 1]
            if start:
                self.budget.check_time()

    def fill_set(self, target: set[Value], items: list[Value]) -> None:
        """Put items into a set, in steps short enough to notice the deadline between them."""
        self.budget.spend_bytes(_ENTRY_BYTES * len(items))
        for start in range(0, len(items), _ITEMS_PER_CHECK):
            for item in items[start : start + _ITEMS_PER_CHECK]:
                self._keys.check(target, item)
                target.add(item)
            if start:
                self.budget.check_time()

    # --- memo ---------------------------------------------------------------------------------------------------------

    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _put1(self) -> None:
        self._put(self.take(1)[0])

    def _put4(self) -> None:
        self._put(int.from_bytes(self.take(4), "little"))

    def _put(self, at: int) -> None:
        self._memo[at] = self._stack[-1]
        if len(self._memo) > self.budget.limits.max_memo:
            raise Undecodable("too_complex", f"more than {self.budget.limits.max_memo} memo entries")

    def _get1(self) -> None:
        self._get(self.take(1)[0])

    def _get4(self) -> None:
        self._get(int.from_bytes(self.take(4), "little"))

    def _get(self, at: int) -> None:
        if at not in self._memo:
            raise Undecodable("malformed", f"memo entry {at} was never stored")
        value = self._memo[at]
        if type(value) is Pending and value.done:
            value = value.value
        self._stack.append(value)

    # --- globals and what is made of them -----------------------------------------------------------------------------

    def _global(self) -> None:
        module = self._name_line()
        self._stack.append(self._find_global(module, self._name_line()))

    def _name_line(self) -> str:
        end = self.data.find(b"\n", self.pos, self.pos + _MAX_NAME_BYTES + 1)
        if end < 0:
            if len(self.data) - self.pos <= _MAX_NAME_BYTES:
                raise Undecodable("torn", "the pickle ends within the name of a global")
            raise Undecodable("malformed", f"the name of a global is longer than {_MAX_NAME_BYTES} bytes")
        line = self.data[self.pos : end]
        self.pos = end + 1
        return line.decode("ascii", "backslashreplace")

    def _stack_global(self) -> None:
        name = self._stack.pop()
        module = self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise Undecodable("malformed", "the name of a global is not text")
        self._stack.append(self._find_global(module, name))

    def _reduce(self) -> None:
        args = self._stack.pop()
        self._stack[-1] = self._make(self._stack[-1], args, "reduce")

    def _newobj(self) -> None:
        args = self._stack.pop()
        self._stack[-1] = self._make(self._stack[-1], args, "new")

    def _make(self, what: Value, args: Value, how: str) -> Value:
        if type(what) is not Global or type(args) is not tuple:
            raise Undecodable("malformed", f"{how} on a {type(what).__name__} with a {type(args).__name__}")
        maker = what.reduce if how == "reduce" else what.new
        if len(args) > _MAX_ARGS:
            raise Undecodable("malformed", f"{what.name} with {len(args)} arguments")
        self.budget.spend_bytes(_OBJECT_BYTES)
        if maker is None:
            raise Undecodable("unsupported", f"{what.name} made by {how.upper()}")
        return maker(self, args)

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if type(target) is Pending and not target.done:
            value = target.finish(self, state)
            target.done, target.value = True, value
            self._stack[-1] = value
        elif type(target) is Instance and id(target) in self._fresh:
            self._fresh.pop(id(target)).state = state
        else:
            raise Undecodable("malformed", f"a state is given to a {_kind(target)}")

    def _forbidden(self) -> None:
        opcode = self.data[self.pos - 1]
        raise Undecodable("forbidden_opcode", f"opcode 0x{opcode:02x} at byte {self.pos - 1}")

    _TABLE: ClassVar[Mapping[int, Callable[["Machine"], None]]]


def _kind(value: Value) -> str:
    return value.name if type(value) in (Global, Pending) else type(value).__name__


_ALLOWED: dict[str, Callable[[Machine], None]] = {
    "\x95": Machine._frame,
    "N": Machine._none,
    "\x88": Machine._true,
    "\x89": Machine._false,
    "J": Machine._int4,
    "K": Machine._int1,
    "M": Machine._int2,
    "\x8a": Machine._long1,
    "\x8b": Machine._long4,
    "G": Machine._float,
    "\x8c": Machine._text1,
    "X": Machine._text4,
    "\x8d": Machine._text8,
    "C": Machine._bytes1,
    "B": Machine._bytes4,
    "\x8e": Machine._bytes8,
    "\x96": Machine._bytearray8,
    "(": Machine._mark,
    ")": Machine._empty_tuple,
    "t": Machine._tuple,
    "\x85": Machine._tuple1,
    "\x86": Machine._tuple2,
    "\x87": Machine._tuple3,
    "]": Machine._empty_list,
    "}": Machine._empty_dict,
    "\x8f": Machine._empty_set,
    "a": Machine._append,
    "e": Machine._appends,
    "s": Machine._setitem,
    "u": Machine._setitems,
    "\x90": Machine._additems,
    "\x91": Machine._frozenset,
    "\x94": Machine._memoize,
    "q": Machine._put1,
    "r": Machine._put4,
    "h": Machine._get1,
    "j": Machine._get4,
    "c": Machine._global,
    "\x93": Machine._stack_global,
    "R": Machine._reduce,
    "\x81": Machine._newobj,
    "b": Machine._build,
}

Machine._TABLE = {opcode: _ALLOWED.get(chr(opcode), Machine._forbidden) for opcode in range(256)}
