"""The one exception users see."""

from __future__ import annotations


class EsccError(Exception):
    """A failure the user can act on, told in one line: what, where, what to do.

    ``where`` names the place (module path, file, line, instruction); ``hint`` says what to do next.
    The command line prints ``str(error)`` without a traceback and exits with code 1.
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        if self.hint:
            text += f" ({self.hint})"
        return " ".join(text.split())
