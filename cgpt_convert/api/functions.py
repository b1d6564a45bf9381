"""The public functions. Each opens what it is given, and calls what the command calls.

A source is a path, a URL, a `Checkpoint` that is open already, or a dict of NumPy arrays and
tensors. Nothing is printed; every error
is a `CgptError`. `root`, `match` and `exclude` select tensors as the options of the commands do;
`jobs` is the number of threads, 0 for one per CPU core.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cgpt_convert.api.arguments import Globs, Path, Source, opened, output_path, path_of, patterns
from cgpt_convert.api.results import Difference, Digests, ScanResult, Verified
from cgpt_convert.core.errors import BadRequest, CgptError
from cgpt_convert.inspection import (
    add_statistics,
    check_storages_of,
    matching_rows,
    summarise,
    transferred,
)
from cgpt_convert.scanning.allowlist import Allowlist
from cgpt_convert.scanning.expand_paths import files
from cgpt_convert.scanning.scan_files import scan_each
from cgpt_convert.targets.selection import TensorSelection
from cgpt_convert.verification import lock_file, tensor_differences
from cgpt_convert.verification.canonical_names import converted_part, weights
from cgpt_convert.verification.check_extras import extra_checks, of_source
from cgpt_convert.verification.digests import ALGORITHM, digested, of_part
from cgpt_convert.verification.scope import Scope, part_scope, sides
from cgpt_convert.verification.verify_files import (
    against_itself,
    against_lock_file,
    against_original,
)
from cgpt_convert.writing.output_checks import check_apart, inputs_of
from cgpt_convert.writing.writer import WriteOptions


def inspect(
    source: Source,
    *,
    match: Globs = (),
    stats: bool = False,
    check: bool = False,
    mapping: str | None = None,
) -> dict[str, Any]:
    """Return what `inspect --json` prints, as a dict; docs/reference/json.md has the keys.

    Tensors are read only with `stats`, which adds statistics to each, and with `check`, which
    compares all recorded checksums.
    """
    checkpoint = opened(source, mapping)
    summary = summarise(checkpoint)
    rows = matching_rows(checkpoint, summary["tensors"], patterns(match))
    if stats:
        add_statistics(checkpoint, rows)
    if check:
        summary["check"] = check_storages_of(checkpoint)
    return summary | {"transfer": transferred(checkpoint), "tensors": rows}


def digest(
    source: Source,
    *,
    root: str | None = None,
    match: Globs = (),
    exclude: Globs = (),
    mapping: str | None = None,
    jobs: int = 0,
) -> Digests:
    """Read the tensors and return their digests, which are the same in every format."""
    checkpoint = opened(source, mapping)
    wish = _wish(root, match, exclude)
    chosen = weights(checkpoint, wish)
    digests = digested(chosen, jobs)
    scope = part_scope(chosen, wish)
    try:
        part = converted_part(checkpoint, chosen, wish)
    except BadRequest:  # the weights may be under any of several keys
        whole, model = ALGORITHM + digests.whole, _prefixed(digests.model)
        return Digests(whole, "", "", model, chosen.architecture, digests.tensors, scope)
    inside = of_part(part, digests) if part is not chosen else digests
    return Digests(
        ALGORITHM + digests.whole,
        ALGORITHM + inside.whole,
        part.root,
        _prefixed(inside.model),
        part.architecture,
        digests.tensors,
        scope,
    )


def lock(
    source: Source,
    output: Path,
    *,
    root: str | None = None,
    match: Globs = (),
    exclude: Globs = (),
    in_toto: bool = False,
    overwrite: bool = False,
    mapping: str | None = None,
    jobs: int = 0,
) -> lock_file.Lock:
    """Write the digests of all tensors to the file `output`, for `verify`; return the lock.

    Raises BadRequest if the output would replace a file of the source, and CannotWrite if it
    exists, without `overwrite`.
    """
    checkpoint, path = opened(source, mapping), output_path(output)
    check_apart((), inputs_of(checkpoint), [path], folder=False)
    wish = _wish(root, match, exclude)
    chosen = weights(checkpoint, wish)
    scope = wish._replace(root=chosen.root or None)
    made = lock_file.lock(checkpoint, chosen, digested(chosen, jobs), scope, jobs)
    lock_file.write(made, path, WriteOptions(overwrite, inputs_of(checkpoint)), in_toto=in_toto)
    return made


def verify(
    source: Source,
    target: Source | None = None,
    *,
    lock: Path | None = None,
    root: str | None = None,
    match: Globs = (),
    exclude: Globs = (),
    allow: Sequence[str] = (),
    mapping: str | None = None,
    jobs: int = 0,
) -> Verified:
    """Compare `target` with `source`, bit for bit; what was cast is computed again.

    With one argument, it is compared with `lock`, the path of a lock, or else with its own
    provenance metadata. Code that the target names and other weight files in a folder that is given
    by its path fail, too; `allow` has names of classes that may be there.
    """
    wish, rule = _wish(root, match, exclude), Allowlist(tuple(allow))
    scope: Scope | None = None
    if target is not None:
        if lock is not None:
            raise BadRequest("a target and a lock are given", hint="give one of them")
        original, compared = opened(source, mapping), opened(target)
        checks, scope = against_original(original, compared, wish, jobs)
        checks += of_source(original, path_of(source, original))
        checks += extra_checks(compared, path_of(target, compared), rule, original)
    elif lock is not None:
        compared = opened(source, mapping)
        checks, scope = against_lock_file(compared, os.fspath(lock), wish, jobs)
        checks += extra_checks(compared, path_of(source, compared), rule)
    elif wish != TensorSelection() or mapping is not None:
        raise BadRequest(
            "a file's provenance metadata is about all of it", hint="give no root, match or mapping"
        )
    else:
        compared = opened(source)
        checks = against_itself(compared, jobs) + extra_checks(
            compared, path_of(source, compared), rule
        )
    if scope is not None:
        checks += scope.checks()
    return Verified(tuple(checks), scope)


def diff(
    before: Source,
    after: Source,
    *,
    root: str | None = None,
    match: Globs = (),
    exclude: Globs = (),
    jobs: int = 0,
) -> Difference:
    """Compare two checkpoints; return which tensors differ, and by how much."""
    both = sides(opened(before), opened(after), _wish(root, match, exclude))
    return Difference(tuple(tensor_differences.diff(both, jobs)), both.scope)


def scan(*paths: Path, allow: Sequence[str] = (), jobs: int = 0) -> ScanResult:
    """Return what loading the files at `paths` would run; folders with everything below them.

    Nothing is loaded or run. `allow` has further names that are allowed, as `module.Name`. Errors
    in files are among the findings. Raises BadRequest for a path that does not exist.
    """
    every = files(os.fspath(path) for path in paths)
    scans = list(scan_each(every, Allowlist(tuple(allow)), jobs))
    return ScanResult(
        tuple(file for file in scans if not isinstance(file, CgptError)),
        tuple(error for error in scans if isinstance(error, CgptError)),
    )


def _wish(root: str | None, match: Globs, exclude: Globs) -> TensorSelection:
    return TensorSelection(root, patterns(match), patterns(exclude))


def _prefixed(digest: str) -> str:
    return ALGORITHM + digest if digest else ""
