"""Error classes with their exit codes. A message says where, what is wrong, and what to do next."""

from __future__ import annotations

import errno
import os

# end of the hints for files in which some tensors are incomplete
SALVAGE = "use --salvage with convert or extract to recover the intact tensors"


class CgptError(Exception):
    """Base class of every error this package raises on purpose.

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
        """Return this error, with `where` set if it was empty."""
        if not self.where:
            self.where = where
        return self

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\nhint: {self.hint}" if self.hint else text


class Malformed(CgptError):
    """The input contradicts its own format: truncated, inconsistent, or damaged."""

    kind = "malformed"


class Unsupported(CgptError):
    """Valid input with a feature that is not supported, or input that exceeds a limit.

    Also raised when the input does not fit the requested output, such as GGUF output of a model
    whose architecture GGUF does not have.
    """

    kind = "unsupported"


class Unreadable(CgptError):
    """The operating system could not read the input, or the input changed while it was read."""

    kind = "unreadable"


class BadRequest(CgptError):
    """A request that cannot be carried out as given; a different request can."""

    exit_code = 2
    kind = "bad request"


class CannotWrite(CgptError):
    """The output could not be written; no partial output is left behind."""

    exit_code = 4
    kind = "cannot write"


_DISK_FULL = "free disk space, or write to another file system"
_NOT_ALLOWED = "check the permissions, or choose another output path"
_WRITE_HINTS = {
    errno.ENOSPC: _DISK_FULL,
    errno.EDQUOT: _DISK_FULL,
    errno.EFBIG: "write to a file system that allows larger files, or raise the limit (ulimit -f)",
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: _NOT_ALLOWED,
    errno.ENAMETOOLONG: "choose a shorter name",
}


def cannot_write(error: OSError, where: str) -> CannotWrite:
    """Return the error for an OSError raised while writing `where`."""
    code = error.errno or 0
    hint = _WRITE_HINTS.get(code, "choose another output path")
    return CannotWrite(f"cannot write: {os.strerror(code)}", where=where, hint=hint)


class CheckFailed(CgptError):
    """A check found a difference or unsafe content."""

    exit_code = 1
    kind = "check failed"
