"""Pseudo multi-view photos of the subject (DreamBooth3D section 3.2): a dataset on disk in nerfstudio's format.

RUN/pseudo_views/
    images/000.png        the pseudo views: renders translated into the subject, as large as the guide draws them
    renders/000.png       the renders of the initial NeRF, or of the mesh in its place, that they were made from
    transforms.json       their cameras; `ns-train nerfacto --data RUN/pseudo_views` reads it
    contact_sheet.png     photos, renders and pseudo views, one row each
"""

import json
from contextlib import nullcontext
from pathlib import Path

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from PIL import Image
from torch import Tensor

from db3d_nerfstudio.camera_files import transforms
from db3d_nerfstudio.diffusion.prompt_bank import PromptBank
from db3d_nerfstudio.diffusion.sampling import translate
from db3d_nerfstudio.diffusion.tuner import SubjectTuner
from db3d_nerfstudio.diffusion.upscaler import Upscaler, tuned_upscaler, upscale
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuideConfig
from db3d_nerfstudio.images import contact_sheet, image_to_tensor, tensor_to_image
from db3d_nerfstudio.photo_file import read_photo
from db3d_nerfstudio.photos import load_photo, photo_paths
from db3d_nerfstudio.training.context import RunContext
from db3d_nerfstudio.training.phases import PseudoViewsConfig
from db3d_nerfstudio.training.tasks import PSEUDO_VIEWS, UPSCALER

CONTACT_SHEET = "contact_sheet.png"

Renders = tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]


def make(
    context: RunContext, config: PseudoViewsConfig, prompt: str, path: Path, first: Renders, tuner: SubjectTuner
) -> None:
    """Noise renders of the initial asset up to t_pseudo, and denoise each by itself with the guide as tuned now.

    Args:
        prompt: The prompt of the pseudo views.
        path: An empty folder for the dataset and, if it is tuned, the upscaler.
        first: The initial asset seen by the cameras of the pseudo views, and its accumulation.
        tuner: Has the photos: references, pictures for the upscaler, and a row of the contact sheet, which grows as
            views are made.
    """
    guide, photos = context.guide, tuner.data.images
    cameras, views = context.datamanager.config.dataparser.orbit()
    renders, accumulation = first
    mask = None if config.margin is None else dilate(accumulation, config.margin).to(guide.device)
    negative_prompt = context.model.config.sds.negative_prompt
    conditioning = PromptBank(guide, prompt, negative_prompt)(views)
    generator = torch.Generator().manual_seed(context.seed)
    upscaler = _upscaler(context, config, tuner, path / "upscaler")
    with context.unlocked():
        large = None if upscaler is None else PromptBank(upscaler, prompt, negative_prompt)(views)
    made = []
    seen = guide.references(photos) if config.references else nullcontext()
    with seen, context.task(PSEUDO_VIEWS) as progress:
        for part in (slice(i, i + config.chunk) for i in range(0, len(renders), config.chunk)):
            inside = None if mask is None else mask[part]
            images = translate(guide, renders[part].to(guide.device), conditioning[part], config, generator, inside)
            made.append(
                images if upscaler is None or large is None else upscale(upscaler, images, large[part], generator)
            )
            sheet = contact_sheet([photos, renders[: part.stop], torch.cat(made)])
            tensor_to_image(sheet).save(path / CONTACT_SHEET)
            progress(min(part.stop, len(renders)))
    renders, translated = renders.cpu(), torch.cat(made).cpu()
    save_pseudo_views(path, cameras, photos, renders, translated)
    context.record.picture("Pseudo views", contact_sheet([renders, translated]), context.step)


def _upscaler(context: RunContext, config: PseudoViewsConfig, tuner: SubjectTuner, path: Path) -> Upscaler | None:
    if config.upscaler is None:
        return None
    tuned = config.upscaler.max_train_steps > 0
    with context.task(UPSCALER) if tuned else context.unlocked() as progress:
        return tuned_upscaler(config.upscaler, tuner, path, progress)


def take(context: RunContext, folder: Path, path: Path, first: Renders, photos: Float[Tensor, "n 3 h w"]) -> None:
    """Use images made elsewhere.

    Args:
        folder: One image per camera, see `given_views`.
        path: An empty folder for the dataset.
        first: The initial asset seen by the cameras of the pseudo views, and its accumulation.
        photos: The photos, for the contact sheet.
    """
    cameras, _ = context.datamanager.config.dataparser.orbit()
    images = given_views(folder, len(cameras), context.model.config.background.color)
    renders = first[0].cpu()
    save_pseudo_views(path, cameras, photos, renders, images)
    context.record.picture("Pseudo views", contact_sheet([renders, images]), context.step)


def check_references(config: PseudoViewsConfig, guide: DiffusionGuideConfig) -> None:
    """Raise a UserError if the guide is to see the photos, and sees none."""
    if config.references and not guide._target.sees_references:
        raise UserError(
            "this guide does not see reference images: leave out --pipeline.phases.pseudo-views.references, or train "
            "with dreambooth3d-flux2"
        )


def given_views(
    folder: Path, num_views: int, background: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Float[Tensor, "b 3 h w"]:
    """The images of a folder in the order of their names, as large as the first.

    Args:
        background: Colour behind transparent pixels, that of the NeRF's renders, in [0, 1].

    Raises:
        UserError: there are more or fewer than there are cameras, or one cannot be read or is not square.
    """
    paths = photo_paths(folder)
    if len(paths) != num_views:
        raise UserError(
            f"{folder} has {len(paths)} images and the orbit {num_views} cameras: give one image per camera, or set "
            "--pipeline.datamanager.dataparser.num-views"
        )
    images = [read_photo(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.width != image.height:
            raise UserError(f"{path} is not square: a pseudo view shows all that its camera sees, so pad the image")
    color = tuple(round(255 * value) for value in background)
    flat = [Image.alpha_composite(Image.new("RGBA", image.size, color), image) for image in images]
    return torch.stack([image_to_tensor(image.convert("RGB").resize(images[0].size)) for image in flat])


def dilate(accumulation: Float[Tensor, "b 1 h w"], margin: float) -> Float[Tensor, "b 1 h w"]:
    """1 in the silhouettes and up to `margin` of the image's width away from them, else 0."""
    reach = round(margin * accumulation.shape[-1])
    silhouettes = (accumulation > 0.5).float()
    return torch.nn.functional.max_pool2d(silhouettes, 2 * reach + 1, stride=1, padding=reach)


def save_pseudo_views(
    path: Path,
    cameras: Cameras,
    photos: Float[Tensor, "n 3 hp wp"],
    renders: Float[Tensor, "b 3 h w"],
    translated: Float[Tensor, "b 3 ht wt"],
) -> None:
    """Write the dataset. Pseudo views keep the size that the guide gave them; D_multi would learn what is lost."""
    for name, images in (("renders", renders), ("images", translated)):
        (path / name).mkdir(parents=True)
        for i, image in enumerate(images):
            tensor_to_image(image).save(path / name / f"{i:03d}.png")
    larger = translated.shape[-1] / renders.shape[-1]
    (path / "transforms.json").write_text(json.dumps(transforms(cameras, larger), indent=2) + "\n", "utf8")
    tensor_to_image(contact_sheet([photos, renders, translated])).save(path / CONTACT_SHEET)


def load_pseudo_views(path: Path) -> Float[Tensor, "b 3 h w"]:
    """The pseudo views of a run, in [0, 1]."""
    with_size = json.loads((path / "transforms.json").read_text("utf8"))
    files = [path / frame["file_path"] for frame in with_size["frames"]]
    return torch.stack([image_to_tensor(load_photo(file, with_size["w"])) for file in files])
