"""Small damage to a file's bytes, as hypothesis draws it."""

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
