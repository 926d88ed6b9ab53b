"""The run over time: when the queues work, what lies where in the SRAM, how much of it is in use."""

from __future__ import annotations

from escc.backend_sim.report.figures import RunFigures
from escc.backend_sim.report.memory_plan import COMPUTED, LOADED, OPERANDS, Region
from escc.backend_sim.report.svg import svg_open, ticks
from escc.backend_sim.report.text import count, escape, number, short, size
from escc.isa.instructions import Queue

LEFT, RIGHT = 66, 990
QUEUES, QUEUE_ROW, QUEUE_BAR = 22, 14, 10
PLAN = QUEUES + 3 * QUEUE_ROW + 20
PLAN_HEIGHT = 300
USED = PLAN + PLAN_HEIGHT + 30
USED_HEIGHT = 60
HEIGHT = USED + USED_HEIGHT + 32
LABEL_ROOM = 15
"""Layer numbers closer together than this are left out."""

COLOURS = {COMPUTED: "c1", LOADED: "c3", OPERANDS: "c2"}
QUEUE_COLOURS = {Queue.DMA: "c4", Queue.BLK: "c1", Queue.VEC: "c3"}


def what(run: RunFigures, region: Region) -> str:
    """A region in words: whose, what, read by whom; untrusted text."""
    roles = [role for role in region.roles if region.kind == OPERANDS and role != "map"]
    detail = f" ({', '.join(roles)})" if roles else ""
    return f"{run.label(region.layer)}: {region.kind}{detail}"


def memory_chart(run: RunFigures) -> str:
    """An SVG over the cycles of the first timed image."""
    total = max(int(run.timed.timeline.total[0]), 1)
    scale = (RIGHT - LEFT) / total
    parts = [svg_open("SRAM over time", HEIGHT)]
    parts += _frame(run, total, scale)
    parts += _queues(run, scale)
    parts += _plan(run, scale)
    parts += _used(run, total, scale)
    return f"<figure>{''.join(parts)}</svg></figure>"


def _frame(run: RunFigures, total: int, scale: float) -> list[str]:
    """Time axis, and a line where the first convolution or vector instruction of each layer begins."""
    parts: list[str] = []
    for tick in ticks(total, 8):
        x = number(LEFT + tick * scale)
        parts.append(f'<text class="k" x="{x}" y="{USED + USED_HEIGHT + 14}">{short(tick)}</text>')
    middle = number((LEFT + RIGHT) / 2)
    parts.append(f'<text class="k" x="{middle}" y="{HEIGHT - 4}">cycles; layer numbers above</text>')
    begins: dict[int, int] = {}
    for index, step in enumerate(run.timed.steps):
        if step.registers is not None and step.queue is not Queue.DMA:
            begins.setdefault(step.layer, int(run.timed.timeline.start[index, 0]))
    lines: list[str] = []
    free = 0.0
    for layer in sorted(run.layers, key=lambda item: begins.get(item.number, 0)):
        if layer.number not in begins:
            continue
        x = LEFT + begins[layer.number] * scale
        lines.append(f"M{number(x)} {QUEUES - 4}V{USED + USED_HEIGHT}")
        if x >= free:
            free = x + LABEL_ROOM
            parts.append(f'<text class="n" x="{number(x)}" y="12">{layer.position}</text>')
    parts.append(f'<path class="g" d="{"".join(lines)}"/>')
    return parts


def _queues(run: RunFigures, scale: float) -> list[str]:
    parts: list[str] = []
    for row, queue in enumerate(Queue):
        y = QUEUES + row * QUEUE_ROW
        parts.append(f'<text class="l" x="{LEFT - 6}" y="{y + 9}">{queue.text}</text>')
        path: list[str] = []
        for start, end in _spans(run, queue, 0.4 / scale):
            x, length = LEFT + start * scale, number(max((end - start) * scale, 0.2))
            path.append(f"M{number(x)} {y}h{length}v{QUEUE_BAR}h-{length}z")
        if path:
            parts.append(f'<path class="{QUEUE_COLOURS[queue]}" d="{"".join(path)}"/>')
    return parts


def _spans(run: RunFigures, queue: Queue, gap: float) -> list[tuple[int, int]]:
    """When the queue is busy; pauses too short to be seen are bridged, so the drawing stays small."""
    spans: list[tuple[int, int]] = []
    starts: list[int] = run.timed.timeline.start[:, 0].tolist()
    ends: list[int] = run.timed.timeline.end[:, 0].tolist()
    for index, step in enumerate(run.timed.steps):
        if step.queue is queue and step.registers is not None:
            if spans and starts[index] - spans[-1][1] <= gap:
                spans[-1] = spans[-1][0], ends[index]
            else:
                spans.append((starts[index], ends[index]))
    return spans


def _plan(run: RunFigures, scale: float) -> list[str]:
    shown = _shown(run)
    across = PLAN_HEIGHT / shown
    part = (
        "" if shown == run.arch.sram_bytes else f", the first {shown / 1024:g} of {run.arch.sram_kib:,} KiB"
    )
    parts: list[str] = [f'<text class="t" x="{LEFT}" y="{PLAN - 6}">SRAM address{part}</text>']
    for step in range(5):
        y = PLAN + PLAN_HEIGHT * step / 4
        label = f"{shown / 1024 * step / 4:g} KiB"
        parts.append(f'<path class="g" d="M{LEFT} {number(y)}H{RIGHT}"/>')
        parts.append(f'<text class="l" x="{LEFT - 6}" y="{number(y + 3)}">{label}</text>')
    for region in run.regions:
        x, y = LEFT + region.start * scale, PLAN + region.low * across
        width = number(max((region.end - region.start) * scale, 0.5))
        height = number(max((region.high - region.low) * across, 0.7))
        hint = (
            f"{what(run, region)}: bytes {region.low:,} to {region.high - 1:,} "
            f"({size(region.high - region.low)}), cycles {count(region.start)} to {count(region.end)}"
        )
        box = f'x="{number(x)}" y="{number(y)}" width="{width}" height="{height}"'
        parts.append(f'<rect class="{COLOURS[region.kind]} r" {box}><title>{escape(hint)}</title></rect>')
    return parts


def _shown(run: RunFigures) -> float:
    """Bytes of the SRAM that the drawing shows: half of it, a quarter, ... where that holds everything."""
    highest = max((region.high for region in run.regions), default=0)
    shown = float(run.arch.sram_bytes)
    while highest <= shown / 2 and shown > 1024:
        shown /= 2
    return shown


def _used(run: RunFigures, total: int, scale: float) -> list[str]:
    shown = _shown(run)
    base = USED + USED_HEIGHT
    path = [f"M{LEFT} {base}"]
    for time, used in run.used:
        path.append(f"H{number(LEFT + time * scale)}V{number(base - used / shown * USED_HEIGHT)}")
    path.append(f"H{number(LEFT + total * scale)}V{base}z")
    return [
        f'<text class="t" x="{LEFT}" y="{USED - 6}">SRAM in use</text>',
        f'<path class="g" d="M{LEFT} {USED}H{RIGHT}M{LEFT} {base}H{RIGHT}"/>',
        f'<text class="l" x="{LEFT - 6}" y="{USED + 4}">{shown / 1024:g} KiB</text>',
        f'<text class="l" x="{LEFT - 6}" y="{base + 3}">0</text>',
        f'<path class="c1 r" d="{"".join(path)}"/>',
    ]
