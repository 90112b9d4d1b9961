import jax.numpy as jnp
import numpy as np

from diffusion.pixels import to_model, to_uint8

ALL = np.arange(256, dtype=np.uint8)


def test_round_trip_of_all_values():
    x = to_model(ALL)
    assert x.dtype == jnp.float32
    assert (x[0], x[255]) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(x), ALL)


def test_rounds_to_nearest_and_clips():
    """Trap: truncation of (x + 1) 127.5 would lose half a value on average."""
    x = to_model(ALL)
    for offset in (-0.49, 0.49):
        np.testing.assert_array_equal(to_uint8(x + offset / 127.5), ALL)
    np.testing.assert_array_equal(to_uint8(jnp.array([-3.0, 3.0, 1.004])), [0, 255, 255])
    assert to_uint8(x).dtype == jnp.uint8
