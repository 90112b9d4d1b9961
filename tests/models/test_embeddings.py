import jax.numpy as jnp
import numpy as np
import pytest

from models.embeddings import sinusoidal


@pytest.mark.parametrize(("order", "steps"), [("ddpm", 15), ("adm", 16)])
def test_closed_form(order, steps):
    time = np.array([0.0, 1.0, 2.5, 37.0])
    angle = time[:, None] * 10_000.0 ** (-np.arange(16) / steps)
    sine, cosine = np.sin(angle), np.cos(angle)
    expected = np.concatenate([sine, cosine] if order == "ddpm" else [cosine, sine], axis=1)
    np.testing.assert_allclose(sinusoidal(jnp.array(time), 32, order), expected, atol=3e-6)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32, jnp.bfloat16])
def test_float32_whatever_time_is(dtype):
    assert sinusoidal(jnp.array([3], dtype), 8, "adm").dtype == jnp.float32


def test_unknown_order():
    with pytest.raises(ValueError, match="'ddpm' and 'adm'"):
        sinusoidal(jnp.zeros(1), 8, "vdm")
