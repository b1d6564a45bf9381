"""Small damage to a file's bytes, as hypothesis draws it, and to a pickle's opcodes."""

import pickletools
import random

from hypothesis import strategies as st


@st.composite
def mutated(draw, data):
    """`data` after one to four edits: a byte changed, some bytes inserted, removed or repeated."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(changed) - 1))
        span = draw(st.integers(1, 9))
        how = draw(st.sampled_from(["set", "insert", "delete", "repeat"]))
        if how == "set":
            changed[at] = draw(st.integers(0, 255))
        elif how == "insert":
            changed[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif how == "delete" and len(changed) > span:
            del changed[at : at + span]
        else:
            changed[at:at] = changed[at : at + span]
    return bytes(changed)


def edited(rng: random.Random, pickled: bytes, other: bytes) -> bytes:
    """`pickled` after one to four edits of whole opcodes, some of them copied from `other`.

    Most results are still pickles, so that what an unpickler makes of them can be compared.
    """
    codes, more = opcodes(pickled), opcodes(other)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(1, len(codes))  # PROTO stays first
        how = rng.random()
        if how < 0.5:
            ends = [index for index, code in enumerate(codes) if code == b"u"]
            at = rng.choice([len(codes) - 1, *ends])  # before SETITEMS, or before STOP
            kept = [code for code in codes if code[:1] == b"q"]
            memoized = min(codes.count(b"\x94"), 256)  # protocol 4: the memo counts by itself
            kept = kept or [b"q" + bytes([index]) for index in range(memoized)] or [b"q\0"]
            codes[at:at] = _item(rng, kept) + ([b"s"] if at == len(codes) - 1 else [])
        elif how < 0.6:
            codes[at:at] = [rng.choice(SMALL)(rng) for _ in range(rng.randint(1, 2))]
        elif how < 0.68:
            del codes[at : at + rng.randint(1, 3)]
        elif how < 0.76:
            there = rng.randrange(1, len(codes))
            codes[there:there] = codes[at : at + rng.randint(1, 12)]
        elif how < 0.85:
            start = rng.randrange(1, len(more))
            codes[at:at] = more[start : start + rng.randint(1, 30)]
        else:
            codes[at] = rng.choice(SMALL)(rng)
    return b"".join(codes)


def _item(rng: random.Random, kept: list[bytes]) -> list[bytes]:
    """A key and a value for the dict that is being filled; the value is changed on the way."""
    key = SMALL[4]

    def recall(rng: random.Random) -> bytes:
        return b"h" + rng.choice(kept)[1:]

    changes = (
        list,
        lambda: [recall(rng), b"a"],
        lambda: [b"K" + bytes([rng.randrange(4)]), b"a"],
        lambda: [key(rng), recall(rng), b"s"],
        lambda: [b"}", key(rng), recall(rng), b"s", b"b"],
        lambda: [b"}", key(rng), recall(rng), b"s", b"\x85", b"R"],
        lambda: [recall(rng), b"\x85", b"R"],
        lambda: [b"(", recall(rng), recall(rng), recall(rng), recall(rng), b"t", b"R"],
        lambda: [b"(", recall(rng), b"\x88", recall(rng), recall(rng), b"t", b"R"],
    )
    name = key(rng) if rng.random() < 0.8 else rng.choice(SMALL)(rng)
    return [name, recall(rng), *rng.choice(changes)()]


def opcodes(pickled: bytes) -> list[bytes]:
    """The opcodes of a pickle, each with its argument."""
    starts = [at for _, _, at in pickletools.genops(pickled) if at is not None]
    ends = [*starts[1:], len(pickled)]
    return [pickled[start:end] for start, end in zip(starts, ends, strict=True)]


def _text(rng: random.Random) -> bytes:
    word = rng.choice(WORDS).encode()
    return b"X" + len(word).to_bytes(4, "little") + word


WORDS = ("a", "b", "w", "data", "real", "grad", "requires_grad", "conj", "neg", "_metadata", "0")
# what opcodes that torch's unpickler knows can do: recall, keep, make plain values, change others
SMALL = (
    lambda rng: b"h" + bytes([rng.randrange(40)]),
    lambda rng: b"h" + bytes([rng.randrange(12)]),
    lambda rng: b"q" + bytes([rng.randrange(40)]),
    lambda rng: b"K" + bytes([rng.randrange(7)]),
    _text,
    *(
        lambda _, code=code: code
        for code in (b"]", b"}", b")", b"N", b"\x88", b"\x89", b"(", b"G?\xf0\0\0\0\0\0\0")
    ),
    *(
        lambda _, code=code: code
        for code in (b"a", b"s", b"b", b"R", b"\x85", b"\x86", b"\x87", b"t", b"u", b"e", b"\x81")
    ),
)
