import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

import models
from configs import networks
from training import mesh as meshes
from training import partition

VECTORS = ("prior", "autoregressive_prior", "linear_prior", "mlp_prior")
# Of the large parameters of each network, as its config has them by default, how many lie over
# tensor and how many are in WHOLE_OVER_TENSOR.
COVERED = {
    "unet": (80, 19),
    "song_unet": (113, 20),
    "dhariwal_unet": (154, 19),
    "edm2_unet": (138, 21),
    "dit": (7, 2),
    "unet_encoder": (93, 4),
    "unclip_decoder": (181, 22),
    "unclip_dit": (7, 2),
    "clip": (9, 5),
    "prior": (6, 6),
    "autoregressive_prior": (4, 7),
    "linear_prior": (0, 1),
    "mlp_prior": (2, 2),
}


def parameters(name, **changed):
    """Shapes of a network at the size that its config has by default."""
    fields = networks.FIELDS[name]().to_dict() | changed
    del fields["name"]
    if name not in VECTORS:
        outputs = {"clip": fields.get("embedding_dim"), "unet_encoder": 1000}.get(name, 3)
        size = {"clip": 224, "dit": 32, "unclip_dit": 32}.get(name, 64)
        fields |= {"in_channels": 3, "out_channels": outputs, "image_size": size}
    network = models.MODELS[name](**fields)
    tree = jax.eval_shape(network.init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {partition.name(path): leaf.shape for path, leaf in leaves}


def large(shapes):
    """Parameters that are worth to be split, by the size of a layer."""
    return [
        path
        for path, shape in shapes.items()
        if math.prod(partition.layer_shape(path, shape)) >= partition.MIN_SHARDED_SIZE
    ]


def covered(shapes):
    """How many large parameters lie over tensor, and how many are named exceptions."""
    ruled, whole = [], []
    for path in large(shapes):
        excepted = [p for p in partition.WHOLE_OVER_TENSOR if re.search(rf"(^|/)({p})$", path)]
        axis = partition.tensor_axis(path)
        assert (axis is None) == bool(excepted), f"{path}: axis {axis}, exceptions {excepted}"
        (ruled if excepted == [] else whole).append(path)
    return len(ruled), len(whole)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_large_kernel_has_a_rule_or_is_a_named_exception(name):
    assert covered(parameters(name)) == COVERED[name]


def test_those_of_spatial_transformers_have_too():
    """Twice q, kv and projection, and two layers, in place of qkv, context and projection."""
    small = {"channels": 256, "channel_mult": (1, 2), "num_res_blocks": 1, "text_depth": 1}
    small["attention_resolutions"] = (32,)
    kv, cross = (
        covered(parameters("unclip_decoder", context=context, **small))
        for context in ("kv", "cross")
    )
    attended = 1 + 2 + 1
    # Whole are the layers in and out of each.
    assert cross == (kv[0] + attended * (8 - 3), kv[1] + attended * 2)


def test_parameters_are_split_over_their_largest_axis_and_small_ones_kept_whole():
    mesh = meshes.make_mesh(data=2, fsdp=4)
    tree = {
        "conv": jnp.zeros((3, 3, 64, 128)),
        "down": jnp.zeros((256, 64)),
        "bias": jnp.zeros((128,)),
        "odd": jnp.zeros((131, 127)),
        "step": jnp.zeros(()),
    }
    specs = jax.tree.map(lambda s: s.spec, meshes.state_sharding(tree, mesh))
    assert specs == {
        "conv": P(None, None, None, "fsdp"),
        "down": P("fsdp"),
        "bias": P(),
        "odd": P(),
        "step": P(),
    }


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        # Columns and rows, fsdp over the largest axis that is left.
        ("middle/0/residual/conv1/kernel", (3, 3, 64, 128), P(None, None, "fsdp", "tensor")),
        ("middle/0/residual/conv2/kernel", (3, 3, 128, 64), P(None, None, "tensor", "fsdp")),
        ("blocks/attention/qkv/kernel", (2, 128, 384), P(None, "fsdp", "tensor")),
        ("blocks/attention/projection/kernel", (2, 128, 128), P(None, "tensor", "fsdp")),
        # A stack is never cut between its layers, and its size is that of a layer.
        ("blocks/mlp1/kernel", (4096, 128, 512), P(None, "fsdp", "tensor")),
        ("blocks/mlp1/bias", (4096, 512), P()),
        ("encoder/1/blocks/0/attention/qkv/kernel", (64, 256), P("fsdp", "tensor")),
        # Rows that tensor does not divide are left whole there.
        ("middle/0/residual/conv2/kernel", (3, 3, 42, 128), P(None, None, None, "fsdp")),
        ("decoder/0/blocks/0/residual/shortcut/kernel", (512, 64), P("fsdp")),
    ],
)
def test_rules(path, shape, expected):
    assert partition.spec(path, shape, fsdp=2, tensor=4) == expected


def test_moments_and_averages_lie_like_their_parameter():
    params = {"blocks": {"mlp2": {"kernel": jnp.zeros((2, 512, 128)), "bias": jnp.zeros(512)}}}
    state = {"params": params, "adam": optax.adamw(1.0).init(params), "ema": {"slow": params}}
    mesh = meshes.make_mesh(data=1, fsdp=2, tensor=4)
    leaves = jax.tree_util.tree_leaves_with_path(meshes.state_sharding(state, mesh))
    kernels = [s.spec for path, s in leaves if partition.name(path).endswith("kernel")]
    assert kernels == 4 * [P(None, "tensor", "fsdp")]
    assert len(leaves) == 4 * 2 + 1
