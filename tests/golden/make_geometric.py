"""Images warped by EDM's AugmentPipe, for tests/input_pipeline/test_geometric.py. Needs torch.

    python make_geometric.py EDM

The argument is a checkout of github.com/NVlabs/edm. The pipe's random numbers are replaced by
those that give the transforms below. Writes geometric.npz: images and outputs [N, channels,
height, width], labels [N, 9], the matrices from output to input [N, 3, 3], and the transforms.
"""

import pathlib
import sys
from unittest import mock

import numpy as np
import torch

# flip x, flip y, scale, rotation, anisotropy, its axis, shift x, shift y of each image.
TRANSFORMS = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1.5, 0, 0, 0, 0, 0],
        [0, 0, -1.2, 0, 0, 0, 0, 0],
        [0, 0, 0, 1.1, 0, 0, 0, 0],
        [0, 0, 0, -2.8, 0, 0, 0, 0],
        [0, 0, 0, 0, 1.3, 0, 0, 0],
        [0, 0, 0, 0, -0.9, 2.1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, -2],
        [0, 0, 0, 0, 0, 0, 0.37, 0.81],
        [1, 0, -0.4, 0.6, 0.8, -1.7, -0.5, 0.9],
        [0, 1, 0.9, -2.2, -1.1, 0.4, 1.4, -0.3],
    ],
    np.float32,
)
HEIGHT, WIDTH = 8, 16


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])


def main() -> None:
    from training.augment import AugmentPipe

    flip_x, flip_y, scale, rotation, anisotropy, axis, *shift = torch.tensor(TRANSFORMS).T
    count = len(TRANSFORMS)
    taken = torch.zeros(count)  # below every probability
    column = lambda x: x.reshape(-1, 1, 1, 1)  # noqa: E731
    unit = lambda angle: (angle / np.pi + 1) / 2  # noqa: E731
    numbers = iter(
        [
            *(column(flip_x), column(taken), column(flip_y), column(taken), scale, taken),
            *(unit(rotation), taken, anisotropy, unit(axis), taken, taken),
            *(torch.stack(shift), taken[None]),
        ]
    )
    seen = {}

    def record(name, function):
        def call(*args, **kwargs):
            seen[name] = args, kwargs
            return function(*args, **kwargs)

        return call

    def draw(*shape, device=None):
        number = next(numbers)
        assert list(number.shape) == list(shape[-1])
        return number

    images = np.random.RandomState(0).uniform(-1, 1, (count, 3, HEIGHT, WIDTH)).astype(np.float32)
    pipe = AugmentPipe(p=0.5, xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1)
    functional = torch.nn.functional
    with (
        mock.patch.multiple(torch, rand=draw, randn=draw, randint=draw),
        mock.patch.object(functional, "pad", record("pad", functional.pad)),
        mock.patch.object(functional, "affine_grid", record("grid", functional.affine_grid)),
    ):
        output, labels = pipe(torch.tensor(images))
    assert not list(numbers)

    # From the matrix over [-1, 1] that the pipe gives to affine_grid, back to pixels.
    left, right, top, bottom = (int(x) for x in seen["pad"][1]["pad"])
    theta, size = seen["grid"][1]["theta"].double().numpy(), seen["grid"][1]["size"]
    theta = np.concatenate([theta, np.tile([[[0, 0, 1]]], (count, 1, 1))], axis=1)
    fine = np.diag([WIDTH + left + right, HEIGHT + top + bottom, 1.0])
    matrix = fine @ theta @ np.diag([2 / size[3], 2 / size[2], 1])
    half = np.diag([0.5, 0.5, 1])
    matrix = half @ translation(0.5, 0.5) @ matrix @ translation(-0.5, -0.5) @ np.linalg.inv(half)
    matrix = translation((right - left) / 2, (bottom - top) / 2) @ matrix
    np.savez_compressed(
        pathlib.Path(__file__).with_name("geometric.npz"),
        images=images,
        transforms=TRANSFORMS,
        output=output.numpy(),
        labels=labels.numpy(),
        inverse=matrix.astype(np.float32),
    )
    print(f"padding {left, right, top, bottom}, output {output.shape} of std {output.std():.3f}")


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    main()
