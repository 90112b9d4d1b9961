"""VDM's network by its own code, for tests/models/test_unet_vdm.py. Needs flax and chex.

    python make_vdm.py VDM

The argument is a checkout of github.com/google-research/vdm. Writes vdm.json (the number of
parameters for CIFAR-10; names and shapes of a smaller network's, in PyTorch's layout) and vdm.npz
(the smaller network's output [batch, height, width, channels], to which it has added its input).
"""

import json
import pathlib
import sys

import generated
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

HERE = pathlib.Path(__file__).parent
CIFAR10 = {"sm_n_embd": 128, "sm_n_layer": 32}
SMALL = {"sm_n_embd": 64, "sm_n_layer": 2}


def network(sm_n_embd: int, sm_n_layer: int):
    """Time runs from 0 to 1; attention is in the middle only, as for CIFAR-10."""
    from model_vdm import ScoreUNet, VDMConfig

    config = VDMConfig(
        vocab_size=256,
        sample_softmax=False,
        antithetic_time_sampling=True,
        with_fourier_features=True,
        with_attention=False,
        gamma_type="fixed",
        gamma_min=0.0,
        gamma_max=1.0,
        sm_n_timesteps=0,
        sm_n_embd=sm_n_embd,
        sm_n_layer=sm_n_layer,
        sm_pdrop=0.1,
    )
    return ScoreUNet(config)


def inputs(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, times and the number that the network is told, which is 0 for all of CIFAR-10."""
    batch = len(generated.TIMES)
    images = generated.images(batch, 3, size).transpose(0, 2, 3, 1)
    return images, np.array(generated.TIMES, "float32") / 1000, np.zeros(batch, "float32")


def shapes(size: int, **settings: int) -> dict[str, tuple[int, ...]]:
    """Of all parameters, in flax's layout."""
    model = network(**settings)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs(size))
    flat = flatten_dict(variables["params"], sep="/")
    return {name: leaf.shape for name, leaf in flat.items()}


def main() -> None:
    count = sum(int(np.prod(shape)) for shape in shapes(32, **CIFAR10).values())
    turned, params = {}, {}
    for name, shape in shapes(8, **SMALL).items():
        module, _, leaf = name.rpartition("/")
        key = f"{module}.{'bias' if leaf == 'bias' else 'weight'}"
        if leaf == "kernel":
            shape = (*shape[:-3:-1], *shape[:-2])  # (*window, in, out) to (out, in, *window)
        turned[key] = shape
        value = generated.tensor(key, shape)
        params[name] = np.moveaxis(value, (0, 1), (-1, -2)) if leaf == "kernel" else value
    variables = {"params": unflatten_dict(params, sep="/")}
    output = np.asarray(network(**SMALL).apply(variables, *inputs(8)))
    print(f"{count} parameters for CIFAR-10; output {output.shape} of std {output.std():.3f}")
    (HERE / "vdm.json").write_text(json.dumps({"cifar10": count, "shapes": turned}))
    np.savez_compressed(HERE / "vdm.npz", output=output)


if __name__ == "__main__":
    sys.path.append(sys.argv[1])
    main()
