"""The command line: ``escc COMMAND ...``.

This file is all that runs before a command is known, so it imports click and nothing heavy. Commands are
named here with their help line and imported when called for: ``escc --help`` never loads torch.

Exit codes: 0 done, 1 the work failed or a check did not hold, 2 wrong usage, 130 interrupted,
141 the reader of the output went away.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from escc import __version__
from escc.errors import EsccError


@dataclass(frozen=True)
class Command:
    """A command that is not imported yet: where its click object is, and its line in ``escc --help``."""

    target: str
    help: str


COMMANDS = {
    "demo": Command("escc.cli.demo:demo_command", "The whole story on real images, in about a minute."),
    "compile": Command("escc.cli.compile:compile_command", "Compile a torch model to a program."),
    "compress": Command(
        "escc.cli.compress:compress_command", "Retrain a network as bases and ternary coefficients."
    ),
    "sim": Command("escc.cli.sim:sim_command", "Run a program on the simulated machine."),
    "compare": Command(
        "escc.cli.compare:compare_command", "Networks on this machine and on others: time, energy, traffic."
    ),
    "verify": Command("escc.cli.verify:verify_command", "Compare every level of a compilation with torch."),
    "sweep": Command("escc.cli.sweep:sweep_command", "Search architecture and compression parameters."),
    "ops": Command("escc.cli.ops:ops_command", "Which operators of a model compile, and why not."),
    "count": Command("escc.cli.count:count_command", "Weights, operations and bytes of a model."),
    "opt": Command("escc.cli.opt:opt_command", "Run passes on a module in text form."),
    "asm": Command("escc.cli.asm:assemble_command", "Assemble text to a program."),
    "dis": Command("escc.cli.asm:disassemble_command", "Disassemble a program to text."),
    "inspect": Command("escc.cli.asm:inspect_command", "What is inside a program file."),
}

LIBRARIES = ("torch", "xdsl", "numpy")


class ReaderGone(Exception):
    """Whoever read our stdout has closed it, as ``head`` does."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            suggestion = f"did you mean {close[0]!r}?" if close else f"commands: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no such command {args[0]!r}; {suggestion}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # click would turn it into exit code 1, which means that the work failed
            raise ReaderGone from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def version_text() -> str:
    """escc's version and those of the libraries a result depends on, in one line (nothing is imported)."""
    libraries = ", ".join(f"{name} {_installed(name)}" for name in LIBRARIES)
    return f"escc {__version__} (python {sys.version.split()[0]}, {libraries})"


def _installed(name: str) -> str:
    # reads e-mail headers: a sixth of what a command takes to start
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(version_text())
        ctx.exit()


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print escc's version and its libraries'.",
)
def root() -> None:
    """From a torch model to a running program of a sparse-CNN accelerator, and what that buys."""


@root.result_callback()
def _no_result(_result: object) -> None:
    """What a command returns is not an exit code; ``ctx.exit(1)`` gives one."""


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line (``sys.argv[1:]`` by default) and return its exit code.

    Failures a user can act on become one line on stderr. Anything else is a defect of escc and keeps
    its traceback.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _outcome(lambda: root.main(args, prog_name="escc", standalone_mode=False))
        sys.stdout.flush()
    except (ReaderGone, BrokenPipeError):
        # `escc dis ... | head`: what is still buffered has nowhere to go, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _outcome(command: Callable[[], object]) -> int:
    try:
        result = command()
    except EsccError as error:
        _complain(str(error))
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "escc"
        _complain(f"{error.format_message().rstrip('.')} (see {path} --help)")
        return error.exit_code
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return 130
    # Outside of standalone mode click hands back what ctx.exit(code) was given.
    return result if isinstance(result, int) else 0


def _show_warning(message: Warning | str, *_where: object, **_more: object) -> None:
    """A warning as one line, without the place in escc that raised it."""
    click.echo(f"warning: {' '.join(str(message).split())}", err=True)


def _complain(message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)


def main() -> None:
    """Entry point of the ``escc`` script and of ``python -m escc``."""
    # numpy's products here are small: handing them to a thread pool costs more than it gains, and very much
    # more when the cores are busy. Must be set before numpy is imported; torch's threads are its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(run())
