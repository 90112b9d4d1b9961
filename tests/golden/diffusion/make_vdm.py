"""Golden gamma networks and losses of VDM's code, in float64: vdm.npz.

    python make_vdm.py VDM

Needs jax and flax (of chex it takes the name of a type only); VDM is a checkout of
google-research/vdm. Its score model is replaced by a formula, its draws by stored ones (one eps
serves both z_0 and z_t, as in this project), and its bin centres by v / 127.5 - 1.
"""

import functools
import importlib
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

jax.config.update("jax_enable_x64", True)
sys.modules["chex"] = types.SimpleNamespace(Array=jax.Array)
sys.path.insert(0, sys.argv[1])
model_vdm = importlib.import_module("model_vdm")

rng = np.random.default_rng(0)
t = np.linspace(0.0, 1.0, 9)
golden = {"t": t}
ends = {"gamma_min": -13.3, "gamma_max": 5.0}

scalar = {"w": rng.normal(size=1) - 18.0, "b": rng.normal(size=1) - 13.0}
module = model_vdm.NoiseSchedule_Scalar(types.SimpleNamespace(**ends))
golden |= {f"scalar/{name}": value[0] for name, value in scalar.items()}
golden["scalar/gamma"] = module.apply({"params": scalar}, t)

features = 32
network = {
    "l1": {"kernel": np.array([[-15.0]]), "bias": np.array([-12.0])},
    "l2": {"kernel": 4 * rng.normal(size=(1, features)), "bias": rng.normal(size=features)},
    "l3": {"kernel": 10 * rng.normal(size=(features, 1))},
}
module = model_vdm.NoiseSchedule_NNet(types.SimpleNamespace(**ends), n_features=features)
golden |= {
    "network/w": network["l1"]["kernel"][0, 0],
    "network/b": network["l1"]["bias"][0],
    "network/in": network["l2"]["kernel"][0],
    "network/bias": network["l2"]["bias"],
    "network/out": network["l3"]["kernel"][:, 0],
    "network/gamma": module.apply({"params": network}, t),
}


class Score(nn.Module):
    config: object

    def __call__(self, z, gamma, conditioning, deterministic):
        return jnp.tanh(z) + 0.1 * gamma[:, None, None, None]


golden["pixels"] = rng.integers(0, 256, (9, 2, 2, 3))
golden["eps"] = rng.normal(size=golden["pixels"].shape)
model_vdm.ScoreUNet = Score
model_vdm.NoiseSchedule_NNet = functools.partial(model_vdm.NoiseSchedule_NNet, n_features=features)
model_vdm.EncDec.encode = lambda self, x: x.round() / 127.5 - 1.0
jax.random.uniform = lambda key, shape: jnp.asarray(t)
jax.random.normal = lambda key, shape: jnp.asarray(golden["eps"])
for kind, params in (("learnable_scalar", scalar), ("learnable_nnet", network)):
    config = types.SimpleNamespace(
        vocab_size=256, antithetic_time_sampling=False, sm_n_timesteps=0, gamma_type=kind, **ends
    )
    model = model_vdm.VDM(config)
    pixels = jnp.asarray(golden["pixels"], jnp.float64)
    out = model.apply(
        {"params": {"gamma": params}}, pixels, None, rngs={"sample": jax.random.key(0)}
    )
    for part in ("recon", "klz", "diff"):
        golden[f"{kind}/{part}"] = getattr(out, f"loss_{part}")
np.savez_compressed(
    pathlib.Path(__file__).parent / "vdm.npz", **{k: np.asarray(v) for k, v in golden.items()}
)
