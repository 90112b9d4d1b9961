import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import PARAMETERIZATIONS, SCHEDULES, TIME_SAMPLERS, Objective
from diffusion.gaussian import full_chain, q_sample
from diffusion.objective import vlb_term
from diffusion.schedules import cosine, edm, linear, rectified_flow
from diffusion.time_samplers import Draw, OfTime
from diffusion.weightings import constant, min_snr

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/diffusion/openai.npz")
KEY = jax.random.key(0)


def objective(schedule=None, kind="eps", loss="simple", weighting=None, **kwargs):
    return Objective(
        schedule or linear(),
        PARAMETERIZATIONS[kind](),
        weighting or constant(),
        TIME_SAMPLERS["uniform"](),
        loss=loss,
        variance="fixed" if loss == "simple" else "learned_range",
        **kwargs,
    )


def linear_network(scale, v=None):
    """scale x, and v x for the variance's channels."""

    def network(x, time, condition):
        return scale * x if v is None else jnp.concatenate([scale * x, v * x], -1)

    return network


def at(t, schedule=None):
    return Draw((schedule or linear()).level(t))


def images(batch=4):
    return jax.random.uniform(KEY, (batch, 4, 4, 3), minval=-1.0, maxval=1.0)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize(("mean", "kind"), [("EPSILON", "eps"), ("START_X", "x0")])
@pytest.mark.parametrize(("loss", "theirs"), [("hybrid", "RESCALED_MSE"), ("vlb", "RESCALED_KL")])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_losses_of_openai(name, mean, kind, loss, theirs, dtype, tolerance):
    """Terms at t = 0 (decoder) and t > 0 (KL) with its tanh likelihood."""
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance / 1e3)
    key = f"train/{name}/{mean}"
    with jax.enable_x64(dtype == "float64"):
        x0, eps = (jnp.asarray(GOLDEN[f"train/{k}"], dtype) for k in ("x0", "eps"))
        fraction = GOLDEN["train/out"][..., 3:]
        raw = jnp.asarray(np.concatenate([GOLDEN[f"{key}/raw"], fraction], -1), dtype)
        ours = objective(SCHEDULES[name](), kind, loss, likelihood="tanh")
        drawn = Draw(ours.schedule.level(jnp.asarray(GOLDEN["train/t"])))
        total, metrics = ours.loss_at(lambda x, time, condition: raw, x0, None, drawn, eps)
        assert total.dtype == dtype
        scale = 1000 if loss == "vlb" else 1
        close(total / scale, GOLDEN[f"{key}/{theirs}/loss"] / scale)
        if loss == "hybrid":
            close(metrics["mse"], GOLDEN[f"{key}/{theirs}/mse"])
            close(metrics["vlb_bits"] / 1000, GOLDEN[f"{key}/{theirs}/vb"])


def test_simple_is_the_mean_squared_error():
    x0, t, eps = images(), jnp.array([0, 10, 500, 999]), jax.random.normal(KEY, (4, 4, 4, 3))
    loss, metrics = objective().loss_at(linear_network(0.5), x0, None, at(t), eps)
    z = q_sample(x0, eps, linear().level(t))
    np.testing.assert_allclose(loss, np.mean((eps - 0.5 * z) ** 2, (1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(metrics["mse"], loss)


@pytest.mark.parametrize("schedule", [linear(), cosine(), rectified_flow(), edm()])
def test_finite_for_every_parameterization_and_weighting(schedule):
    """From one end of time to the other, with its gradient."""
    t = jnp.linspace(*schedule.t_range, 16)
    x0, eps = images(16), jax.random.normal(KEY, (16, 4, 4, 3))

    def losses(scale):
        return [
            objective(schedule, kind, weighting=weighting)
            .loss_at(linear_network(scale), x0, None, at(t, schedule), eps)[0]
            .mean()
            for kind in PARAMETERIZATIONS
            for weighting in (constant(), min_snr())
        ]

    for value in jax.jit(lambda x: jax.jvp(losses, (x,), (1.0,)))(0.3):
        assert np.all(np.isfinite(value))


def test_same_weighting_same_loss_whatever_is_predicted():
    """Nets of one denoiser have one weighted loss under a weighting other than 'constant'."""
    schedule, t = linear(), jnp.array([50, 300, 700, 900])
    x0, eps = images(), jax.random.normal(KEY, (4, 4, 4, 3))
    level = schedule.level(t)
    z = q_sample(x0, eps, level)
    x0_hat = 0.5 * x0
    eps_hat = (z - level.like(z).alpha * x0_hat) / level.like(z).sigma
    losses = []
    for kind, make in PARAMETERIZATIONS.items():
        raw = make().target(x0_hat, eps_hat, level)
        ours = objective(schedule, kind, weighting=min_snr())
        losses.append(ours.loss_at(lambda *_, r=raw: r, x0, None, at(t), eps)[0])
    expected = np.minimum(np.exp(level.logsnr), 5.0) * np.mean((x0 - x0_hat) ** 2, (1, 2, 3))
    for loss in losses:
        np.testing.assert_allclose(loss, expected, rtol=2e-3)


def test_hybrid_detaches_the_mean_and_vlb_does_not():
    def loss(name, mean, v):
        network = linear_network(mean, v)
        t, eps = jnp.array([0, 1, 500, 999]), jax.random.normal(KEY, (4, 4, 4, 3))
        if name == "bound":
            _, metrics = objective(loss="hybrid").loss_at(network, images(), None, at(t), eps)
            return metrics["vlb_bits"].sum()
        return objective(loss=name).loss_at(network, images(), None, at(t), eps)[0].sum()

    slopes = {
        name: jax.jit(jax.grad(functools.partial(loss, name), (0, 1)))(0.9, 0.1)
        for name in ("bound", "vlb", "hybrid")
    }
    assert slopes["bound"][0] == 0.0
    assert slopes["bound"][1] != 0.0
    assert slopes["vlb"][0] != 0.0
    assert slopes["vlb"][1] == pytest.approx(float(slopes["bound"][1]), rel=1e-5)
    # In the hybrid loss the mean's slope is that of the squared error alone.
    t, eps = jnp.array([0, 1, 500, 999]), jax.random.normal(KEY, (4, 4, 4, 3))
    mse = jax.grad(
        lambda m: objective().loss_at(linear_network(m), images(), None, at(t), eps)[0].sum()
    )(0.9)
    assert slopes["hybrid"][0] == pytest.approx(float(mse), rel=1e-5)


def test_hybrid_factor_is_t_over_1000():
    for timesteps in (250, 1000, 4000):
        ours = objective(linear(timesteps=timesteps), loss="hybrid")
        loss, metrics, _ = ours(linear_network(1.0, 1.0), images(), None, KEY)
        np.testing.assert_allclose(loss - metrics["mse"], metrics["vlb_bits"] / 1000, rtol=1e-3)


def test_vlb_of_a_perfect_model_is_the_kl_of_its_variance():
    """x0_hat = x0 and the posterior's own variance: every KL is 0."""
    chain, t = full_chain(linear()), jnp.array([1, 5, 500, 999])
    x0 = images()
    log_variance = jnp.asarray(chain.log_small, jnp.float32)[t][:, None, None, None]
    np.testing.assert_array_equal(vlb_term(x0, x0, log_variance, t, chain), 0.0)


def test_best_decoder_terms():
    """The t = 0 term of a perfect prediction: 1.71 bits with beta_0, 1.31 with beta~_1."""
    chain = full_chain(linear())
    x0 = jnp.round((images(1) + 1.0) * 127.5) / 127.5 - 1.0
    x0 = jnp.clip(x0, -0.9, 0.9)  # no open-ended bins
    t = jnp.zeros(1, int)
    for log_variance, bits in ((chain.log_large[0], 1.71), (chain.log_small[0], 1.31)):
        term = vlb_term(x0, x0, jnp.full((1, 1, 1, 1), log_variance), t, chain)
        assert term[0] == pytest.approx(bits, abs=0.02)


@pytest.mark.parametrize("kind", ["eps", "edm"])
def test_vlb_gradients_are_finite_at_every_t(kind):
    """An untrained network, far off at t = 0 and of huge x0 at t = T - 1."""
    t = jnp.array([0, 1, 2, 3998, 3999])
    eps = jax.random.normal(KEY, (5, 4, 4, 3))

    def loss(params):
        ours = objective(cosine(timesteps=4000), kind, "vlb")
        drawn = at(t, ours.schedule)
        return ours.loss_at(linear_network(*params), images(5), None, drawn, eps)[0].sum()

    value, slopes = jax.jit(jax.value_and_grad(loss))((0.1, 0.2))
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(s) for s in slopes)


def test_condition_and_time_reach_the_network():
    seen = {}

    def network(x, time, condition):
        seen.update(x=x, time=time, condition=condition)
        return x

    label = {"label": jnp.arange(4)}
    t = jnp.array([0, 1, 2, 3999])
    ours = objective(linear(timesteps=4000))
    ours.loss_at(network, images(), label, at(t, ours.schedule), jnp.zeros((4, 4, 4, 3)))
    np.testing.assert_allclose(seen["time"], t * 0.25)
    assert seen["condition"] is label


def test_a_samplers_weight_multiplies_the_loss_and_what_is_logged():
    class Doubled(OfTime):
        def draw(self, *arguments):
            drawn = super().draw(*arguments)
            return drawn._replace(weight=2.0 * drawn.weight)

    plain = objective()
    doubled = Doubled(False, lambda u: u)
    weighted = Objective(plain.schedule, plain.parameterization, plain.weighting, doubled)
    loss, metrics, _ = plain(linear_network(1.0), images(), None, KEY)
    loss2, metrics2, _ = weighted(linear_network(1.0), images(), None, KEY)
    np.testing.assert_allclose(loss2, 2.0 * loss)
    np.testing.assert_array_equal(metrics2["mse"], 2.0 * metrics["mse"])


@pytest.mark.parametrize("name", [n for n in TIME_SAMPLERS if not TIME_SAMPLERS[n]().uniform])
@pytest.mark.parametrize("loss", ["hybrid", "vlb", "vdm"])
def test_a_bound_is_a_mean_over_uniform_time(loss, name):
    discrete = loss != "vdm"
    with pytest.raises(ValueError, match=f"loss='{loss}' is a bound.*'low_discrepancy'"):
        Objective(
            linear() if discrete else SCHEDULES["vdm"](),
            PARAMETERIZATIONS["eps"](),
            constant(),
            TIME_SAMPLERS[name](),
            loss=loss,
            variance="learned_range" if discrete else "fixed",
        )


@pytest.mark.parametrize(
    ("schedule", "loss", "variance", "message"),
    [
        (linear(), "hybrid", "fixed", "loss='hybrid' with variance='fixed'"),
        (linear(), "simple", "learned_range", "'simple' and 'vdm' train no variance"),
        (rectified_flow(), "vlb", "learned_range", "discrete vp chain.*scaling='flow'"),
        (edm(), "hybrid", "learned_range", "scaling='ve', num_timesteps=None"),
        (linear(), "hibrid", "learned_range", "loss='hibrid'.*did you mean 'hybrid'"),
        (linear(), "vlb", "learned", "variance='learned'.*did you mean 'learned_range'"),
    ],
)
def test_impossible_objectives(schedule, loss, variance, message):
    with pytest.raises(ValueError, match=message):
        Objective(
            schedule,
            PARAMETERIZATIONS["eps"](),
            constant(),
            TIME_SAMPLERS["uniform"](),
            loss=loss,
            variance=variance,
        )


def test_wrong_channels_are_named():
    with pytest.raises(ValueError, match=r"\(4, 4, 4, 3\), wanted \(4, 4, 4, 6\)"):
        objective(loss="hybrid")(linear_network(1.0), images(), None, KEY)
