import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import PARAMETERIZATIONS, classifier_free, denoiser
from diffusion.schedules import edm, linear

X = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
LABELS = {"label": jnp.array([0, 1, 2])}
NULL = {"label": 9}


def network(calls, learned=False):
    def apply(x, time, condition):
        calls.append(x.shape)
        scale = jnp.cos(1.0 + condition["label"] + 1e-3 * time)[:, None, None, None]
        return jnp.concatenate([scale * x, scale + 0 * x], -1) if learned else scale * x

    return apply


@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
@pytest.mark.parametrize("schedule", [linear(), edm()])
@pytest.mark.parametrize("scale", [0.0, 3.0, jnp.array([0.5, 1.0, 4.0])])
def test_is_the_affine_combination_in_one_call(kind, schedule, scale):
    calls = []
    plain = denoiser(network(calls), schedule, PARAMETERIZATIONS[kind]())
    level = schedule.level(jnp.array([0.1, 0.4, 0.5]) * schedule.t_range[1])
    got = classifier_free(plain, NULL, scale)(X, level, LABELS)
    assert calls == [(6, 4, 4, 2)]
    conditional, null = (plain(X, level, label) for label in (LABELS, {"label": jnp.full(3, 9)}))
    s = jnp.reshape(scale, (-1, 1, 1, 1))
    np.testing.assert_allclose(
        got.eps, null.eps + s * (conditional.eps - null.eps), rtol=1e-5, atol=1e-5
    )
    # x0 and eps still make up x.
    wide = level.like(X)
    np.testing.assert_allclose(
        (wide.alpha * got.x0 + wide.sigma * got.eps - X) / jnp.maximum(wide.sigma, 1.0),
        0.0,
        atol=1e-4,
    )


def test_scale_one_is_off_and_costs_nothing():
    calls = []
    plain = denoiser(network(calls), linear(), PARAMETERIZATIONS["eps"]())
    assert classifier_free(plain, NULL, 1.0) is plain
    level = linear().level(jnp.asarray(300))
    traced = jax.jit(lambda s: classifier_free(plain, NULL, s)(X, level, LABELS).x0)
    np.testing.assert_allclose(traced(1.0), plain(X, level, LABELS).x0, rtol=1e-5, atol=1e-5)
    # Another scale is the same program.
    traced(2.5)
    assert traced._cache_size() == 1


def test_learned_variance_is_that_of_the_condition():
    plain = denoiser(network([], True), linear(), PARAMETERIZATIONS["eps"](), learned_variance=True)
    level = linear().level(300)
    got = classifier_free(plain, NULL, 4.0)(X, level, LABELS)
    np.testing.assert_allclose(
        got.variance_fraction, plain(X, level, LABELS).variance_fraction, rtol=1e-6
    )


def test_guidance_without_a_condition():
    plain = denoiser(network([]), linear(), PARAMETERIZATIONS["eps"]())
    with pytest.raises(ValueError, match="needs a condition"):
        classifier_free(plain, NULL, 2.0)(X, linear().level(3), None)
