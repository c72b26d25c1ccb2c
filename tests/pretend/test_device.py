"""The pretend device refuses what CUDA refuses, and computes what a CPU computes."""

import numpy as np
import pytest
import torch
from pretend import DEVICE, Elsewhere, MixedDevices, pretend_device


def test_it_computes_what_the_cpu_computes() -> None:
    x, layer = torch.rand(2, 3, 8, 8), torch.nn.Conv2d(3, 4, 3)
    layer(x).square().sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    with pretend_device():
        layer = layer.to(DEVICE, memory_format=torch.channels_last)
        layer(x.to(DEVICE)).square().sum().backward()
        assert isinstance(layer.weight.grad, Elsewhere) and layer.weight.grad.device.type == DEVICE
        torch.testing.assert_close(layer.weight.grad.cpu(), expected)
        before = layer.weight.detach().cpu().clone()
        torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()
        assert not layer.weight.detach().cpu().equal(before)


REFUSED = {
    "a sum": lambda x: x + torch.rand(3),
    "a product with its scalar": lambda x: x[0] * torch.rand(3),
    "in place": lambda x: x.add_(torch.rand(3)),
    "a concatenation": lambda x: torch.cat([x, torch.rand(3)]),
    "an index of a CPU tensor": lambda x: torch.rand(3)[x.long()],
    "values put into it": lambda x: x.index_put_((torch.tensor([0, 1]),), torch.rand(2)),
    "numpy": np.asarray,
    "a CPU generator": lambda x: torch.randn(3, device=DEVICE, generator=torch.Generator()),
    "a CPU generator in place": lambda x: x.normal_(generator=torch.Generator()),
    "an output on the CPU": lambda x: torch.add(x, x, out=torch.empty(3)),
}


@pytest.mark.parametrize("operation", REFUSED)
def test_it_refuses_what_cuda_refuses(operation: str) -> None:
    with pretend_device(), pytest.raises(MixedDevices):
        REFUSED[operation](torch.rand(3, device=DEVICE))


def test_it_allows_what_cuda_allows() -> None:
    with pretend_device():
        x = torch.arange(3.0, device=DEVICE)
        assert (x + torch.tensor(2.0)).tolist() == [2, 3, 4]
        assert x[torch.tensor([0, 2])].tolist() == [0, 2]
        assert torch.rand(3)[int(x[1])].device.type == "cpu"
        x[torch.tensor([0])] = torch.tensor(5.0)
        assert x.tolist() == [5, 1, 2] and float(x[0]) == 5
        assert x.cpu().numpy().tolist() == [5, 1, 2]
        assert torch.tensor([1.0], device=DEVICE).device.type == DEVICE
        x.copy_(torch.zeros(3))
        assert x.to("cpu").sum() == 0


def test_it_is_gone_afterwards() -> None:
    with pretend_device():
        pass
    assert not isinstance(torch.empty(2, device=DEVICE), Elsewhere)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)
