import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.schedules import edm, linear, rectified_flow
from diffusion.time_samplers import uniform

KEY = jax.random.key(0)


def test_every_index_is_drawn_equally_often():
    t, weight = uniform()(KEY, 40_000, linear(timesteps=40))
    assert jnp.issubdtype(t.dtype, jnp.integer)
    counts = np.bincount(t, minlength=40)
    assert len(counts) == 40
    # Binomial with mean 1000 and deviation 31.
    assert np.all(abs(counts - 1000) < 5 * 31)
    assert np.all(weight == 1.0)


@pytest.mark.parametrize("schedule", [rectified_flow(margin=0.1), edm()])
def test_continuous_time_stays_in_range(schedule):
    t, weight = uniform()(KEY, 10_000, schedule)
    low, high = schedule.t_range
    assert low <= t.min() < low + 0.01
    assert high - 0.01 < t.max() <= high
    assert t.mean() == pytest.approx((low + high) / 2, abs=0.02)
    assert weight.shape == t.shape


def test_the_key_decides():
    first, again, other = (uniform()(jax.random.key(k), 8, linear())[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
