"""Files of every kind to scan, and what is found in them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from cgpt_convert.scanning.allowlist import Allowlist
from cgpt_convert.scanning.result import FileScan
from cgpt_convert.scanning.scan_files import scan_file
from tests.helpers import zips
from tests.helpers.hostile_pickles import payload

BAD = payload(4)


WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.int64)}


def scanned(data: bytes, folder: Path, *allow: str, name: str = "file") -> FileScan:
    path = folder / name
    path.write_bytes(data)
    return scan_file(str(path), Allowlist(allow))


def said(found: FileScan) -> str:
    return "\n".join(map(str, found.sightings))


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def member(name: str = "archive/data.pkl", data: bytes = b"\x80\2N.") -> zips.Entry:
    return zips.Entry(name, data)
