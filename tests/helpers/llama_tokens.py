"""python -m tests.helpers.llama_tokens MODEL.gguf TEXTS.json OUT.json: ids that llama.cpp gives.

As transformers' tokenizers do unless told otherwise, with the tokens that are put around a text,
and with what stands for a special token taken for it.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

from tests.helpers.llama_logits import INT, POINTER, log, typed


def tokens(path: str, texts: list[str]) -> list[list[int]]:
    """The ids of each text."""
    lib = typed()
    lib.llama_log_set(ctypes.cast(log, POINTER), None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    vocabulary = lib.llama_model_get_vocab(model)
    tokenize = lib.llama_tokenize
    tokenize.restype = INT
    tokenize.argtypes = [POINTER, ctypes.c_char_p, INT, ctypes.POINTER(INT), INT]
    tokenize.argtypes += [ctypes.c_bool, ctypes.c_bool]
    found = []
    for text in texts:
        data = text.encode()
        most = 2 * len(data) + 16
        ids = (INT * most)()
        count = tokenize(vocabulary, data, len(data), ids, most, True, True)
        if count < 0:
            sys.exit(f"llama.cpp does not tokenize {text!r}")
        found.append(list(ids[:count]))
    return found


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text())
    Path(sys.argv[3]).write_text(json.dumps(tokens(sys.argv[1], given)))
    sys.stdout.flush()
    os._exit(0)  # its destructors may crash
