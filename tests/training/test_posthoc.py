"""Power-function averages of other widths, made after training."""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from training import checkpoints, ema, mesh, posthoc, state
from training.components import ConfigError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "training" / "averages.npz")
STEPS, KEPT = 1600, 16
TRACKED = {"short": 0.05, "long": 0.1}
DIRECT = (0.04, 0.06, 0.08, 0.12, 0.15, 0.2)
# Widths that Karras et al. reconstruct nearly perfectly from 160 averages or more (C.5).
PAPER_RANGE = (0.015, 0.25)


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.25])
def test_exponent_is_edm2s(std):
    assert posthoc.exponent(std) == pytest.approx(float(GOLDEN[f"exponent_{std}"]), rel=1e-9)


@given(st.floats(0.001, posthoc.MAX_STD))
def test_exponent_has_the_deviation_that_was_asked_for(std):
    gamma = posthoc.exponent(std)
    assert gamma > -1e-6
    deviation = ((gamma + 1) / (gamma + 2) ** 2 / (gamma + 3)) ** 0.5
    assert deviation == pytest.approx(std, rel=1e-6)


@pytest.mark.parametrize("case", ["even", "uneven", "one"])
def test_weights_are_edm2s(case):
    times, stds = GOLDEN[f"{case}_times"], GOLDEN[f"{case}_stds"]
    for std, expected in zip(GOLDEN["wanted"], GOLDEN[f"{case}_weights"].T, strict=True):
        found = posthoc.Reconstruction(
            times.tolist(), stds.tolist(), int(times[-1]), float(std)
        ).weights
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6, unique=True), st.data())
def test_a_stored_average_is_its_own_reconstruction(times, data):
    stored = [(t, std) for t in times for std in (0.05, 0.1)]
    pick = data.draw(st.integers(0, len(stored) - 1))
    plan = posthoc.Reconstruction(*zip(*stored, strict=True), *stored[pick])
    np.testing.assert_allclose(plan.weights, np.eye(len(stored))[pick], atol=1e-6)
    assert plan.mismatch < 1e-5


def test_mismatch_is_the_distance_of_the_profiles():
    times, stds, std = np.repeat([250, 500, 750, 1000], 2), np.tile([0.05, 0.1], 4), 0.15
    plan = posthoc.Reconstruction(times.tolist(), stds.tolist(), 1000, std)
    s = (np.arange(200_000) + 0.5) / 200

    def profile(time, width):
        gamma = posthoc.exponent(width)
        return np.where(s <= time, (s / time) ** gamma, 0) * (gamma + 1) / time

    found = sum(w * profile(*of) for w, *of in zip(plan.weights, times, stds, strict=True))
    wanted = profile(1000, std)
    distance = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert plan.mismatch == pytest.approx(distance, rel=1e-3)
    assert 0.05 < plan.mismatch < 0.2


def mismatch(snapshots, std):
    """Of the widths 0.05 and 0.1, stored at times that are even over the run."""
    times = np.repeat(np.linspace(1, 0, snapshots, endpoint=False), 2)
    return posthoc.Reconstruction(times.tolist(), [0.05, 0.1] * snapshots, 1.0, std).mismatch


@pytest.mark.parametrize("std", [0.03, 0.04, 0.06, 0.08, 0.12, 0.15])
def test_squared_error_falls_with_the_fourth_power_of_snapshots(std):
    """As the paper reports of its own reconstruction (fig. 4)."""
    order = np.log2(mismatch(64, std) ** 2 / mismatch(128, std) ** 2)
    assert order == pytest.approx(4, abs=0.05)


@pytest.mark.parametrize("std", np.linspace(*PAPER_RANGE, 10).tolist())
def test_nearly_perfect_where_the_paper_says_so(std):
    """Its runs stored 160 to 512 averages, "nearly perfect" for this range of widths (C.5)."""
    assert mismatch(80, std) < 0.016
    assert mismatch(256, std) < 0.003


def direct(std):
    return f"direct_{std * 1000:g}"


def track(params):
    """Averages after every step of parameters [steps size], tracked as in training."""
    config = {name: f"power(std={std})" for name, std in TRACKED.items()}
    config |= {direct(std): f"power(std={std})" for std in (*DIRECT, *PAPER_RANGE)}
    rates = ema.make_emas(ConfigDict(config), batch_size=16)

    def one(averages, item):
        step, value = item
        averages = ema.update(averages, {"w": value}, rates, step)
        return averages, averages

    start = {name: {"w": jnp.zeros(params.shape[1])} for name in rates}
    _, all_averages = jax.lax.scan(one, start, (jnp.arange(1, len(params) + 1), params))
    return all_averages


def walks():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(STEPS, 400)).astype(np.float32)
    # Parameters that forget at once; that wander; that converge to a point with noise around it.
    decay = np.exp(-np.arange(STEPS) / 300)[:, None]
    wander = noise.cumsum(axis=0) / STEPS**0.5
    return {"noise": noise, "walk": wander, "training": wander[-1] * (1 - decay) + 0.3 * noise}


@pytest.fixture(scope="module")
def tracked():
    return {name: (params, track(jnp.asarray(params))) for name, params in walks().items()}


def reconstruct(averages, std, snapshots):
    """(the plan, the average of width std at the end by it, the same as tracked directly)."""
    every = STEPS // snapshots
    stored = [(step, name) for step in range(every, STEPS + 1, every) for name in TRACKED]
    plan = posthoc.Reconstruction(
        [t for t, _ in stored], [TRACKED[n] for _, n in stored], STEPS, std
    )
    found = sum(
        weight * np.asarray(averages[name]["w"][step - 1], np.float64)
        for weight, (step, name) in zip(plan.weights, stored, strict=True)
    )
    return plan, found, np.asarray(averages[direct(std)]["w"][-1], np.float64)


@pytest.mark.parametrize("kind", ["noise", "walk", "training"])
@pytest.mark.parametrize("std", DIRECT)
def test_reconstruction_equals_the_average_tracked_directly(tracked, kind, std):
    _, averages = tracked[kind]
    plan, found, exact = reconstruct(averages, std, KEPT)
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    # White noise is the worst case, and gives the mismatch itself up to chance.
    assert error < 1.2 * plan.mismatch
    if kind == "noise":
        assert error > 0.8 * plan.mismatch
    else:
        assert error < 0.01
    # The widths that were tracked are no substitute.
    for name in TRACKED:
        other = np.asarray(averages[name]["w"][-1], np.float64)
        assert np.linalg.norm(other - exact) > 5 * np.linalg.norm(found - exact)


@pytest.mark.parametrize("kind", ["noise", "walk", "training"])
@pytest.mark.parametrize("std", [PAPER_RANGE[0], *DIRECT, PAPER_RANGE[1]])
def test_as_many_snapshots_as_the_papers_shortest_run_has_are_enough(tracked, kind, std):
    _, averages = tracked[kind]
    _, found, exact = reconstruct(averages, std, 80)
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error < (0.016 if kind == "noise" else 0.0015)


EMA = ConfigDict({"short": "power(std=0.05)", "long": "power(std=0.1)", "other": "constant"})


@pytest.fixture(scope="module")
def saved(tracked, tmp_path_factory):
    """Checkpoints of every 400th step with both averages, and the averages tracked directly."""
    params, averages = tracked["training"]
    directory = tmp_path_factory.mktemp("run")
    store = checkpoints.Checkpoints(directory, keep=1, keep_every=200)
    for step in range(200, STEPS + 1, 200):
        trees = {name: {"w": averages[name]["w"][step - 1]} for name in TRACKED}
        trees["other"] = {"w": jnp.zeros(400)}
        blank = dict.fromkeys(("rng", "window", "bad_steps", "bad_streak", "bad_since"), 0)
        current = state.TrainState(
            step=jnp.int32(step),
            params={"w": jnp.asarray(params[step - 1])},
            opt_state={"count": jnp.int32(step)},
            ema=trees,
            task={},
            metrics={"loss": jnp.float32(0)},
            **{name: jnp.int32(value) for name, value in blank.items()},
        )
        store.save(step, current, {"batches": step})
    store.close()
    return directory, averages


def abstract():
    tree = {"w": jax.ShapeDtypeStruct((400,), jnp.float32)}
    return mesh.with_sharding(tree, mesh.state_sharding(tree, mesh.make_mesh()))


@pytest.mark.parametrize(("step", "taken"), [(-1, STEPS), (1000, 1000)])
def test_restores_the_average_at_the_step_of_the_checkpoint(saved, step, taken):
    directory, averages = saved
    found, at = checkpoints.restore_params(directory, "posthoc(std=0.08)", abstract(), step, EMA)
    assert at == taken
    exact = np.asarray(averages[direct(0.08)]["w"][taken - 1])
    assert np.linalg.norm(found["w"] - exact) / np.linalg.norm(exact) < 0.01
    assert found["w"].sharding.num_devices == 8


def test_a_bad_reconstruction_is_told(saved, caplog):
    directory, _ = saved
    for std in (0.08, 0.02):
        with caplog.at_level(logging.INFO):
            checkpoints.restore_params(directory, f"posthoc(std={std})", abstract(), averages=EMA)
    good, bad = [record for record in caplog.records if record.name == checkpoints.__name__]
    assert (good.levelname, bad.levelname) == ("INFO", "WARNING")
    assert "profile off by 0.011 of its norm" in good.getMessage()
    assert "profile off by 0.25 of its norm" in bad.getMessage()


def test_errors_say_what_to_do(saved):
    directory, _ = saved
    name = "posthoc(std=0.08)"
    with pytest.raises(ConfigError, match=r"up to 200, and .* has 1; .*checkpoint\.keep_every"):
        checkpoints.restore_params(directory, name, abstract(), 200, EMA)
    with pytest.raises(ConfigError, match=r"config\.ema has none; .*take one of other, params"):
        checkpoints.restore_params(
            directory, name, abstract(), 400, ConfigDict({"other": "constant"})
        )
    with pytest.raises(ConfigError, match=r"config\.sample\.ema = .*std must be above 0"):
        checkpoints.restore_params(directory, "posthoc(std=0.5)", abstract(), 400, EMA)
    with pytest.raises(ConfigError, match=r"write posthoc\(std=\.\.\.\)"):
        posthoc.width("posthoc()")


def test_previews_take_the_nearest_width():
    assert posthoc.nearest(EMA, "posthoc(std=0.04)") == "short"
    assert posthoc.nearest(EMA, "posthoc(std=0.09)") == "long"


def test_two_averages_of_one_width_count_once():
    twice = ConfigDict({**EMA, "again": "power(std=0.05)"})
    assert sorted(posthoc.tracked(twice, "posthoc(std=0.08)").values()) == [0.05, 0.1]
