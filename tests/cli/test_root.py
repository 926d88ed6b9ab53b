"""The root command: quick, forgiving of typing mistakes, and one line for every failure."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import types
import warnings
from collections.abc import Callable

import click
import pytest

from escc import __version__, cli
from escc.errors import EsccError

Capture = pytest.CaptureFixture[str]
AddCommand = Callable[[str, click.Command], None]


@pytest.fixture
def add_command(monkeypatch: pytest.MonkeyPatch) -> AddCommand:
    """Register a click command for one test, the way the real ones are: by module and attribute."""

    def add(name: str, command: click.Command) -> None:
        module = types.ModuleType("escc_test_commands")
        module.command = command  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, name, cli.Command(f"{module.__name__}:command", "for a test"))

    return add


def raising(error: BaseException) -> click.Command:
    def callback() -> None:
        raise error

    return click.Command("fails", callback=callback)


def error_line(capsys: Capture) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def test_help_names_every_command_without_importing_any() -> None:
    code = """if True:
        import json, sys
        from escc.cli import run
        print(file=sys.stderr)
        assert run(["--help"]) == 0
        print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr))
    assert {"click", "escc"} <= loaded
    assert not loaded & {"torch", "numpy", "xdsl", "rich", "lark", "safetensors", "matplotlib"}
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == list(cli.COMMANDS)


def test_help_answers_within_three_tenths_of_a_second() -> None:
    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "escc", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # processor time, best of three: what else the machine does meanwhile is not this test's subject
    assert min(cpu_seconds() for _ in range(3)) < 0.3


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    command = cli.LazyGroup().get_command(click.Context(cli.root), name)
    assert isinstance(command, click.Command)
    assert command.help, f"escc {name} has no help text"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"escc {name} {parameter.opts[0]} has no help text"


def test_version_names_escc_and_its_libraries(capsys: Capture) -> None:
    assert cli.run(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"escc {__version__} (python 3.")
    for library in cli.LIBRARIES:
        assert f"{library} " in out
    assert "not installed" not in out
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize(
    ("typed", "meant"), [("complie", "compile"), ("simm", "sim"), ("verfy", "verify"), ("diss", "dis")]
)
def test_mistyped_command_gets_a_suggestion(typed: str, meant: str, capsys: Capture) -> None:
    assert cli.run([typed]) == 2
    assert error_line(capsys) == (
        f"error: no such command {typed!r}; did you mean {meant!r}? (see escc --help)"
    )


def test_unlike_command_gets_the_list(capsys: Capture) -> None:
    assert cli.run(["xyzzy"]) == 2
    line = error_line(capsys)
    assert all(name in line for name in cli.COMMANDS)


def test_mistyped_option_gets_a_suggestion(add_command: AddCommand, capsys: Capture) -> None:
    add_command("fake", click.Command("fake", params=[click.Option(["--calibration"], help="Images.")]))
    assert cli.run(["fake", "--calibratoin", "x"]) == 2
    line = error_line(capsys)
    assert "'--calibratoin'" in line
    assert "'--calibration'" in line
    assert line.endswith("(see escc fake --help)")


def test_no_command_prints_the_help_and_is_a_usage_error(capsys: Capture) -> None:
    assert cli.run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: escc")


def test_user_error_is_one_line_and_exit_code_1(add_command: AddCommand, capsys: Capture) -> None:
    add_command("fake", raising(EsccError("stride 0\nis not positive", where="conv1", hint="use 1")))
    assert cli.run(["fake"]) == 1
    assert error_line(capsys) == "error: conv1: stride 0 is not positive (use 1)"


def test_bad_option_value_is_exit_code_2(add_command: AddCommand, capsys: Capture) -> None:
    option = click.Option(["--bases"], type=click.IntRange(1, 9), help="How many.")
    add_command("fake", click.Command("fake", params=[option], callback=print))
    assert cli.run(["fake", "--bases", "12"]) == 2
    assert error_line(capsys).startswith("error: Invalid value for '--bases'")


def test_a_warning_is_one_line_and_the_display_is_put_back(add_command: AddCommand, capsys: Capture) -> None:
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        add_command("fake", click.Command("fake", callback=lambda: warnings.warn("two\nlines", stacklevel=1)))
        assert cli.run(["fake"]) == 0
    assert capsys.readouterr() == ("", "warning: two lines\n")
    assert warnings.showwarning is before


def test_interrupt_is_clean(add_command: AddCommand, capsys: Capture) -> None:
    add_command("fake", raising(KeyboardInterrupt()))
    assert cli.run(["fake"]) == 130
    assert capsys.readouterr().err.split() == ["error:", "interrupted"]


def test_a_defect_of_escc_keeps_its_traceback(add_command: AddCommand) -> None:
    add_command("fake", raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError, match="ours"):
        cli.run(["fake"])


def test_exit_code_comes_from_ctx_exit_and_not_from_the_return_value(add_command: AddCommand) -> None:
    add_command("fake", click.Command("fake", callback=lambda: 7))
    assert cli.run(["fake"]) == 0
    add_command("fake", click.Command("fake", callback=lambda: click.get_current_context().exit(1)))
    assert cli.run(["fake"]) == 1


@pytest.mark.parametrize("lines", [1, 100_000])
def test_closed_pipe_is_quiet(lines: int) -> None:
    """Both ways out: the pipe breaks while the command writes, or at the last flush."""
    code = f"""if True:
        import sys, types, click
        from escc import cli
        sys.stdin.read()
        fake = sys.modules["fake"] = types.ModuleType("fake")
        fake.command = click.Command("fake", callback=lambda: print("word\\n" * {lines}))
        cli.COMMANDS["fake"] = cli.Command("fake:command", "")
        sys.exit(cli.run(["fake"]))
    """
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    os.close(reader)
    _, complaint = process.communicate("")
    assert process.returncode == 141
    assert complaint == ""
