"""Against Gaussian data N(m, s^2) on the straight path, whose flow map is linear and known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.flow_map import adaptive_loss, meanflow_target, ordered_times, shortcut_target

M, S = 0.3, 0.6
TIMES = ([0.2, 0.5, 0.9, 0.99], [0.1, 0.0, 0.3, 0.99])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def column(values):
    return values[:, None]


def spread(t):
    return jnp.sqrt((1 - t) ** 2 * S**2 + t**2)


def velocity(x, t):
    """v = eps - x0 at the best prediction."""
    t = column(t)
    deviation = (x - (1 - t) * M) / spread(t) ** 2
    return t * deviation - (M + (1 - t) * S**2 * deviation)


def mean_velocity(x, t, h, factor=1.0):
    """(x_t - x_{t-h}) / h of the path through x, and its limit at h = 0."""
    still = h < 1e-8
    h = jnp.where(still, 0.1 * t, h)
    r, t_, h_ = column(t - h), column(t), column(h)
    end = (1 - r) * M + (x - (1 - t_) * M) * spread(r) / spread(t_)
    return factor * jnp.where(column(still), velocity(x, t), (x - end) / h_)


def spoiled(x, t, h):
    return mean_velocity(x, t, h) + 0.1 * jnp.sin(x + column(h)) * column(h)


def points():
    """(x, t, r), x spread as the data's law is at t."""
    t, r = map(jnp.array, TIMES)
    x = column(1 - t) * M + jnp.array([[-1.0, 0.5], [0.3, 2.0]] * 2) * column(spread(t))
    return x, t, r


def test_the_exact_mean_velocity_is_its_own_target():
    x, t, r = points()
    target = meanflow_target(mean_velocity, x, t, r, velocity(x, t))
    np.testing.assert_allclose(target, mean_velocity(x, t, t - r), atol=1e-10)
    off = meanflow_target(spoiled, x, t, r, velocity(x, t)) - spoiled(x, t, t - r)
    assert jnp.abs(off[:3]).max() > 1e-2
    # Where r = t it is flow matching.
    np.testing.assert_array_equal(target[3], velocity(x, t)[3])


def test_meanflows_gradient_over_data_and_noise_vanishes_at_the_exact_one():
    """The velocity of a single pair enters the target linearly, so its mean is what counts."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    data, eps = (jnp.array(a.ravel()[:, None]) for a in np.meshgrid(M + S * nodes, nodes))
    weight = np.outer(weights, weights).ravel() / weights.sum() ** 2
    t, r = jnp.full(len(data), 0.8), jnp.full(len(data), 0.3)
    x = 0.2 * data + 0.8 * eps

    def loss(factor):
        u = lambda x, t, h: mean_velocity(x, t, h, factor)  # noqa: E731
        difference = u(x, t, t - r) - meanflow_target(u, x, t, r, eps - data)
        return weight @ adaptive_loss(difference, 0.0, 0.01)[0]

    assert abs(jax.grad(loss)(1.0)) < 1e-5
    assert jax.grad(loss)(1.1) > 1e-3
    assert jax.grad(loss)(0.9) < -1e-3


def test_a_shortcut_is_two_of_half_its_length():
    x, t, r = (value[:3] for value in points())
    target = shortcut_target(mean_velocity, x, t, t - r)
    np.testing.assert_allclose(target, mean_velocity(x, t, t - r), atol=1e-12)
    off = shortcut_target(spoiled, x, t, t - r) - spoiled(x, t, t - r)
    assert jnp.abs(off).max() > 1e-3


def test_targets_are_not_differentiated():
    def total(scale):
        u = lambda x, t, h: scale * mean_velocity(x, t, h)  # noqa: E731
        x, t, r = points()
        whole = meanflow_target(u, x, t, r, velocity(x, t))
        return whole.sum() + shortcut_target(u, x[:3], t[:3], (t - r)[:3]).sum()

    assert jax.grad(total)(1.0) == 0


def test_clipping_bounds_the_point_between_and_the_target():
    seen = []

    def u(x, t, h):
        seen.append(x)
        return jnp.full_like(x, -100.0)

    target = shortcut_target(
        u, jnp.zeros((2, 1)), jnp.array([0.5, 0.9]), jnp.full(2, 0.2), clip=4.0
    )
    np.testing.assert_array_equal(seen[1], 4.0)
    np.testing.assert_array_equal(target, -4.0)


def test_times_are_ordered_and_equal_in_a_share():
    first, second = jnp.array([0.1, 0.9, 0.4, 0.6]), jnp.array([0.5, 0.2, 0.4, 0.7])
    t, r = ordered_times(first, second, 0.25)
    np.testing.assert_array_equal(t, [0.5, 0.9, 0.4, 0.7])
    np.testing.assert_array_equal(r, [0.5, 0.2, 0.4, 0.6])


def test_adaptive_weight_is_held():
    d = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    loss, square = adaptive_loss(d, 1.0, 0.01)
    np.testing.assert_allclose(loss, [25 / 25.01, 0.0])
    np.testing.assert_allclose(square, [12.5, 0.0])
    gradient = jax.grad(lambda d: adaptive_loss(d, 1.0, 0.01)[0].sum())(d)
    np.testing.assert_allclose(gradient[0], 2 * d[0] / 25.01)
