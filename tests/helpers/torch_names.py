"""Functions that torch keeps private, and its pickles or its views are made of."""

from torch import _neg_view as neg_view
from torch._tensor import _rebuild_from_type_v2 as rebuild_from_type_v2
from torch._utils import _rebuild_device_tensor_from_cpu_tensor as rebuild_from_cpu_tensor
from torch._utils import _rebuild_device_tensor_from_numpy as rebuild_from_numpy
from torch._utils import _rebuild_parameter as rebuild_parameter
from torch._utils import _rebuild_parameter_with_state as rebuild_parameter_with_state
from torch._utils import _rebuild_sparse_tensor as rebuild_sparse_tensor
from torch._utils import _rebuild_tensor as rebuild_tensor
from torch._utils import _rebuild_tensor_v2 as rebuild_tensor_v2
from torch._utils import _rebuild_tensor_v3 as rebuild_tensor_v3
from torch.serialization import _get_layout as get_layout

__all__ = [
    "get_layout",
    "neg_view",
    "rebuild_from_cpu_tensor",
    "rebuild_from_numpy",
    "rebuild_from_type_v2",
    "rebuild_parameter",
    "rebuild_parameter_with_state",
    "rebuild_sparse_tensor",
    "rebuild_tensor",
    "rebuild_tensor_v2",
    "rebuild_tensor_v3",
]
