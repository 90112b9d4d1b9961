from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from training import ema
from training.components import ConfigError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "training" / "averages.npz")


def rates(rate):
    return np.array([rate(jnp.int32(step)) for step in GOLDEN["steps"]], np.float64)


@pytest.mark.parametrize(
    ("average", "name"),
    [
        *((ema.power(std), f"power_{std}") for std in (0.01, 0.05, 0.1, 0.25)),
        *(
            (ema.halflife(images, rampup, batch_size=48), f"halflife_{images}_{rampup}")
            for images, rampup in ((500_000, 0.05), (2000, 0.05), (2000, None))
        ),
        (ema.warmup_ratio(), "ratio_0.9999"),
        (ema.warmup(), "warmup_0.9999"),
        (ema.warmup(decay=0.99, power=0.75, inv_gamma=2.0), "warmup_0.99_0.75_2"),
    ],
)
def test_decays_are_those_of_edm_edm2_and_diffusers(average, name):
    # Relative to what is left of the decay and to the rate both: each is tiny somewhere.
    np.testing.assert_allclose(rates(average), 1 - GOLDEN[name], rtol=2e-6, atol=1e-12)
    np.testing.assert_allclose(1 - rates(average), GOLDEN[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["warmup", "warmup_ratio", "halflife", "power(std=0.1)"])
def test_first_update_copies_the_parameters(name):
    (rate,) = ema.make_emas(ConfigDict({"a": name}), batch_size=8).values()
    assert float(rate(jnp.int32(1))) == 1
    assert 0 < float(rate(jnp.int32(2))) < 1


def test_constant_has_all_digits_of_its_rate():
    np.testing.assert_allclose(ema.constant(0.9999)(jnp.int32(1)), 1e-4, rtol=1e-6)


def test_half_of_the_weight_lies_within_the_halflife():
    rate = ema.halflife(images=400, rampup=None, batch_size=8)
    average = 1.0
    for step in range(1, 51):
        average *= 1 - float(rate(jnp.int32(step)))
    assert average == pytest.approx(0.5, rel=1e-5)


def test_power_average_of_time_has_the_mean_and_deviation_of_its_profile():
    rate, std, steps = ema.power(0.1), 0.1, 4000
    first = second = 0.0
    for step in range(1, steps + 1):
        share = 1 - (1 - 1 / step) ** (ema.posthoc.exponent(std) + 1)
        first += share * (step - first)
        second += share * (step**2 - second)
    assert np.sqrt(second - first**2) / steps == pytest.approx(std, rel=1e-3)
    assert float(rate(jnp.int32(steps))) == pytest.approx(share, rel=1e-6)


def test_each_average_moves_by_its_own_rate():
    config = ConfigDict({"slow": "constant(decay=0.75)", "now": "constant(decay=0.0)"})
    averages = {"slow": {"w": jnp.zeros(2)}, "now": {"w": jnp.zeros(2)}}
    params = {"w": jnp.array([4.0, 8.0])}
    new = ema.update(averages, params, ema.make_emas(config, batch_size=1), jnp.int32(1))
    np.testing.assert_allclose(new["slow"]["w"], [1, 2])
    np.testing.assert_allclose(new["now"]["w"], [4, 8])


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("power", r"write power\(std=\.\.\.\)"),
        ("power(std=0.3)", r"config\.ema\.a = .*std must be above 0 and at most 0\.2887, got 0\.3"),
        ("power(std=0.0)", "std must be above 0"),
        ("halflife(images=0)", "images and rampup must be above 0"),
        ("halflife(batch_size=3)", "no argument 'batch_size'"),
        ("warmup(power=0.0)", "power and inv_gamma must be above 0"),
        ("warmup(decay=1.0)", r"decay must be in \[0, 1\)"),
    ],
)
def test_wrong_arguments(string, message):
    with pytest.raises(ConfigError, match=message):
        ema.make_emas(ConfigDict({"a": string}), batch_size=8)
