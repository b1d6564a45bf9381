"""The harness that runs loaders beside `scan` sees what they do, and nothing in harmless files."""

import os
from random import Random

import pytest

from fuzz import loaders, wrapping
from fuzz.differential import made, smaller, warm_up, written
from fuzz.recorder import Events, Judge, is_arithmetic, is_data, is_known
from fuzz.sandbox import Child, Outcome
from fuzz.warming import harmless
from tests.helpers.hostile_pickles import DANGEROUS

COLOURS = b"ccolorsys\nrgb_to_hls\n(tR."  # harmless: a call that fails


@pytest.fixture(scope="module")
def child():
    """Loaders without a scanner: every file counts as passed by it."""
    warm_up()
    child = Child(trusting=True)
    yield child
    child.close()


@pytest.fixture(scope="module")
def scanning():
    warm_up()
    child = Child()
    yield child
    child.close()


def first(child, data, name="x"):
    outcome = child.run(data, name)
    return outcome.events[0] if outcome.events else ""


NOTHING = ("the result of a call", "a state of bytes")  # which cannot be called, or is not there


@pytest.mark.parametrize("name", [name for name in DANGEROUS if name not in NOTHING])
def test_an_unpickler_is_seen_to_do_what_the_pickle_says(child, name):
    data, _ = DANGEROUS[name]
    assert first(child, data)


WRAPPED = {
    "gzip": lambda: wrapping.gzipped(Random(1), COLOURS),
    "bz2": lambda: wrapping.bzipped(Random(1), COLOURS),
    "xz": lambda: wrapping.lzmaed(Random(4), COLOURS),
    "zlib": lambda: wrapping.zlibbed(Random(1), COLOURS),
    "ZF": lambda: wrapping.zfiled(Random(1), COLOURS),
    "npy": lambda: wrapping.npy(Random(9), COLOURS),
    "npz": lambda: wrapping.npz(Random(9), COLOURS),
    "zip": lambda: wrapping.torch_zip(Random(2), COLOURS),
    "legacy": lambda: wrapping.legacy(Random(3), COLOURS),
    "two pickles": lambda: b"\x80\2N." + COLOURS,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_loader_is_seen_to_open_a_container(child, name):
    assert "colorsys" in first(child, WRAPPED[name]())


def test_each_wrapper_can_be_seen_through(child):
    for wrap in dict.fromkeys(wrapping.WRAPPERS):
        if wrap in (wrapping.lz4ed, wrapping.beside_safetensors, wrapping.beside_gguf):
            continue  # joblib needs a package for the first; the others are not opened as pickles
        seen = [first(child, wrap(Random(seed), COLOURS)) for seed in range(12)]
        assert any("colorsys" in event for event in seen), wrap


@pytest.mark.parametrize("name", harmless())
def test_in_a_harmless_file_nothing_is_seen(child, name):
    assert child.run(harmless()[name], "x").events == []


MISUSED = {
    "a method that is replaced": b"ccollections\nOrderedDict\n)R}Vappend\nNsb.",
    "an append to a bytearray": b"\x80\4cbuiltins\nbytearray\n)RK\1a.",
    "a function with a state": b"ctorch.serialization\n_get_layout\n}Vcache\n}sb.",
    "a function as an argument": b"ctorch._tensor\n_rebuild_from_type_v2\n"
    b"(ccollections\nOrderedDict\n\x85tR.",
    "keyword arguments": b"\x80\4ctorch.storage\nUntypedStorage\n)}Vallocator\nK\1s\x92.",
    "a result that is called": b"\x80\4ctorch.serialization\n_get_layout\nVtorch.strided\n\x85R"
    b"0ccollections\nOrderedDict\n)R}Vappend\ncbuiltins\nset\nsbNa.",
    "items of an array": b"cnumpy._core.numeric\n_frombuffer\n"
    b"(C\1acnumpy\ndtype\n(Vu1\n\x89\x88tRK\1\x85VC\ntRK\0K\1s.",
}


@pytest.mark.parametrize("name", MISUSED)
def test_allowed_names_put_to_another_use_are_seen(child, name):
    assert first(child, MISUSED[name])


def test_items_set_in_a_list_are_data(child):
    assert not child.run(b"]K\0a(K\0K\1u.", "x").events
    assert not child.run(b"]K\0aK\0K\1s.", "x").events


def test_a_child_that_crashes_is_seen_and_replaced(child, monkeypatch):
    def crash(_path, _events):
        os.abort()

    child.close()  # the next one is forked with the loader that crashes
    monkeypatch.setitem(loaders.LOADERS, "C pickle", crash)
    assert child.run(b"N.", "x").events == ["C pickle: signal 6"]
    monkeypatch.undo()
    assert child.run(b"N.", "x").events == []


def test_names_and_values_are_told_apart():
    assert is_known("collections", "OrderedDict")
    assert not is_known("collections", "OrderedDict.fromkeys")
    assert not is_known("os", "system")
    assert is_data([1, {"a": (2.5, b"x")}])
    assert not is_data([print])
    assert not is_data({"a": int})
    assert is_arithmetic("Integer (2 )*Symbol ('s0' )")
    assert not is_arithmetic("Symbol ('s0' ).__class__")
    assert not is_arithmetic("print (1 )")
    events = Events()
    judge = Judge(events)
    judge.imported("builtins", "list", list)
    judge.called(list, ([],))
    assert events.seen == []


def test_files_are_the_same_for_a_seed():
    assert [made(3, n) for n in range(50)] == [made(3, n) for n in range(50)]
    assert made(3, 1) != made(4, 1)
    assert written(3, 1) == written(3, 1)


@pytest.mark.parametrize("number", range(40))
def test_files_as_programs_write_them_pass_and_make_no_loader_act(scanning, number):
    outcome = scanning.run(*written(0, number))
    assert (outcome.code, outcome.events) == (0, []), outcome.report


def test_a_find_is_made_smaller():
    data = bytes(200) + b"needle" + bytes(300)
    assert smaller(data, lambda less: b"needle" in less) == b"needle"


def test_the_scanner_is_asked_first(scanning):
    outcome = scanning.run(b"\x80\2cos\nsystem\n)R.", "x")
    assert outcome.code == 1
    assert not outcome.is_find
    outcome = scanning.run(b"\x80\2}.", "x")
    assert (outcome.code, outcome.events) == (0, [])


def test_a_file_that_passes_and_makes_a_loader_act_is_a_find():
    assert Outcome(0, ["C pickle: find_class 'os' 'system'"]).is_find
    assert not Outcome(1, []).is_find
    assert Outcome(-1, [], "signal 11 in scan").is_find
