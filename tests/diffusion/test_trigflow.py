"""Against Gaussian data N(m, s^2), whose consistency function is known, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.consistency import level_of_sigma
from diffusion.parameterization import EDM
from diffusion.schedules import cosine, edm, rectified_flow
from diffusion.trigflow import angle_of_level, level_of_angle, normalized, scm_loss, tangent

M, S, D = 0.3, 0.6, 0.5
SCHEDULES = [edm(), rectified_flow(), cosine()]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def column(values):
    return values[:, None]


def exact_f(x, angle):
    """The clean end of the path: y - m shrinks from sqrt(s^2 + sigma^2) to s."""
    sigma = D * column(jnp.tan(angle))
    y = x / column(jnp.cos(angle))
    return M + (y - M) * S / jnp.sqrt(S**2 + sigma**2)


def velocity(factor):
    """F of f = cos x - sin sigma_d F; `factor` spoils it."""

    def F(x_scaled, angle):
        x = D * x_scaled
        cos, sin = column(jnp.cos(angle)), column(jnp.sin(angle))
        return factor * (cos * x - exact_f(x, angle)) / (sin * D)

    return F


def slope(x, angle):
    """dx / d angle of the path: cos sigma_d eps - sin x0 at the best prediction."""
    cos, sin = column(jnp.cos(angle)), column(jnp.sin(angle))
    y, sigma = x / cos, D * sin / cos
    x0 = M + S**2 / (S**2 + sigma**2) * (y - M)
    return cos * (y - x0) / (sin / cos) - sin * x0


def points():
    """(x, angle)."""
    angle = jnp.linspace(0.05, 1.5, 8)
    x = M + jnp.array([[-1.0, 0.5], [0.3, 2.0]] * 4)
    return x * column(jnp.cos(angle)) + 0.2 * column(jnp.sin(angle)), angle


def test_the_exact_function_has_no_tangent():
    x, angle = points()
    _, g = tangent(velocity(1.0), x, angle, slope(x, angle), D)
    assert jnp.abs(g).max() < 1e-10
    _, g = tangent(velocity(1.1), x, angle, slope(x, angle), D)
    assert jnp.abs(g).max() > 1e-2


def test_the_loss_has_no_gradient_there_and_has_one_elsewhere():
    x, angle = points()

    def loss(factor):
        return scm_loss(velocity(factor), x, angle, slope(x, angle), D)[0].sum()

    assert abs(jax.grad(loss)(1.0)) < 1e-5
    # Descent leads back.
    assert jax.grad(loss)(1.05) > 1e-2
    assert jax.grad(loss)(0.95) < -1e-2


def test_tangent_is_the_derivative_of_f_along_the_path():
    """g = cos df / d angle, by central differences, of a function that is no solution."""

    def F(x, angle):
        return jnp.sin(x + column(angle)) * x

    def f(x, angle):
        return column(jnp.cos(angle)) * x - column(jnp.sin(angle)) * D * F(x / D, angle)

    (x, angle), h = points(), 1e-5
    dx = jnp.cos(x)
    ahead, behind = f(x + h * dx, angle + h), f(x - h * dx, angle - h)
    value, g = tangent(F, x, angle, dx, D)
    np.testing.assert_allclose(g, column(jnp.cos(angle)) * (ahead - behind) / (2 * h), atol=1e-8)
    np.testing.assert_array_equal(value, F(x / D, angle))
    _, still = tangent(F, x, angle, dx, D, warmup=0.0)
    cos = column(jnp.cos(angle))
    np.testing.assert_allclose(still, -(cos**2) * (D * F(x / D, angle) - dx), rtol=1e-12)


def test_gradient_is_that_of_the_tangent():
    """d loss / dF = -2 g / (|g| + c) / pixels: it does not depend on F but through g."""
    x, angle = points()
    dx = slope(x, angle)
    shift = jnp.zeros_like(x)

    def loss(shift):
        base = velocity(1.2)
        held = jax.lax.stop_gradient(base(x / D, angle))
        # Moves the value and not the derivative.
        moved = lambda x, a: base(x, a) + shift  # noqa: E731
        return scm_loss(moved, x, angle, dx, D, c=0.1)[0].sum() + 0 * held.sum()

    _, g = tangent(velocity(1.2), x, angle, dx, D)
    np.testing.assert_allclose(jax.grad(loss)(shift), -normalized(g, 0.1), rtol=1e-9, atol=1e-12)


def test_normalized_has_unit_size_whatever_the_dimension():
    g = jnp.array([[3.0, -3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(normalized(g, 1.0)[0], 0.75 * jnp.sign(g[0]))
    np.testing.assert_array_equal(normalized(g, 1.0)[1], 0.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_is_edms_preconditioning_on_every_schedule(schedule):
    level = level_of_sigma(schedule, jnp.array([0.05, 0.7, 20.0]))
    angle = angle_of_level(level, D)
    back = level_of_angle(angle, schedule, D)
    np.testing.assert_allclose(back.logsnr, level.logsnr, rtol=1e-9)
    raw, x = jnp.array([[0.3], [-1.0], [2.0]]), jnp.array([[1.0], [0.2], [-0.4]])
    x0, _ = EDM(D).prediction(raw, x, level)
    x_trig = D * x / column(jnp.sqrt(level.sigma**2 + (level.alpha * D) ** 2))
    expected = column(jnp.cos(angle)) * x_trig - column(jnp.sin(angle)) * D * -raw
    np.testing.assert_allclose(x0, expected, rtol=1e-9)
