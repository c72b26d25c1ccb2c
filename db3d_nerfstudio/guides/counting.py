"""Count the memory that a computation takes on a CUDA device, without one: PyTorch's fake tensors have shapes only.

    with fake_cuda() as memory:
        network = torch.nn.Linear(1000, 1000, device=DEVICE)
        memory.restart()
        network(torch.empty(8, 1000, device=DEVICE))
    memory.peak, memory.now     # bytes

Blocks are counted as PyTorch's allocator hands them out. What no tensor holds is not seen: the CUDA context, workspaces
of cuDNN, gaps between blocks. Attention is taken to be fused, which it is in half precision.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable
from unittest import mock

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "cuda"
GIB = 2**30
BLOCK = 512
"""Bytes; the allocator rounds up to them."""


class Memory(TorchDispatchMode):
    """Bytes on the fake device while the mode is active."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == DEVICE:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = -(-storage.nbytes() // BLOCK) * BLOCK
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def restart(self) -> None:
        """Look for a new peak from here on."""
        gc.collect()  # Graphs refer to themselves.
        self.peak = self.now


@contextmanager
def fake_cuda() -> Iterator[Memory]:
    """Tensors are fake, those on "cuda" are counted, and autocast works on them as on a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    memory = Memory()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "autocast", fake_autocast))
        stack.enter_context(mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", fused_attention))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", converted))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(memory)
        yield memory


@contextmanager
def fake_autocast(device_type: str, dtype: torch.dtype = torch.bfloat16, enabled: bool = True) -> Iterator[None]:
    """`torch.autocast`, which without a GPU switches itself off."""
    before = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    torch.set_autocast_enabled(device_type, enabled)
    torch.set_autocast_dtype(device_type, dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device_type, before[0])
        torch.set_autocast_dtype(device_type, before[1])


@torch.no_grad()
def converted(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`Module._apply` with new parameters in place of the old: fake ones cannot be swapped."""
    for child in self.children() if recurse else ():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            self._parameters[name] = nn.Parameter(fn(parameter), parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that a GPU chooses: without one, PyTorch would count the attention weights themselves."""
    if torch.is_autocast_enabled(DEVICE):
        half = torch.get_autocast_dtype(DEVICE)
        query, key, value = query.to(half), key.to(half), value.to(half)
    if query.dtype != torch.float32 and attn_mask is None and query.shape[-1] <= 256:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, 0.0, is_causal, False, scale=scale)[0]
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, torch.is_grad_enabled(), 0.0, is_causal, scale=scale)[0]


@runtime_checkable
class Checkpointing(Protocol):
    """A network of diffusers."""

    def enable_gradient_checkpointing(self, function: Callable[..., Any], /) -> None:
        """Pass the forward pass of each block to `function`."""
        ...


class Backward:
    """What forward passes leave for backward passes, which cannot be run: autograd asks for the GPU itself."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self._weights = {p.untyped_storage()._cdata for network in networks for p in network.parameters()}
        self._kept: list[dict[int, torch.UntypedStorage]] = []
        self.again = 0
        """Of the largest block that is computed again, with gradient checkpointing."""
        for network in networks:
            checkpointed = any(getattr(part, "gradient_checkpointing", False) for part in network.modules())
            if checkpointed and isinstance(network, Checkpointing):
                network.enable_gradient_checkpointing(self._forget)

    def kept(self, forward: Callable[[], Any]) -> tuple[int, Any]:
        """Bytes that the backward pass of `forward` needs beside the weights, and its result."""
        self._kept.append({})

        def keep(tensor: Tensor) -> Tensor:
            self._keep(tensor)
            return tensor.detach()  # An output would keep its own graph alive, and for ever.

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = forward()
        return sum(storage.nbytes() for storage in self._kept.pop().values()), result

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type == DEVICE and storage._cdata not in self._weights:
            self._kept[-1][storage._cdata] = storage

    def _forget(self, block: Callable, *args: Any, **kwargs: Any) -> Any:
        """In place of `torch.utils.checkpoint`: note what the block keeps, and keep what it is computed again from."""
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._keep(value)
        kept, result = self.kept(lambda: block(*args, **kwargs))
        self.again = max(self.again, kept)
        return pytree.tree_map(lambda x: x.detach().requires_grad_() if isinstance(x, Tensor) else x, result)
