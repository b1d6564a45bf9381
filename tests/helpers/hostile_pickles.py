"""Pickles that would run something, written by Python's own pickler or opcode by opcode.

What they would run is harmless, and in no test is it run.
"""

from __future__ import annotations

import os
import pickle
import struct
from typing import Any

MARKER = "echo hostile"


class Payload:
    """Unpickling it would run a shell command."""

    def __reduce__(self) -> Any:
        return os.system, (MARKER,)


def payload(protocol: int = 4) -> bytes:
    return pickle.dumps(Payload(), protocol)


def short(text: str) -> bytes:
    """The opcode for a short text."""
    return b"\x8c" + bytes((len(text),)) + text.encode()


def long(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


_NESTED = payload(2).decode("latin-1")

# name -> (pickle, what a scan has to say that it would call or name)
DANGEROUS: dict[str, tuple[bytes, str]] = {
    **{f"protocol {p}": (payload(p), "system('echo hostile')") for p in range(6)},
    "INST": (b"(S'echo hostile'\nios\nsystem\n.", "os.system('echo hostile')"),
    "OBJ": (b"(cos\nsystem\nS'echo hostile'\no.", "os.system('echo hostile')"),
    "STACK_GLOBAL": (b"\x80\x04" + short("os") + short("system") + b"\x93)R.", "os.system()"),
    "NEWOBJ": (b"\x80\x02csubprocess\nPopen\nX\x02\0\0\0id\x85\x81.", "subprocess.Popen('id')"),
    "NEWOBJ_EX": (
        b"\x80\x04csubprocess\nPopen\n)}" + short("args") + short("id") + b"s\x92.",
        "subprocess.Popen(){'args': 'id'}",
    ),
    "memo": (
        b"\x80\x04" + short("system") + b"\x94" + short("os") + b"\x94\x30\x30h\1h\0\x93)R.",
        "os.system()",
    ),
    "memo of protocol 0": (b"Vsystem\np7\n0cos\nsystem\n(g7\ntR.", "os.system('system')"),
    "text PERSID first": (b"Phello\n0cos\nsystem\n)R.", "os.system()"),
    "popped before the end": (b"\x80\x02cos\nsystem\n)R0N.", "os.system()"),
    "no STOP": (payload(4)[:-1], "system('echo hostile')"),
    "damage behind it": (payload(2)[:-1] + b"\xff\xff", "system('echo hostile')"),
    "damage in protocol 0": (payload(0)[:-1] + b"\xff", "system('echo hostile')"),
    "getattr": (
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'id'\ntR.",
        "__builtin__.getattr(__builtin__.__import__('os'), 'system')",
    ),
    "eval": (b"\x80\x02cbuiltins\neval\nX\x03\0\0\x001+1\x85R.", "builtins.eval('1+1')"),
    "an attribute of an attribute": (
        b"\x80\x04" + short("torch") + short("nn.__builtins__.get") + b"\x93)R.",
        "torch.nn.__builtins__.get()",
    ),
    "a torch submodule": (
        b"\x80\x02ctorch._dynamo.guards\nGuardBuilder.get\n)R.",
        "torch._dynamo.guards.GuardBuilder.get()",
    ),
    "called through an allowed class": (
        b"\x80\x02ccollections\ndefaultdict\ncbuiltins\nexec\n\x85R.",
        "builtins.exec",
    ),
    "set on a class": (
        b"\x80\x02ctorch\nTensor\n}X\x0c\0\0\0__setstate__K\1sb.",
        "would set attributes of torch.Tensor",
    ),
    "the result of a call": (
        b"\x80\x02ctorch\ndevice\nX\x03\0\0\0cpu\x85R)R.",
        "would call ...()",
    ),
    "behind a pickle": (pickle.dumps({"a": 1}) + payload(), "system('echo hostile')"),
    "loads of latin-1 text": (
        b"\x80\x02cpickle\nloads\nc_codecs\nencode\n"
        + long(_NESTED)
        + long("latin1")
        + b"\x86R\x85R.",
        "pickle.loads",
    ),
    "nested in bytes": (
        b"\x80\x04ctorch.storage\n_load_from_bytes\nC"
        + bytes((len(payload(2)),))
        + payload(2)
        + b"\x85R.",
        "system('echo hostile')",
    ),
    "a state of bytes": (
        b"\x80\x04cteam\nModel\n)\x81C" + bytes((len(payload(0)),)) + payload(0) + b"b.",
        "system('echo hostile')",
    ),
}

# what nobody knows to be harmful, and weight files do not need
FOREIGN: dict[str, tuple[bytes, str]] = {
    "a class": (b"\x80\x02cteam.models\nConfig\n)\x81}X\1\0\0\0aK\1sb.", "team.models.Config()"),
    "a name alone": (b"\x80\x02cteam.models\nConfig\n.", "would import team.models.Config"),
    "a data type of the library": (b"\x80\x02cargparse\nNamespace\n)\x81.", "argparse.Namespace()"),
    "an extension code": (b"\x80\x02\x82\x05)R.", "extension code.5()"),
    "a torch function": (b"\x80\x02ctorch\nzeros\nK\1\x85R.", "torch.zeros(1)"),
    "an allowed name, longer": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2_\n.", "_v2_"),
    "an allowed name with a space": (b"\x80\x02ccollections \nOrderedDict\n)R.", "collections "),
    "an allowed path, split elsewhere": (
        b"\x80\x04" + short("torch.nn") + short("parameter.Parameter") + b"\x93.",
        "torch.nn.parameter.Parameter",
    ),
    "TorchScript's names outside of one": (b"\x80\x02c__torch__.m\nNet\n)\x81.", "__torch__.m.Net"),
}

HARMLESS: dict[str, bytes] = {
    "plain values": pickle.dumps({"a": [1, 2.5, None, "x", b"y" * 300, {3}]}),
    "protocol 5": pickle.dumps({"a": bytearray(b"x")}, 5),
    "two pickles": pickle.dumps(1, 2) + pickle.dumps(2, 2),
}
