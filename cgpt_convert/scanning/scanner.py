"""Find what loading a file with any reader would run, in every part of the file.

A part's kind is detected from its content. The start of every part is also traced as a pickle,
since a file can be valid in two formats.
"""

from __future__ import annotations

from collections.abc import Iterable

from cgpt_convert.archives import zip_archive, zip_polyglot
from cgpt_convert.archives.zip_archive import Archive
from cgpt_convert.archives.zip_polyglot import (
    END_NBYTES,
    find_zip,
    refuse_hidden_zips,
    refuse_zip_behind,
)
from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.limits import PICKLE, TOKENIZER_BYTES, Prices
from cgpt_convert.core.text import printable
from cgpt_convert.formats.file_kinds import HEAD, FileKind, FormatKind, Kind, is_hdf5_behind
from cgpt_convert.formats.registry import Format, of_kind, sniff
from cgpt_convert.formats.torch import legacy_reader
from cgpt_convert.pickles.trace.tracer import Trace
from cgpt_convert.scanning import (
    allowlist,
    code,
    kinds,
    msgpack_weights,
    torch_archives,
    zip_records,
)
from cgpt_convert.scanning.embedded import source_of
from cgpt_convert.scanning.evidence import Evidence
from cgpt_convert.scanning.references import is_pickle, sighting
from cgpt_convert.scanning.result import CodeReference
from cgpt_convert.scanning.scan_budget import ScanBudget, ScanBudgetExceeded
from cgpt_convert.scanning.torch_archives import Role
from cgpt_convert.sources.compression import recognise
from cgpt_convert.sources.local import Source, read
from cgpt_convert.sources.unpack import SourceSlice, UnpackLimit, unpacked

_DEPTH = 8  # limit of nested files
_PARTS = 500_000  # limit of parts per file; a model of 1 TB has about 100,000
_LEGACY_PICKLES = 5  # magic number, version, system, the object, the storages' keys
_TEXTS = (Kind.TEXT, Kind.JSON, Kind.INDEX, Kind.XML, Kind.WEB_PAGE)

# joblib's placeholders: the elements follow in the file, where an unpickler reads opcodes
_JOBLIB = {
    ("joblib.numpy_pickle", name)
    for name in ("NumpyArrayWrapper", "NDArrayWrapper", "ZNDArrayWrapper")
} | {("joblib.numpy_pickle_compat", name) for name in ("NDArrayWrapper", "ZNDArrayWrapper")}


class FileScanner(Evidence):
    """The scan of one file, part by part."""

    def __init__(self, rule: allowlist.Allowlist) -> None:
        super().__init__(rule)
        self.room, self.allowance = UnpackLimit(0), ScanBudget(0)  # set by `file`
        self.path = ""
        self.unread: list[tuple[str, str]] = []  # (place, reason) of parts of unknown kinds
        self.plugin: Format | None = None  # the format of another package that the file has

    def file(self, source: Source, kind: FileKind, plugin: Format | None = None) -> None:
        """Scan the file `source`, which is of the given kind, and everything inside it.

        A file of another package's format is also checked by the `scan` of that format. It is
        searched for pickles and archives like every other file.
        """
        self.plugin = plugin
        self.path = source.name
        self.room, self.allowance = UnpackLimit(source.nbytes), ScanBudget(source.nbytes)
        try:
            self.part(source, "", 0, kind=kind)
            if plugin is not None:
                self.guarded(self.by_plugin, source, "", plugin)
        except ScanBudgetExceeded as error:
            self.problem(error.unsupported, "")

    def by_plugin(self, source: Source, place: str, plugin: Format) -> None:
        """Scan the file as one of another package's format."""
        self.weights = True
        if plugin.scan is None:
            raise Unsupported(f"the format plug-in of this {plugin.kind.value} has no scanner")
        plugin.scan(source, ScannedPart(self, source, place, 0, Role.ANY))

    def settle(self, path: str) -> None:
        """Report the parts of unknown kinds that a loader might read as problems."""
        for place, what in self.unread:
            if self.matters(path, place, what):
                self.problem(Unsupported(what), place)

    def matters(self, path: str, place: str, what: str) -> bool:
        """Return whether a loader might read this file or part of an unknown kind.

        In a Python environment, programs and unknown files are ignored, except together with
        weights.
        """
        if kinds.names_weights(path) or (place and self.weights):
            return True
        if kinds.in_environment(path):
            return False
        return bool(place) or what == kinds.PROGRAM or kinds.names_packed(path)

    def part(
        self,
        source: Source,
        place: str,
        depth: int,
        *,
        kind: FileKind | None = None,
        role: Role = Role.ANY,
        texts: bool = True,
    ) -> int:
        """Scan a part of the file and everything inside it. Return the number of pickles it is.

        `place` names the part in messages; it is "" for the file itself. If `texts` is False, a
        part that reads as text is checked as strictly as any other.
        """
        self.parts += 1
        self.allowance.spend(Prices.part if depth else 0)
        if self.parts > _PARTS or depth > _DEPTH:
            what = f"more than {_PARTS:,} parts"
            if depth > _DEPTH:
                what = f"files nested more than {_DEPTH} levels deep"
            self.problem(Unsupported(f"{what}; unpack the file and scan its parts"), place)
            return 0
        kind = sniff(source, record=True) if kind is None else kind
        base = kind.base
        self.weights |= isinstance(kind, FormatKind) or kind is Kind.PICKLE
        by_plugin = self.plugin is not None and not depth  # which answers for the file as a whole
        if base in kinds.CLOSED and not by_plugin:
            self.problem(Unsupported(kinds.CLOSED[base]), place)
        if base in (Kind.ZIP, Kind.CUT_ZIP):
            self.guarded(self.zip, source, place, depth)
            return 0
        if not depth and base is Kind.PICKLE:
            role = Role.PICKLE
        text = texts and base in _TEXTS and not kinds.names_weights(place or source.name)
        named = base is Kind.TAR and _imports_nothing(source)
        count = 0 if named else self.pickled(source, place, depth, role, text=text)
        unread = kinds.UNREAD.get(base, "") if base else ""
        opened = self.opened(source, place, depth, kind, role) or not unread
        if role is Role.ANY:
            self.guarded(self.texts, source, place, base)
        if not (opened or count or by_plugin or role is Role.STORAGE):
            self.unread.append((place, unread))
        if (
            base not in (Kind.TAR, Kind.HDF5)
            and role is not Role.STORAGE
            and is_hdf5_behind(source)
        ):
            self.problem(Unsupported(kinds.CLOSED[Kind.HDF5]), place)
        if base is not Kind.TAR:  # a storage may be taken out of its archive and loaded by itself
            self.guarded(lambda *_: refuse_zip_behind(source), source, place)
        return count

    def opened(self, source: Source, place: str, depth: int, kind: FileKind, role: Role) -> bool:
        """Scan the content of a part according to its kind. Return whether that was possible.

        The data of a tensor can look like a file of a format by chance, so that they are also
        searched like other bytes.
        """
        scan = of_kind(kind).scan if isinstance(kind, FormatKind) else None
        if kind.base is Kind.TAR:
            return self.guarded(self.tar, source, place, depth)
        if scan is not None:
            part = ScannedPart(self, source, place, depth, role)
            failed = self.guarded(lambda *_: scan(source, part), source, place)
            if role is not Role.STORAGE:
                return failed
        if kind is Kind.ONNX and role is not Role.STORAGE:
            return self.guarded(self.onnx, source, place)
        if kind is Kind.UNKNOWN and role is Role.ANY and msgpack_weights.is_weights(source):
            self.weights = True
            self.flax |= not depth
            return True
        return self.guarded(self.compressed, source, place, depth, role)

    # -- pickles

    def pickled(
        self,
        source: Source,
        place: str,
        depth: int,
        role: Role,
        *,
        at: int = 0,
        text: bool = False,
    ) -> int:
        """Trace the consecutive pickles from byte `at` on. Return their number.

        `text` marks bytes that are text, which a few accidental opcodes do not make a pickle.
        """
        count, end, unmarked, plain = 0, at, 0, True
        expected = int(role is Role.PICKLE)  # number of pickles that a loader reads unconditionally
        begun = -1  # start of the enclosing legacy stream, or -1
        while at < source.nbytes:
            self.passed.clear()
            traced = self.traced(source, at)
            magic = begun < 0 and legacy_reader.is_magic(traced.value)
            if expected or magic or is_pickle(traced, storage=role is Role.STORAGE, text=text):
                if role is Role.STORAGE and traced.opcodes >= PICKLE.opcodes and _is_idle(traced):
                    break  # an array of one repeated number that is also an opcode
                count += 1
                self.take(traced, source, place, depth)
                end = traced.end
            elif role is Role.STORAGE or traced.fault:
                break
            else:
                unmarked += 1
                plain &= not traced.uses
            if traced.fault:
                break
            # an unmarked pickle of plain values may precede others
            begun, at, expected = (at if magic else begun), traced.end, max(expected - 1, 0)
            if magic:
                expected = _LEGACY_PICKLES - 1
            elif begun >= 0 and not expected:
                at = end = legacy_reader.storages_end(source, begun) or at
                begun = -1
        if unmarked and plain and at == source.nbytes and not text:
            count, end = count + unmarked, at  # the pickles fill the part exactly
            self.pickles += unmarked
            self.weights = True
        if count and end < source.nbytes:
            rest = source.nbytes - end
            detail = f"{rest:,} byte{'s' * (rest > 1)}" + f" in {printable(place)}" * bool(place)
            self.found(self.notes, findings.AFTER_PICKLE, detail)
        return count

    def traced(self, source: Source, at: int) -> Trace:
        """Trace the pickle at byte `at`."""
        return self.allowance.trace(source, at, self.allowed)

    def take(self, traced: Trace, source: Source, place: str, depth: int) -> None:
        """Record one pickle, and scan the byte strings in it."""
        self.pickles += 1
        self.weights = True
        self.added |= self.passed
        uses = [use for use in traced.uses if (use.module, use.name) not in _JOBLIB]
        joblib = len(uses) < len(traced.uses)
        for use in uses:
            self.sight(sighting(use, place))
        if joblib:
            what = "joblib stores arrays between the opcodes of the pickle, which cannot be scanned"
            self.problem(Unsupported(what), place)
        elif traced.fault:
            message = f"{traced.fault} (at byte {traced.fault_at:,})"
            if traced.exhausted:
                self.problem(Unsupported(f"the pickle exceeds a limit: {message}"), place)
            else:
                self.problem(Malformed(f"the pickle is damaged: {message}"), place)
        if traced.odd:
            self.problem(Malformed(traced.odd), place)
        for span in traced.nested:
            label = f"{place} > " * bool(place) + f"bytes at {max(span.offset, 0):,}"
            try:
                inner = source_of(span, source, label)
            except CgptError as error:
                self.problem(error, label)
                continue
            if inner is not None:
                self.part(inner, label, depth + 1, role=Role.STORAGE)

    # -- containers

    def zip(self, source: Source, place: str, depth: int) -> None:
        """Scan every record of the archive, or of each of several concatenated archives."""
        chained = zip_polyglot.archives(source)
        for window in chained:
            label = _inside(place, f"archive at byte {window.offset:,}")
            self.guarded(self.archive, window, label, depth + 1)
        if not chained:
            self.archive(source, place, depth)

    def archive(self, source: Source, place: str, depth: int) -> None:
        """Scan every record, and compare pickles with their checksums."""
        archive = zip_archive.open_archive(source)
        refuse_hidden_zips(archive)
        for finding in archive.findings:
            if finding.rule.level == "warning":
                self.found(self.notes, finding.rule, finding.detail)
        roles = torch_archives.roles(archive)
        self.script |= roles.script and not depth
        allows = self.rule.allows_script if roles.script else self.rule.allows
        exported = torch_archives.is_exported(archive)
        outer, self.allowed = self.allowed, self.noted(allows)
        try:
            for name in roles.first(list(archive.members)):
                self.record(archive, name, place, depth, roles.of(name, exported=exported))
        finally:
            self.allowed = outer
        for name, text in torch_archives.code_records(archive, self.adds, script=roles.script):
            self.code([text], _inside(place, name), code.allowed_by(text))
        refused = torch_archives.refusal(archive)
        if refused is not None:
            self.problem(refused, place)
        count = torch_archives.compiled_records(archive) if roles.script else 0
        if count:
            detail = f"{count:,} record{'s' * (count > 1)} with functions"
            self.found(self.notes, findings.SCRIPT, detail)

    def record(self, archive: Archive, name: str, place: str, depth: int, role: Role) -> None:
        """Scan one record of a zip."""
        label = _inside(place, name)
        try:
            source = zip_records.opened(archive, name, label, self.room)
            count = self.part(source, label, depth + 1, role=role)
            if count and archive.crc32(name) not in (None, zip_records.crc32(source)):
                raise Malformed("wrong checksum, which torch does not check")
        except CgptError as error:
            if error.kind == "unreadable":
                raise
            self.problem(error, label)

    def tar(self, source: Source, place: str, depth: int) -> None:
        """Scan every file of a tar; for torch's tars also the pickles between storages."""
        from cgpt_convert.archives import tar
        from cgpt_convert.scanning import tar_pickles

        end = find_zip(source)  # a zip inside the last member is found with the member
        outside = end is not None
        for member in tar.files(source):
            room = (
                member.nbytes - END_NBYTES
            )  # a zip that extends beyond the member is not found with it
            if member.name.endswith(torch_archives.MANIFEST):
                self.problem(Unsupported(torch_archives.SERVED), place)
            outside &= end is None or not 0 <= end - member.offset <= room
            label = _inside(place, member.name)
            inner = SourceSlice(source, member.offset, member.nbytes, label)
            self.part(inner, label, depth + 1)
            if member.name in tar_pickles.WALKED:
                for traced in tar_pickles.pickles(inner, member.name, self.traced):
                    self.take(traced, inner, label, depth + 1)
        if outside:
            raise Malformed(
                "a zip archive follows the tar archive: programs disagree about the file type"
            )

    def texts(self, source: Source, place: str, kind: Kind | None) -> None:
        """Look for code in a document or text that a loader reads beside the weights."""
        name = place or source.name
        if source.nbytes > TOKENIZER_BYTES:  # loaders do not read larger ones
            return
        wide = kind is Kind.UNKNOWN and name.lower().endswith(_DOCUMENTS) and _is_wide(source)
        if wide and name.lower().endswith(".json"):
            self.document(_decoded(source).encode("utf-8", "replace"), place)
        elif kind in _TEXTS and kinds.is_template(name):
            self.code(code.template(_decoded(source)), place)
        elif kinds.is_jinja(name):
            self.code(code.jinja(_decoded(source)), place)
        elif (kind in _TEXTS or wide) and name.lower().endswith((".yaml", ".yml")):
            self.code(code.yaml(_decoded(source)), place)
        elif kind in _TEXTS and name.endswith(".pth"):
            lines = _decoded(source).splitlines()
            self.code(code.site(lines, installed=kinds.is_installed(self.path)), place)
        elif kind in (Kind.JSON, Kind.INDEX):
            self.document(read(source, 0, source.nbytes), place)

    def document(self, data: bytes, place: str) -> None:
        """Look for code in a JSON document."""
        try:
            self.code(code.document(data), place)
        except RecursionError:
            self.problem(Unsupported("the JSON document is nested too deeply to be checked"), place)

    def code(self, texts: Iterable[str], place: str, option: str = "") -> None:
        """Record code in forms other than pickle; `option` is what `--allow` accepts it as."""
        for text in texts:
            shown = printable(text)
            self.sight(CodeReference(findings.CODE, place, 0, text, "contains", 0, shown, option))

    def adds(self, module: str, name: str) -> bool:
        """Return whether the user allows a class, and record its use."""
        allowed = self.rule.adds(module, name)
        if allowed:
            self.added.add(f"{module}.{name}")
        return allowed

    def onnx(self, source: Source, _place: str) -> None:
        """Check the operators of an ONNX model."""
        from cgpt_convert.scanning import onnx_model

        self.weights = True
        onnx_model.check(source)

    def compressed(self, source: Source, place: str, depth: int, role: Role) -> bool:
        """Scan a compressed file. Return whether it is one."""
        method = recognise(read(source, 0, min(HEAD, source.nbytes)))
        inner = unpacked(source, method, self.room) if method else None
        if method is None or inner is None or (inner.damage and not inner.nbytes):
            return False
        if inner.damage and not method.certain:
            role = Role.STORAGE  # probably other data with the same first bytes
        self.allowance.spend(Prices.unpacking)
        before = self.weights, len(self.problems)
        whole = zip_records.in_memory(inner, zip_records.HELD)  # avoids decompressing repeatedly
        if whole is not inner:
            self.room.left += inner.nbytes  # unpacked twice: to measure, then to keep
        if not inner.damage and kinds.is_git_object(whole):
            return True
        role = role if role is Role.STORAGE else Role.ANY
        label = _inside(place, "unpacked")
        self.part(whole, label, depth + 1, role=role, texts=not method.pickled)
        if inner.damage and (role is Role.ANY or (self.weights, len(self.problems)) != before):
            raise inner.damage
        return method.certain or not inner.damage


class ScannedPart:
    """A part of a file as the `scan` of its format sees it; see `PartScanner`."""

    def __init__(
        self, scanner: FileScanner, source: Source, place: str, depth: int, role: Role
    ) -> None:
        self._scanner, self._source, self._place = scanner, source, place
        self._depth, self._role = depth, role

    @property
    def in_storage(self) -> bool:
        """Whether the part is the data of a tensor, which may look like anything by chance."""
        return self._role is Role.STORAGE

    def part(self, source: Source, name: str) -> None:
        """Scan a file inside this one."""
        self._scanner.part(source, _inside(self._place, name), self._depth + 1)

    def pickles(self, at: int, *, certain: bool) -> int:
        """Trace the pickles from byte `at` on, and return their number."""
        role = Role.PICKLE if certain else Role.ANY
        return self._scanner.pickled(
            self._source, self._place, self._depth, role, at=at, text=not certain
        )

    def template(self, text: str, name: str) -> None:
        """Look for code in a chat template."""
        self._scanner.code(code.template(text), name)


def _imports_nothing(source: Source) -> bool:
    """Return whether the first opcode imports a name with a NUL byte, which cannot exist.

    This is so for tar headers whose first member's name begins with "c" or "i".
    """
    head = read(source, 0, min(HEAD, source.nbytes))
    return head[:1] in (b"c", b"i") and b"\0" in head.partition(b"\n")[0]


_DOCUMENTS = (".json", ".yaml", ".yml")  # whose parsers also take UTF-16 and UTF-32


def _is_wide(source: Source) -> bool:
    return _encoding(read(source, 0, min(HEAD, source.nbytes))) != "utf-8-sig"


def _encoding(data: bytes) -> str:
    import json

    encoding = json.detect_encoding(data)
    return "utf-8-sig" if encoding.startswith("utf-8") else encoding


def _decoded(source: Source) -> str:
    data = read(source, 0, source.nbytes)
    return data.decode(_encoding(data), "replace")


def _is_idle(traced: Trace) -> bool:
    """Return whether it lacks a protocol marker and uses no names."""
    return not (traced.marked or traced.uses)


def _inside(place: str, name: str) -> str:
    return f"{place} > {name}" if place else name
