"""A CUDA device of shapes, dtypes and devices alone: torch's FakeTensorMode, and what it lacks where there is no GPU.

Nothing is computed. An operation on tensors of two devices or of dtypes that do not fit raises, and so does one that
asks for a value.
"""

from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from inspect import signature
from unittest.mock import patch

import torch
import triton
from opbench_kernels import launch, tuning
from opbench_kernels.deform import dcnv2_operators, dcnv4_fused, operators, sampling_torch
from opbench_kernels.depthwise import operators as depthwise_operators
from opbench_kernels.msda import operators as msda_operators
from opbench_kernels.partial import operators as partial_operators
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda:0")
OPERATORS = (
    operators._dcnv3,
    operators._dcnv3_backward,
    operators._dcnv4,
    operators._dcnv4_backward,
    dcnv4_fused._from_input,
    depthwise_operators._depthwise,
    depthwise_operators._weight_grad,
    dcnv2_operators._dcnv2,
    dcnv2_operators._dcnv2_backward,
    msda_operators._attend,
    msda_operators._attend_backward,
    partial_operators._partial_conv3x3,
)


class FakeGenerator(torch.Generator):
    """torch.Generator refuses a device that is not there; random numbers of a fake tensor need none."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)

    def __init__(self, device="cpu"):
        self._device = torch.device(device)

    @property
    def device(self):
        return self._device


@contextmanager
def fake_cuda():
    """Tensors are fake, what would ask the driver is replaced, and the bodies of our operators run up to each launch.

    Yields:
        The launches of Triton kernels so far: for each, its tensors by the kernel's names.
    """
    launches = []
    with ExitStack() as stack:
        for place, name, fake in (
            (torch, "Generator", FakeGenerator),
            (torch.autograd, "grad", gradients),
            (torch.cuda, "device_of", lambda tensor: nullcontext()),
            (torch.nn.functional, "scaled_dot_product_attention", attention),
            (torch.nn.functional, "grid_sample", grid_sample),
            # What is kept for plain tensors of a shape is kept for these, by themselves.
            (sampling_torch, "are_plain", lambda *tensors: True),
            (sampling_torch, "_kept_grids", cache(sampling_torch._kept_grids.__wrapped__)),
            (launch.Launch, "__call__", lambda launch: launches.append(bound_tensors(launch))),
            (tuning, "_device", str),
            (tuning, "_known", {}),
            (tuning, "_read", lambda path: {}),
            (tuning, "_write", lambda path, text, entry: None),
            (triton.testing, "do_bench", lambda launch, **_: (launch(), 1.0)[1]),
            (torch.cuda, "device", lambda device: nullcontext()),
            *((op, "_abstract_fn", run_as_declared(op._init_fn, op._abstract_fn)) for op in OPERATORS),
        ):
            stack.enter_context(patch.object(place, name, fake))
        stack.enter_context(FakeTensorMode())
        yield launches


def bound_tensors(launch):
    """The tensors of a launch by name; what else it passes must be what the kernel takes."""
    taken = signature(launch.kernel.fn).bind(*launch.arguments, **launch.constants).arguments
    return {name: value for name, value in taken.items() if isinstance(value, torch.Tensor)}


def run_as_declared(body, declared):
    """What torch takes for an operator's result in a fake mode: the declared one, after the body has given the same."""

    def run(*arguments):
        expected = declared(*arguments)
        assert about(body(*arguments)) == about(expected), body.__name__
        return expected

    return run


def about(tensors):
    """Everything that a fake tensor knows of itself, for a tensor or several."""
    if isinstance(tensors, torch.Tensor):
        tensors = (tensors,)
    return [(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors]


def gradients(output, inputs, output_gradient, retain_graph=False):
    """torch.autograd.grad, node by node: the engine asks the driver for its streams.

    The engine would convert a gradient of another dtype than its tensor's; here that is an error, as is another device.
    """
    last, *wanted = (tuple(get_gradient_edge(tensor))[:2] for tensor in (output, *inputs))
    sums = {last: output_gradient}
    for node in _in_order(last[0]):
        received = [sums.get((node, place)) for place in range(len(node._input_metadata))]
        for place, expected in enumerate(node._input_metadata):
            if (gradient := received[place]) is not None:
                assert (gradient.dtype, gradient.device) == (expected.dtype, expected.device), node.name()
                received[place] = sums[node, place] = gradient.sum_to_size(expected.shape)  # of a broadcast, as there
        if not node.next_functions or all(gradient is None for gradient in received):
            continue
        with torch.no_grad():
            given = node(*received) if callable(node) else node.apply(*received)
        given = given if isinstance(given, tuple) else (given,)
        for gradient, edge in zip(given, node.next_functions, strict=False):  # arguments that are no tensors come last
            if gradient is not None and edge[0] is not None:
                sums[edge] = sums[edge] + gradient if edge in sums else gradient
    return tuple(sums[edge] for edge in wanted)


def _in_order(last):
    """The nodes of a graph, each before those that its gradients go to."""
    found, seen = [], set()

    def visit(node):
        if node is not None and node not in seen:
            seen.add(node)
            for after, _ in node.next_functions:
                visit(after)
            found.append(node)

    visit(last)
    return reversed(found)


GRID_SAMPLE = torch.nn.functional.grid_sample


def grid_sample(*arguments, **given):
    """torch's own kernel: cuDNN's has no shapes of its own for fake tensors."""
    with torch.backends.cudnn.flags(enabled=False):
        return GRID_SAMPLE(*arguments, **given)


def attention(q, k, v, attn_mask=None):
    """With a bias by other operators, in the dtype that it has; without one the kernel that is left."""
    if attn_mask is None:
        return flash_attention(q, k, v)
    return (q @ k.transpose(-2, -1) + attn_mask).softmax(-1) @ v


def flash_attention(q, k, v):
    """torch's choice of a kernel asks the driver; this is the one that is left where all others are forbidden."""
    allowed = torch.backends.cuda
    assert allowed.flash_sdp_enabled()
    assert not any((allowed.math_sdp_enabled(), allowed.mem_efficient_sdp_enabled(), allowed.cudnn_sdp_enabled()))
    assert {q.dtype} == {k.dtype} == {v.dtype} <= {torch.float16, torch.bfloat16}
    assert q.shape[-1] % 8 == 0
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


class HostTensors(TorchDispatchMode):
    """Records the operations that touch a tensor of the host: a copy that waits, and that no CUDA graph can capture."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type != "cuda" for tensor in tensors):
            self.operations.append(str(operation))
        return result
