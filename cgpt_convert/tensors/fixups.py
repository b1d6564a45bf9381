"""In-place corrections to stored elements: byte order, and torch's lazy conj and neg bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cgpt_convert.core.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from cgpt_convert.tensors.tensor import Tensor

    Words = NDArray[Any]

NEGATABLE = ("f", "c", "i", "u")  # kinds that torch negates


def fixes(tensor: Tensor) -> list[Callable[[Words], None]]:
    """Return the functions to apply in place, in order, to each array of stored elements.

    Raises Unsupported for a negation bit on a type that torch does not negate.
    """
    stored = tensor.stored
    part = np.dtype(f"<u{stored.swap_width}")  # real and imaginary parts are swapped separately
    sign = 1 << (8 * part.itemsize - 1)

    def swap(words: Words) -> None:
        words.view(part).byteswap(inplace=True)

    def conjugate(words: Words) -> None:
        words.view(part)[1::2] ^= sign

    def negate(words: Words) -> None:
        if stored.kind in "iu":
            np.negative(words, out=words)  # modulo 2^bits, as torch
        else:
            words.view(part)[...] ^= sign

    steps: list[Callable[[Words], None]] = []
    if tensor.storage.byteorder != "little" and part.itemsize > 1:
        steps.append(swap)
    if tensor.conj and stored.kind == "c":
        steps.append(conjugate)
    if tensor.neg:
        if stored.kind not in NEGATABLE or (stored.is_float and stored.nbytes == 1):
            message = f"the tensor is lazily negated, which is not supported for {stored.name}"
            raise Unsupported(message, where=tensor.name)
        steps.append(negate)
    return steps
