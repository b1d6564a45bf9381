"""The module that writes all output formats: temporary file, stream, check, rename.

If the process is killed, the old output remains or there is none. A temporary file that it leaves
is removed by the next run that writes the same output.

A plan determines the offset of every part, so parts can be written in any order. If elements must
be rearranged or hashed, several threads share them.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from isal.isal_zlib import crc32

from cgpt_convert.core.threads import Advance, Job, WorkerPool, untold, worker_count
from cgpt_convert.plan import AvailableDigests, Crc32, DeferredPart, FileDigest, FilePlan, Part
from cgpt_convert.sources.local import CHUNK
from cgpt_convert.tensors import non_finite, read
from cgpt_convert.tensors.assembled import boxes_of
from cgpt_convert.tensors.non_finite import NonFiniteCounts
from cgpt_convert.tensors.read import CastCounts
from cgpt_convert.tensors.tensor import Content, Tensor, announce
from cgpt_convert.writing import local_stage
from cgpt_convert.writing.output_checks import check_apart
from cgpt_convert.writing.stage import OutputFile, Stage
from cgpt_convert.writing.tensor_stream import TensorPieces, contents, do_all, in_turn


def _unchecked(_folder: str, _written: Mapping[str, str]) -> None:
    """No-op check."""


@dataclass(slots=True)
class WriteOptions:
    """Settings for writing.

    `lost` counts the values lost by casts, `special` the non-finite elements, by tensor. `inputs`
    are further paths that the output must not replace, in addition to the files of its tensors.
    `check(folder, temp_paths)` is called after writing and before publishing; raising an error
    aborts the publication. `temp_paths` maps planned paths to temporary paths.
    """

    overwrite: bool = False
    inputs: tuple[str, ...] = ()
    advance: Advance = untold
    jobs: int = 0  # 0: one thread per CPU core available to the process
    lost: dict[str, CastCounts] = field(default_factory=dict)
    special: dict[str, NonFiniteCounts] = field(default_factory=dict)
    check: Callable[[str, Mapping[str, str]], object] = _unchecked

    def lossy(self) -> dict[str, CastCounts]:
        """Return the counts of the tensors in which a cast made values infinite or zero."""
        return {name: counts for name, counts in self.lost.items() if counts != CastCounts()}

    def not_finite(self) -> dict[str, NonFiniteCounts]:
        """Return the counts of tensors with NaN or infinity, without values that casts made so."""
        counts_by_name = {}
        for name, written in self.special.items():
            overflowed = self.lost[name].overflowed if name in self.lost else 0
            counts = NonFiniteCounts(written.nan, max(written.infinite - overflowed, 0))
            if counts != NonFiniteCounts():
                counts_by_name[name] = counts
        return counts_by_name


def write_files(plans: Sequence[FilePlan], folder: str, options: WriteOptions) -> list[str]:
    """Write each plan's file into the existing `folder`, all or none; return the paths.

    Raises CannotWrite; BadRequest if the output would replace its own source; Malformed if the data
    does not match the checksum in the source.
    """
    outputs = [os.path.join(folder, plan.path) for plan in plans]
    check_apart(plans, options.inputs, outputs, folder=False)
    with local_stage.LocalFilesStage(
        folder, [plan.path for plan in plans], overwrite=options.overwrite
    ) as stage:
        OutputWriter(stage, options).write(plans)
        options.check(stage.place, stage.written())
        return stage.publish()


def write_folder(plans: Sequence[FilePlan], folder: str, options: WriteOptions) -> list[str]:
    """Write a new folder with each plan's file, completely or not at all; return the paths."""
    check_apart(plans, options.inputs, [folder], folder=True)
    with local_stage.LocalFolderStage(folder, overwrite=options.overwrite) as stage:
        OutputWriter(stage, options).write(plans)
        options.check(stage.place, stage.written())
        return stage.publish()


def write_blocks(tensor: Tensor, descriptor: int) -> None:
    """Write one tensor's bytes to a descriptor such as standard output. Raises its OSErrors."""
    for piece in TensorPieces(WorkerPool(1)).of(tensor):
        while piece:
            piece = piece[os.write(descriptor, piece) :]  # noqa: PLW2901  the rest of it
    tensor.storage.source.check_unchanged()


class OutputWriter:
    """The writing of the files of one output."""

    def __init__(self, stage: Stage, options: WriteOptions) -> None:
        self.stage = stage
        self.options = options
        self.workers = WorkerPool(worker_count(options.jobs), options.advance)
        self.pieces = TensorPieces(self.workers)
        self.files: dict[str, FileDigest] = {}
        self.streamed: set[Content] = set()  # contents of parts and of their uncast forms

    def write(self, plans: Sequence[FilePlan]) -> None:
        """Write all files under their temporary names."""
        self.stage.check_space(sum(plan.nbytes for plan in plans))
        self.expect(plans)
        for apart, group in groupby(plans, key=self._is_one_job):
            if apart:
                files = list(group)
                announce(tensors_of(files))
                jobs = ((_first(p), functools.partial(self._whole_file, p)) for p in files)
                self.workers.run(in_turn(jobs), prepare=functools.partial(import_for, files))
            else:
                for plan in group:
                    self._file(plan)
        check_unchanged(plans)

    def expect(self, plans: Sequence[FilePlan]) -> None:
        """Collect the contents to hash, and prepare the counters for casts."""
        for tensor in tensors_of(plans):  # in plan order, independent of the threads
            if non_finite.may_have(tensor.dtype):
                self.options.special.setdefault(tensor.name, NonFiniteCounts())
            if tensor.target:
                self.options.lost.setdefault(tensor.name, CastCounts())
        wanted = [t.content for plan in plans for late in _late(plan) for t in late.tensors]
        self.pieces = TensorPieces(self.workers, self.options.lost, wanted)
        self.streamed = {content for plan in plans for content in _contents(plan)}

    def output(self, plan: FilePlan) -> OutputFile:
        """Create the temporary file for the plan."""
        return OutputFile(self.stage, plan, self.workers)

    def _is_one_job(self, plan: FilePlan) -> bool:
        """Return whether one thread writes the whole file: it is hashed in order, or is one tensor.

        Files that are only copied are shared by threads in `_copy`.
        """
        if is_hashed_in_order(plan):
            return True
        tensors = [part for part in plan.parts if isinstance(part, Tensor)]
        if len(tensors) != 1 or any(late.tensors for late in _late(plan)):
            return False
        return tensors[0].extent() is None or self.pieces.hashes(tensors)

    def _whole_file(self, plan: FilePlan) -> None:
        self.workers.wait_prepared()
        if is_hashed_in_order(plan):
            self.hashed_file(plan)
            return
        out = self.output(plan)
        with out:
            for at, index, part in out.placed():
                if not isinstance(part, Crc32 | DeferredPart):
                    self.part(out, at, index, part)
            self._finish(out)
            if plan.hashed:
                self.files[plan.path] = out.digest()

    def hashed_file(self, plan: FilePlan) -> None:
        """Write a file sequentially and hash it on the way."""
        import hashlib

        out = self.output(plan)
        digest, value = hashlib.sha256(), 0
        with out:
            for at, _, part in out.placed():
                for piece in self._pieces(part, at):
                    digest.update(piece)
                    value = crc32(piece, value)
                    out.write(piece, at)
                    at += len(piece)  # noqa: PLW2901  the offset of the next piece
        with self.workers.lock:
            self.files[plan.path] = FileDigest(digest.hexdigest(), value)

    def _file(self, plan: FilePlan) -> None:
        out = self.output(plan)
        with out:
            turned: list[tuple[Part, Job]] = []  # first, where the calling thread starts
            copied: list[tuple[Part, Job]] = []
            announce(sorted(tensors_of([plan]), key=lambda part: not _is_rearranged(part)))
            for at, index, part in out.placed():
                if not isinstance(part, Crc32 | DeferredPart):
                    job = functools.partial(self.part, out, at, index, part)
                    (turned if _is_rearranged(part) else copied).append((part, job))
            hashed: list[tuple[Part, Job]] = list(self.unwritten(plan))
            jobs = in_turn([*hashed, *turned, *copied])
            if hashed or turned or self.pieces.hashes(plan.parts):
                self.workers.run(jobs, prepare=functools.partial(import_for, [plan]))
            else:
                self._copy(jobs, plan)
            self._finish(out)
            if plan.hashed:
                self.files[plan.path] = out.digest()

    def _copy(self, jobs: list[Job], plan: FilePlan) -> None:
        """Run the jobs in order, which only copy data; with several threads if parts are large.

        Neighbouring parts are copied at the same time, which suits hard disks. Small parts are
        bound by the interpreter, so threads do not help.
        """
        some = functools.partial(do_all, deque(jobs))
        if plan.nbytes < CHUNK * len(jobs):
            some()
        else:
            prepare = functools.partial(_import_to_look, [plan])
            self.workers.run([some] * self.workers.size, prepare=prepare)

    def unwritten(self, plan: FilePlan) -> Iterator[tuple[Tensor, Job]]:
        """Yield jobs that hash tensors whose digest is in the file, but not their data."""
        tensors = {t.content: t for late in _late(plan) for t in late.tensors}
        missing = tensors.keys() - self.streamed - self.pieces.digests.keys()
        for content, tensor in tensors.items():
            if content in missing:
                yield tensor, functools.partial(self._drain, tensor)

    def _drain(self, tensor: Tensor) -> None:
        for _ in self.pieces.of(tensor):
            pass

    def _finish(self, out: OutputFile) -> None:
        """Write the deferred parts: those that contain digests, then checksums."""
        for at, index, part in out.placed():
            if isinstance(part, DeferredPart):
                self.part(out, at, index, part)
        for at, _, part in out.placed():
            if isinstance(part, Crc32):
                out.write(memoryview(out.crc32(part).to_bytes(4, "little")), at)

    def part(self, out: OutputFile, at: int, index: int, part: Part) -> None:
        """Write a part at the offset, and record its CRC-32 if required."""
        value = 0
        for piece in self._pieces(part, at):
            if index in out.covered:
                value = crc32(piece, value)
            out.write(piece, at)
            at += len(piece)
        out.sums[index] = value

    def _pieces(self, part: Part, at: int) -> Iterator[memoryview]:
        if isinstance(part, Tensor):
            pieces = self.pieces.of(part, at)
            if not non_finite.may_have(part.dtype):
                return pieces
            return non_finite.watched(pieces, part.dtype, self.options.special[part.name])
        if isinstance(part, DeferredPart):
            part = part.make(AvailableDigests(self.files, self.pieces.digests))
        return iter((memoryview(part),)) if isinstance(part, bytes) else iter(())


_MUCH = 1 << 30  # bytes from which importing NumPy to search for NaN pays off


def _import_to_look(plans: Sequence[FilePlan]) -> None:
    """Import NumPy if it makes the search for NaN faster."""
    if sum(t.nbytes for t in tensors_of(plans) if non_finite.may_have(t.dtype)) > _MUCH:
        importlib.import_module("numpy")


def import_for(plans: Sequence[FilePlan]) -> None:
    """Import the modules that hashing, rearranging and casting need."""
    importlib.import_module("hashlib")
    _import_to_look(plans)
    parts = [part for plan in plans for part in plan.parts]
    parts += [tensor for plan in plans for late in _late(plan) for tensor in late.tensors]
    if any(map(_is_rearranged, parts)):
        read.import_all()


def _first(plan: FilePlan) -> Part:
    """Return the first tensor in the file, if any."""
    return next(tensors_of([plan]), b"")


def _late(plan: FilePlan) -> Iterator[DeferredPart]:
    return (part for part in plan.parts if isinstance(part, DeferredPart))


def _contents(plan: FilePlan) -> Iterator[Content]:
    for part in plan.parts:
        if isinstance(part, Tensor):
            yield from contents(part)


def is_hashed_in_order(plan: FilePlan) -> bool:
    """Return whether the file's digest can be computed while it is written."""
    return plan.hashed and not any(isinstance(part, Crc32) for part in plan.parts)


def _is_rearranged(part: Part) -> bool:
    return isinstance(part, Tensor) and (part.extent() is None or bool(boxes_of(part.storage)))


def check_unchanged(plans: Sequence[FilePlan]) -> None:
    """Raise Unreadable if a source has changed since it was opened."""
    sources = {id(t.storage.source): t.storage.source for t in tensors_of(plans)}
    for source in sources.values():
        source.check_unchanged()


def tensors_of(plans: Sequence[FilePlan]) -> Iterator[Tensor]:
    """Return the tensors to write, in order."""
    return (part for plan in plans for part in plan.parts if isinstance(part, Tensor))
