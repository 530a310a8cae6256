"""Detectors that train a network on good images: the loop, its images, and one file for each paper."""

from flawmap.detectors.trained.detector import TrainedDetector
from flawmap.detectors.trained.ganomaly import GANomaly
from flawmap.detectors.trained.itae import ITAE
from flawmap.detectors.trained.patch_svdd import PatchSVDD
from flawmap.detectors.trained.vae import VAE

__all__ = ["ITAE", "VAE", "GANomaly", "PatchSVDD", "TrainedDetector"]
