"""Read written files back and compare them before they are published."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from cgpt_convert.core.errors import CheckFailed
from cgpt_convert.core.text import printable
from cgpt_convert.core.threads import Advance, WorkerPool, step, worker_count
from cgpt_convert.formats import registry
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.targets.plan_conversion import Conversion
from cgpt_convert.tensors.checksums import check_storages
from cgpt_convert.tensors.tensor import Tensor, replace
from cgpt_convert.verification.parallel import prepare
from cgpt_convert.writing.tensor_stream import in_turn


def reread(
    conversion: Conversion, to: str, jobs: int, folder: str, written: Mapping[str, str]
) -> None:
    """Check that the files contain exactly the tensors of the conversion.

    `written` maps planned paths to files; `folder` contains them if the output is a folder. The
    source is read again as well. Raises CheckFailed, naming every tensor that differs.
    """
    expected = {tensor.name: tensor for tensor in conversion.request.tensors}
    aliases = conversion.request.aliases
    tensors: dict[str, Tensor] = {}
    wrong = []
    if conversion.folder:
        read = [open_checkpoint(folder)]
    else:
        form = registry.by_name(to)
        holding = [p for p in conversion.plans if any(isinstance(x, Tensor) for x in p.parts)]
        read = [form.read(written[plan.path]) for plan in holding or conversion.plans]
    for checkpoint in read:
        recorded = [s for s in checkpoint.storages if s.crc32 is not None]
        with step("verifying checksums", sum(s.nbytes for s in recorded)) as advance:
            damaged = check_storages(recorded, advance)
        wrong += [f"storage {s.key}: damaged" for s in damaged]
        tensors |= checkpoint
    wrong += [
        f"{name}: not tied to {kept}"
        for name, kept in aliases.items()
        if name not in tensors or (kept in tensors and tensors[name].view != tensors[kept].view)
    ]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in aliases}
    wrong += [f"{name}: missing" for name in expected.keys() - tensors.keys()]
    wrong += [f"{name}: unexpected" for name in tensors.keys() - expected.keys()]
    both = expected.keys() & tensors.keys()
    with step("verifying", sum(tensors[name].nbytes for name in both)) as advance:
        pairs = {name: (expected[name], tensors[name]) for name in both}
        wrong += _differing(pairs, jobs, advance)
    if wrong:
        listed = "; ".join(printable(line) for line in sorted(wrong))
        where = conversion.request.name
        raise CheckFailed(
            f"the output, read back, differs from the source: {listed}",
            where=where,
            hint="the output was removed; run the command again",
        )


def _differing(
    pairs: Mapping[str, tuple[Tensor, Tensor]], jobs: int, advance: Advance
) -> list[str]:
    workers = WorkerPool(worker_count(jobs), advance)
    wrong: list[str] = []

    def compare(name: str, expected: Tensor, tensor: Tensor) -> None:
        workers.wait_prepared()
        from cgpt_convert.tensors.element_differences import bits

        workers.go_on()
        if (tensor.dtype, tensor.shape) != (expected.dtype, expected.shape):
            wrong.append(f"{name}: different dtype or shape")
            return
        different = bits(replace(tensor, name=name), expected)
        workers.advance(tensor.nbytes)
        if different.differing:
            what = "blocks" if expected.dtype.block > 1 else "elements"
            wrong.append(f"{name}: {different.differing:,} of {different.units:,} {what} differ")

    work = ((pair[0], functools.partial(compare, name, *pair)) for name, pair in pairs.items())
    workers.run(in_turn(work), prepare=prepare)
    return wrong
