"""Reads SASS: instructions, their classes, and the path that is executed where nothing is out of the ordinary."""

import heapq
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = [
    "CLASSES",
    "Instruction",
    "branch_target",
    "classify",
    "hot_path",
    "memory_accesses",
    "parse_sass",
    "successors",
]

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P[\dT]+\s+)?([A-Z][A-Za-z0-9_.]*)([^;]*);", re.MULTILINE)
WIDTH = re.compile(r"(?:[USF]|BF)?(?P<bits>256|128|64|32|16|8)(?:x(?P<elements>\d))?")

CLASSES: dict[str, frozenset[str]] = {
    "multiply_add": frozenset({"FFMA", "FMUL", "FADD", "HFMA2", "HMUL2", "FFMA2", "FMUL2", "FADD2"}),
    "matrix": frozenset({"HMMA", "HGMMA", "UTCHMMA", "IMMA", "LDSM", "WARPGROUP"}),
    "convert": frozenset({"HADD2", "F2F", "F2FP", "PRMT"}),
    "round": frozenset({"FRND", "F2I", "I2F", "I2FP", "MUFU"}),
    "integer": frozenset({
        "IADD3", "IADD", "IMAD", "LEA", "SHF", "LOP3", "IABS", "SGXT", "VIADD", "VIADDMNMX", "VIMNMX", "IMNMX",
        "UIADD3", "UIMAD", "ULEA", "USHF", "ULOP3", "BMSK", "POPC", "FLO",
    }),
    "select": frozenset({"ISETP", "FSETP", "SEL", "FSEL", "FMNMX", "PLOP3", "UISETP", "USEL", "P2R", "R2P", "FMNMX3"}),
    "move": frozenset({"MOV", "CS2R", "S2R", "UMOV", "R2UR", "LDC", "ULDC", "S2UR", "LDCU", "UMOV32I", "CS2UR"}),
    "exchange": frozenset({"SHFL", "LDS", "STS", "BAR", "VOTE", "VOTEU", "REDUX", "MATCH", "SYNCS", "WARPSYNC"}),
    "load": frozenset({"LDG", "LD", "LDGSTS", "UTMALDG"}),
    "store": frozenset({"STG", "ST", "UTMASTG"}),
    "atomic": frozenset({"RED", "REDG", "ATOM", "ATOMG"}),
    "local": frozenset({"LDL", "STL"}),
    "control": frozenset({"BRA", "EXIT", "CALL", "RET", "BSSY", "BSYNC", "JMP", "BRX", "NOP", "YIELD", "DEPBAR"}),
}  # fmt: skip
CLASS_OF = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes}


class Instruction(NamedTuple):
    """One line of SASS."""

    address: int
    opcode: str
    """With its modifiers, such as LDG.E.128."""
    operands: str
    conditional: bool
    """Whether a predicate guards it."""

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]


def parse_sass(text: str) -> list[Instruction]:
    """The instructions of a listing by cuobjdump, without the padding after the last branch."""
    found = [
        Instruction(int(address, 16), opcode, operands.strip(), guard is not None and "PT" not in (guard or ""))
        for address, guard, opcode, operands in LINE.findall(text)
        for guard in [guard or None]
    ]
    while found and found[-1].name == "NOP":
        found.pop()
    return found


def classify(instructions: Iterable[Instruction]) -> dict[str, int]:
    """Instructions by class; what no class names is under `other`."""
    counts = Counter(CLASS_OF.get(instruction.name, "other") for instruction in instructions)
    return {name: counts[name] for name in (*CLASSES, "other") if counts[name]}


def memory_accesses(instructions: Iterable[Instruction], kind: str) -> dict[int, int]:
    """Accesses of a class (`load`, `store`, `atomic`) by their width in bits."""
    widths = Counter(
        _width(instruction.opcode) for instruction in instructions if CLASS_OF.get(instruction.name) == kind
    )
    return dict(sorted(widths.items()))


def _width(opcode: str) -> int:
    """Bits of an access by the opcode's modifiers: a width, or a number of elements such as F32x4."""
    for part in opcode.split(".")[1:]:
        if found := WIDTH.fullmatch(part):
            return int(found["bits"]) * int(found["elements"] or 1)
    return 32


def hot_path(instructions: list[Instruction], trips: Sequence[int] = ()) -> list[Instruction]:
    """What runs where nothing is out of the ordinary.

    Without a loop all of it up to the last exit. With one (a sum that must be made again where it was not finite) the
    shortest path to the exit that is taken without a condition, which skips the loop. A loop that this path enters is
    repeated.

    Args:
        instructions: a whole listing.
        trips: how often the loops on that path run, the outermost first.

    Raises:
        ValueError: loops on that path are nested deeper than `trips` says.
    """
    last = max(position for position, instruction in enumerate(instructions) if instruction.name == "EXIT")
    if not any(_is_backward_branch(instruction) for instruction in instructions[:last]):
        return instructions[: last + 1]
    path = _shortest_path(instructions)
    loops = _entered_loops(instructions, {instruction.address for instruction in path})
    repeated = []
    for instruction in path:
        depth = sum(first <= instruction.address <= end for first, end in loops.items())
        if depth > len(trips):
            raise ValueError(f"{depth} nested loops at {instruction.address:#x}, trips of {len(trips)} are known")
        repeated += [instruction] * math.prod(trips[:depth])
    return repeated


def _entered_loops(instructions: list[Instruction], path: set[int]) -> dict[int, int]:
    """First and last address of each loop that begins on the path; the end's jump to itself is none."""
    loops: dict[int, int] = {}
    for instruction in filter(_is_backward_branch, instructions):
        first = branch_target(instruction)
        if first in path:
            loops[first] = max(loops.get(first, 0), instruction.address)
    return loops


def _is_backward_branch(instruction: Instruction) -> bool:
    return instruction.name == "BRA" and (branch_target(instruction) or instruction.address) < instruction.address


def branch_target(instruction: Instruction) -> int | None:
    """Address that a branch goes to."""
    found = re.search(r"0x([0-9a-f]+)\)?\s*$", instruction.operands)
    return int(found[1], 16) if found else None


def _shortest_path(instructions: list[Instruction]) -> list[Instruction]:
    """The shortest path from the first instruction to an exit that is taken without a condition."""
    index = {instruction.address: position for position, instruction in enumerate(instructions)}
    best = {0: 0}
    previous: dict[int, int] = {}
    queue = [(0, 0)]
    while queue:
        distance, position = heapq.heappop(queue)
        if distance > best[position]:
            continue
        instruction = instructions[position]
        if instruction.name == "EXIT" and not instruction.conditional:
            path = [position]
            while path[-1]:
                path.append(previous[path[-1]])
            return [instructions[step] for step in reversed(path)]
        for following in successors(instruction, position, index):
            if following < len(instructions) and distance + 1 < best.get(following, len(instructions) + 1):
                best[following] = distance + 1
                previous[following] = position
                heapq.heappush(queue, (distance + 1, following))
    raise ValueError("the listing has no exit that can be reached")


def successors(instruction: Instruction, position: int, index: dict[int, int]) -> list[int]:
    """Positions of what may come next; `index` has positions by address."""
    # The compiler also jumps to the end of a loop by a call that never returns.
    if instruction.name not in ("BRA", "CALL"):
        return [position + 1]
    target = branch_target(instruction)
    taken = [index[target]] if target in index else []
    # A branch may be conditional by an operand too: BRA.DIV, or BRA !UP0.
    always = not instruction.conditional and instruction.opcode == "BRA" and "P" not in instruction.operands
    return taken if always else [position + 1, *taken]
