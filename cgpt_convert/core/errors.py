"""The error kinds. Exit codes live on them; each message says where, what, and what to do next."""

from __future__ import annotations

# the end of the hints for files of which some tensors are not whole
SALVAGE = "with --salvage, extract and convert write the tensors that are whole"


class CgptError(Exception):
    """Base of every error this package raises on purpose.

    `where` is a file, or a file and a member or tensor in it; `hint` is what the user can do next.
    """

    exit_code = 3
    kind = "error"

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def at(self, where: str) -> CgptError:
        """The error, with its place filled in if whoever raised it could not know the place."""
        if not self.where:
            self.where = where
        return self

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


class Malformed(CgptError):
    """The input contradicts its own format: truncated, inconsistent, or damaged."""

    kind = "malformed"


class Unsupported(CgptError):
    """The input is valid but holds what this version does not read, or what a limit forbids.

    Or what is asked for wants another: a GGUF, say, a model of an architecture that GGUF has.
    """

    kind = "unsupported"


class Unreadable(CgptError):
    """The operating system refused to give the input's bytes, or they changed while being read."""

    kind = "unreadable"


class BadRequest(CgptError):
    """What the user asked for cannot be done with this input, or with any; another wish can."""

    exit_code = 2
    kind = "bad request"


class CannotWrite(CgptError):
    """The output could not be written; nothing half-written is left."""

    exit_code = 4
    kind = "cannot write"


class CheckFailed(CgptError):
    """A check found a difference or a danger."""

    exit_code = 1
    kind = "check failed"
