"""What the tests of the guide's training share: pictures, an untrained codec, an untrained guide."""

import pytest
import torch

from db3d_nerfstudio.toybox import dataset, latents, network, vae


@pytest.fixture(scope="session")
def codec():
    torch.manual_seed(0)
    return vae.make_vae().eval().requires_grad_(False)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return dataset.make_dataset(dataset.DatasetConfig(root, 4, 2, 2, toy_share=0.5, workers=1))


@pytest.fixture(scope="session")
def pictures(shards, codec):
    return latents.load_latents(shards, latents.make_latents(shards, codec))


@pytest.fixture(scope="session")
def guide_folder(tmp_path_factory, codec):
    folder = tmp_path_factory.mktemp("guide")
    torch.manual_seed(0)
    network.save_guide(folder, network.make_unet(), network.make_text_encoder(), codec)
    return folder
