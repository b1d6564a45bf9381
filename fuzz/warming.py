"""Load harmless files with every loader once: what they import late is there before the fork."""

from __future__ import annotations

import io
import os
import tempfile
import warnings
from random import Random

import joblib
import numpy as np
import torch

from fuzz import wrapping
from fuzz.loaders import load_all
from fuzz.recorder import Events
from tests.helpers.scan_files import tarred, zipped

HARMLESS = b"\x80\4}\x94."


def harmless() -> dict[str, bytes]:
    """Return a file of each kind that loaders open, with nothing in it but values."""
    dice = Random(0)
    arrays = io.BytesIO()
    np.savez(arrays, a=np.ones(2), o=np.array([None, {}], dtype=object))
    dumped = io.BytesIO()
    joblib.dump({"a": [1, 2.5]}, dumped, compress=("zlib", 3))
    scripted = wrapping.script_records()
    return {
        "pickle": HARMLESS,
        "gzip": wrapping.gzipped(Random(1), HARMLESS),
        "bz2": wrapping.bzipped(Random(1), HARMLESS),
        "xz": wrapping.lzmaed(Random(5), HARMLESS),
        "zlib": wrapping.zlibbed(dice, HARMLESS),
        "zip": zipped({"x.pkl": HARMLESS}),
        "tar": tarred({"x.pkl": HARMLESS}),
        "torch": _saved({"w": torch.ones(2)}),
        "legacy": _saved({"w": torch.ones(2)}, _use_new_zipfile_serialization=False),
        "npz": arrays.getvalue(),
        "joblib": dumped.getvalue(),
        "script": zipped(scripted),
        "package": zipped(wrapping.package_records()),
        "exported": zipped(wrapping.exported_records()),
    }


def _saved(value: object, **how: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def warm() -> None:
    """Load them all."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in harmless().items():
            path = os.path.join(folder, name)
            with open(path, "wb") as file:
                file.write(data)
            load_all(path, Events(), lambda _loader: None)
