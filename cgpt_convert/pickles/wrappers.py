"""The calls that make a parameter or a subclass of a tensor that another call makes.

Each function takes the arguments that the function of the same name in torch/_utils.py or
torch/_tensor.py takes, and returns the call inside and the state that it attaches.
"""

from __future__ import annotations

from collections.abc import Callable

from cgpt_convert.errors import Malformed, Unsupported
from cgpt_convert.inert import Call, Value, text
from cgpt_convert.pickles.patterns import arguments, name_of


def unwrap(call: Call) -> tuple[Call, list[Value]]:
    """The call inside the wrappers that make a parameter or a subclass, and what they attach.

    Each of the states attached is a dict of attributes, or what a subclass makes of it.
    """
    states: list[Value] = []
    for _ in range(_WRAPPED):
        name = name_of(call)
        recognise = WRAPPERS.get(name)
        if recognise is not None:
            call, state = recognise(*arguments(call, recognise, given=0))
            if state is not None:
                states.append(state)
        elif name in VARIABLES:
            call = _variable(call)
        else:
            return call, states
    raise Unsupported(f"more than {_WRAPPED} wrappers around one tensor")


_WRAPPED = 8  # a subclass of a parameter takes 2


def _rebuild_parameter(
    data: Value, _requires_grad: Value, _hooks: Value, state: Value = None
) -> tuple[Call, Value]:
    return tensor_call(data), state


def _rebuild_from_type_v2(
    func: Value, _type: Value, args: Value, state: Value
) -> tuple[Call, Value]:
    return Call(func, args, 0), state


def tensor_call(data: Value) -> Call:
    """The value, which must be a call."""
    if not isinstance(data, Call):
        raise Malformed(f"not a tensor: {text(data)}")
    return data


VARIABLES = (("torch.autograd.variable", "Variable"), ("torch.nn.parameter", "Parameter"))


def _variable(call: Call) -> Call:
    """The tensor in a parameter as torch pickled it up to 0.3: its argument, or in its state.

    torch/_tensor.py `__setstate__` still takes both: 3 parts without the data, 5 with.
    """
    match call.args, call.state:
        case ((data,) | (data, bool()), None | (_, _, _)) | ((), (data, _, _, _, _)):
            return tensor_call(data)
    raise Malformed(f"{call.func} with {text(call.args)} and state {text(call.state)}")


WRAPPERS: dict[tuple[str, str], Callable[..., tuple[Call, Value]]] = {
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type"): _rebuild_from_type_v2,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type_v2,
    ("torch.tensor", "_rebuild_from_type"): _rebuild_from_type_v2,
    ("torch.tensor", "_rebuild_from_type_v2"): _rebuild_from_type_v2,
}
