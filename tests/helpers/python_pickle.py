"""Python's pickler and unpickler in Python, which can be changed where those in C cannot."""

import pickle
from typing import Any

PythonPickler: Any = pickle._Pickler  # noqa: SLF001  has no other name
PythonUnpickler: Any = pickle._Unpickler  # noqa: SLF001  has no other name
