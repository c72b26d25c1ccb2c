"""All metrics of one asset, from its renderings and a reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.evaluation.metrics import janus
from db3d_nerfstudio.evaluation.metrics.encoders import Encoder, prepare
from db3d_nerfstudio.evaluation.metrics.fidelity import compare
from db3d_nerfstudio.evaluation.metrics.r_precision import r_precision
from db3d_nerfstudio.evaluation.metrics.renders import Pictures, Renders
from db3d_nerfstudio.evaluation.metrics.retrieval import Gallery, instance_retrieval
from db3d_nerfstudio.evaluation.metrics.saturation import over_saturation
from db3d_nerfstudio.evaluation.metrics.similarity import flatten, mean_pairwise, mean_to_prompt, mean_within
from db3d_nerfstudio.words import VIEW_NAMES, view_prompts

if TYPE_CHECKING:
    from db3d_nerfstudio.evaluation.metrics.pixels import Distance
    from db3d_nerfstudio.toybox.judge import Judge
    from db3d_nerfstudio.toybox.subjects import Subject


@dataclass(frozen=True)
class Photos:
    """The subject's photos."""

    images: Float[Tensor, "n 3 h w"]
    """As they were taken."""
    masks: Float[Tensor, "n h w"] | None = None
    """Where they show the subject, if that is known."""


@dataclass(frozen=True)
class Reference:
    """What an asset is measured against; a metric is left out if what it needs is missing."""

    prompt: str
    """Its prompt without the identifier."""
    pool: list[str]
    """The prompts that R-precision retrieves from; if empty, R-precision is left out."""
    encoders: tuple[Encoder, ...] = ()
    """Encoders that similarities are computed with."""
    judge: Judge | None = None
    """Classifier of views of toys."""
    photos: Photos | None = None
    """Photos of the subject."""
    subject: Subject | None = None
    """The true toy."""
    gallery: Gallery | None = None
    """Pictures of the subject and of others of its class."""
    lpips: Distance | None = None
    """Perceptual distance from the true views."""


def measure(renders: Renders, reference: Reference) -> tuple[dict[str, float], Pictures | None]:
    """Every metric by its name, and the true views in the asset's own orientation if the truth is known."""
    metrics: dict[str, float] = {}
    truth = None
    if reference.subject is not None:
        albedo = renders.albedo.permute(0, 2, 3, 1)
        fidelity, truth = compare(albedo, renders.masks, reference.subject, reference.lpips)
        metrics |= {name: value for name, value in asdict(fidelity).items() if value is not None}
        truth = truth.permute(0, 3, 1, 2)
    if reference.judge is not None:
        said = reference.judge.look(prepare(renders.albedo, 64)).view.argmax(-1).tolist()
        metrics |= _sides([VIEW_NAMES[index] for index in said], renders)
    for encoder in reference.encoders:
        own = _likeness(encoder, renders, reference)
        texts = encoder.texts
        if texts is not None:
            own |= _words(encoder.images, texts, renders, reference)
            if reference.judge is None:
                views = texts(list(view_prompts(reference.prompt).values()))
                own |= _sides(janus.zero_shot_views(encoder.images(renders.albedo), views), renders)
        if reference.gallery is not None:
            pictures = (reference.gallery.own, *reference.gallery.others)
            mine, *others = (encoder.images(each) for each in pictures)
            own["retrieval"] = instance_retrieval(encoder.images(renders.albedo), mine, others)
        if truth is not None:
            own["truth"] = float((encoder.images(renders.albedo) * encoder.images(truth)).sum(-1).mean())
        metrics |= {f"{encoder.name} {name}": value for name, value in own.items()}
    photos = reference.photos
    shown = bool((renders.masks > 0.5).any())  # Nothing has no colour.
    if shown and photos is not None and photos.masks is not None:
        metrics["over_saturation"] = over_saturation(renders.lambertian, renders.masks, photos.images, photos.masks)
    return metrics, truth


def _sides(said: list[str], renders: Renders) -> dict[str, float]:
    true = janus.true_views(renders.views)
    return {
        "janus_rate": janus.janus_rate(said, true),
        "faces": float(janus.num_faces(said)),
        "views_right": janus.views_right(said, true),
    }


def _words(
    images_of: Callable[[Tensor], Tensor],
    texts_of: Callable[[list[str]], Tensor],
    renders: Renders,
    reference: Reference,
) -> dict[str, float]:
    """R-precision of the three kinds of rendering, and CLIP-T, by the two towers of an encoder."""
    own = {"t": mean_to_prompt(images_of(renders.albedo), texts_of([reference.prompt])[0])}
    if reference.pool:
        pool, true = texts_of(reference.pool), reference.pool.index(reference.prompt)
        kinds = {"": renders.albedo, " lambertian": renders.lambertian, " textureless": renders.textureless}
        own |= {f"r_precision{name}": r_precision(images_of(images), pool, true) for name, images in kinds.items()}
    return own


def _likeness(encoder: Encoder, renders: Renders, reference: Reference) -> dict[str, float]:
    """CLIP-I or DINO, as photographed and with the subject alone, each with its ceiling."""
    if reference.photos is None:
        return {}
    photos, masks = reference.photos.images, reference.photos.masks
    generated, real = encoder.images(renders.albedo), encoder.images(photos)
    own = {"i": mean_pairwise(generated, real)}
    if len(real) > 1:
        own["i ceiling"] = mean_within(real)
    if masks is not None:
        alone = encoder.images(flatten(photos, masks))
        own["i masked"] = mean_pairwise(generated, alone)
        if len(real) > 1:
            own["i masked ceiling"] = mean_within(alone)
    return own
