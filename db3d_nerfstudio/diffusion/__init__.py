"""Functions over any guide, each written once: score distillation, sampling, translation, DreamBooth."""

from db3d_nerfstudio.diffusion.denoising import denoising_errors as denoising_errors
from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig as DreamBoothConfig
from db3d_nerfstudio.diffusion.dreambooth import finetune as finetune
from db3d_nerfstudio.diffusion.guidance import Conditioning as Conditioning
from db3d_nerfstudio.diffusion.guidance import PerpNeg as PerpNeg
from db3d_nerfstudio.diffusion.guidance import add_noise as add_noise
from db3d_nerfstudio.diffusion.guidance import guided_noise as guided_noise
from db3d_nerfstudio.diffusion.prior import class_images as class_images
from db3d_nerfstudio.diffusion.prompt_bank import PromptBank as PromptBank
from db3d_nerfstudio.diffusion.sampling import SamplingConfig as SamplingConfig
from db3d_nerfstudio.diffusion.sampling import TranslationConfig as TranslationConfig
from db3d_nerfstudio.diffusion.sampling import draw as draw
from db3d_nerfstudio.diffusion.sampling import sample as sample
from db3d_nerfstudio.diffusion.sampling import translate as translate
from db3d_nerfstudio.diffusion.sds import Distillation as Distillation
from db3d_nerfstudio.diffusion.sds import SDSConfig as SDSConfig
from db3d_nerfstudio.diffusion.sds import sds_loss as sds_loss
from db3d_nerfstudio.diffusion.training_set import Prior as Prior
from db3d_nerfstudio.diffusion.training_set import TrainingSet as TrainingSet
from db3d_nerfstudio.diffusion.tuner import SubjectTuner as SubjectTuner
from db3d_nerfstudio.diffusion.tuner import save_checked as save_checked
from db3d_nerfstudio.diffusion.upscaler import Upscaler as Upscaler
from db3d_nerfstudio.diffusion.upscaler import UpscalerConfig as UpscalerConfig
