import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from training import mesh as meshes


def test_minus_one_takes_what_is_left():
    mesh = meshes.make_mesh(data=-1, fsdp=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize("axes", [{"data": 3}, {"data": -1, "fsdp": 3}, {"data": 8, "fsdp": 2}])
def test_wrong_product_names_the_axes(axes):
    with pytest.raises(ValueError, match=r"config\.mesh.*8 devices"):
        meshes.make_mesh(**axes)


def test_two_open_axes_are_refused():
    with pytest.raises(ValueError, match="at most one"):
        meshes.make_mesh(data=-1, fsdp=-1)


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


def test_tensor_takes_output_features_and_fsdp_another_axis():
    mesh = meshes.make_mesh(data=1, fsdp=2, tensor=4)
    sharding = meshes.state_sharding({"w": jnp.zeros((512, 64))}, mesh)
    assert sharding["w"].spec == P("fsdp", "tensor")


def test_batch_is_split_over_data_and_fsdp():
    mesh = meshes.make_mesh(data=2, fsdp=4)
    x = jax.device_put(jnp.arange(16.0), meshes.batch_sharding(mesh))
    assert {s.data.shape for s in x.addressable_shards} == {(2,)}
