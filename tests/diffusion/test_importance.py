import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion import PARAMETERIZATIONS
from diffusion.importance import loss_second_moment
from diffusion.objective import Objective
from diffusion.schedules import linear, rectified_flow
from diffusion.time_samplers import Draw
from diffusion.weightings import constant

KEY = jax.random.key(0)
SCHEDULE = linear(timesteps=30)


def at(t):
    return Draw(SCHEDULE.level(jnp.asarray(t)))


@given(
    batches=st.lists(
        st.lists(
            st.tuples(st.integers(0, 4), st.floats(0, 5, allow_subnormal=False)),
            min_size=8,
            max_size=8,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_history_is_the_last_losses_of_each_t(batches):
    """Against a list for each t, one loss after the other."""
    sampler = loss_second_moment(history=3)
    state, lists = sampler.init(SCHEDULE), {t: [] for t in range(5)}
    for batch in batches:
        t, loss = (np.array(column) for column in zip(*batch, strict=True))
        state = sampler.update(state, at(t), jnp.asarray(loss, jnp.float32))
        for index, value in batch:
            lists[index].append(value)
    for t, values in lists.items():
        assert int(state["seen"][t]) == len(values)
        kept = np.sort(state["losses"][t])
        padded = [0.0] * (3 - len(values[-3:])) + values[-3:]
        np.testing.assert_allclose(kept, np.sort(padded), rtol=1e-6, atol=1e-30)


def filled(sampler, scale):
    state = sampler.init(SCHEDULE)
    for _ in range(sampler.history):
        t = jnp.arange(30)
        state = sampler.update(state, at(t), scale * (1.0 + t))
    return state


def test_the_bound_that_is_logged_is_that_of_uniform_time():
    sampler = loss_second_moment(history=1, uniform_share=0.5)
    ours = Objective(
        SCHEDULE,
        PARAMETERIZATIONS["eps"](),
        constant(),
        sampler,
        loss="vlb",
        variance="learned_range",
    )
    x0 = jnp.zeros((16_384, 1, 1, 1))

    def network(x, time, condition):
        return jnp.concatenate([0.5 * x, 0.0 * x], -1)

    each = at(jnp.repeat(jnp.arange(30), 512))
    noise = jax.random.normal(KEY, (len(each.level.t), 1, 1, 1))
    bound = ours.loss_at(network, jnp.zeros_like(noise), None, each, noise)[0].mean()
    state = filled(sampler, 1.0)
    loss, metrics, _ = jax.jit(ours.__call__, static_argnums=0)(network, x0, None, KEY, {}, state)
    assert metrics["vlb_bits"].mean() == pytest.approx(float(bound), rel=0.05)
    assert metrics["vlb_bits"].mean() == pytest.approx(float(loss.mean()))


def test_uniform_until_every_t_has_its_history():
    sampler = loss_second_moment(history=2)
    state = sampler.update(sampler.init(SCHEDULE), at(jnp.arange(30)), 1.0 + jnp.arange(30.0))
    np.testing.assert_allclose(sampler.probabilities(state), 1 / 30)
    drawn = sampler.draw(KEY, 64, SCHEDULE, state)
    np.testing.assert_allclose(drawn.weight, 1.0, rtol=1e-6)


def test_probabilities_follow_the_root_of_the_second_moment():
    sampler = loss_second_moment(history=2, uniform_share=0.1)
    got = sampler.probabilities(filled(sampler, 7.0))
    expected = 0.9 * np.arange(1, 31) / np.sum(np.arange(1, 31)) + 0.1 / 30
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_expected_loss_is_that_of_uniform_sampling():
    sampler = loss_second_moment(history=2)
    drawn = sampler.draw(KEY, 200_000, SCHEDULE, filled(sampler, 1.0))
    t = np.asarray(drawn.level.t)
    loss = np.sin(t)
    assert np.mean(drawn.weight * loss) == pytest.approx(np.sin(np.arange(30)).mean(), abs=0.01)
    # Late steps come more often than early ones, the weight makes up for it.
    assert np.mean(t) > 18


def test_losses_of_zero_leave_it_uniform():
    sampler = loss_second_moment(history=2)
    np.testing.assert_allclose(sampler.probabilities(filled(sampler, 0.0)), 1 / 30)


def test_continuous_time_is_refused():
    with pytest.raises(
        ValueError, match=r"time is continuous\. Use time_sampler 'low_discrepancy'"
    ):
        loss_second_moment().init(rectified_flow())
