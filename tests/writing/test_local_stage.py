"""Temporaries: where they lie, who may remove them, and when they get the output's name."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from cgpt_convert.core.errors import CannotWrite
from cgpt_convert.writing import local_stage, output_checks, temp_files
from tests.helpers.running import contents, partials


def stage_file(stage: local_stage.LocalStage, name: str, data: bytes) -> str:
    """Write a whole file into the stage; its temporary path."""
    path, descriptor = stage.create(name)
    os.write(descriptor, data)
    os.close(descriptor)
    return path


def leftover(folder: Path, name: str) -> Path:
    """What a killed process left behind: nobody holds its lock."""
    path = folder / name
    path.write_bytes(b"half")
    return path


def sidecar(folder: Path, *files: str, name: str = "mapping.json") -> None:
    rows = {str(index): {"file": file} for index, file in enumerate(files[:1])}
    copies = [{"file": file} for file in files[1:]]
    (folder / name).write_text(json.dumps({"tensors": rows, "copies": copies}))


def test_a_file_appears_under_its_name_only_when_published(tmp_path: Path) -> None:
    with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=False) as stage:
        stage_file(stage, "out", b"new")
        assert not (tmp_path / "out").exists()
        assert stage.publish() == [str(tmp_path / "out")]
    assert contents(tmp_path) == {"out": b"new"}


def test_what_is_not_published_is_removed(tmp_path: Path) -> None:
    with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=False) as stage:
        stage_file(stage, "out", b"new")
    assert contents(tmp_path) == {}


def test_an_existing_file_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(CannotWrite, match="already exists") as caught:
        local_stage.LocalFilesStage(str(tmp_path), ["new", "out"], overwrite=False)
    assert "--overwrite" in caught.value.hint
    assert contents(tmp_path) == {"out": b"old"}


def test_a_dangling_link_exists_too(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(CannotWrite, match="already exists"):
        local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=False)


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=False) as stage:
        stage_file(stage, "out", b"ours")
        (tmp_path / "out").write_bytes(b"theirs")
        with pytest.raises(CannotWrite, match="already exists"):
            stage.publish()
    assert contents(tmp_path) == {"out": b"theirs"}


def test_it_is_kept_on_file_systems_without_hard_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=False) as stage:
        stage_file(stage, "out", b"ours")
        (tmp_path / "out").write_bytes(b"theirs")
        with pytest.raises(CannotWrite, match="already exists"):
            stage.publish()
    (tmp_path / "out").unlink()
    with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=False) as stage:
        stage_file(stage, "out", b"ours")
        stage.publish()
    assert contents(tmp_path) == {"out": b"ours"}


def test_of_several_files_none_appears_if_one_cannot(tmp_path: Path) -> None:
    with local_stage.LocalFilesStage(str(tmp_path), ["a", "b", "c"], overwrite=False) as stage:
        for name in "abc":
            stage_file(stage, name, b"ours")
        (tmp_path / "b").write_bytes(b"theirs")
        with pytest.raises(CannotWrite, match="b: already exists"):
            stage.publish()
    assert contents(tmp_path) == {"b": b"theirs"}


def test_of_several_files_all_old_ones_return_if_one_cannot_be_replaced(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"old")
    with local_stage.LocalFilesStage(str(tmp_path), ["a", "b", "c"], overwrite=True) as stage:
        for name in "abc":
            temporary = stage_file(stage, name, b"new")
        os.unlink(temporary)  # the last can no longer come
        with pytest.raises(CannotWrite):
            stage.publish()
    assert contents(tmp_path) == dict.fromkeys("abc", b"old")


@pytest.mark.parametrize("moment", range(8))
def test_an_interruption_while_publishing_leaves_all_old_or_all_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    names = ["a", "b", "index"]
    for name in names:
        (tmp_path / name).write_bytes(b"old")
    calls = 0

    def counted(real: object) -> object:
        def call(*words: str) -> None:
            nonlocal calls
            real(*words)  # type: ignore[operator]
            calls += 1
            if calls == moment:
                raise KeyboardInterrupt

        return call

    with local_stage.LocalFilesStage(str(tmp_path), names, overwrite=True) as stage:
        for name in names:
            stage_file(stage, name, b"new")
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", counted(os.rename))
            patched.setattr(os, "replace", counted(os.replace))
            if 0 < moment <= 6:
                with pytest.raises(KeyboardInterrupt):
                    stage.publish()
            else:
                stage.publish()
    expected = b"old" if 0 < moment < 6 else b"new"  # at the sixth, the last has its name already
    assert contents(tmp_path) == dict.fromkeys(names, expected)


def test_overwriting_one_file_never_leaves_none(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=True) as stage:
        stage_file(stage, "out", b"new")
        assert (tmp_path / "out").read_bytes() == b"old"
        stage.publish()
    assert contents(tmp_path) == {"out": b"new"}


def test_overwriting_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "out").symlink_to("target")
    with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=True) as stage:
        stage_file(stage, "out", b"new")
        stage.publish()
    assert not (tmp_path / "out").is_symlink()
    assert contents(tmp_path) == {"out": b"new", "target": b"precious"}


@pytest.mark.parametrize("path", ["../out", "/out", "a/b", "..", ".", "", "a/../../b", "a\0b"])
def test_no_name_leads_out_of_the_output(tmp_path: Path, path: str) -> None:
    with pytest.raises(CannotWrite, match="not inside the output folder"):
        local_stage.LocalFilesStage(str(tmp_path), [path], overwrite=True)
    if path == "a/b":
        return  # a folder of an output folder
    with (
        local_stage.LocalFolderStage(str(tmp_path / "out"), overwrite=False) as stage,
        pytest.raises(CannotWrite, match="not inside the output folder"),
    ):
        stage.create(path)
    assert contents(tmp_path) == {}


def test_names_as_long_as_file_systems_take_are_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127 + "n", "🦊" * 63 + "abc"):
        assert len(os.fsencode(name)) == 255
        with local_stage.LocalFilesStage(str(tmp_path), [name], overwrite=False) as stage:
            stage_file(stage, name, b"new")
            stage.publish()
        with local_stage.LocalFolderStage(str(tmp_path / f"d{name[1:]}"), overwrite=False) as stage:
            stage_file(stage, "inside", b"new")
            stage.publish()
    assert len(contents(tmp_path)) == 6
    assert not partials(tmp_path)


def test_longer_names_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="too long"):
        local_stage.LocalFilesStage(str(tmp_path), ["n" * 256], overwrite=False)
    with pytest.raises(CannotWrite, match="too long"):
        local_stage.LocalFolderStage(str(tmp_path / ("n" * 256)), overwrite=False)


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    leftover(tmp_path, ".out.0123abcd.partial")
    tree = tmp_path / ".out.deadbeef.partial"
    (tree / "deep").mkdir(parents=True)
    leftover(tree / "deep", "file")
    with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=False):
        assert contents(tmp_path) == {}


def test_what_belongs_to_others_is_kept(tmp_path: Path) -> None:
    strangers = [
        ".out.partial",
        ".out.backup.partial",
        ".out.0123ABCD.partial",
        ".out.0123abcd.partial.txt",
        ".out.bin.0123abcd.partial",
        "out.0123abcd.partial",
        ".other.0123abcd.partial",
        ".out.0123abcd",
    ]
    for name in strangers:
        leftover(tmp_path, name)
    (tmp_path / ".out.00000000.partial").symlink_to(".out.partial")
    os.mkfifo(tmp_path / ".out.11111111.partial")
    with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=False):
        pass
    assert set(strangers) <= set(os.listdir(tmp_path))
    assert (tmp_path / ".out.00000000.partial").is_symlink()


def test_the_temporary_of_a_living_run_is_kept(tmp_path: Path) -> None:
    with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=False) as stage:
        temporary = stage_file(stage, "out", b"first")
        assert temp_files.reclaim(str(tmp_path), "out") == []
        with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=False) as other:
            stage_file(other, "out", b"second")
            other.publish()
        assert os.path.exists(temporary)
        with pytest.raises(CannotWrite, match="already exists"):
            stage.publish()
    assert contents(tmp_path) == {"out": b"second"}


def test_a_temporary_taken_for_a_leftover_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    stolen: list[int] = []

    def flock(descriptor: int, how: int) -> None:
        if not stolen and how == fcntl.LOCK_EX:
            stolen.append(how)
            for entry in os.scandir(tmp_path):
                os.rmdir(entry.path) if entry.is_dir() else os.unlink(entry.path)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=False) as stage:
        stage_file(stage, "out", b"new")
        stage.publish()
    assert stolen
    stolen.clear()
    (tmp_path / "out").unlink()
    with local_stage.LocalFolderStage(str(tmp_path / "folder"), overwrite=False) as made:
        stage_file(made, "inside", b"new")
        made.publish()
    assert contents(tmp_path) == {"folder/inside": b"new"}


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with local_stage.LocalFolderStage(f"{final}/", overwrite=False) as stage:
        stage_file(stage, "0", b"zero")
        stage_file(stage, "1/0", b"one")
        assert not final.exists()
        assert stage.publish() == [f"{final}/0", f"{final}/1/0"]
    assert contents(tmp_path) == {"out/0": b"zero", "out/1/0": b"one"}


def test_a_folder_that_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    with local_stage.LocalFolderStage(str(tmp_path / "out"), overwrite=False) as stage:
        stage_file(stage, "deep/er/0", b"zero")
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with local_stage.LocalFolderStage(str(tmp_path / "out"), overwrite=False) as stage:
        stage_file(stage, "0", b"new")
        stage.publish()
    assert contents(tmp_path) == {"out/0": b"new"}


@pytest.mark.parametrize("name", ["mapping.json", "tensors.json"])
def test_a_folder_of_ours_is_replaced_whole(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / "1").mkdir(parents=True)
    for file in ("0", "1/0"):
        (out / file).write_bytes(b"old")
    sidecar(out, "0", "1/0", name=name)
    with pytest.raises(CannotWrite, match="already exists"):
        local_stage.LocalFolderStage(str(out), overwrite=False)
    with local_stage.LocalFolderStage(str(out), overwrite=True) as stage:
        stage_file(stage, "2", b"new")
        assert (out / "0").read_bytes() == b"old"
        stage.publish()
    assert contents(tmp_path) == {"out/2": b"new"}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "sidecar_text", [None, "", "[" * 100_000, '{"tensors": {"w": {"file": "0"}}}', '{"file": 5}']
)
def test_a_folder_with_a_file_of_others_is_never_replaced(
    tmp_path: Path, sidecar_text: str | None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    if sidecar_text is not None:
        (out / "mapping.json").write_text(sidecar_text)
    before = contents(out)
    with pytest.raises(CannotWrite, match=r"thesis\.tex', which cgpt-convert did not write"):
        local_stage.LocalFolderStage(str(out), overwrite=True)
    assert contents(out) == before


def test_a_folder_that_fills_up_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for overwrite in (False, True):
        with local_stage.LocalFolderStage(str(out), overwrite=overwrite) as stage:
            stage_file(stage, "0", b"new")
            out.mkdir(exist_ok=True)
            (out / "theirs").write_bytes(b"theirs")
            with pytest.raises(CannotWrite):
                stage.publish()
        assert contents(tmp_path) == {"out/theirs": b"theirs"}
        (out / "theirs").unlink()


@pytest.mark.parametrize("moment", [1, 2])
def test_an_interruption_while_a_folder_is_replaced_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    sidecar(out)
    old = contents(tmp_path)
    real, calls = os.rename, []

    def rename(*words: str) -> None:
        real(*words)
        calls.append(words)
        if len(calls) == moment:
            raise KeyboardInterrupt

    with local_stage.LocalFolderStage(str(out), overwrite=True) as stage:
        stage_file(stage, "0", b"new")
        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            stage.publish()
    assert contents(tmp_path) == (old if moment == 1 else {"out/0": b"new"})


def test_a_second_interruption_does_not_stop_the_cleaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.unlink, []

    def unlink(path: str) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(path)

    stage = local_stage.LocalFilesStage(str(tmp_path), ["a", "b"], overwrite=False)
    stage_file(stage, "a", b"new")
    stage_file(stage, "b", b"new")
    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        stage.__exit__(None, None, None)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_what_is_no_folder_is_not_replaced_by_one(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        out.write_bytes(b"old")
    else:
        out.symlink_to("elsewhere" if kind == "link" else "nowhere")
    with pytest.raises(CannotWrite, match="not a folder"):
        local_stage.LocalFolderStage(str(out), overwrite=True)


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CannotWrite, match="is a folder"):
        local_stage.LocalFilesStage(str(tmp_path), ["out"], overwrite=True)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/.", "a/.."])
def test_a_folder_needs_a_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotWrite, match="has no name"):
        local_stage.LocalFolderStage(name, overwrite=True)


def test_the_folder_around_the_output_must_exist(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="no such folder"):
        local_stage.LocalFilesStage(str(tmp_path / "missing"), ["out"], overwrite=False)
    with pytest.raises(CannotWrite, match="no such folder"):
        local_stage.LocalFolderStage(str(tmp_path / "missing" / "out"), overwrite=False)


def test_the_place_of_the_output_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match=r"file: not a folder"):
        local_stage.LocalFilesStage(str(tmp_path / "file"), ["out"], overwrite=False)


def test_an_output_in_the_working_folder_is_named_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").touch()
    with pytest.raises(CannotWrite, match=r"^out: already exists"):
        local_stage.LocalFilesStage("", ["out"], overwrite=False)


def test_space_is_checked_against_what_is_free(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    output_checks.check_space(str(tmp_path), 0)
    with pytest.raises(CannotWrite, match="bytes are needed,"):
        output_checks.check_space(str(tmp_path), 2 * free + 1)
