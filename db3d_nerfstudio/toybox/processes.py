"""Training with several processes under torchrun: their ranks, and sums and means over them."""

from __future__ import annotations

import atexit

import torch


def processes() -> tuple[int, int]:
    """The rank of this process under torchrun, and their number; (0, 1) without torchrun."""
    from torch import distributed

    if not distributed.is_torchelastic_launched():
        return 0, 1
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
        atexit.register(distributed.destroy_process_group)  # Its threads would abort Python at its end.
    return distributed.get_rank(), distributed.get_world_size()


def add_up(tensors: list[torch.Tensor]) -> None:
    """Give all processes the sum of each tensor over the processes, in one message."""
    from torch import distributed

    if processes()[1] == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def average_gradients(module: torch.nn.Module) -> None:
    """Give all processes the mean of their gradients."""
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    add_up(gradients)
    for gradient in gradients:
        gradient /= processes()[1]
