"""`inspect`: everything about a file, as text for people and JSON for programs."""

import argparse
import io
import math
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.helpers import vendor
from tests.helpers.running import run, spawn


@pytest.fixture(scope="module")
def summary(model: Path) -> Any:
    return run("inspect", model, "--json").json


def damage(path: Path, record: str, at: int = 0) -> None:
    """Flip one bit of a record's data."""
    with zipfile.ZipFile(path) as archive:
        info = next(each for each in archive.infolist() if each.filename.endswith(record))
        start = info.header_offset
    with path.open("r+b") as file:
        file.seek(start + 26)
        lengths = file.read(4)
        start += 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        file.seek(start + at)
        byte = file.read(1)[0]
        file.seek(start + at)
        file.write(bytes([byte ^ 1]))


def test_the_table_says_of_each_tensor_what_torch_does(state: vendor.State, summary: Any) -> None:
    assert [row["name"] for row in summary["tensors"]] == list(state)
    for row in summary["tensors"]:
        value = state[row["name"]]
        assert row["dtype"] == str(value.dtype).removeprefix("torch.")
        assert row["shape"] == list(value.shape)
        assert row["strides"] == (None if value.is_contiguous() else list(value.stride()))
        assert row["nbytes"] == value.numel() * value.element_size()


def test_offsets_point_at_the_bytes_in_the_file(
    state: vendor.State, summary: Any, model: Path
) -> None:
    data = model.read_bytes()
    for row in summary["tensors"]:
        raw = torch.empty(0, dtype=torch.uint8).set_(state[row["name"]].untyped_storage())
        assert data[row["offset"] : row["offset"] + row["nbytes"]] == raw.numpy().tobytes()


def test_a_pickle_that_names_nothing_is_one(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    torch.save({"epoch": 3}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    for name, says in (
        ("epoch.pt", "no imports"),
        ("old.pt", "no imports"),
        ("w.safetensors", "none"),
    ):
        line = f"  pickle       {says}, so loading runs no code\n"
        assert line in run("inspect", tmp_path / name).out


def test_the_sums_count_tied_weights_once(state: vendor.State, summary: Any) -> None:
    unique = [value for name, value in state.items() if name != "lm_head.weight"]
    masks = (".attn.bias", ".masked_bias")
    learned = [value for name, value in state.items() if not name.endswith(masks)][:-1]
    assert summary["parameters"] == sum(value.numel() for value in learned)
    assert summary["elements"] == sum(value.numel() for value in unique)
    assert summary["nbytes"] == sum(value.numel() * value.element_size() for value in unique)
    assert summary["files"] == [{"name": "model.bin", "nbytes": summary["files"][0]["nbytes"]}]
    ties = {row["name"]: row["tied_to"] for row in summary["tensors"] if row["tied_to"]}
    assert ties == {"lm_head.weight": "transformer.wte.weight"}


def test_sorting_by_name_size_and_file(state: vendor.State, model: Path) -> None:
    def names(order: str) -> list[str]:
        rows = run("inspect", model, "--json", "--sort", order).json["tensors"]
        return [row["name"] for row in rows]

    assert names("file") == list(state)
    assert names("name") == sorted(state)
    sizes = [state[name].numel() * state[name].element_size() for name in names("size")]
    assert sizes == sorted(sizes, reverse=True)


def test_matching_shows_some_rows_and_still_sums_all(summary: Any, model: Path) -> None:
    words = ("--match", "*.ln_1.*", "--match", "lm_head.*")
    some = run("inspect", model, "--json", *words).json
    shown = [row["name"] for row in some["tensors"]]
    assert len(shown) == 5
    assert all(".ln_1." in name or name == "lm_head.weight" for name in shown)
    assert some["nbytes"] == summary["nbytes"]
    out = run("inspect", model, *words).out
    total = len(summary["tensors"])
    assert f" in {total} tensors (1 tied, counted once)\n" in out
    assert f"\n5 of {total} tensors shown\n" in out
    assert "shown" not in run("inspect", model).out


def test_matching_nothing_is_bad_usage_as_of_convert(model: Path, tmp_path: Path) -> None:
    result = run("inspect", model, "--match", "zzz")
    other = run("convert", model, "-o", tmp_path / "x.npz", "--match", "zzz")
    assert (result.code, result.out) == (2, "")
    assert result == other
    assert "the first names are transformer.wte.weight" in result.err


def test_the_tree_folds_layers_that_look_alike(model: Path) -> None:
    lines = run("inspect", model, "--tree").out.splitlines()
    assert any(line.split()[:3] == ["0", "to", "1"] for line in lines)
    assert lines[-1].split() == ["total", "157,442", "531", "kB", "100.0%", "█" * 10]
    assert sum("c_attn" in line for line in lines) == 1


def expected_histogram(value: torch.Tensor, finite: torch.Tensor) -> dict[str, Any]:
    """The histogram by NumPy, whose bins are of the first width in a row of powers that will do."""
    least, most = float(finite.min()), float(finite.max())
    whole = not value.is_floating_point()
    floor = max(math.ulp(max(abs(least), abs(most))), 0 if value.is_floating_point() else 1)
    width = 2.0**-1000
    while width < floor or math.floor(most / width) - math.floor(least / width) >= 12:
        width *= 2
    assert width >= 1 or not whole
    start = math.floor(least / width) * width
    edges = start + width * np.arange(math.floor(most / width) - math.floor(least / width) + 2)
    counts, _ = np.histogram(finite.numpy(), edges)
    return {"start": start, "width": width, "counts": counts.tolist()}


def expected_stats(value: torch.Tensor) -> dict[str, Any]:
    """The statistics by torch, in double precision."""
    finite = value.double()[torch.isfinite(value.double())]
    known = bool(finite.numel())
    return {
        "min": float(finite.min()) if known else None,
        "max": float(finite.max()) if known else None,
        "mean": float(finite.mean()) if known else None,
        "std": float(finite.std(correction=0)) if known else None,
        "histogram": expected_histogram(value, finite) if known else None,
        "zeros": int((value == 0).sum()),
        "nan": int(value.double().isnan().sum()),
        "inf": int(value.double().isinf().sum()),
    }


def stats_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    odd = torch.randn(1000, generator=generator)
    odd[::7] = float("nan")
    odd[::11] = float("inf")
    odd[::13] = float("-inf")
    odd[::5] = 0
    return {
        "far from zero": torch.randn(70_000, generator=generator, dtype=torch.float64) + 1e9,
        "odd": odd,
        "half": odd.half(),
        "bfloat16": odd.bfloat16(),
        "strided": torch.randn(300, 200, generator=generator).t()[::3],
        "int64": torch.randint(-(10**12), 10**12, (999,), generator=generator),
        "uint8": torch.randint(0, 255, (999,), generator=generator, dtype=torch.uint8),
        "bool": torch.rand(999, generator=generator) > 0.3,
        "scalar": torch.tensor(-10000.0),
        "empty": torch.empty(0, 3),
        "only nan": torch.full((3,), float("nan")),
        "negative zero": torch.tensor([-0.0, 0.0, 1.0]),
        "constant": torch.full((3,), 0.3),
        "growing": torch.arange(1_000_000, dtype=torch.float64).sub(999).pow(3),
        "tiny": torch.tensor([1e-310, 7e-310], dtype=torch.float64),
        "wide": torch.tensor([-1e150, 1e150], dtype=torch.float64),
    }


def test_statistics_are_torchs(tmp_path: Path) -> None:
    state = stats_state()
    path = vendor.save(state, tmp_path / "model.pt")
    rows = run("inspect", path, "--stats", "--json").json["tensors"]
    assert len(rows) == len(state)
    for row in rows:
        expected = expected_stats(state[row["name"]])
        assert row["stats"].keys() == expected.keys()
        assert row["stats"].pop("histogram") == expected.pop("histogram"), row["name"]
        for key, value in expected.items():
            near = value if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)
            assert row["stats"][key] == near, (row["name"], key)


def test_statistics_without_an_answer_are_null(tmp_path: Path) -> None:
    state = {
        "huge": torch.tensor([1e308, 1e308, -1e308], dtype=torch.float64),
        "complex": torch.tensor([1 + 1j, 0, complex("nan")]),
    }
    result = run("inspect", vendor.save(state, tmp_path / "m.pt"), "--stats", "--json")
    huge, imaginary = (row["stats"] for row in result.json["tensors"])
    assert result.err == ""
    assert (huge["min"], huge["max"], huge["std"]) == (-1e308, 1e308, None)
    assert imaginary == {
        **dict.fromkeys(("min", "max", "mean", "std", "histogram")),
        "zeros": 1,
        "nan": 1,
        "inf": 0,
    }


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers; the values of two are not all finite."""
    generator = torch.Generator().manual_seed(2)
    state = {"wte": torch.zeros(4, 4)}
    for layer in range(8):
        state[f"h.{layer}.w"] = torch.randn(20, 30, generator=generator) + layer
        state[f"h.{layer}.b"] = torch.ones(30, dtype=torch.float16)
    state["h.3.w"][1, 2] = float("nan")
    state["h.6.b"][:4] = float("inf")
    return vendor.save(state, tmp_path_factory.mktemp("damaged") / "m.pt")


def test_tensors_that_are_not_finite_are_counted_and_can_come_first(damaged: Path) -> None:
    lines = run("inspect", damaged, "--stats", "--sort", "nan").out.splitlines()
    assert lines[-1] == "2 of 17 tensors contain NaN or Inf: h.6.b, h.3.w"
    header = next(number for number, line in enumerate(lines) if line.startswith("name "))
    assert [line.split()[0] for line in lines[header + 1 : header + 4]] == ["h.6.b", "h.3.w", "wte"]
    assert lines[header].split()[-2:] == ["nan", "inf"]
    assert lines[header + 1].split()[-1] == "4"
    some = run("inspect", damaged, "--stats", "--match", "h.3.*").out
    assert some.endswith("\n1 of 2 tensors contains NaN or Inf: h.3.w\n")
    none = run("inspect", damaged, "--stats", "--match", "h.1.*").out
    assert none.endswith("\nno NaN or Inf in 2 tensors\n")
    assert "nan" not in none.split("\n\n")[1]


def test_sorting_by_nan_needs_the_statistics(damaged: Path) -> None:
    result = run("inspect", damaged, "--sort", "nan")
    assert (result.code, result.out) == (2, "")
    assert "add --stats" in result.err


def test_a_tree_with_statistics_folds_finite_layers_only(damaged: Path) -> None:
    rows = run("inspect", damaged, "--stats", "--json").json["tensors"]
    stats = {row["name"]: row["stats"] for row in rows}
    lines = run("inspect", damaged, "--stats", "--tree").out.splitlines()
    labels = [line.split("  ")[1] for line in lines if re.match(r"  \d", line)]
    assert labels == ["0 to 2 (each)", "3", "4 to 5 (each)", "6", "7"]
    shown = lines[lines.index(next(line for line in lines if "0 to 2" in line)) + 1].split()
    assert shown[0] == "w"
    values = torch.load(damaged)
    every = torch.cat([values[f"h.{layer}.w"] for layer in range(3)]).double()
    least, most, mean, std = (float(text) for text in shown[-4:])
    assert least == pytest.approx(min(stats[f"h.{layer}.w"]["min"] for layer in range(3)), rel=1e-3)
    assert most == pytest.approx(float(every.max()), rel=1e-3)
    assert mean == pytest.approx(float(every.mean()), rel=1e-3)
    assert std == pytest.approx(float(every.std(correction=0)), rel=1e-3)
    assert lines[-3].split()[:1] == ["total"]
    assert lines[-3].split()[-2:] == ["1", "4"]


def test_statistics_of_a_module_leave_masks_out(tmp_path: Path) -> None:
    state = {"a.w": torch.tensor([-0.5, 0.25]), "a.mask": torch.tensor([[1, 511]])}
    lines = run("inspect", vendor.save(state, tmp_path / "m.pt"), "--tree", "--stats").out
    ends = {line.split()[0]: line.split()[-4:-2] for line in lines.splitlines() if "B  █" in line}
    assert ends == {name: ["-0.5", "0.25"] for name in ("a", "w", "total")} | {"mask": ["1", "511"]}


def test_large_numbers_have_an_exponent_only_where_it_is_shorter(tmp_path: Path) -> None:
    state = {"a": torch.tensor([9999.75, 12345678.0]), "b": torch.tensor([-60000.0, 0.125])}
    lines = run("inspect", vendor.save(state, tmp_path / "m.pt"), "--stats").out.splitlines()
    shown = {line.split()[0]: line.split()[-4:-2] for line in lines[-4:-2]}
    assert shown["a"] == ["10,000", "1.235e+07"]
    assert shown["b"] == ["-60,000", "0.125"]


def test_shares_and_bars_are_of_the_whole(tmp_path: Path) -> None:
    state = {"a": torch.ones(600), "b": torch.ones(250), "c": torch.ones(150), "d": torch.ones(0)}
    lines = run("inspect", vendor.save(state, tmp_path / "m.pt"), "--tree").out.splitlines()
    assert [line.split()[6:] for line in lines[-5:-1]] == [
        ["60.0%", "██████"],
        ["25.0%", "██▌"],
        ["15.0%", "█▌"],
        [],
    ]


def test_a_check_of_a_whole_file_succeeds(model: Path) -> None:
    result = run("inspect", model, "--check")
    assert result.code == 0
    assert "all 32 match" in result.out


def test_a_check_names_all_damaged_tensors(
    state: vendor.State, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.bin"
    path.write_bytes(model.read_bytes())
    damage(path, "/data/0", 1000)
    damage(path, "/data/5")
    result = run("inspect", path, "--check", "--json")
    assert result.code == 1
    assert result.json["check"] == {
        "ok": False,
        "storages": 32,
        "recorded": 32,
        "damaged": ["0", "5"],
        "tensors": ["transformer.wte.weight", list(state)[5], "lm_head.weight"],
    }
    text = run("inspect", path, "--check")
    assert text.code == 1
    assert "lm_head.weight" in text.out
    assert run("inspect", path).code == 0


def test_a_check_where_nothing_is_recorded_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.ones(3)}, path)
    result = run("inspect", path, "--check")
    assert result.code == 0
    assert "none recorded in the file" in result.out


def test_damaged_deflated_data_fails_the_check_too(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "deflated.bin"
    with zipfile.ZipFile(model) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for info in source.infolist():
            out.writestr(info.filename, source.read(info))
    assert run("inspect", path, "--check").code == 0
    damage(path, "/data/4", 20)
    result = run("inspect", path, "--check", "--json")
    assert result.code == 1
    assert result.json["check"]["damaged"] == ["4"]


def test_other_values_and_foreign_classes_are_shown_not_run(tmp_path: Path) -> None:
    class Hyper:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch ran",)

    path = tmp_path / "lightning.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 7, "hyper": Hyper()}, path)
    result = spawn("inspect", path, "--json")
    assert {"path": "epoch", "text": "7"} in result.json["others"]
    assert any(name.endswith("system") for name in result.json["foreign"])
    assert not Path("ran").exists()
    assert "refers to foreign code" in spawn("inspect", path).out


def saved_with(folder: Path, function: Any, *, new: bool = True) -> Path:
    class Calling:
        def __reduce__(self) -> tuple[Any, ...]:
            return function, ()

    path = folder / "model.pt"
    state = {"w": torch.ones(2), "x": Calling()}
    torch.save(state, path, _use_new_zipfile_serialization=new)
    return path


@pytest.mark.parametrize("new", [False, True])
def test_what_scan_calls_dangerous_is_a_warning(new: bool, tmp_path: Path) -> None:
    path = saved_with(tmp_path, os.system, new=new)
    scan = run("scan", path)
    assert (scan.code, "dangerous" in scan.out, "CGPT015" in scan.out) == (1, True, True)
    result = run("inspect", path)
    assert result.code == 0
    assert (
        f"  warning      dangerous: names {os.system.__module__}.system [CGPT015]; "
        "`cgpt-convert scan` shows what it would do\n"
    ) in result.out
    (found,) = run("inspect", path, "--json").json["findings"]
    assert (found["id"], found["level"]) == ("CGPT015", "error")
    assert "CGPT015" in run("convert", path, "-o", tmp_path / "out.npz").err


def test_what_scan_calls_foreign_leads_to_scan(tmp_path: Path) -> None:
    path = saved_with(tmp_path, argparse.Namespace)
    assert "foreign" in run("scan", path).out
    result = run("inspect", path)
    assert "`cgpt-convert scan` shows what it would do" in result.out
    assert "warning" not in result.out
    (found,) = run("inspect", path, "--json").json["findings"]
    assert (found["id"], found["level"]) == ("CGPT008", "note")


def test_names_of_dangerous_code_are_judged_without_importing_the_scanner(model: Path) -> None:
    program = (
        "import sys; from cgpt_convert.inspection import summarise; "
        "from cgpt_convert import open_checkpoint; "
        "summarise(open_checkpoint(sys.argv[1])); "
        "print([n for n in sys.modules if 'dangerous' in n or 'scanning' in n or n == 'numpy'])"
    )
    done = subprocess.run([sys.executable, "-c", program, model], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "text", "empty"])
def test_what_is_no_weight_file_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind != "missing":
        path.write_text("hello\n" if kind == "text" else "")
    for command in (
        ("inspect", path),
        ("inspect", path, "--json"),
        ("convert", path, "-o", tmp_path / "out.npz"),
        ("extract", path, "-o", tmp_path / "out"),
    ):
        result = run(*command)
        assert result.code == (2 if kind in ("missing", "fifo") else 3)
        assert (list(result.json) == ["error"]) if "--json" in command else not result.out
        assert result.err.startswith(f"error: {path}: ")
        assert len(result.err.splitlines()) <= 2


@pytest.mark.parametrize(
    "words",
    [("inspect",), ("inspect", "a", "b"), ("inspect", "a", "--sort", "hue")],
)
def test_bad_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")


def test_help_and_version_are_results() -> None:
    for words in (("--help",), ("inspect", "-h"), ("convert", "--help"), ("--version",)):
        result = run(*words)
        assert (result.code, result.err) == (0, "")
        assert result.out


def test_names_that_scan_accepts_are_not_foreign(tmp_path: Path) -> None:
    """One list for both commands: NumPy's generators and the names of distributed tensors."""
    state = {"weight": torch.ones(2), "rng": np.random.default_rng(0), "file": io.BytesIO(b"1")}
    torch.save(state, tmp_path / "model.pt")
    assert run("scan", tmp_path / "model.pt").code == 0
    shown = run("inspect", tmp_path / "model.pt", "--json").json
    assert not shown["foreign"]
    assert all(found["id"] != "CGPT008" for found in shown["findings"])


@pytest.mark.parametrize("url", ["hf://", "s3://", "https://", "https:///"])
def test_a_url_without_a_path_is_rejected(url: str) -> None:
    result = run("inspect", url)
    assert (result.code, "the URL is not complete" in result.err) == (2, True)
