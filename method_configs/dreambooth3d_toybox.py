"""DreamBooth3D in the world of toys: the embedded guide, no download, a CPU is enough."""

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.method_configs.dreambooth3d import make_config
from db3d_nerfstudio.nerf.field import GridFieldConfig
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig

config = make_config()
config.method_name = "dreambooth3d-toybox"
config.example = True

model = config.pipeline.model
# Custom Diffusion (Kumari et al. 2023, arXiv 2212.04488): photos of the front then change all sides.
text_readers = ("attn2.to_k", "attn2.to_v")
model.guide = ToyboxGuideConfig(tuning="lora", lora_rank=16, lora_targets=text_readers, train_text_encoder=True)
model.field = GridFieldConfig(resolutions=(16, 32))  # At 64 x 64 pixels, finer vertices only make surfaces rough.
model.background.color = (0.5, 0.5, 0.5)  # White recalls a photo in front of white, and the side that it shows.
model.sds.guidance_scale = 3.0  # At 8, colours come off the palette and surfaces become rough.
model.sds.noise_range_start = (0.75, 0.97)  # Only high noise hides a shape, so only there can it change.
model.sds.noise_range_end = (0.55, 0.9)
model.recon_loss_mult = 50.0  # Far below, the final NeRF ignores the pseudo views.
model.perceptual_loss_mult = 5.0  # Without, what pseudo views disagree on is blurred.
shading = model.shading  # The light of the guide's training pictures.
shading.ambient, shading.diffuse, shading.light_distance, shading.textureless_prob = 0.55, 0.45, (3.0, 5.0), 0.2

cameras = config.pipeline.datamanager.random_cameras
cameras.elevation_range = (-10.0, 45.0)  # No photo shows the subject from above, so the tuned guide cannot either.
cameras.position_jitter = cameras.center_jitter = cameras.up_jitter = 0.0  # As in the guide's training pictures.

phases = config.pipeline.phases
phases.initial.steps = phases.final.steps = 1500
phases.initial.mesh_steps = 600  # A fit at 64 x 64 pixels needs few.
phases.lr_final_fraction = 0.1  # Smoother surfaces.
phases.partial_steps, phases.full_steps, phases.multiview_steps = 300, 400, 75  # Adapters need no more.
phases.posed_photos.share = 0.5
phases.pseudo_views.steps = 25
phases.pseudo_views.strength = 0.6  # Above, the guide turns renders to the sides of the photos.
phases.pseudo_views.guidance_scale = 2.0  # From 4 on, coloured specks around the subject.
phases.pseudo_views.margin = 0.06  # Beyond, the guide tints the background.

dreambooth = phases.dreambooth
dreambooth.view_words = "guess"  # Without, the subject has no side, and the name of a side means the plain class.
dreambooth.learning_rate = 2e-3  # Few weights are trained.
dreambooth.prior_loss_weight = 0.0  # It takes from the back what the photos of the front do not show of it.
dreambooth.ema_decay = 0.99  # The last weights of batches of two are noisy.

method = MethodSpecification(config, description="DreamBooth3D on a CPU in minutes: the embedded guide of toys.")
