"""Write the generated parts of docs/: whole reference pages, and blocks inside pages written by hand.

A block stands between ``<!-- begin KIND ARGUMENT -->`` and ``<!-- end -->``:

    file PATH       the file, verbatim, as a code block
    help COMMAND    what ``escc COMMAND --help`` prints
    area checks     the area model's rules on published machines

``python tools/make_docs.py`` writes, ``--check`` only names what is out of date and exits 1.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from escc.backend_sim.area import calibration
from escc.cli import root
from escc.isa import reference_page
from escc.reference_pages import render_ir, render_passes
from escc.training import reference_page as recipes

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
HELP_WIDTH = 100

WHOLE_PAGES = {
    "isa.md": reference_page.render,
    "ir.md": render_ir,
    "passes.md": render_passes,
    "recipes.md": recipes.render,
}
LANGUAGES = {".py": "python", ".toml": "toml", ".mlir": "mlir"}

_BLOCK = re.compile(r"(<!-- begin (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def command_help(name: str) -> str:
    """What ``escc NAME --help`` prints on a terminal of fixed width."""
    # the names come from the root, as on a real command line: click keeps the first help option it makes
    top = click.Context(
        root,
        info_name="escc",
        terminal_width=HELP_WIDTH,
        max_content_width=HELP_WIDTH,
        help_option_names=list(root.context_settings["help_option_names"]),
    )
    command = root.get_command(top, name)
    if command is None:
        raise ValueError(f"docs name a command that does not exist: {name}")
    return command.get_help(click.Context(command, parent=top, info_name=name))


def block(kind: str, argument: str) -> str:
    """The content of one block, as Markdown."""
    if kind == "help":
        return f"```\n{command_help(argument)}\n```\n"
    if kind == "file":
        path = ROOT / argument
        return f"```{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8').rstrip()}\n```\n"
    if (kind, argument) == ("area", "checks"):
        return "\n" + "\n".join(calibration.text()) + "\n\n"
    raise ValueError(f"docs name an unknown kind of block: {kind}")


def filled(page: str) -> str:
    """The page with every block up to date."""
    return _BLOCK.sub(lambda match: match[1] + block(match[2], match[3]) + match[4], page)


def pages() -> dict[Path, str]:
    """Every page that has generated parts, as it ought to be."""
    made = {DOCS / name: render() for name, render in WHOLE_PAGES.items()}
    for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]:
        if path not in made and _BLOCK.search(text := path.read_text(encoding="utf-8")):
            made[path] = filled(text)
    return made


def main() -> None:
    """Write or check."""
    stale = {
        path: text
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    if "--check" in sys.argv[1:]:
        sys.exit(f"out of date, run `make docs`: {', '.join(path.name for path in stale)}" if stale else 0)
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
