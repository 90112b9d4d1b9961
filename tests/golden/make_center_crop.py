"""Makes center_crop.npz with ADM's own `center_crop_arr`.

    git clone https://github.com/openai/guided-diffusion
    python make_center_crop.py guided-diffusion/guided_diffusion/image_datasets.py

Only that function is taken from the file, so neither torch nor MPI is needed. Made with Pillow 13.
"""

import ast
import pathlib
import sys

import numpy as np
from PIL import Image

tree = ast.parse(pathlib.Path(sys.argv[1]).read_text())
tree.body = [node for node in tree.body if getattr(node, "name", "") == "center_crop_arr"]
scope = {"np": np, "Image": Image}
exec(compile(tree, sys.argv[1], "exec"), scope)

arrays = {}
# Height and width: wide and tall, odd, below the target, twice and many times the target.
for height, width, size in ((37, 53, 16), (90, 41, 16), (11, 9, 16), (32, 40, 16), (66, 67, 16)):
    y, x = np.mgrid[:height, :width]
    waves = [128 + 127 * np.sin(x * a + y * b) for a, b in ((0.9, 0.2), (0.1, 0.5), (2.0, 1.7))]
    image = np.stack(waves, axis=-1).astype(np.uint8)
    arrays[f"in_{height}x{width}"] = image
    arrays[f"out_{height}x{width}"] = scope["center_crop_arr"](Image.fromarray(image), size)
np.savez_compressed(pathlib.Path(__file__).with_name("center_crop.npz"), **arrays)
