"""The text output of `scan`: the files by severity, what to do about them, and a last line."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from cgpt_convert.cli import style
from cgpt_convert.cli.table import columns, counted, width, wrapped
from cgpt_convert.core.checks import FAILED, NOTE, PASSED, Check, exit_code
from cgpt_convert.core.errors import CgptError
from cgpt_convert.core.findings import DANGEROUS, Finding
from cgpt_convert.core.text import printable
from cgpt_convert.scanning import kinds
from cgpt_convert.scanning.allowlist import is_allowable
from cgpt_convert.scanning.raw_folders import RAW
from cgpt_convert.scanning.result import ACTIONS, WORST_FIRST, CodeReference, FileScan, Verdict

_LABEL = 11  # columns of the verdicts, the longest of which is "not scanned"
_ROW = 11  # columns before the text of a finding, after its id
_ITEM = 6  # columns before one of several names that a finding is about
_HINT = 4  # columns before an advice
_COMMAND = 6  # columns before a suggested command
_ROWS = 12  # findings listed per file; --json has all
_LISTED = 10  # files without problems that are listed; more are counted by kind
_KINDS = 5  # kinds of files without weights that are named
_CALL = 80  # characters of a call of foreign code; its name is shown in full
_PATHS = 8  # paths that a suggested command repeats
_OPTIONS = 100  # --allow options that a suggested command has; for more there is the policy file
_FILES = 3  # files named in an advice

_LEVELS = {
    Verdict.DANGEROUS: FAILED,
    Verdict.MALFORMED: FAILED,
    Verdict.FOREIGN: style.WARNING,
    Verdict.NOT_SCANNED: style.WARNING,
    Verdict.CLEAN: PASSED,
    Verdict.NOTHING: NOTE,
}
_COUNTED = {verdict: verdict.value for verdict in Verdict} | {Verdict.NOTHING: "without weights"}


class ScanCommand(NamedTuple):
    """The arguments of the command that a suggestion repeats."""

    paths: tuple[str, ...]
    allow: tuple[str, ...]
    policy: str | None
    fail_on: str | None


def report(
    files: Sequence[FileScan],
    errors: Sequence[CgptError],
    checks: Iterable[Check],
    command: ScanCommand,
) -> str:
    """Return the output for the files, the errors of other paths, and the checks of all of them."""
    by_path: dict[str, list[Check]] = {}
    for check in checks:
        by_path.setdefault(check.file, []).append(check)
    outcomes = [_outcome(file, by_path.get(file.path, [])) for file in files]
    listed = [each for each in outcomes if each.fails or each.remark or not _is_fine(each.file)]
    listed.sort(key=lambda each: (not each.fails, WORST_FIRST.index(each.file.verdict)))
    sections: list[list[str]] = []
    for _, group in groupby(listed, lambda each: (each.fails, each.file.verdict)):
        sections.append([line for each in group for line in _block(each)])
    if errors:
        sections.append([_labelled("unreadable", FAILED, _one_line(error)) for error in errors])
    shown = {each.file.path for each in listed}
    fine = [file for file in files if file.path not in shown]
    quiet = [
        *_fine(Verdict.CLEAN, [file for file in fine if file.verdict is Verdict.CLEAN]),
        *_fine(Verdict.NOTHING, [file for file in fine if _is_named(file)]),
    ]
    sections.append(quiet)
    paths = {file.path for file in files} | {error.where for error in errors}
    notes = [
        _note(check)
        for path, group in by_path.items()
        for check in group
        if path not in paths and check.name != "scan"
    ]
    nothing = [file for file in files if file.verdict is Verdict.NOTHING]
    if nothing:
        notes.append(_labelled("note", NOTE, _without_weights(nothing)))
    sections.append(notes)
    advice = list(_advice([each.file for each in outcomes if each.fails], command))
    sections.append([style.bold("what to do:"), *advice] if advice else [])
    summary = _summary(files, len(errors))
    if listed or errors or notes:
        sections.append([summary])
    else:
        quiet.append(summary)
    return "\n\n".join("\n".join(section) for section in sections if section)


# -- the files


class _Outcome(NamedTuple):
    """A file, whether it fails the scan, and what --fail-on or the policy say about it."""

    file: FileScan
    fails: bool
    remark: str  # "" if they say nothing


def _outcome(file: FileScan, checks: Sequence[Check]) -> _Outcome:
    fails = exit_code(checks) != 0
    remarks = [check.detail for check in checks if check.name == "policy"]
    if not (fails or remarks) and file.verdict not in (Verdict.CLEAN, Verdict.NOTHING):
        remarks = ["accepted, as --fail-on or the policy says"]
    return _Outcome(file, fails, "; ".join(remarks))


def _one_line(error: CgptError) -> str:
    where = f"{printable(error.where)}: " * bool(error.where)
    return where + printable(error.message) + f" ({error.hint})" * bool(error.hint)


def _is_fine(scan: FileScan) -> bool:
    """Return whether the file has nothing to report but notes of the level "note"."""
    if scan.verdict not in (Verdict.CLEAN, Verdict.NOTHING):
        return False
    return all(note.rule.level == "note" for note in scan.notes)


def _is_named(scan: FileScan) -> bool:
    """Return whether the file has the name of a weight file, but is of another kind."""
    is_other = scan.verdict is Verdict.NOTHING and scan.kind != RAW
    return is_other and kinds.names_weights(scan.path)


def _block(outcome: _Outcome) -> list[str]:
    """Return the heading of a file, with its findings below."""
    scan, remark = outcome.file, printable(outcome.remark)
    level = _LEVELS[scan.verdict] if outcome.fails or not remark else NOTE
    lines = [_labelled(scan.verdict.value, level, f"{printable(scan.path)} ({_kind(scan)})")]
    lines += [_row("", remark)] if remark else []
    lines += _references(scan.sightings)
    lines += _findings(scan.problems)
    return lines + _findings(scan.notes, _note_text)


def _kind(scan: FileScan) -> str:
    return scan.kind + f", {scan.pickles:,} pickles" * (scan.pickles > 1)


def _references(references: Iterable[CodeReference]) -> Iterator[str]:
    """Yield what loading would do, dangerous things first, grouped by place and action."""
    same: dict[tuple[str, str, str], list[CodeReference]] = {}
    for reference in references:
        key = reference.rule.id, reference.how, reference.name
        same.setdefault(key, []).append(reference)
    groups: dict[tuple[str, str], list[str]] = {}
    for alike in sorted(same.values(), key=lambda alike: alike[0].rule is not DANGEROUS):
        first = alike[0]
        where = f"{printable(first.place)}: " * bool(first.place)
        group = groups.setdefault((first.rule.id, where + ACTIONS[first.how]), [])
        group.append(_shown(first) + _counts(alike))
    room = _ROWS
    for (label, action), items in groups.items():
        if len(items) == 1 and room:
            yield _row(label, f"{action} {items[0]}")
        elif room:
            yield _row(label, action)
            yield from (_item(item) for item in items[:room])
        room -= min(room, len(items))
    if len(same) > _ROWS:
        yield _row("", f"and {len(same) - _ROWS:,} more (--json lists all)")


def _shown(reference: CodeReference) -> str:
    """Return the call; a long one of foreign code shortened, since its state can be a model."""
    text, name = reference.text, reference.name
    if not reference.option or len(text) <= _CALL:
        return text
    if text.startswith(f"{name}() with state {{"):
        return f"{name}() with state {{...}}"
    return text[: max(_CALL - 3, len(name) + 1)] + "..."


def _counts(alike: Sequence[CodeReference]) -> str:
    calls = sum(reference.calls for reference in alike)
    places = len({reference.place for reference in alike})
    counts = [f"{calls:,} times"] * (calls > 1) + [f"in {places:,} places"] * (places > 1)
    return f" ({', '.join(counts)})" * bool(counts)


def _findings(
    findings: Iterable[Finding], text: Callable[[Finding], str] = lambda finding: finding.detail
) -> list[str]:
    """Return a row for each finding, and how often it occurs."""
    same = Counter((finding.rule.id, printable(text(finding))) for finding in findings)
    lines = [
        _row(label, line + f" ({count:,} times)" * (count > 1))
        for (label, line), count in list(same.items())[:_ROWS]
    ]
    more = [f"and {len(same) - _ROWS:,} more (--json lists all)"] if len(same) > _ROWS else []
    return lines + [_row("", line) for line in more]


def _note_text(finding: Finding) -> str:
    return f"note: {finding.rule.title}: {finding.detail}"


def _fine(verdict: Verdict, scans: Sequence[FileScan]) -> Iterator[str]:
    """Yield the files of a harmless verdict; only their number if there are many."""
    word = "not weights" if verdict is Verdict.NOTHING else verdict.value
    if len(scans) <= _LISTED:
        for scan in scans:
            names = f"; allowed: {', '.join(map(printable, scan.added))}" * bool(scan.added)
            text = f"{printable(scan.path)} ({_kind(scan)}{names})"
            yield _labelled(word, _LEVELS[verdict], text)
            yield from _findings(scan.notes, _note_text)
        return
    yield _labelled(word, _LEVELS[verdict], f"{counted(len(scans), 'file')} ({_kinds(scans)})")
    allowed = Counter(name for scan in scans for name in scan.added)
    for name, count in sorted(allowed.items()):
        yield _row("allowed", f"{printable(name)} in {counted(count, 'file')}")
    noted = Counter(rule for scan in scans for rule in {note.rule for note in scan.notes})
    for rule, count in sorted(noted.items()):
        yield _row(rule.id, f"note: {rule.title}, in {counted(count, 'file')}")


def _kinds(scans: Iterable[FileScan]) -> str:
    """Return the number of files of each kind, the most frequent first."""
    every = Counter(scan.kind for scan in scans).most_common()
    shown = [counted(count, kind) for kind, count in every[:_KINDS]]
    rest = sum(count for _, count in every[_KINDS:])
    return ", ".join(shown + [f"{rest:,} of other kinds"] * bool(rest))


def _without_weights(scans: Sequence[FileScan]) -> str:
    """Return a sentence that counts the files without weights by kind."""
    verb = "contains" if len(scans) == 1 else "contain"
    return f"{counted(len(scans), 'file')} {verb} no weights and no pickle ({_kinds(scans)})"


# -- what to do


def _advice(scans: Sequence[FileScan], command: ScanCommand) -> Iterator[str]:
    """Yield what to do about each verdict that fails the scan."""
    by_verdict: dict[Verdict, list[FileScan]] = {}
    for scan in scans:
        by_verdict.setdefault(scan.verdict, []).append(scan)
    for verdict in WORST_FIRST:
        failing = by_verdict.get(verdict, [])
        if failing and verdict in _ADVICE:
            file, it = ("this file", "it") if len(failing) == 1 else ("these files", "them")
            text = _ADVICE[verdict].format(file=file, it=it)
            word = style.verdict(verdict.value, _LEVELS[verdict])
            yield wrapped(f"  {word}: {text}", _HINT)
        if failing and verdict is Verdict.FOREIGN:
            yield from _about_foreign(failing, command)


# {file} is "this file" or "these files", and {it} is "it" or "them"
_ADVICE = {
    Verdict.DANGEROUS: (
        "Do not load {file}: loading {it} runs the code shown above. Delete {it}, and warn the "
        "publisher."
    ),
    Verdict.MALFORMED: (
        "Do not load {file}. The content is damaged, or made so that programs read it differently. "
        "Download {it} again, and compare the checksum with the publisher's."
    ),
    Verdict.FOREIGN: (
        "Loading {file} needs code that weights do not need. Load {it} only if you trust that code."
    ),
    Verdict.NOT_SCANNED: (
        "Treat {file} as unsafe: the content is not known completely. Unpack or convert {it}, and "
        "scan the result. --fail-on foreign accepts such files."
    ),
}


def _about_foreign(scans: Sequence[FileScan], command: ScanCommand) -> Iterator[str]:
    allowable = [scan for scan in scans if _can_pass(scan)]
    others = [scan for scan in scans if not _can_pass(scan)]
    names = sorted({reference.option for scan in allowable for reference in scan.sightings})
    trusted = f"If you trust {'this name' if len(names) == 1 else f'these {len(names):,} names'}"
    if len(names) > _OPTIONS:
        yield _hint(f"{trusted}, allow them in a policy file (--policy).")
    elif names and len(command.paths) > _PATHS:  # as from a shell's pattern
        yield _hint(f"{trusted}, add to the command:")
        yield from _suggestion(_allow(names))
    elif names:
        yield _hint(f"{trusted}, run:")
        yield from _suggestion(_scanning(names, command))
    if others:
        verb, it = ("contains", "this file") if len(others) == 1 else ("contain", "such a file")
        yield _hint(
            f"{_named(others)} {verb} code that --allow cannot accept. Read that code first. A "
            f"policy file (--policy) can accept {it} by its SHA-256."
        )
    convertible = [scan.path for scan in scans if scan.kind.startswith("PyTorch")]
    if convertible:
        path = convertible[0] if len(scans) == 1 else "FILE"
        output = os.path.splitext(path)[0] + ".safetensors"
        yield _hint("To get only the tensors, without the code:")
        yield from _suggestion(_parts("convert", [path], [f"-o {_quoted(output)}"]))


def _can_pass(scan: FileScan) -> bool:
    """Return whether --allow can make the file pass."""
    return not scan.problems and all(is_allowable(each.option) for each in scan.sightings)


def _named(scans: Sequence[FileScan]) -> str:
    paths = [printable(scan.path) for scan in scans[:_FILES]]
    more = [f"{len(scans) - _FILES:,} more"] if len(scans) > _FILES else []
    return " and ".join(filter(None, [", ".join((paths + more)[:-1]), (paths + more)[-1]]))


def _scanning(names: Sequence[str], command: ScanCommand) -> list[str]:
    """Return the parts of the command that scans again, with these names allowed."""
    options = [f"--policy {_quoted(command.policy)}"] if command.policy else []
    options += [f"--fail-on {command.fail_on}"] if command.fail_on else []
    return _parts("scan", command.paths, [*options, *_allow((*command.allow, *names))])


def _allow(names: Iterable[str]) -> list[str]:
    return [f"--allow {_quoted(name)}" for name in names]


def _parts(command: str, paths: Sequence[str], options: list[str]) -> list[str]:
    """Return the parts of a command line, between which it can be broken."""
    quoted = [_quoted(path) for path in paths]
    if any(path.startswith("-") for path in paths):
        return [f"cgpt-convert {command}", *options, "--", *quoted]
    return [f"cgpt-convert {command}", *quoted, *options]


def _quoted(word: str) -> str:
    """Return the word as a shell takes it, without characters that a terminal would interpret."""
    if word.isprintable():
        return shlex.quote(word)
    encoded = os.fsencode(word)
    return "$'" + "".join(_escaped(byte) for byte in encoded) + "'"


def _escaped(byte: int) -> str:
    char = chr(byte)
    return char if char.isascii() and char.isprintable() and char not in "\\'" else f"\\x{byte:02x}"


def _suggestion(parts: Sequence[str]) -> Iterator[str]:
    """Yield a command, in several lines with backslashes if it does not fit into one."""
    room = width()
    line = " " * _COMMAND + parts[0]
    for number, part in enumerate(parts[1:], 2):
        more = 0 if number == len(parts) else len(" \\")
        if room is None or columns(line) + 1 + columns(part) + more <= room:
            line += f" {part}"
        else:
            yield f"{line} \\"
            line = " " * (_COMMAND + 2) + part
    yield line


# -- lines


def _labelled(word: str, level: str, text: str) -> str:
    label = style.verdict(word, level) + " " * (_LABEL - len(word))
    return wrapped(f"{label}  {text}", _LABEL + 2)


def _note(check: Check) -> str:
    """Return a line about the scan as a whole."""
    where = f"{printable(check.file)}: " * bool(check.file)
    word = "failed" if check.outcome == FAILED else "note"
    return _labelled(word, check.outcome, where + printable(check.detail))


def _row(label: str, text: str) -> str:
    return wrapped(f"  {label:<7}  {text}" if label else f"  {text}", _ROW)


def _item(text: str) -> str:
    return wrapped(" " * _ITEM + text, _ITEM + 2)


def _hint(text: str) -> str:
    return wrapped(" " * _HINT + text, _HINT)


def _summary(scans: Sequence[FileScan], unlisted: int) -> str:
    """Return the last line: the number of files, and of each verdict."""
    if not scans and not unlisted:
        return "no files to scan"
    verdicts = Counter(scan.verdict for scan in scans)
    line = counted(len(scans), "file")
    if len(verdicts) == 1:
        every = {1: "", 2: "both "}.get(len(scans), "all ")
        line += f", {every}{_COUNTED[scans[0].verdict]}"
    elif verdicts:
        counts = ((verdicts[verdict], verdict) for verdict in WORST_FIRST)
        line += ": " + ", ".join(f"{n:,} {_COUNTED[verdict]}" for n, verdict in counts if n)
    line += f"; {counted(unlisted, 'path')} that cannot be read" * bool(unlisted)
    return wrapped(line, _HINT)
