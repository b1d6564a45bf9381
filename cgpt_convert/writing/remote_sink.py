"""Write output to a store, each file sequentially, so that little data is kept in memory.

A part that depends on later bytes, such as a checksum in a header, is written as soon as it is
known. For stores that accept sequential writes only, the data is read once beforehand.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from cgpt_convert.core.threads import WorkerPool
from cgpt_convert.plan import Crc32, DeferredPart, FilePlan, Part, part_nbytes
from cgpt_convert.tensors.tensor import Tensor, announce
from cgpt_convert.writing.object_stage import ObjectFolderStage, ObjectStage
from cgpt_convert.writing.output_checks import check_apart
from cgpt_convert.writing.stage import OutputFile, Stage, StagedFile
from cgpt_convert.writing.writer import (
    OutputWriter,
    WriteOptions,
    check_unchanged,
    import_for,
    is_hashed_in_order,
    tensors_of,
)


def send_files(plans: Sequence[FilePlan], folder: str, options: WriteOptions) -> list[str]:
    """Upload the files as `writer.write_files`; `folder` is a URL."""
    outputs = [f"{folder.rstrip('/')}/{plan.path}" for plan in plans]
    check_apart(plans, options.inputs, outputs, folder=False)
    with ObjectStage(folder, [plan.path for plan in plans], overwrite=options.overwrite) as stage:
        return _sent(stage, plans, options)


def send_folder(plans: Sequence[FilePlan], folder: str, options: WriteOptions) -> list[str]:
    """Upload the folder as `writer.write_folder`; `folder` is a URL."""
    check_apart(plans, options.inputs, [folder], folder=True)
    names = [plan.path for plan in plans]
    with ObjectFolderStage(folder, names, overwrite=options.overwrite) as stage:
        return _sent(stage, plans, options)


def _sent(stage: ObjectStage, plans: Sequence[FilePlan], options: WriteOptions) -> list[str]:
    if not stage.takes_parts:
        plans = _known(plans, options)
    _SequentialWriter(stage, options).write(plans)
    options.check(stage.place, stage.written())
    return stage.publish()


class _SequentialWriter(OutputWriter):
    """Write the files of one output one after the other, in this thread."""

    def __init__(self, stage: Stage, options: WriteOptions) -> None:
        super().__init__(stage, options)
        self.workers = WorkerPool(1, options.advance)

    def write(self, plans: Sequence[FilePlan]) -> None:
        """Write all files under their temporary names."""
        self.expect(plans)
        announce(tensors_of(plans))
        jobs = [functools.partial(self._front_to_back, plan) for plan in plans]
        self.workers.run(jobs, prepare=functools.partial(import_for, plans))
        check_unchanged(plans)

    def _front_to_back(self, plan: FilePlan) -> None:
        for _, job in self.unwritten(plan):
            job()
        if is_hashed_in_order(plan):
            self.hashed_file(plan)
            return
        out = self.output(plan)
        with out:
            waiting: list[tuple[int, int, Part]] = []
            for placed in out.placed():
                waiting.append(placed)
                while known := [each for each in waiting if self._is_known(out, each[2])]:
                    for each in known:
                        waiting.remove(each)
                        self._place(out, *each)

    def _is_known(self, out: OutputFile, part: Part) -> bool:
        if isinstance(part, Crc32):
            return all(index in out.sums for index in range(part.first, part.last))
        if isinstance(part, DeferredPart):
            return all(tensor.content in self.pieces.digests for tensor in part.tensors)
        return True

    def _place(self, out: OutputFile, at: int, index: int, part: Part) -> None:
        if isinstance(part, Crc32):
            out.write(memoryview(out.crc32(part).to_bytes(4, "little")), at)
        else:
            self.part(out, at, index, part)


def _known(plans: Sequence[FilePlan], options: WriteOptions) -> list[FilePlan]:
    """Return the plans with parts that depend on later data computed, by reading that data."""
    early = [plan for plan in plans if _looks_ahead(plan)]
    if not early:
        return list(plans)
    notes = _DeferredPartsStage()
    OutputWriter(notes, WriteOptions(jobs=options.jobs)).write(early)
    return [notes.filled(plan) for plan in plans]


def _looks_ahead(plan: FilePlan) -> bool:
    holds = any(isinstance(part, Tensor) for part in plan.parts)
    return any(
        (isinstance(part, Crc32) and part.last > index)
        or (isinstance(part, DeferredPart) and part.tensors and holds)
        for index, part in enumerate(plan.parts)
    )


class _DeferredPartsStage(Stage):
    """A stage that keeps only deferred parts."""

    def __init__(self) -> None:
        self._files: dict[str, _DeferredParts] = {}

    def final(self, path: str) -> str:
        """Return the planned path unchanged; nothing is published."""
        return path

    def open(self, plan: FilePlan) -> StagedFile:
        """Return a file that keeps only deferred parts."""
        self._files[plan.path] = _DeferredParts(plan)
        return self._files[plan.path]

    def discard(self) -> None:
        """Do nothing; nothing was written."""

    def filled(self, plan: FilePlan) -> FilePlan:
        """Return the plan with the recorded parts filled in."""
        note = self._files.get(plan.path)
        if note is None:
            return plan
        parts = (note.noted.get(index, part) for index, part in enumerate(plan.parts))
        return replace(plan, parts=tuple(parts))


class _DeferredParts:
    """The deferred parts of a file."""

    def __init__(self, plan: FilePlan) -> None:
        self.noted: dict[int, bytes] = {}  # by the index of the part
        self._unknown: dict[int, int] = {}  # offset -> index
        at = 0
        for index, part in enumerate(plan.parts):
            if isinstance(part, Crc32 | DeferredPart):
                self._unknown[at] = index
            at += part_nbytes(part)

    def write(self, data: memoryview, at: int) -> int:
        """Record the data if it is a deferred part."""
        if at in self._unknown:
            self.noted[self._unknown[at]] = bytes(data)
        return len(data)

    def read(self, nbytes: int, at: int) -> bytes:
        """Not supported; hashed files have no checksums inside."""
        raise NotImplementedError

    def close(self) -> None:
        """Do nothing."""
