"""What the benchmark commands share: running a click command so that failures are one line."""

from __future__ import annotations

from collections.abc import Sequence

import click

from escc.errors import EsccError


def run_command(
    command: click.Command, name: str, arguments: Sequence[str] | None, after_interrupt: str = ""
) -> int:
    """Run ``command`` as ``python -m NAME``.

    Args:
        command: what to run.
        name: of the module, for usage lines.
        arguments: None takes those of the process.
        after_interrupt: what the user should know about going on.

    Returns:
        Exit code: 0 done, 1 a failure the user can act on, 2 wrong usage, 130 interrupted.
    """
    try:
        command.main(arguments, prog_name=f"python -m {name}", standalone_mode=False)
    except EsccError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"error: interrupted{after_interrupt}", err=True)
        return 130
    return 0
