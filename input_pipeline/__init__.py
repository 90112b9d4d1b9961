"""Examples from disk or generator to sharded device batches."""

from input_pipeline.augment import flip, random_crop
from input_pipeline.device import device_batches
from input_pipeline.geometric import edm
from input_pipeline.loader import make_loader
from input_pipeline.sources.digits import digits
from input_pipeline.sources.folder import folder
from input_pipeline.sources.gaussian_pairs import gaussian_pairs
from input_pipeline.sources.mixture import mixture
from input_pipeline.sources.records import records
from input_pipeline.sources.shapes import shapes
from input_pipeline.sources.tfds import tfds
from input_pipeline.tokenizer import TOKENIZERS

SOURCES = {
    "digits": digits,
    "folder": folder,
    "gaussian_pairs": gaussian_pairs,
    "mixture": mixture,
    "records": records,
    "shapes": shapes,
    "tfds": tfds,
}
AUGMENTATIONS = {"flip": flip, "random_crop": random_crop}
# Inside the training step: (images, key) -> (images, labels of what was done to each).
DEVICE_AUGMENTATIONS = {"edm": edm}

__all__ = [
    "AUGMENTATIONS",
    "DEVICE_AUGMENTATIONS",
    "SOURCES",
    "TOKENIZERS",
    "device_batches",
    "make_loader",
]
