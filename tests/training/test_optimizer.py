import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from configs import base
from tests.training.test_step import batch, run, setup
from tests.training.toy import ToyTask
from training import checkpoints, optimizer
from training.components import ConfigError
from training.config import validate


def settings(**fields):
    config = base.get_config().optimizer
    config.update({"learning_rate": 0.1, "warmup_steps": 10, **fields})
    return config


@pytest.mark.parametrize(
    ("decay", "at_half", "at_end"),
    [("constant", 0.1, 0.1), ("linear", 0.05, 0), ("cosine", 0.05, 0)],
)
def test_learning_rate(decay, at_half, at_end):
    rate = optimizer.learning_rate(settings(decay=decay), steps=110)
    values = [float(rate(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(values, [0, 0.05, 0.1, at_half, at_end], atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 100, 400])
def test_inverse_square_root_is_edm2s(warmup):
    batch_size, reference = 8, 200
    config = settings(decay="inverse_sqrt", decay_steps=reference, warmup_steps=warmup)
    rate = jax.jit(optimizer.learning_rate(config, steps=5))

    def edm2(images):
        value = 0.1 / np.sqrt(max(images / (reference * batch_size), 1))
        return value * min(images / (warmup * batch_size), 1) if warmup else value

    steps = (0, 1, 50, 100, 199, 201, 400, 5000)
    found = [float(rate(step)) for step in steps]
    np.testing.assert_allclose(found, [edm2(step * batch_size) for step in steps], rtol=1e-6)


def test_clipping_is_of_the_global_norm():
    transform = optimizer.make_optimizer(settings(name="sgd", clip_norm=1.0), lambda _: 1.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([0.0, 4.0])}
    updates, _ = transform.update(grads, transform.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [0, -0.8], rtol=1e-6)


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(ConfigError, match=r"config\.optimizer\.name.*did you mean 'adam'"):
        optimizer.make_optimizer(settings(name="adm"), lambda _: 1.0)


def kernels():
    """Kernels of all ranks with layers that are Adam's, and a gradient of each."""
    shapes = {
        "conv": {"kernel": (3, 3, 4, 24), "bias": (24,)},
        "linear": {"kernel": (16, 8)},
        "stack": {"kernel": (2, 6, 5)},
        "conv_in": {"kernel": (3, 3, 1, 8)},
        "label": {"embedding": (11, 8)},
        "out": {"kernel": (8, 12)},
        "objective": {"schedule": {"kernel": (4, 4)}},
    }
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def update_of(name, grads, **fields):
    """The first update of an optimizer at learning rate 1, without clipping."""
    config = settings(name=name, clip_norm=0.0, **fields)
    transform = optimizer.make_optimizer(config, lambda _: 1.0)
    params = jax.tree.map(jnp.zeros_like, grads)
    return transform.update(grads, transform.init(params), params)[0]


def test_muon_makes_the_matrices_of_kernels_orthogonal():
    grads = kernels()
    updates = update_of("muon(consistent_rms=None, nesterov=False)", grads)

    def singular_values(update, *shape):
        matrices = np.asarray(update).reshape(shape)
        return np.linalg.svd(matrices, compute_uv=False) / max(1, shape[-1] / shape[-2]) ** 0.5

    for update, shape in (
        (updates["conv"]["kernel"], (36, 24)),
        (updates["linear"]["kernel"], (16, 8)),
        (updates["stack"]["kernel"], (2, 6, 5)),
    ):
        values = singular_values(update, *shape)
        # Newton and Schulz's quintic of Muon leaves them in about [0.7, 1.2].
        assert values.min() > 0.6
        assert values.max() < 1.3
    # Adam's first step is the sign of the gradient, of all that Muon is not for.
    adams = ("conv", "bias"), ("conv_in", "kernel"), ("label", "embedding"), ("out", "kernel")
    for path in adams:
        found, grad = updates[path[0]][path[1]], grads[path[0]][path[1]]
        np.testing.assert_allclose(found, -jnp.sign(grad), atol=1e-4)
    learned = updates["objective"]["schedule"]["kernel"]
    np.testing.assert_allclose(
        learned, -jnp.sign(grads["objective"]["schedule"]["kernel"]), atol=1e-4
    )


def test_muon_of_a_convolution_is_that_of_its_matrix():
    kernel = kernels()["conv"]["kernel"]
    conv = update_of("muon", {"a": {"kernel": kernel}})["a"]["kernel"]
    matrix = update_of("muon", {"a": {"kernel": kernel.reshape(36, 24)}})["a"]["kernel"]
    np.testing.assert_allclose(conv.reshape(36, 24), matrix, rtol=1e-5, atol=1e-6)
    # One learning rate for kernels and the rest: an RMS near 0.2, as AdamW's.
    np.testing.assert_allclose(np.sqrt((conv**2).mean()), 0.2, rtol=0.2)
    other = update_of("muon(adam=('a',), nesterov=False)", {"a": {"kernel": kernel}})["a"]["kernel"]
    np.testing.assert_allclose(other, -jnp.sign(kernel), atol=1e-4)


def test_adamw_spares_what_is_named():
    one = jnp.ones(3)
    params = {"conv": {"kernel": one, "bias": one}, "label": {"kernel": one}}
    zeros = jax.tree.map(jnp.zeros_like, params)

    def decayed(name):
        transform = optimizer.make_optimizer(settings(name=name, clip_norm=0.0), lambda _: 0.5)
        return transform.update(zeros, transform.init(params), params)[0]

    updates = decayed("adamw(weight_decay=0.1, no_decay=('bias', 'label'))")
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.05, rtol=1e-6)
    assert not updates["conv"]["bias"].any()
    assert not updates["label"]["kernel"].any()
    assert all((leaf < 0).all() for leaf in jax.tree.leaves(decayed("adamw(weight_decay=0.1)")))


@pytest.mark.parametrize("name", ["adafactor", "lion", "adamw", "sgd"])
def test_each_optimizer_goes_down(name):
    current, train_step, sharding = setup(ToyTask(noise=0.0), optimizer=make(name))
    params, b = jax.device_get(current.params), batch(0)
    before = ToyTask(0.0).loss(params, {}, b, jax.random.key(0))[0]
    current = run(current, train_step, sharding, [b] * 20)
    after = ToyTask(0.0).loss(current.params, {}, b, jax.random.key(0))[0]
    least = np.var(b["image"])
    assert after - least < 0.9 * (before - least)


def make(name, **fields):
    config = settings(name=name, warmup_steps=2, learning_rate=0.05, **fields)
    rate = optimizer.learning_rate(config, steps=100)
    return optimizer.make_optimizer(config, rate)


def exact_gradient(params, b):
    return jax.grad(lambda p: ToyTask(0.0).loss(p, {}, b, jax.random.key(0))[0])(params)


def test_averages_are_of_schedule_frees_own_average():
    transform = make("schedule_free_sgd(b1=0.8)", clip_norm=0.0)
    current, train_step, sharding = setup(ToyTask(noise=0.0), optimizer=transform, decay=0.5)
    params = jax.tree.map(jnp.asarray, jax.device_get(current.params))
    # Algorithm 1 of the paper, the weight of a step being its learning rate's square.
    x = y = z = params
    slow, total = params, 0.0
    # Rate of the steps of z, and of the average's weights, which are counted from 1.
    for step, (rate, weighed) in enumerate(
        zip((0, 0.025, 0.05, 0.05), (0.025, 0.05, 0.05, 0.05), strict=True)
    ):
        grads = exact_gradient(y, batch(step))
        z = jax.tree.map(lambda a, g, rate=rate: a - rate * g, z, grads)
        total += weighed**2
        share = weighed**2 / total
        x = jax.tree.map(lambda a, b, c=share: (1 - c) * a + c * b, x, z)
        y = jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, x, z)
        slow = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, slow, x)
    current = run(current, train_step, sharding, [batch(i) for i in range(4)])
    for found, expected in (
        (current.params, y),
        (current.ema["none"], x),
        (current.ema["slow"], slow),
    ):
        np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["b"], expected["b"], rtol=1e-5, atol=1e-6)
    assert np.abs(current.params["b"] - current.ema["none"]["b"]).max() > 1e-4


def test_schedule_free_is_found_behind_clipping_and_others_evaluate_their_parameters():
    params = {"a": jnp.ones(2)}
    plain = make("adam")
    assert optimizer.evaluation_params(plain.init(params), params) is params
    state = make("schedule_free_adamw").init(params)
    np.testing.assert_allclose(optimizer.evaluation_params(state, params)["a"], params["a"])
    moved = {"a": jnp.full(2, 2.0)}
    assert (optimizer.evaluation_params(state, moved)["a"] > 2).all()


@pytest.mark.parametrize("name", ["schedule_free_adamw(b1=0.0)", "schedule_free_sgd(b1=1.5)"])
def test_interpolation_of_schedule_free_must_not_divide_by_zero(name):
    with pytest.raises(ConfigError, match=r"config\.optimizer\.name = .*b1 must be above 0"):
        make(name)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_sam_is_optaxs(accumulate):
    rho, task = 0.3, ToyTask(noise=0.0)
    current, train_step, sharding = setup(
        task, optimizer=optax.sgd(0.1), sam_rho=rho, accumulate=accumulate
    )
    params = jax.tree.map(jnp.asarray, jax.device_get(current.params))
    reference = contrib.sam(
        optax.sgd(0.1), optax.chain(contrib.normalize(), optax.sgd(rho)), opaque_mode=True
    )
    state, plain = reference.init(params), params
    for i in range(3):
        b = batch(i)
        updates, state = reference.update(
            exact_gradient(params, b), state, params, grad_fn=lambda p, _, b=b: exact_gradient(p, b)
        )
        params = optax.apply_updates(params, updates)
        plain = jax.tree.map(lambda p, g: p - 0.1 * g, plain, exact_gradient(plain, b))
    current = run(current, train_step, sharding, [batch(i) for i in range(3)])
    np.testing.assert_allclose(current.params["w"], params["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(current.params["b"], params["b"], rtol=1e-4, atol=1e-5)
    assert np.abs(current.params["b"] - plain["b"]).max() > 1e-3


class Cliff(ToyTask):
    """Finite at the parameters, NaN a step up the gradient."""

    def loss(self, params, state, batch, rng):
        value, (metrics, state) = super().loss(params, state, batch, rng)
        limit = jnp.where(params["b"].sum() > 1e-3, jnp.nan, 1.0)
        return value * limit, (metrics, state)


def test_sam_that_finds_no_gradient_up_there_is_a_bad_step():
    current, train_step, sharding = setup(Cliff(0.0), optimizer=optax.sgd(0.1), sam_rho=1.0)
    before = jax.device_get(current.params)
    low = {"image": np.full((8, 4, 4, 1), -5.0, np.float32)}
    current = run(current, train_step, sharding, [low])
    assert int(current.bad_steps) == 1
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(current.params))


class KernelTask(ToyTask):
    """ToyTask through a kernel, a bias and a layer of Adam's: all branches of Muon."""

    def init(self, rng):
        keys = jax.random.split(rng)
        return {
            "hidden": {"kernel": jax.random.normal(keys[0], (3, 3, 64, 64)), "bias": jnp.ones(64)},
            "conv_out": {"kernel": jax.random.normal(keys[1], (64, 16))},
        }

    def loss(self, params, state, batch, rng):
        x = batch["image"].reshape(-1, 16)
        kernel = params["hidden"]["kernel"].reshape(9, 64, 64)[0, :16]
        hidden = jnp.tanh(x @ kernel / 4 + params["hidden"]["bias"])
        error = (hidden @ params["conv_out"]["kernel"] / 8 - x) ** 2
        return error.mean(), ({"mse": error.mean()}, state)


@pytest.mark.parametrize(
    ("name", "sam_rho"),
    [("muon", 0.0), ("schedule_free_adamw", 0.0), ("adam", 0.1), ("muon(nesterov=False)", 0.1)],
)
def test_states_are_sharded_give_the_values_of_one_device_and_are_restored(name, sam_rho, tmp_path):
    results = []
    for axes in ({"devices": 1}, {"devices": 8, "fsdp": 4}):
        parts = setup(KernelTask(), optimizer=make(name), sam_rho=sam_rho, **axes)
        results.append(run(*parts, [batch(i) for i in range(4)]))
    one, many = results
    # Orthogonalization in float32 loses some digits of a sum in another order.
    for found, expected in ((many.params, one.params), (many.ema["slow"], one.ema["slow"])):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected
        )
    large = [leaf for leaf in jax.tree.leaves(many.opt_state) if leaf.size >= 2**14]
    assert large
    assert all("fsdp" in leaf.sharding.spec for leaf in large)

    store = checkpoints.Checkpoints(tmp_path)
    store.save(4, many, {"batches": 4})
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), many
    )
    restored, _ = store.restore(abstract, 4)
    store.close()
    assert jax.tree.structure(restored) == jax.tree.structure(many)
    jax.tree.map(np.testing.assert_array_equal, restored.opt_state, many.opt_state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay": "inverse_sqrt"}, r"optimizer\.decay_steps = 0: must be 1 or more"),
        ({"decay_steps": 5}, r"optimizer\.decay_steps = 5: must be 0 .* 'constant'"),
        ({"decay_steps": -1}, r"optimizer\.decay_steps = -1: must be 0 or more"),
        ({"sam_rho": -0.1}, r"optimizer\.sam_rho = -0\.1: must be 0 or more"),
        (
            {"name": "schedule_free_adamw", "decay": "cosine"},
            r"optimizer\.decay = 'cosine': must be 'constant'",
        ),
        (
            {"name": "schedule_free_sgd", "forced_weight_norm": True},
            r"optimizer\.forced_weight_norm = True: must be False",
        ),
    ],
)
def test_fields_that_do_not_fit_each_other(fields, message):
    config = base.get_config()
    config.optimizer.update(fields)
    with pytest.raises(ConfigError, match=message):
        validate(config)


@pytest.mark.parametrize(
    "fields",
    [
        {"decay": "inverse_sqrt", "decay_steps": 70_000},
        {"name": "schedule_free_adamw", "sam_rho": 0.05},
        {"name": "muon", "decay": "cosine"},
    ],
)
def test_fields_that_fit_each_other(fields):
    config = base.get_config()
    config.optimizer.update(fields)
    validate(config)
