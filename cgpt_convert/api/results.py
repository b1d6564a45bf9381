"""The results of the public functions: values, with what decides in `ok`."""

from __future__ import annotations

from dataclasses import dataclass

from cgpt_convert.core.checks import Check, exit_code
from cgpt_convert.core.errors import CgptError
from cgpt_convert.scanning.result import WORST_FIRST, FileScan, Verdict
from cgpt_convert.verification.scope import Scope
from cgpt_convert.verification.tensor_differences import NOT_COMPARED, TensorDifference


@dataclass(frozen=True, slots=True)
class Digests:
    """The digests of weights, as `sha256:` and hex; docs/reference/digest.md defines them.

    `weights` is the digest of the tensors that `convert` writes; it differs from `digest` where the
    checkpoint contains more. It is "" where it is not known under which of several keys they are.
    `model` is "" unless the weights are a complete model of a known architecture.
    """

    digest: str
    weights: str
    root: str  # the key that `weights` are under; "" for none
    model: str
    architecture: str
    tensors: dict[str, str]  # name -> digest in hex
    scope: Scope


@dataclass(frozen=True, slots=True)
class Verified:
    """The checks of `verify`. It is true in a condition exactly if `ok` is.

    `scope` says which tensors were compared; it is None where a file was compared with its own
    provenance metadata, which covers the whole file.
    """

    checks: tuple[Check, ...]
    scope: Scope | None

    @property
    def ok(self) -> bool:
        """Return whether every check could be made and passed."""
        return exit_code(self.checks) == 0

    @property
    def failed(self) -> tuple[Check, ...]:
        """Return the checks that did not pass, without the notes."""
        return tuple(check for check in self.checks if exit_code([check]))

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, slots=True)
class Difference:
    """The rows of `diff`, one for each tensor. It is true in a condition if something differs."""

    rows: tuple[TensorDifference, ...]
    scope: Scope

    @property
    def equal(self) -> bool:
        """Return whether no tensor differs and every one in the scope could be compared."""
        return not any(
            row.differs or (row.state == NOT_COMPARED and row.unknown) for row in self.rows
        )

    def __bool__(self) -> bool:
        return not self.equal


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The findings of `scan` in each file. Its truth value is `ok`."""

    files: tuple[FileScan, ...]
    errors: tuple[CgptError, ...]  # folders that could not be listed

    @property
    def verdict(self) -> Verdict:
        """Return the worst verdict of the files; "not scanned" if only a folder is unreadable."""
        verdicts = {file.verdict for file in self.files}
        if self.errors:
            verdicts.add(Verdict.NOT_SCANNED)
        return next((verdict for verdict in WORST_FIRST if verdict in verdicts), Verdict.NOTHING)

    @property
    def ok(self) -> bool:
        """Return whether `cgpt-convert scan` would succeed: all is clean or contains no weights."""
        return self.verdict in (Verdict.CLEAN, Verdict.NOTHING)

    @property
    def checks(self) -> tuple[Check, ...]:
        """Return the findings as checks, which say where each is and what it means."""
        return tuple(check for file in self.files for check in file.checks())

    def __bool__(self) -> bool:
        return self.ok
