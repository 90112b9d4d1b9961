"""What a compiled program sends between devices, read from its text (`compiled.as_text()`)."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = {"pred": 8, "bf16": 16, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# What changes neither the numbers of an array nor how many they are.
_SAME = (
    *("bitcast", "copy", "transpose", "reshape", "convert", "concatenate"),
    *("get-tuple-element", "optimization-barrier"),
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array of one collective; a combined collective has several.

    Attributes:
        kind: one of `KINDS`.
        dtype, shape: of the whole array: what is gathered, or what is summed and then scattered.
        group: devices that take part with each other.
        times: how often it runs in one call of the program; it may stand in loops.
        sliced: of an all-reduce, that each device uses its own slice of the sum only. Where a
            backend knows no reduce-scatter, as the CPU's, this stands for one.
        name: of the instruction.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    group: int
    times: int
    sliced: bool
    name: str

    @property
    def bytes(self) -> int:
        """Size of the whole array."""
        bits = _BITS.get(self.dtype) or int(re.search(r"\d+", self.dtype)[0])
        return math.prod(self.shape) * bits // 8

    @property
    def sent(self) -> float:
        """Bytes that each device sends in all runs, by the algorithm on a ring."""
        share = (self.group - 1) / self.group
        rounds = {"all-reduce": 2 * share, "collective-permute": 1, "collective-broadcast": 1}
        return self.bytes * self.times * rounds.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    result: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


def collectives(text: str) -> list[Collective]:
    """All collectives of a compiled program, in the order of its text.

    The two halves of an asynchronous one, -start and -done, are one. A loop whose number of rounds
    the compiler does not know counts as one round.
    """
    program = _Program(text)
    return [each for name in program.computations for each in program.of(name)]


def summary(found: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """For each kind how many instructions run, bytes of their arrays, and bytes sent a device."""
    table, seen = {}, set()
    for item in found:
        row = table.setdefault(item.kind, {"count": 0, "bytes": 0, "sent": 0.0})
        row["count"] += item.times if item.name not in seen else 0
        row["bytes"] += item.bytes * item.times
        row["sent"] += item.sent
        seen.add(item.name)
    return table


class _Program:
    def __init__(self, text: str):
        partitions = re.search(r"num_partitions=(\d+)", text)
        self.partitions = int(partitions[1]) if partitions else 1
        self.computations: dict[str, list[_Instruction]] = {}
        self.entry, current = "", None
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                current = self.computations[header[1]] = []
                self.entry = header[1] if line.startswith("ENTRY") else self.entry
            elif current is not None and (match := _INSTRUCTION.match(line)):
                current.append(_instruction(match[1], match[2]))
        self.callers: dict[str, list[tuple[str, int]]] = {}
        for name, instructions in self.computations.items():
            for item in instructions:
                if item.opcode.endswith(("-done", "-update")):
                    continue
                for called in _called(item):
                    trips = _TRIPS.search(item.attributes) if item.opcode == "while" else None
                    times = int(trips[1]) if trips else 1
                    self.callers.setdefault(called, []).append((name, times))

    @functools.cache  # noqa: B019  (lives as long as one call of `collectives`)
    def times(self, computation: str) -> int:
        """How often a computation runs."""
        if computation == self.entry:
            return 1
        return sum(n * self.times(caller) for caller, n in self.callers.get(computation, ()))

    def of(self, computation: str) -> Iterator[Collective]:
        times = self.times(computation)
        for item in self.computations[computation]:
            kind = item.opcode.removesuffix("-start")
            if kind not in KINDS or not times:
                continue
            group, arrays = self._group(item.attributes), _ARRAY.findall(item.result)
            if item.opcode in ("all-gather-start", "collective-permute-start"):
                # Operands, then results, of a permutation also two counters.
                arrays = arrays[len(item.operands) : 2 * len(item.operands)]
            for index, (dtype, dims) in enumerate(arrays):
                shape = tuple(map(int, filter(None, dims.split(","))))
                if kind == "reduce-scatter":
                    shape = _unscattered(shape, group, item.attributes)
                sliced = kind == "all-reduce" and self._sliced(
                    computation, item.name, index if len(arrays) > 1 else None
                )
                yield Collective(kind, dtype, shape, group, times, sliced, item.name)

    def _group(self, attributes: str) -> int:
        if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
            return match[1].count(",") + 1
        if match := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
            return int(match[1])
        if match := re.search(r"replica_groups=\S*mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
            sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
            # An axis may take part as a whole, or a factor of it, 'axis':(before)size.
            axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
            return math.prod(int(part or sizes[axis]) for axis, part in axes)
        return self.partitions

    def _sliced(
        self,
        computation: str,
        name: str,
        index: int | None = None,
        beyond: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Whether an array, or one of a tuple, is used by dynamic slices and nothing else.

        beyond: says the same of what the computation gives.
        """
        instructions = self.computations[computation]
        if instructions[-1].name == name and not beyond():
            return False
        users = [item for item in instructions if name in item.operands]
        if index is not None:
            mine = re.compile(rf"index={index}\b")
            users = [
                user
                for user in users
                if user.opcode != "get-tuple-element" or mine.search(user.attributes)
            ]
        return (bool(users) or instructions[-1].name == name) and all(
            self._only_slices(computation, user, name, beyond) for user in users
        )

    def _only_slices(
        self, computation: str, user: _Instruction, name: str, beyond: Callable[[], bool]
    ) -> bool:
        if user.opcode == "dynamic-slice":
            return user.operands[0] == name
        after = functools.partial(self._sliced, computation, user.name, None, beyond)
        if user.opcode in _SAME:
            return after()
        if user.opcode not in ("fusion", "call"):
            return False
        inner = _called(user)[0]
        places = [n for n, operand in enumerate(user.operands) if operand == name]
        return all(
            self._sliced(inner, item.name, None, after)
            for item in self.computations[inner]
            if item.opcode == "parameter" and int(item.operands[0]) in places
        )


def _instruction(name: str, rest: str) -> _Instruction:
    """Takes 'f32[2]{0} add(%a, %b), metadata=...' apart."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    operands = re.sub(r"/\*.*?\*/", "", rest[len(opcode) + 1 : end - 1])
    names = re.findall(r"%([\w.-]+)", operands) or [o.strip() for o in operands.split(",")]
    return _Instruction(name, result, opcode, tuple(names), rest[end:])


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` is closed, one behind."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place + 1
    return len(text)


def _called(item: _Instruction) -> list[str]:
    found = _CALLED.findall(item.attributes)
    return [name.strip(" %") for group in found for name in group.strip("{}").split(",")]


def _unscattered(shape: tuple[int, ...], group: int, attributes: str) -> tuple[int, ...]:
    axis = int(re.search(r"dimensions=\{(\d+)\}", attributes)[1])
    return (*shape[:axis], shape[axis] * group, *shape[axis + 1 :])
