"""Captioning: images with captions, a captioner from scratch, CIDEr and BLEU."""

from fewfold.tasks.captioning.build import build_captioner, train_vocabulary
from fewfold.tasks.captioning.cider import Cider, normalized
from fewfold.tasks.captioning.decode import Written, caption
from fewfold.tasks.captioning.images import Captions, read_captions
from fewfold.tasks.captioning.training import train_captioner

__all__ = [
    "Captions",
    "Cider",
    "Written",
    "build_captioner",
    "caption",
    "normalized",
    "read_captions",
    "train_captioner",
    "train_vocabulary",
]
