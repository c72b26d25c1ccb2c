"""A pretend accelerator: code that would fail on a GPU for a tensor on the wrong device fails here, without one.

Its tensors name another device, hold real numbers in main memory and refuse whatever CUDA refuses: an operation with a
CPU tensor (but for a CPU scalar, or the CPU index of a device tensor), `numpy()`, and draws from a CPU generator.

    with pretend_device():
        x = torch.rand(3, device=DEVICE)
        x + torch.rand(3)      # raises MixedDevices

The name is "meta", the one device beside the CPU that every build of PyTorch has. What does not pass through the
dispatcher, such as `torch.tensor`, fused optimizers and pickling, is patched for as long as the context lasts.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "meta"
aten = torch.ops.aten
MOVES = {aten.copy_.default, aten._to_copy.default}
"""The operations that may see both devices."""
READS = {aten.index.Tensor, aten._unsafe_index.Tensor}
WRITES = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class MixedDevices(RuntimeError):
    """What CUDA would raise, too."""


class Elsewhere(Tensor):
    """A tensor of the pretend device; `held` is its content."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(DEVICE),
        )
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held})"

    def __array__(self, *_: Any, **__: Any) -> None:
        raise MixedDevices("can't convert a device tensor to numpy: call cpu() first")

    numpy = __array__

    def tolist(self) -> Any:
        return self.held.tolist()


class PretendMode(TorchDispatchMode):
    """Sends every operation through `compute`, also those that make tensors and see none."""

    loading = 0
    """Depth of calls that read weights from disk: those use the real "meta" device for purposes of their own."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return func(*args, **(kwargs or {})) if self.loading else compute(func, args, kwargs or {})


def compute(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What the operation gives, on the device where CUDA would have it, or MixedDevices."""
    _check(func, args, kwargs)
    device = kwargs.get("device")
    inner_args, inner_kwargs = pytree.tree_map(_held, (args, kwargs))
    if device is not None:
        inner_kwargs["device"] = torch.device("cpu")
        elsewhere = torch.device(device).type == DEVICE
    elif func is aten.copy_.default:
        elsewhere = isinstance(args[0], Elsewhere)
    else:
        elsewhere = any(isinstance(x, Elsewhere) for x in pytree.tree_leaves((args, kwargs)))
    _check_generator(kwargs.get("generator"), elsewhere)
    result = func(*inner_args, **inner_kwargs)
    if "out" in kwargs:
        return kwargs["out"]
    if args and isinstance(args[0], Tensor) and result is inner_args[0]:
        return args[0]  # In place.
    return pytree.tree_map(lambda x: Elsewhere(x) if elsewhere and _plain(x) else x, result)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Elsewhere) else x


def _plain(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, Elsewhere)


def _check(func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    if func in MOVES:
        return
    checked: Any = (args, kwargs)
    if func in READS | WRITES and isinstance(args[0], Elsewhere):
        checked = (args[0], args[2:], kwargs)  # Indices may be on the CPU.
    tensors = [x for x in pytree.tree_leaves(checked) if isinstance(x, Tensor)]
    ours = [tuple(x.shape) for x in tensors if isinstance(x, Elsewhere)]
    theirs = [tuple(x.shape) for x in tensors if _plain(x) and x.dim() > 0]
    if ours and theirs:
        raise MixedDevices(f"{func}: tensors of shapes {theirs} are on the CPU, {ours} on the device")


def _check_generator(generator: torch.Generator | None, elsewhere: bool) -> None:
    if elsewhere and generator is not None and generator.device.type == "cpu":
        raise MixedDevices("expected a generator of the device, found one of the CPU")


def _without_dispatch(mode: PretendMode, function: Callable) -> Callable:
    """A class method that reads a model, with real meta tensors while it does."""

    @functools.wraps(function)
    def read(cls: type, *args: Any, **kwargs: Any) -> Any:
        mode.loading += 1
        try:
            return function(cls, *args, **kwargs)
        finally:
            mode.loading -= 1

    return classmethod(read)


@contextlib.contextmanager
def pretend_device() -> Iterator[None]:
    """The pretend device exists, for this thread."""
    from diffusers.models.modeling_utils import ModelMixin
    from transformers import PreTrainedModel

    mode, tensor, save = PretendMode(), torch.tensor, torch.save
    _device_constructors()  # PyTorch lists them once: the real torch.tensor has to be among them.

    def made_elsewhere(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made = tensor(data, *args, **kwargs)
        return made if device is None else made.to(device)

    def saved(content: Any, *args: Any, **kwargs: Any) -> None:
        save(pytree.tree_map(_held, content), *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, mode:
        patch.setattr(torch, "tensor", made_elsewhere)
        patch.setattr(torch, "save", saved)
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # It refuses this device.
        for optimizer in (torch.optim.Adam, torch.optim.AdamW):
            patch.setattr(optimizer, "__init__", _unfused(optimizer.__init__))
        for model in (ModelMixin, PreTrainedModel):
            patch.setattr(model, "from_pretrained", _without_dispatch(mode, model.__dict__["from_pretrained"].__func__))
        yield


def _unfused(init: Callable) -> Callable:
    """An optimizer's constructor that takes, and forgets, that it shall be fused: PyTorch asks for a known device."""

    @functools.wraps(init)
    def constructor(self: Any, *args: Any, fused: bool | None = None, **kwargs: Any) -> None:
        init(self, *args, **kwargs)

    return constructor
