"""What the text of a compiled program says: its operations with how often each runs, collectives, cycles.

XLA's own sums (`cost_analysis`) count the body of a loop once and take -1 for what they do not know, so the
sums are made here, from `compiled.as_text()`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Of these XLA has no estimate and needs none: they name memory, or are over before the next cycle counts.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota",
    "partition-id", "replica-id", "after-all", "opt-barrier", "copy-start", "copy-done", "slice-start",
    "slice-done", "async-start", "async-update", "async-done",
}  # fmt: skip
OPERATION = re.compile(r"\s*(?:ROOT )?%?(?P<name>\S+) = (?P<shape>\(.*?\)|\S+) (?P<kind>[a-z][\w\-]*)\(")


@dataclass(frozen=True)
class Operation:
    """One line of the program."""

    name: str
    kind: str  # "fusion", "all-reduce", ...
    shape: str  # of the result, with layouts
    line: str
    times: int  # how often a step runs it
    inside: str  # the computation that it stands in

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate for one run, None where it has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.line)
        return int(found[1]) if found else None

    @property
    def label(self) -> str:
        """Where in the Python program it comes from, as JAX names it."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found[1] if found else ""


@dataclass
class Collective:
    """All exchanges of one kind."""

    count: int = 0  # in the program's text
    runs: int = 0  # in a step, loops counted
    bytes: float = 0.0  # of the whole arrays, over all runs in a step


@dataclass
class Cycles:
    """The compiler's estimate of a step."""

    total: float = 0.0  # cycles
    groups: dict[str, float] = field(default_factory=dict)  # the same by what they are for
    missing: list[str] = field(default_factory=list)  # operations without an estimate


def size(shape: str) -> float:
    """Bytes of a shape, "f32[8,4]{1,0}" or a tuple of them, without padding."""
    total = 0.0
    for kind, dims in re.findall(r"\b([a-z]+\d*(?:e\d\w*)?)\[([\d,]*)\]", shape):
        width = BYTES.get(kind) or (int(re.sub(r"\D", "", kind.split("e")[0]) or 8) / 8)
        if kind in ("token", "opaque"):
            continue
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        total += count * width
    return total


def largest(shape: str) -> float:
    """Bytes of the largest array in a shape."""
    return max((size(part) for part in re.findall(r"\w+\[[\d,]*\]", shape)), default=0.0)


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(lines by computation, name of the entry)."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([^\s(]+) \(.*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
            bodies[name] = []
        elif line.startswith("}"):
            name = ""
        elif name:
            bodies[name].append(line)
    return bodies, entry


def trips(line: str, bodies: dict[str, list[str]]) -> int:
    """How often the loop of a `while` runs: XLA's own count, or the largest number its condition compares
    with."""
    if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line):
        return int(known[1])
    condition = re.search(r"condition=%?([^\s,]+)", line)
    lines = bodies.get(condition[1], []) if condition else []
    limits = re.findall(r"[su](?:32|64)\[\][^ ]* constant\((\d+)\)", "\n".join(lines))
    return max(map(int, limits), default=1)


def operations(text: str, fused: bool = False) -> Iterator[Operation]:
    """Every operation that a step runs, those of loops with their trip counts.

    Args:
      fused: also those inside fusions.
    """
    bodies, entry = computations(text)

    def walk(name: str, times: int) -> Iterator[Operation]:
        for line in bodies.get(name, []):
            found = OPERATION.match(line)
            if not found:
                continue
            kind = found["kind"]
            yield Operation(found["name"], kind, found["shape"], line, times, name)
            if kind == "while":
                if body := re.search(r"body=%?([^\s,]+)", line):
                    yield from walk(body[1], times * trips(line, bodies))
            elif kind in ("call", "conditional", "async-start") or (fused and kind == "fusion"):
                for called in re.findall(r"(?:to_apply|calls|branch_computations)=\{?%?([^\s,}]+)", line):
                    yield from walk(called, times)

    yield from walk(entry, 1)


def collectives(text: str) -> dict[str, Collective]:
    """The exchanges between chips by kind, with loops counted; an asynchronous pair is one.

    The size of an exchange is that of its whole array: what a gather gives, what a scatter takes.
    """
    found: dict[str, Collective] = {}
    for op in unique_exchanges(text):
        one = found.setdefault(op.kind, Collective())
        one.count += 1
        one.runs += op.times
        one.bytes += op.times * exchanged(op)
    return found


def unique_exchanges(text: str) -> Iterator[Operation]:
    """The operations that exchange something; `kind` is without -start.

    The compiler spreads one exchange over several fusions, from the one that starts it to the one that waits
    for it: the first counts. None of them starts one exchange and waits for another.
    """
    bodies, _ = computations(text)
    for op in operations(text, fused=True):
        kind = op.kind.removesuffix("-start")
        if kind in COLLECTIVES and not _goes_on(op.inside, bodies):
            scatter = kind == "all-reduce" and "all-reduce-scatter" in op.inside
            yield dataclasses.replace(op, kind="reduce-scatter" if scatter else kind)


def _goes_on(computation: str, bodies: dict[str, list[str]]) -> bool:
    """Whether a fusion's computation is one through which an exchange goes on, or in which it ends."""
    ends = any('"AsyncCollectiveDone"' in line for line in bodies[computation])
    return ends or computation.startswith("async_collective_fusion")


def hidden_cycles(text: str, kernels: dict[str, float]) -> dict[str, float]:
    """Cycles of computation between the start and the end of each asynchronous exchange, by the name of what
    is started (as in `unique_exchanges`); where several are under way they share them.

    The order is that of the text, which is the compiler's schedule.
    """
    bodies, _ = computations(text)
    hidden: dict[str, float] = {}
    under_way: dict[str, str] = {}  # name in `hidden` by what tells that it ends
    for op in operations(text):
        called = re.search(r"calls=%?([^\s,}]+)", op.line) if op.kind == "fusion" else None
        inner = [m for line in bodies.get(called[1], []) if (m := OPERATION.match(line))] if called else []
        exchanges = [m for m in inner if m["kind"].removesuffix("-start") in COLLECTIVES]
        own = exchanges[0] if exchanges else None
        lines = "".join(m.string for m in inner)
        if op.kind.endswith("-start") and op.kind.removesuffix("-start") in COLLECTIVES:
            under_way[op.name], hidden[op.name] = op.name, 0.0
        elif own and '"AsyncCollectiveStart"' in lines:
            under_way[_same(own)], hidden[own["name"]] = own["name"], 0.0
        elif own and '"AsyncCollectiveDone"' in lines:
            under_way.pop(_same(own), None)
        elif op.kind.endswith("-done") and (of := re.search(r"-done\(%?([^\s,)]+)", op.line)):
            under_way.pop(of[1], None)
        elif op.kind not in COLLECTIVES:
            cost = op.cycles if op.cycles is not None else kernels.get(op.name, 0.0)
            for name in under_way.values():
                hidden[name] += cost * op.times / len(under_way)
    return hidden


def _same(exchange: re.Match[str]) -> str:
    """What the parts of one exchange have in common: its channel and its array."""
    channel = re.search(r"channel_id=(\d+)", exchange.string)
    return f"{channel and channel[1]} {re.sub('{.*?}', '', exchange['shape'])}"


def exchanged(op: Operation) -> float:
    """Bytes of the whole array of an exchange."""
    if " reduce-scatter" in op.line:
        return size(op.shape) * _group_size(op.line)
    # What starts an exchange gives its operands too.
    return (
        largest(op.shape) if re.search(r"-start\(", op.line) and op.kind != "all-reduce" else size(op.shape)
    )


def _group_size(line: str) -> int:
    """Devices among which an operation exchanges, of each of the forms in which XLA writes its groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(counted[1])
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line):  # jaxlib 0.11 and later
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes[1]))
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes[2])  # a part of an axis: 'data':(before)size
        return math.prod(int(part or sizes[name]) for name, part in parts)
    return 1


def cycles(text: str, kernels: dict[str, float], groups: dict[str, str]) -> Cycles:
    """The compiler's estimate: `estimated_cycles` of every operation but the exchanges, times how often it
    runs.

    Args:
      kernels: cycles of one run of operations that XLA has no estimate of, by name.
      groups: name of a group by the pattern that its operations' text matches; the first counts.
    """
    out = Cycles()
    for op in operations(text):
        kind = op.kind.removesuffix("-start").removesuffix("-done")
        if kind in COLLECTIVES:
            continue
        one = op.cycles if op.cycles is not None else kernels.get(op.name)
        if one is None:
            memory = re.search(
                r'custom_call_target="(AllocateBuffer|ConcatBitcast|AssumeGatherIndicesInBound)"', op.line
            )
            if op.kind not in FREE and not memory and size(op.shape) > 4096:
                out.missing.append(f"{op.name} {op.shape[:40]} {op.label[-60:]}")
            continue
        total = one * op.times
        out.total += total
        where = f"{op.name} {op.label}"
        group = next((name for pattern, name in groups.items() if re.search(pattern, where)), "other")
        out.groups[group] = out.groups.get(group, 0.0) + total
    return out


def matrix_flops(text: str) -> float:
    """FLOPs of all products of matrices and convolutions of a step, loops counted, and of kernels that
    say."""
    bodies, _ = computations(text)
    shapes = {
        name: {m["name"]: m["shape"] for line in lines if (m := OPERATION.match(line))}
        for name, lines in bodies.items()
    }
    total = 0.0
    for op in operations(text, fused=True):
        if op.kind == "custom-call":
            said = re.search(r'"flops":"?(\d+)', op.line)
            total += op.times * int(said[1]) if said else 0
        if op.kind not in ("dot", "convolution"):
            continue
        operands = [
            dimensions(shapes[op.inside].get(name, ""))
            for name in re.findall(r"%([^\s,)]+)", op.line.split(f" {op.kind}(", 1)[1].split(")")[0])
        ]
        total += op.times * 2 * _product(dimensions(op.shape)) * _contracted(op, operands)
    return total


def dimensions(shape: str) -> list[int]:
    """[8, 4] of "f32[8,4]{1,0}"."""
    found = re.search(r"\[([\d,]*)\]", shape)
    return [int(n) for n in filter(None, found[1].split(","))] if found else []


def _contracted(op: Operation, operands: list[list[int]]) -> int:
    """Products that are summed up for one element of the result."""
    if op.kind == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.line)
        return _product([operands[0][int(a)] for a in filter(None, axes[1].split(","))]) if axes else 1
    labels = re.search(r"dim_labels=\w+_(\w+)->", op.line)
    # All axes of the kernel but the output's: i, and the window's.
    return (
        _product([n for n, label in zip(operands[1], labels[1], strict=True) if label != "o"])
        if labels
        else 1
    )


def _product(numbers: list[int]) -> int:
    out = 1
    for n in numbers:
        out *= n
    return out


def kernel_program(op: Operation) -> str:
    """The program of a kernel, equal for equal ones; the operation's name where there is none."""
    found = re.search(r'"body":"([^"]*)"', op.line)
    return found[1] if found else op.name


def kernel_bytes(op: Operation) -> float:
    """Bytes of a kernel's operands and results."""
    found = re.search(r"operand_layout_constraints=\{(.*?)\}, \w+=", op.line)
    return size(op.shape) + (size(found[1]) if found else 0)


def bundles(text: str) -> float:
    """Instruction bundles that the final program of a kernel issues, one in a cycle; loops counted, stalls
    not.

    Args:
      text: the compiler's dump "final_bundles". A loop runs as often as the number that its exit test
        compares with; both sides of a branch count.
    """
    depths: list[int] = []
    heads: list[tuple[int, int]] = []  # (first bundle, depth) of each loop
    tests: list[tuple[int, int, int]] = []  # (bundle, depth, limit) of exit tests
    for line in text.splitlines():
        found = re.match(r"\s*(?:0x[0-9a-f]+|0)\s+([A-Z]{2})?\s*:?\s*((?:>\s*)*)", line)
        if not found:
            continue
        empty = re.search(r":\s*\{\}", line)  # an empty bundle does not show how deep it is
        depth = depths[-1] if empty and depths else max(found[2].count(">"), found[1] == "LB")
        if found[1] == "LB":
            heads.append((len(depths), depth))
        if test := re.search(r"scmp\.ge\.s32\.totalorder [^,]+, (\d+) /\* loop exit test", line):
            tests.append((len(depths), depth, int(test[1])))
        depths.append(depth)
    times = [1.0] * len(depths)
    for first, depth in heads:
        # Bundles of outer loops may be moved in between, so a loop ends with its last bundle.
        stop = next((i for i, d in heads if i > first and d <= depth), len(depths))
        last = max(i for i in range(first, stop) if depths[i] >= depth)
        limit = next((n for i, d, n in reversed(tests) if first <= i <= last and d == depth), 1)
        for i in range(first, last + 1):
            times[i] *= limit
    return sum(times)
