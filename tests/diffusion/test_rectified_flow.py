"""The recipe of `guides/base.py` for what is no UNet of diffusers: a rectified flow behind the same protocol."""

import torch
from jaxtyping import Float, Int
from tiny import GaussianGuide, GaussianGuideConfig
from torch import Tensor

from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, sample
from db3d_nerfstudio.diffusion.sds import SDSConfig, sds_loss


class FlowGuide(GaussianGuide):
    """Knows the velocity of x_s = (1 - s) z + s eps only, for z ~ N(mean(prompt), std^2)."""

    prediction_type = "v_prediction"

    def __init__(self, config: GaussianGuideConfig) -> None:
        super().__init__(config)
        self.s = torch.linspace(0.001, 0.999, 1000)
        self.alphas_cumprod = (1 - self.s) ** 2 / ((1 - self.s) ** 2 + self.s**2)

    def velocity(self, x: Tensor, s: Tensor, mean: Tensor) -> Tensor:
        """E[eps - z | x_s], in closed form."""
        variance = (1 - s) ** 2 * self.config.std**2 + s**2
        residual = x - (1 - s) * mean
        return s * residual / variance - mean - (1 - s) * self.config.std**2 * residual / variance

    def predict_noise(
        self, z_t: Float[Tensor, "b c hz wz"], t: Int[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c hz wz"]:
        s = self.s[t][:, None, None, None]
        x = z_t * ((1 - s) ** 2 + s**2).sqrt()
        return x + (1 - s) * self.velocity(x, s, text[:, :, :, None])


def test_flow_answers_like_a_denoiser_of_the_same_distribution() -> None:
    flow, twin = FlowGuide(GaussianGuideConfig(std=0.3)), GaussianGuideConfig(std=0.3).setup()
    twin.alphas_cumprod = flow.alphas_cumprod
    z_t, t, text = torch.randn(3, 3, 8, 8), torch.tensor([10, 500, 990]), flow.embed(["a dog"] * 3)
    torch.testing.assert_close(flow.predict_noise(z_t, t, text), twin.predict_noise(z_t, t, text), atol=1e-4, rtol=1e-4)


def test_flow_distils_and_draws() -> None:
    flow = FlowGuide(GaussianGuideConfig(std=0.05, resolution=16))
    conditioning = Conditioning.of(flow, ["a dog"])
    images = sample(flow, conditioning, SamplingConfig(30, 1.0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(images.mean(), torch.tensor(0.7), atol=0.02, rtol=0)
    rgb = torch.full((1, 3, 16, 16), 0.2, requires_grad=True)
    sds_loss(flow, rgb, conditioning, torch.tensor([400]), SDSConfig(guidance_scale=1.0)).backward()
    assert (rgb.grad.mean() < 0).all()  # Brighter, towards 0.7.
