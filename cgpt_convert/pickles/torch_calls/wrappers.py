"""Calls that make a parameter or a subclass from the tensor of another call.

Each function takes the arguments of the function of the same name in torch/_utils.py or
torch/_tensor.py, and returns the inner call and the state that it attaches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.pickles.flatten.children import Pairs, distinct, of_state
from cgpt_convert.pickles.nodes import Call, Global, Value, text
from cgpt_convert.pickles.torch_calls.argument_checks import Ambiguous, arguments, name_of


def unwrap(call: Call) -> tuple[Call, list[Value]]:
    """Return the call inside parameter and subclass wrappers, and the states they attach.

    Each state is a dict of attributes, or the form that a subclass gives it.
    """
    states: list[Value] = []
    for wrapped in range(_WRAPPED):
        name = name_of(call)
        recognise = WRAPPERS.get(name)
        if recognise is not None:
            inner, state = recognise(*arguments(call, recognise, given=0))
            if inner.position == _WITHIN:
                inner.position = call.position
            if state is not None:
                if wrapped and _is_plain(call):
                    raise Malformed(f"attributes that a parameter does not take over: {text(call)}")
                states.append(state)
            call = inner
        elif name in VARIABLES:
            call = _variable(call)
        else:
            return call, states
    raise Unsupported(f"more than {_WRAPPED} wrappers around one tensor")


_WRAPPED = 8  # a subclass of a parameter takes 2
_WITHIN = -1  # the position of a call that a wrapper makes of its own arguments


def _is_plain(wrapper: Call) -> bool:
    """Return whether the wrapper makes a Tensor or a Parameter, and not another subclass."""
    match wrapper.args:
        case (Global() as func, Global() as made, *_) if func is not made:
            return made.pair in _PLAIN
    return True


_PLAIN = (("torch", "Tensor"), ("torch._tensor", "Tensor"), ("torch.nn.parameter", "Parameter"))


def data_of(states: Sequence[Value]) -> Value:
    """Return the tensor that provides the values, given these states; None if it has its own.

    torch sets each attribute in turn: `data` replaces the values, `real` and `imag` write into the
    storage, which other tensors may share. `states` are those of `unwrap`, outermost first.
    """
    data = None
    for name, value in attached(states):
        if name in _WRITES:
            raise Ambiguous(f"a tensor's attribute {name!r} writes into its storage")
        if name in _REPLACES:
            raise Malformed(f"a tensor's attribute {name!r} is set")
        if name == DATA:
            data = value
    return data


def attached(states: Sequence[Value]) -> Pairs:
    """Return the attributes that the states give a tensor; outer ones override inner ones."""
    pairs = [pair for state in reversed(states) for pair in of_state(state)]
    return distinct(pairs)[0]


DATA = "data"
_WRITES = ("real", "imag")
_REPLACES = ("__class__", "__dict__", "_grad")  # setting these changes other attributes


def _rebuild_parameter(
    data: Value, _requires_grad: Value, _hooks: Value, state: Value = None
) -> tuple[Call, Value]:
    return tensor_call(data), state


def _rebuild_from_type_v2(
    func: Value, _type: Value, args: Value, state: Value
) -> tuple[Call, Value]:
    return Call(func, args, _WITHIN), state


def tensor_call(data: Value) -> Call:
    """Return the value, which must be a call."""
    if not isinstance(data, Call):
        raise Malformed(f"not a tensor: {text(data)}")
    return data


VARIABLES = (("torch.autograd.variable", "Variable"), ("torch.nn.parameter", "Parameter"))


def _variable(call: Call) -> Call:
    """Return the tensor in a parameter of torch up to 0.3, from its argument or its state.

    torch/_tensor.py `__setstate__` still accepts both: 3 parts without the data, 5 with.
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
