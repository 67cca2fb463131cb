"""Image metrics per image, and honesty: how true errors compare with certified ones."""

from .honesty import Honesty, honesty
from .image import mse, psnr, ssim

__all__ = ["Honesty", "honesty", "mse", "psnr", "ssim"]
