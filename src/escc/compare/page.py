"""A comparison as pages: a self-contained HTML page, and what stands between two marks of a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from escc.backend_sim.report.page import POLICY
from escc.backend_sim.report.style import SCRIPT, STYLE
from escc.backend_sim.report.svg import legend
from escc.backend_sim.report.text import escape
from escc.compare import text
from escc.compare.comparison import Comparison
from escc.compare.plots import energy_chart, energy_legend, ratio_chart, ratio_legend, standalone
from escc.compare.statistics import (
    ACTIVATION_SPREAD,
    BASES,
    CHANNEL_SPREAD,
    PLANES,
    find_network,
    tail_energy,
)
from escc.compare.text import Table
from escc.errors import EsccError
from escc.files import atomic_write

BEGIN = "<!-- written by escc compare --page: begin -->"
END = "<!-- written by escc compare --page: end -->"

READING = (
    "One image, layers one after the other. escc's machine is simulated with everything it does: transfers, "
    "pooling, residual additions, waiting. The others run convolutions and linear layers only, and overlap "
    "transfers perfectly inside each layer. Clock, DRAM bandwidth, energy table and node are the same for "
    "all; the chip as published keeps its own clock. Busy: multiplier cycles spent on two non-zero operands "
    "(escc: on products with combinations). MACs/mult./cycle: multiply-accumulates of the dense network for "
    "each cycle of each multiplier; 1 is a dense machine that never waits."
)
SYNTHETIC = (
    "Synthetic: weights, activations and image are drawn, with the statistics stated below. No accuracy "
    "stands behind these networks: what a machine does at these densities is measured, that trained networks "
    "keep their accuracy at them is the claim of the papers cited."
)


def generation_notes() -> list[str]:
    """How synthetic networks are drawn, a sentence each."""
    return [
        "Kernels: coordinates in smooth orthonormal kernels, Laplace distributed; five directions leave out "
        f"{tail_energy(5, 9):.1%} of the energy of 3 x 3 kernels, six {tail_energy(6, 9):.1%} (trained "
        "layers: 14.9 %, 8.7 %). Scales of input and output channels are log-normal with deviation "
        f"{CHANNEL_SPREAD}.",
        f"escc: {BASES} bases, the largest coordinates as codes; 1 x 1 layers and the classifier as {PLANES} "
        "planes of the pruned weights; the first layer and depthwise layers in 8 bits. Sparse machines: the "
        "largest weights of each layer, three times the share in the first layer, depthwise layers dense. "
        "Dense machines: all weights in 8 bits.",
        "Activations: every ReLU's bias is set so that the stated share of its values is not zero; densities "
        f"vary over channels with a deviation of about {ACTIVATION_SPREAD}. All machines get the same "
        "integers, those of the compiled network (checksum in the table).",
    ]


def sources(comparison: Comparison) -> list[str]:
    """Where the stated densities come from, a line each."""
    lines: list[str] = []
    for net in comparison.networks:
        if net.synthetic:
            stated = find_network(net.name).statistics
            parts = [
                f"codes {stated.coefficients.value:g}: {stated.coefficients.source}",
                f"pruned weights {stated.weights.value:g}: {stated.weights.source}",
            ]
            if stated.profile:
                shares = " ".join(f"{100 * value:.0f}" for value in stated.profile)
                parts.append(f"activations {shares} %: {stated.profile_source}")
            else:
                parts += [
                    f"activations in a block {stated.inner.value:g}: {stated.inner.source}",
                    f"behind an addition {stated.joined.value:g}: {stated.joined.source}",
                ]
            lines.append(f"{net.title}: " + "; ".join(parts) + ".")
        else:
            lines.append(f"{net.title}: {net.origin}.")
    return lines


def has_synthetic(comparison: Comparison) -> bool:
    """Whether any network was drawn."""
    return any(net.synthetic for net in comparison.networks)


def conditions(comparison: Comparison) -> str:
    """Clock, DRAM, energy table, in a line."""
    arch, table = comparison.arch, comparison.table
    return (
        f"{arch.multipliers} multipliers ({arch.blocks} blocks x {arch.rows} rows x {arch.macs}), "
        f"{arch.mhz:g} MHz, SRAM {arch.sram_kib} KiB, DRAM {arch.dram_gbps:g} GB/s; energy table "
        f"{table.name}, {table.node_nm:g} nm; seed {comparison.seed}."
    )


# -- HTML ---------------------------------------------------------------------------------------------------


def html_page(comparison: Comparison) -> str:
    """The page: loads nothing, light or dark, sortable tables."""
    both = any(net.areas for net in comparison.networks)
    bases = ("multipliers", "area") if both else ("multipliers",)
    sections: list[tuple[str, str, str, str]] = []
    for basis in bases:
        title = text.basis_title(basis)
        content = (
            legend(ratio_legend(comparison))
            + f"<figure>{ratio_chart(comparison, basis)}</figure>"
            + "<h3>times faster</h3>"
            + _html(text.ratio_table(comparison, "latency", basis))
            + "<h3>times less energy</h3>"
            + _html(text.ratio_table(comparison, "energy", basis))
            + "<h3>all figures</h3>"
            + _html(text.results_table(comparison, basis))
            + legend(energy_legend())
            + f"<figure>{energy_chart(comparison, basis)}</figure>"
        )
        sections.append((basis, title[0].upper() + title[1:], READING, content))
    sections.append(
        (
            "lost",
            "What the multipliers do",
            "Every cycle of every multiplier of the other machines, by cause; escc's own are in the report "
            "of escc sim.",
            _html(text.lost_table(comparison)),
        )
    )
    notes = [SYNTHETIC, *generation_notes()] if has_synthetic(comparison) else []
    listed = "".join(f"<li>{escape(line)}</li>" for line in [*notes, *sources(comparison)])
    sections.append(
        ("networks", "Networks", "", _html(text.network_table(comparison)) + f"<ul>{listed}</ul>")
    )
    if comparison.sensitivity:
        explained = "Geometric means at equal multipliers after one assumption has changed."
        sections.append(("sensitivity", "Sensitivity", explained, _html(text.sensitivity_table(comparison))))
    sections.append(("machines", "Machines", "", _html(text.machine_table(comparison))))
    links = "".join(f'<a href="#{ident}-s">{escape(head)}</a>' for ident, head, _, _ in sections)
    body = "".join(
        f'<section id="{ident}-s"><h2>{escape(head)}</h2><p class="soft">{escape(about)}</p>'
        f"{content}</section>\n"
        for ident, head, about, content in sections
    )
    label = "synthetic networks: " if has_synthetic(comparison) else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>escc beside other machines</title><style>{STYLE}</style></head><body>\n"
        f'<header><h1>escc beside other machines</h1><p class="soft">{label}'
        f"{escape(conditions(comparison))}</p><nav>{links}</nav></header>\n<main>{body}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _html(table: Table) -> str:
    heads = "".join(
        f'<th class="s">{escape(head)}</th>' if place < table.left else f"<th>{escape(head)}</th>"
        for place, head in enumerate(table.heads)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="s">{escape(cell)}</td>' if place < table.left else f"<td>{escape(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    )


# -- Markdown -----------------------------------------------------------------------------------------------


def plots(comparison: Comparison, stem: str) -> dict[str, str]:
    """File name to SVG text, for the bases that were run."""
    found: dict[str, str] = {}
    for basis in ("multipliers", "area"):
        if all(text.figures_of(net, basis) for net in comparison.networks):
            found[f"{stem}-{basis}.svg"] = standalone(
                ratio_chart(comparison, basis), ratio_legend(comparison)
            )
    found[f"{stem}-energy.svg"] = standalone(energy_chart(comparison), energy_legend())
    return found


def markdown(comparison: Comparison, stem: str, command: str) -> str:
    """What stands between the marks of the page."""
    drawn = plots(comparison, stem)
    lines = [f"`{command}`", "", conditions(comparison), ""]
    lines += [f"**{SYNTHETIC}**", ""] if has_synthetic(comparison) else []
    lines += [READING, ""]
    for basis in ("multipliers", "area"):
        name = f"{stem}-{basis}.svg"
        if name not in drawn:
            continue
        title = text.basis_title(basis)
        lines += [f"### At {title}", "", "Times faster:", ""]
        lines += [text.ratio_table(comparison, "latency", basis).markdown(), "", "Times less energy:", ""]
        lines += [text.ratio_table(comparison, "energy", basis).markdown(), ""]
        lines += [f"![Speed-up and energy efficiency at {title}]({name})", ""]
        lines += [text.results_table(comparison, basis).markdown(), ""]
    lines += [f"![Energy and time by where they go]({stem}-energy.svg)", ""]
    lines += ["### What the other machines' multipliers do", ""]
    lines += [text.lost_table(comparison).markdown(), ""]
    if comparison.sensitivity:
        lines += ["### Which assumption matters most", ""]
        lines += ["Geometric means at equal multipliers after one assumption has changed.", ""]
        lines += [text.sensitivity_table(comparison).markdown(), ""]
    lines += ["### Networks", "", text.network_table(comparison).markdown(), ""]
    if has_synthetic(comparison):
        lines += [f"- {note}" for note in generation_notes()]
    lines += [f"- {line}" for line in sources(comparison)]
    lines += ["", "### Machines", "", text.machine_table(comparison).markdown()]
    return "\n".join(lines)


def write_section(path: Path, content: str) -> None:
    """Put ``content`` between the marks of a page; a page that is not there is begun.

    Raises:
        EsccError: the page cannot be read or does not have the marks, once each and in order.
    """
    try:
        page = path.read_text(encoding="utf-8") if path.exists() else f"# Comparison\n\n{BEGIN}\n{END}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise EsccError(f"cannot read: {error}", where=str(path)) from None
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before + after:
        raise EsccError("has no place for the figures", where=str(path), hint=f"mark it: {BEGIN} ... {END}")
    atomic_write(path, f"{before}{BEGIN}\n\n{content}\n\n{END}{after}".encode())


def write_page(path: Path, comparison: Comparison, arguments: Sequence[str]) -> None:
    """The figures into a Markdown page, the plots beside it."""
    import shlex

    for name, drawn in plots(comparison, path.stem).items():
        atomic_write(path.with_name(name), drawn.encode())
    write_section(path, markdown(comparison, path.stem, shlex.join(arguments)))
