"""``escc asm``, ``escc dis``, ``escc inspect``: programs as text, and what is inside one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from escc.errors import EsccError

if TYPE_CHECKING:
    from rich.table import Table

    from escc.isa.program import Program
    from escc.isa.summary import Summary

WIDTH_OF_A_FILE = 160
"""Columns of a table that does not go to a terminal."""


@click.command("asm")
@click.argument("source", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), help="Program file; default: SOURCE with .bin."
)
@click.option("--check/--no-check", default=True, help="Check the program before it is written.")
def assemble_command(source: str, output: str | None, check: bool) -> None:
    """Assemble SOURCE (the text that 'escc dis' prints) to a program."""
    from escc.isa.assembler import assemble
    from escc.isa.verify import verify

    path = Path(source)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        hint = "assembly text is expected; 'escc dis' makes it from a program"
        raise EsccError("not a text file", where=source, hint=hint) from None
    except OSError as error:
        raise EsccError(f"cannot read: {error.strerror}", where=source) from None
    program = assemble(text, source, path.parent)
    if check:
        try:
            verify(program)
        except EsccError as error:
            hint = error.hint or "--no-check writes it all the same"
            raise EsccError(error.message, where=f"{source}: {error.where}", hint=hint) from None
    target = output or str(path.with_suffix(".bin"))
    if Path(target) == path:
        raise EsccError("the program would replace its source", where=source, hint="name it with -o")
    program.save(target)


@click.command("dis")
@click.argument("source", type=click.Path())
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="File to write; default: stdout.")
@click.option("--code", "code_only", is_flag=True, help="Only the instructions (cannot be assembled again).")
@click.option(
    "--data-file",
    type=click.Path(dir_okay=False),
    help="Put the data section here (a name beside the text), not into the text.",
)
def disassemble_command(source: str, output: str | None, code_only: bool, data_file: str | None) -> None:
    """Disassemble the program SOURCE to text that 'escc asm' turns into the identical file."""
    from escc.files import atomic_write
    from escc.isa.disassembler import code_lines, disassemble
    from escc.isa.program import Program

    program = Program.load(source)
    if code_only:
        text = "\n".join(code_lines(program)) + "\n"
    elif data_file is not None:
        if Path(data_file).name != data_file:
            raise click.UsageError("--data-file is a name beside the text, without a folder")
        atomic_write(Path(output).parent / data_file if output else data_file, program.data_array.tobytes())
        text = disassemble(program, data_file)
    else:
        text = disassemble(program)
    if output is None:
        click.echo(text, nl=False)
    else:
        atomic_write(output, text.encode())


@click.command("inspect")
@click.argument("source", type=click.Path())
@click.option("--check", is_flag=True, help="Also check the program: bounds, tokens, races.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def inspect_command(source: str, check: bool, as_json: bool) -> None:
    """Show what is inside the program SOURCE: machine, sections, inputs, outputs, layers."""
    from escc.isa.program import Program
    from escc.isa.summary import summarise
    from escc.isa.verify import verify

    program = Program.load(source)
    summary = summarise(program)
    if check:
        try:
            verify(program)
        except EsccError as error:
            raise EsccError(error.message, where=f"{source}: {error.where}", hint=error.hint) from None
    sizes = _section_sizes(source)
    if as_json:
        _print_json(program, summary, sizes)
    else:
        _print_tables(source, program, summary, sizes, checked=check)


def _section_sizes(source: str) -> dict[str, int]:
    from escc.isa.summary import sections

    return {section.name: section.size for section in sections(Path(source).read_bytes(), source)}


def _print_json(program: Program, summary: Summary, sizes: dict[str, int]) -> None:
    import dataclasses
    import json

    content = {
        "arch": dataclasses.asdict(program.arch),
        "geometry_hash": program.arch.geometry_hash,
        "sections": sizes,
        "inputs": [dataclasses.asdict(item) for item in program.inputs],
        "outputs": [dataclasses.asdict(item) for item in program.outputs],
        **summary.to_dict(),
    }
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def _print_tables(
    source: str, program: Program, summary: Summary, sizes: dict[str, int], *, checked: bool
) -> None:
    import sys

    from rich.console import Console

    console = Console(
        highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE
    )
    arch = program.arch
    console.print(source)
    console.print(
        f"  machine   {arch.blocks} blocks x {arch.rows} rows x {arch.macs} MACs = "
        f"{arch.multipliers} multipliers, {arch.sram_kib} KiB SRAM, {arch.dram_gbps:g} GB/s, "
        f"{arch.mhz:g} MHz (geometry {arch.geometry_hash})"
    )
    console.print(f"  sections  {', '.join(f'{name} {_bytes(size)}' for name, size in sizes.items())}")
    console.print(
        f"  code      {summary.words:,} words, {summary.executed_words:,} executed; "
        f"DRAM {_bytes(summary.dram_bytes)}"
    )
    if checked:
        console.print("  checked   bounds, tokens, outputs and races are in order")
    console.print(_tensor_table(program))
    console.print(_layer_table(summary))


def _tensor_table(program: Program) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for head in ("", "name", "torch shape", "map", "type", "scale", "DRAM address"):
        table.add_column(head, justify="right" if head == "DRAM address" else "left")
    for kind, maps in (("input", program.inputs), ("output", program.outputs)):
        for item in maps:
            shape = "x".join(str(size) for size in item.torch_shape) or "scalar"
            size = f"{item.height}x{item.width}x{item.channels}"
            dtype = "s8" if item.signed else "u8"
            table.add_row(kind, Text(item.name), shape, size, dtype, f"{item.scale:.6g}", str(item.address))
    return table


def _layer_table(summary: Summary) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", show_footer=True)
    layers = summary.layers
    counts = {queue: sum(layer.instructions[queue] for layer in layers) for queue in ("dma", "blk", "vec")}
    table.add_column("layer", "total")
    table.add_column("op")
    table.add_column("source")
    for queue, total in counts.items():
        table.add_column(queue, f"{total:,}", justify="right")
    table.add_column("tokens", f"{sum(layer.tokens for layer in layers):,}", justify="right")
    table.add_column("operand bytes", f"{sum(layer.stream_bytes for layer in layers):,}", justify="right")
    table.add_column("map bytes", f"{sum(layer.map_bytes for layer in layers):,}", justify="right")
    for layer in layers:
        numbers = [*layer.instructions.values(), layer.tokens, layer.stream_bytes, layer.map_bytes]
        table.add_row(
            Text(layer.name), Text(layer.op), Text(layer.source), *[f"{number:,}" for number in numbers]
        )
    return table


def _bytes(size: int) -> str:
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= 10 * scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"
