"""CLIP R-precision: the share of renderings whose own prompt is the nearest one in a pool of prompts.

(Park et al. 2021; for text-to-3D Jain et al. 2022, arXiv 2112.01455, and DreamFusion 2209.14988, section 4.)
DreamBooth3D does not publish its pool; ours is the product of class nouns and contexts, with the prompt's own context
among them: every other context of the same class, and every context of every other class. The identifier means nothing
to an encoder, so it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


def prompt_pool(templates: Iterable[str], class_nouns: Iterable[str]) -> list[str]:
    """Every template with every class noun in the place of its "{}", each sentence once, in a fixed order."""
    nouns = list(class_nouns)
    return list(dict.fromkeys(template.format(noun) for template in templates for noun in nouns))


def retrieve(images: Float[Tensor, "v d"], pool: Float[Tensor, "p d"]) -> Int[Tensor, " v"]:
    """The index of the prompt whose cosine with each picture is the highest."""
    return (normalize(images, dim=-1) @ normalize(pool, dim=-1).T).argmax(-1)


def r_precision(images: Float[Tensor, "v d"], pool: Float[Tensor, "p d"], true: int) -> float:
    """Share of the views of one asset that retrieve its own prompt; papers publish the mean over prompts."""
    return float((retrieve(images, pool) == true).float().mean())
