"""The reference page of the instruction set, ``docs/isa.md``, from the tables."""

from __future__ import annotations

from escc.isa.arch import PARAMETERS, Arch
from escc.isa.instructions import (
    INSTRUCTIONS,
    MAX_LOOP_NEST,
    OPCODE_HIGH,
    OPCODE_LOW,
    QUEUE_UNIT,
    TOKENS,
    WORD_BITS,
    Instruction,
    Queue,
)
from escc.isa.registers import GENERAL_BITS, GENERAL_REGISTERS, REGISTERS, UNITS

_INTRODUCTION = f"""\
# Instruction set

This page is generated from the tables in `isa/` (`python -m escc.isa.reference_page > docs/isa.md`); a test
fails when it is out of date. What the instructions compute, and in how many cycles, is in `machine.md`.

A program is a sequence of {WORD_BITS}-bit words. Bits {OPCODE_HIGH}..{OPCODE_LOW} hold the opcode, the
operands lie in the bit-fields below, and every other bit is zero; a word with another bit set is not valid.

The *sequencer* runs the words in order, one a cycle. It executes its own instructions and dispatches the
others to three in-order queues: `dma`, `blk` (the blocks) and `vec` (the vector unit). An instruction of a
queue has no operands: at dispatch it takes a snapshot of its unit's registers. All registers start at zero.

Loops nest at most {MAX_LOOP_NEST} deep. There are {TOKENS} tokens, counting semaphores that start at zero:
the i-th `wait` for a token takes what the i-th `signal` of it gave, both counted in program order, and a
`wait` must have its `signal` before it. So program order is always a valid execution, and the queues only
make it faster.
"""

_TEXT_FORM = """\
## Text form

`escc dis prog.bin` prints a program as text and `escc asm` turns the text back into the byte-identical file.
An instruction is a line `mnemonic operand, operand`; registers and queues go by name, numbers are decimal or
hexadecimal, `;` starts a comment. `.word NUMBER` stands for a word that is no valid instruction.

Around the code stand directives:

| directive | holds |
|---|---|
| `.escc 1` | version of the text form |
| `.arch` ... `.end` | the architecture file (TOML) |
| `.dram BYTES` | size of the DRAM image |
| `.input "NAME" at ADDRESS map HxWxC u8 scale S shape [C, H, W]` | input map (`u8`, `s8`), torch shape |
| `.output ...` | an output map, likewise |
| `.code` ... `.end` | the instructions |
| `.data BYTES base64` ... `.end` | the data section |
| `.data BYTES crc CRC file "NAME"` | the data section in a side file, beside the text |
| `.debug` ... `.end` | the debug section (JSON) |
"""


def render() -> str:
    """The page as Markdown."""
    parts = [_INTRODUCTION, "## Sequencer instructions\n", _sequencer_table()]
    for queue in Queue:
        parts += [f"## Instructions of the queue `{queue.text}`\n", _queue_table(queue)]
    general = (
        f"`r0` to `r{GENERAL_REGISTERS - 1}` (numbers 0 to {GENERAL_REGISTERS - 1}) are general registers of "
        f"{GENERAL_BITS} bits, signed."
    )
    parts += ["## Registers\n", general + " The other registers belong to the units.\n"]
    for unit in UNITS:
        parts += [f"### `{unit}` registers\n", _register_table(unit)]
    parts += [_TEXT_FORM, "## Architecture file\n", _arch_text()]
    return "\n".join(parts)


def _sequencer_table() -> str:
    rows = [
        f"| `{_syntax(i)}` | `{i.opcode:#04x}` | {_fields(i)} | {i.semantics} |"
        for i in INSTRUCTIONS
        if i.queue is None
    ]
    return _table("instruction | opcode | operand bits | effect", rows)


def _queue_table(queue: Queue) -> str:
    unit = QUEUE_UNIT[queue]
    rows: list[str] = []
    for instruction in INSTRUCTIONS:
        if instruction.queue is queue:
            reads = " ".join(instruction.reads)
            head = f"| `{instruction.mnemonic}` | `{instruction.opcode:#04x}` |"
            rows.append(f"{head} {_cell(instruction.semantics)} | {reads} |")
    return _table(f"instruction | opcode | effect | reads `{unit}.` registers", rows)


def _register_table(unit: str) -> str:
    rows: list[str] = []
    for register in REGISTERS:
        if register.unit == unit:
            kind = f"{'s' if register.signed else 'u'}{register.width}"
            head = f"| `{register.name}` | {register.index} | {kind} | {register.measure} |"
            rows.append(f"{head} {_cell(register.meaning)} |")
    return _table("register | number | bits | unit | holds", rows)


def _arch_text() -> str:
    default = Arch.default()
    rows = [
        f"| `[{p.section}]` | `{p.key}` | {getattr(default, p.name)} | {p.allowed} "
        f"| {p.unit} | {p.meaning} | {'yes' if p.geometry else 'no'} |"
        for p in PARAMETERS
    ]
    text = (
        "Every value must be given. A program carries the machine it was compiled for; values marked *no*\n"
        "in the last column may be overridden when it is simulated, the others may not.\n\n"
    )
    return text + _table("section | key | default | allowed | unit | meaning | fixed in a program", rows)


def _syntax(instruction: Instruction) -> str:
    names = {"register": "REG", "general": "rN", "immediate": "IMM"}
    operands = [names.get(operand.name, operand.name.upper()) for operand in instruction.operands]
    return f"{instruction.mnemonic} {', '.join(operands)}".strip()


def _fields(instruction: Instruction) -> str:
    kinds = {"unit_register": "unit register", "general": "general register", "signed": "signed"}
    return ", ".join(
        f"{o.name} {o.high}..{o.low}" + (f" ({kinds[o.kind]})" if o.kind in kinds else "")
        for o in instruction.operands
    )


def _table(head: str, rows: list[str]) -> str:
    rule = "|".join("---" for _ in head.split("|"))
    return "\n".join([f"| {head} |", f"|{rule}|", *rows]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(render(), end="")
