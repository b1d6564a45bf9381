"""What a pickle would run, whatever its opcodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgpt_convert.pickles.torch_calls.dangerous import is_dangerous
from cgpt_convert.pickles.torch_calls.rebuild import KNOWN
from cgpt_convert.scanning.allowlist import ALLOWED
from cgpt_convert.scanning.result import Verdict
from tests.helpers import zips
from tests.helpers.hostile_pickles import DANGEROUS, FOREIGN, HARMLESS
from tests.helpers.scan_files import WEIGHTS, said, scanned
from tests.helpers.torch_save import saved


@pytest.mark.parametrize("name", DANGEROUS)
def test_what_would_run_is_dangerous_and_shown_with_its_arguments(
    name: str, tmp_path: Path
) -> None:
    data, shown = DANGEROUS[name]
    found = scanned(data, tmp_path)
    assert (found.verdict, shown in said(found)) == (Verdict.DANGEROUS, True), said(found)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_on_the_list_is_foreign_and_named(name: str, tmp_path: Path) -> None:
    data, shown = FOREIGN[name]
    found = scanned(data, tmp_path)
    assert (found.verdict, shown in said(found)) == (Verdict.FOREIGN, True), said(found)


@pytest.mark.parametrize("name", HARMLESS)
def test_pickles_without_names_are_weights_only(name: str, tmp_path: Path) -> None:
    assert scanned(HARMLESS[name], tmp_path).verdict is Verdict.CLEAN


@pytest.mark.parametrize("name", DANGEROUS)
def test_each_is_found_as_an_object_in_a_torch_file(name: str, tmp_path: Path) -> None:
    entries = zips.entries_of(saved(WEIGHTS))
    entries["archive/data.pkl"] = zips.Entry("archive/data.pkl", DANGEROUS[name][0])
    assert scanned(zips.build(entries.values()), tmp_path).verdict is Verdict.DANGEROUS


@pytest.mark.slow  # torch
def test_names_that_torch_allows_are_allowed() -> None:
    from torch._weights_only_unpickler import _get_allowed_globals

    assert _get_allowed_globals().keys() <= ALLOWED


def test_what_python_can_run_is_dangerous_by_name() -> None:
    for name in ("os.system", "posix.system", "nt.system", "subprocess.run", "builtins.exec"):
        assert is_dangerous(*name.rsplit(".", 1)), name
    for name in ("__builtin__.apply", "commands.getoutput", "runpy.run_path", "pickle.loads"):
        assert is_dangerous(*name.rsplit(".", 1)), name
    for name in ("argparse.Namespace", "pathlib.PosixPath", "datetime.datetime", "team.Config"):
        assert not is_dangerous(*name.rsplit(".", 1)), name


def test_every_name_that_the_reader_knows_is_allowed():
    assert KNOWN <= ALLOWED  # the notes of convert and others rely on it
