"""The three stages of DreamBooth3D (Raj et al. 2023, 2303.13508, section 3) as a pure function of the step.

    initial        D_partial = DreamBooth(photos, 150 its)                       -> SDS -> initial NeRF
    pseudo_views   D_full = DreamBooth(photos, 800 its); 20 renders of the initial NeRF, translated by D_full
    final          D_multi = D_partial + 150 its on photos and pseudo views      -> SDS, reconstruction -> final NeRF

NeRF steps exist in `initial` and `final` only; everything else is work at their boundaries, and its results are files
in the run folder. Nothing that a resumed run needs is kept in memory: entering a phase for the first time and after a
crash are the same call.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.diffusion.sampling import TranslationConfig
from db3d_nerfstudio.diffusion.upscaler import UpscalerConfig
from db3d_nerfstudio.ranges import Angle, Count, Natural, NonNegative, Positive, Share, Steps
from db3d_nerfstudio.results.asset import Up
from db3d_nerfstudio.run.interventions import PhaseName

NO_ENDS: Mapping[PhaseName, int] = MappingProxyType({})


@dataclass
class NerfPhaseConfig:
    """A phase in which a NeRF is trained."""

    steps: Natural
    """Number of micro-steps; the optimizer steps once every `gradient_accumulation_steps` of them."""


@dataclass
class InitialPhaseConfig(NerfPhaseConfig):
    """The phase of the initial NeRF: score distillation, or a short fit to a mesh from elsewhere."""

    mesh: Path | None = None
    """Asset to start from, such as a GLB of an image-to-3D model: the initial NeRF is fitted to its renders, and pseudo
    views are made of these. Its colours may be a texture, at the vertices or in materials."""
    mesh_up: Up = "y"
    """Axis of the file that points up."""
    mesh_front: Angle | None = None
    """Where its front is, in degrees counter-clockwise from above; 0 is +z in a file with y up, +x in one with z up.
    By default the guide guesses."""
    mesh_steps: Count = 2000
    """Micro-steps of the fit, in place of `steps`."""
    mesh_views: Count = 64
    """Number of renders that it is fitted to."""

    @property
    def length(self) -> int:
        """Micro-steps of the phase."""
        return self.steps if self.mesh is None else self.mesh_steps


@dataclass
class PseudoViewsConfig(TranslationConfig):
    """How renders of the initial NeRF are turned into pseudo views; their cameras are the data parser's orbit."""

    strength: Share = 0.5
    """t_pseudo: noise level of the renders, as a fraction of the schedule (not published by the paper)."""
    guidance_scale: NonNegative = 7.5
    """Classifier-free guidance of the translation: uncond + s * (cond - uncond)."""
    steps: Steps = 50
    """Sampling steps of the whole schedule; a translation takes the last `strength` of them."""
    margin: NonNegative | None = None
    """Distance from the renders' silhouettes within which the guide may draw, in widths of the image; the rest stays
    background. By default it draws everywhere, which may reproduce backgrounds of the photos."""
    references: bool = False
    """Show the guide the photos while it draws, if it sees references (FLUX.2)."""
    chunk: Count = 4
    """Number of renders translated at a time."""
    images: Path | None = None
    """Folder of images that are used in place of translated renders: one per camera of the orbit, in the order of their
    names, such as RUN/pseudo_views/renders after another program has edited them. They may be transparent."""
    upscaler: UpscalerConfig | None = None
    """Model that upscales the pseudo views of a guide of small images, such as IF's second stage: end the command with
    `pipeline.phases.pseudo-views.upscaler:upscaler-config` and its options."""


@dataclass
class PosedPhotosConfig:
    """How the photos themselves are reconstructed, from poses that are found by comparing them with renders.

    Photos need plain surroundings, or none: `db3d photos` cuts subjects out.
    """

    share: Share = 0.0
    """Share of photos in the final NeRF's reconstruction, beside pseudo views; 0, as in the paper, uses photos for
    DreamBooth alone."""
    any_prompt: bool = False
    """Reconstruct them whatever the prompt says, and not only for "a photo of a sks dog": right if it adds nothing but
    surroundings, as photos do not show another colour or a hat."""
    begin: Share = 0.3
    """Fraction of the initial phase from which on the initial NeRF reconstructs them too; with 1, it does not."""
    refine: bool = True
    """Optimize these poses together with the NeRF, as bundle adjustment does; the rate is that of the optimizer
    "camera_opt"."""


@dataclass
class PhasesConfig:
    """The stages. A baseline in one stage sets `final.steps` to 0: it trains one NeRF, and D_full guides it."""

    initial: InitialPhaseConfig = field(default_factory=lambda: InitialPhaseConfig(steps=10_000))
    """The initial NeRF, or the only one: score distillation with D_partial, or D_full."""
    pseudo_views: PseudoViewsConfig = field(default_factory=PseudoViewsConfig)
    """The translation of the initial NeRF's renders by the fully tuned guide."""
    posed_photos: PosedPhotosConfig = field(default_factory=PosedPhotosConfig)
    """The reconstruction of the photos themselves."""
    final: NerfPhaseConfig = field(default_factory=lambda: NerfPhaseConfig(steps=10_000))
    """The final NeRF: reconstruction of the pseudo views, and distillation by D_multi."""
    reset_nerf: bool = True
    """Start the final NeRF from scratch, as in the paper. If not, it is a copy of the initial one, and keeps more of it
    where pseudo views are wrong or contradict each other."""
    lr_final_fraction: Positive = 1.0
    """Share of the learning rates that is left at the end of each NeRF's training; they fall exponentially."""
    identifier: str = "sks"
    """The rare word in the prompt that stands for the subject."""
    class_noun: str | None = None
    """What kind of thing the subject is; by default the words after the identifier."""
    dreambooth: DreamBoothConfig = field(default_factory=DreamBoothConfig)
    """Settings of all three fine-tunings."""
    partial_steps: Natural = 150
    """Iterations of D_partial on the photos (150 in the paper); 0 leaves the guide untuned."""
    full_steps: Natural = 800
    """Iterations of D_full on the photos (800 in the paper); 0 leaves the guide untuned."""
    keep_full: bool = True
    """Keep D_full's weights once the pseudo views are made. If not, they are deleted, and D_full is tuned again should
    the pseudo views have to be made again."""
    multiview_steps: Natural = 150
    """Further iterations of D_partial on photos and pseudo views (150 in the paper)."""

    @property
    def one_stage(self) -> bool:
        """Whether there is one NeRF and nothing after it, as in the baselines."""
        return self.final.steps == 0

    @property
    def reconstructs_photos(self) -> bool:
        """Whether the NeRFs reconstruct photos, given a prompt for nothing but the subject."""
        return self.posed_photos.share > 0 and not self.one_stage

    @property
    def full_is_used(self) -> bool:
        """Whether D_full is made: a baseline's NeRF or the translation of renders needs it."""
        return self.full_steps > 0 and (self.one_stage or self.pseudo_views.images is None)

    @property
    def needs_photos(self) -> bool:
        """Whether photos are used; if not, the prompt needs no identifier."""
        return self.full_steps > 0 or not self.one_stage

    def photos_join(self, accumulation: int) -> int | None:
        """The micro-step, first of a step of the optimizers, from which the initial NeRF reconstructs photos, if any.

        Args:
            accumulation: Micro-steps in a step of the optimizers.
        """
        photos, initial = self.posed_photos, self.initial
        if photos.begin == 1 or initial.mesh is not None:
            return None
        return math.ceil(photos.begin * initial.steps / accumulation) * accumulation

    def total_steps(self, ends: Mapping[PhaseName, int] = NO_ENDS) -> int:
        """Micro-steps of the whole run, given the phases that were ended early."""
        initial = ends.get("initial", self.initial.length)
        return ends.get("final", initial + self.final.steps) if not self.one_stage else initial


class Phase(NamedTuple):
    """The phase of a step."""

    name: PhaseName
    start: int
    """The phase's first step."""
    progress: float
    """Fraction of the phase that is done, in [0, 1)."""


def phase_at(config: PhasesConfig, step: int, ends: Mapping[PhaseName, int] = NO_ENDS) -> Phase:
    """The phase of a step; steps beyond the end belong to the last phase.

    Args:
        ends: The steps at which phases were ended early. Schedules keep their planned length, so that steps before an
            early end are the same with or without it.
    """
    name, start, steps = "initial", 0, config.initial.length
    end = ends.get("initial", steps)
    if step >= end and not config.one_stage:
        name, start, steps = "final", end, config.final.steps
    return Phase(name, start, min(step - start, steps - 1) / steps)


def seed_everything(seed: int, step: int) -> None:
    """Make the draws of a step a function of the run's seed and the step, whatever was drawn before."""
    mixed = (seed * 1_000_003 + step) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
