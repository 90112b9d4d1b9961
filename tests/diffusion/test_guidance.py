"""Guidance of exact denoisers: images of one class are a Gaussian about the class's own image."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import diffusion
from diffusion import GUIDANCES, PARAMETERIZATIONS, Prediction, guide
from diffusion.guidance import calls
from diffusion.levels import namespace
from diffusion.schedules import edm, linear, rectified_flow

RNG = np.random.default_rng(0)
SHAPE = (3, 2, 1)
MEANS = RNG.uniform(-1, 1, (4, *SHAPE))
VARIANCES = np.array([0.05, 0.2, 0.1, 0.4])
PRIOR = np.array([0.1, 0.4, 0.3, 0.2])
NONE = 4
NULL = {"label": NONE}
X = RNG.standard_normal((3, *SHAPE))
LABELS = {"label": np.array([0, 1, 3])}
EPS = PARAMETERIZATIONS["eps"]()
LEVELS = [
    (schedule, schedule.level(np.array([0.1, 0.4, 0.5]) * schedule.t_range[1]))
    for schedule in (linear(), edm(), rectified_flow())
]


def log_joint(x, level):
    """log p(x, class) but for a constant, [batch classes]."""
    wide = level.like(x)
    deviation = (x[:, None] - expanded(wide.alpha) * MEANS) ** 2
    total = (
        np.reshape(level.alpha, (-1, 1)) ** 2 * VARIANCES + np.reshape(level.sigma, (-1, 1)) ** 2
    )
    size = np.prod(SHAPE)
    squares = deviation.sum((2, 3, 4))
    return np.log(PRIOR) - 0.5 * (squares / total + size * namespace(total).log(total))


def expanded(value):
    return value[:, None] if np.ndim(value) else value


def exact(x, level, condition):
    """E[x0 | x, label] and E[eps | x, label]; the label NONE says nothing."""
    xp, label = namespace(x), condition["label"]
    log_p = log_joint(x, level)
    p = xp.exp(log_p - log_p.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    known = xp.eye(NONE)[xp.minimum(label, NONE - 1)]
    p = xp.where((label == NONE)[:, None], p, known)[..., None, None, None]
    alpha, sigma = (xp.reshape(xp.asarray(f), (-1, 1, 1, 1, 1)) for f in (level.alpha, level.sigma))
    spread = xp.reshape(xp.asarray(VARIANCES), (-1, 1, 1, 1))
    pull = (x[:, None] - alpha * MEANS) / (alpha**2 * spread + sigma**2)
    return Prediction((p * (MEANS + alpha * spread * pull)).sum(1), (p * sigma * pull).sum(1))


def log_prob(x, level, label):
    """The exact classifier."""
    return jax.nn.log_softmax(log_joint(x, level))[jnp.arange(len(x)), label]


def labels(label):
    return {"label": np.full(3, label)}


def guided(*guidances, level, parameterization=EPS, companions=None, x=X, condition=LABELS):
    return guide(exact, guidances, parameterization, NULL, companions)(x, level, condition)


def assert_consistent(prediction, level, x=X, atol=1e-10):
    """x0 and eps still make up x."""
    wide = level.like(x)
    again = wide.alpha * prediction.x0 + wide.sigma * prediction.eps
    np.testing.assert_allclose((again - x) / np.maximum(wide.sigma, 1.0), 0.0, atol=atol)


def assert_same(one, other, **tolerance):
    np.testing.assert_allclose(one.x0, other.x0, **{"rtol": 1e-12, "atol": 1e-12} | tolerance)
    np.testing.assert_allclose(one.eps, other.eps, **{"rtol": 1e-12, "atol": 1e-12} | tolerance)


@pytest.mark.parametrize(("schedule", "level"), LEVELS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_classifier_free_is_the_affine_combination(schedule, level, scale):
    got = guided(GUIDANCES["classifier_free"](scale=scale), level=level)
    own, null = exact(X, level, LABELS), exact(X, level, labels(NONE))
    mixed = Prediction(*(n + scale * (c - n) for c, n in zip(own[:2], null[:2], strict=True)))
    assert_same(got, mixed)
    assert_consistent(got, level)
    # Guiding score, x0 or eps is the same thing: the score is -eps / sigma.
    if scale == 1.0:
        np.testing.assert_array_equal(got.x0, own.x0)
        np.testing.assert_array_equal(got.eps, own.eps)


@hypothesis.given(st.floats(-2, 20))
def test_both_conventions_are_one_apart(w):
    level = LEVELS[0][1]
    ours = guided(GUIDANCES["classifier_free"](scale=1.0 + w), level=level)
    papers = guided(GUIDANCES["classifier_free"](w=w), level=level)
    assert_same(papers, ours, rtol=1e-9)
    # Ho and Salimans, eq. 6.
    own, null = exact(X, level, LABELS), exact(X, level, labels(NONE))
    np.testing.assert_allclose(papers.eps, (1 + w) * own.eps - w * null.eps, rtol=1e-9, atol=1e-9)


def test_all_calls_are_one_batch():
    seen = []

    def counting(x, level, condition):
        seen.append((len(x), np.shape(level.sigma), condition))
        return exact(x, level, {"label": condition["label"]})

    level = LEVELS[0][1]
    both = (
        GUIDANCES["classifier_free"](scale=3.0),
        GUIDANCES["perturbed_attention"](scale=2.0, places=(8, 4)),
    )
    guide(counting, both, EPS, NULL)(X, level, LABELS)
    ((size, levels, condition),) = seen
    assert size == 3 * calls(both, NULL) == 9
    assert levels == (9,)
    np.testing.assert_array_equal(condition["label"], [0, 1, 3, 4, 4, 4, 0, 1, 3])
    for place in (8, 4):
        on = condition["identity_attention"][place]
        assert on.dtype == bool
        np.testing.assert_array_equal(on, [0] * 6 + [1] * 3)
    seen.clear()
    guide(counting, both[:1], EPS, NULL)(X, linear().level(300), LABELS)
    assert seen[0][:2] == (6, ())
    assert list(seen[0][2]) == ["label"]


def test_an_unconditional_network_is_perturbed_without_a_label():
    def network(x, level, condition):
        on = condition["identity_attention"][4][:, None, None, None]
        return Prediction(np.where(on, 0.0, x), np.where(on, x, 0.0))

    pag = GUIDANCES["perturbed_attention"]
    got = guide(network, (pag(scale=2.0, places=(4,)),), EPS)(X, linear().level(300))
    np.testing.assert_allclose(got.x0, 3.0 * X)
    np.testing.assert_allclose(got.eps, -2.0 * X)
    off = guide(network, (pag(scale=0.0, places=(4,)),), EPS)(X, linear().level(300))
    np.testing.assert_array_equal(off.x0, X)


def test_one_batch_is_two_calls():
    """Rows of the batch are told apart by label alone, with a level of each its own."""
    level = LEVELS[1][1]
    got = guided(GUIDANCES["classifier_free"](scale=2.0), level=level)
    for i in range(3):
        row = diffusion.NoiseLevel(*(field[i] for field in level))
        one = {"label": LABELS["label"][i : i + 1]}
        own, null = (exact(X[i : i + 1], row, c) for c in (one, {"label": np.array([NONE])}))
        np.testing.assert_allclose(got.eps[i : i + 1], 2 * own.eps - null.eps, rtol=1e-12)


def test_no_guidance_is_the_denoiser_itself():
    assert guide(exact, (), EPS, NULL) is exact


def test_another_label_is_moved_away_from():
    level = LEVELS[0][1]
    got = guided(GUIDANCES["classifier_free"](w=1.5, negative=2), level=level)
    own, other = exact(X, level, LABELS), exact(X, level, labels(2))
    np.testing.assert_allclose(got.eps, own.eps + 1.5 * (own.eps - other.eps), rtol=1e-12)
    assert not np.allclose(got.eps, guided(GUIDANCES["classifier_free"](w=1.5), level=level).eps)


def test_interval_is_of_sigma_over_alpha_and_scale_one_outside():
    sigmas = np.array([0.28, 0.29, 5.42])
    for schedule in (edm(), linear(), rectified_flow()):
        level = schedule.level(schedule.t_of_logsnr(-2 * np.log(sigmas)))
        level = level._replace(logsnr=-2 * np.log(sigmas))
        interval = (0.28, 0.28 * np.exp(0.5))
        got = guided(GUIDANCES["classifier_free"](scale=4.0, interval=interval), level=level)
        everywhere = guided(GUIDANCES["classifier_free"](scale=4.0), level=level)
        off = exact(X, level, LABELS)
        np.testing.assert_array_equal(got.eps[[0, 2]], off.eps[[0, 2]])
        np.testing.assert_array_equal(got.x0[[0, 2]], off.x0[[0, 2]])
        np.testing.assert_array_equal(got.eps[1], everywhere.eps[1])
        assert not np.allclose(got.eps[1], off.eps[1])


def test_upper_end_of_the_interval_belongs_to_it():
    level = edm().level(edm().t_of_logsnr(np.zeros(3)))._replace(logsnr=np.zeros(3))
    closed = guided(GUIDANCES["classifier_free"](scale=4.0, interval=(0.5, 1.0)), level=level)
    opened = guided(GUIDANCES["classifier_free"](scale=4.0, interval=(1.0, 2.0)), level=level)
    assert_same(opened, exact(X, level, LABELS))
    assert not np.allclose(closed.eps, opened.eps)


@pytest.mark.parametrize("kind", ["eps", "v", "edm"])
def test_rescale_gives_the_networks_output_the_conditional_spread(kind):
    parameterization, (_, level) = PARAMETERIZATIONS[kind](), LEVELS[0]

    def raw(prediction):
        return parameterization.target(prediction.x0, prediction.eps, level)

    def spread(array):
        return np.sqrt(((array - array.mean((1, 2, 3), keepdims=True)) ** 2).mean((1, 2, 3)))

    results = {
        share: guided(
            GUIDANCES["classifier_free"](scale=5.0, rescale=share),
            level=level,
            parameterization=parameterization,
        )
        for share in (0.0, 0.7, 1.0)
    }
    own = exact(X, level, LABELS)
    assert_same(results[0.0], guided(GUIDANCES["classifier_free"](scale=5.0), level=level))
    np.testing.assert_allclose(spread(raw(results[1.0])), spread(raw(own)), rtol=1e-9)
    # Eq. 16 by hand.
    plain = raw(results[0.0])
    ratio = (spread(raw(own)) / spread(plain)).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        raw(results[0.7]), 0.7 * ratio * plain + 0.3 * plain, rtol=1e-9, atol=1e-12
    )
    assert_consistent(results[0.7], level)


def given(**fields):
    """A denoiser that gives one prediction with a label and another one without."""

    def denoise(x, level, condition):
        np.testing.assert_array_equal(condition["label"] == NONE, [0, 0, 1, 1])
        both = {name: np.concatenate(pair) for name, pair in fields.items()}
        wide = level.like(x)
        if "eps" in both:
            return Prediction((x - wide.sigma * both["eps"]) / wide.alpha, both["eps"])
        return Prediction(both["x0"], (x - wide.alpha * both["x0"]) / wide.sigma)

    return denoise


@pytest.mark.parametrize("kind", ["rescaled", "projected"])
def test_values_of_diffusers(kind):
    golden = np.load("tests/golden/diffusion/guidance.npz")
    scale, share, parallel, threshold = golden["numbers"]
    pair = golden["conditional"], golden["null"]
    level, x = linear().level(400), np.ones_like(pair[0])
    condition = {"label": np.zeros(len(x), int)}
    if kind == "rescaled":
        guidance = GUIDANCES["classifier_free"](scale=scale, rescale=share)
        got = guide(given(eps=pair), (guidance,), EPS, NULL)(x, level, condition).eps
    else:
        guidance = GUIDANCES["adaptive_projected"](
            scale=scale, parallel=parallel, threshold=threshold
        )
        got = guide(given(x0=pair), (guidance,), EPS, NULL)(x, level, condition).x0
    np.testing.assert_allclose(got, golden[kind], rtol=1e-9, atol=1e-9)


def test_cfg_plus_plus_renoises_with_the_unconditional_noise():
    level = LEVELS[0][1]
    own, null = exact(X, level, LABELS), exact(X, level, labels(NONE))
    for share in (0.0, 0.6, 1.0):
        got = guided(GUIDANCES["cfg_plus_plus"](scale=share), level=level)
        np.testing.assert_array_equal(got.eps, null.eps)
        # Algorithm 2: x0 by Tweedie's formula from the interpolated noise.
        wide = level.like(X)
        eps = null.eps + share * (own.eps - null.eps)
        np.testing.assert_allclose(got.x0, (X - wide.sigma * eps) / wide.alpha, atol=1e-9)
    assert_same(guided(GUIDANCES["cfg_plus_plus"](scale=0.0), level=level), null)
    full = guided(GUIDANCES["cfg_plus_plus"](scale=1.0), level=level)
    np.testing.assert_array_equal(full.x0, own.x0)


@pytest.mark.parametrize(("schedule", "level"), LEVELS)
@pytest.mark.parametrize("label", [0, 2])
def test_exact_classifier_turns_the_unconditional_into_the_conditional(schedule, level, label):
    """Bayes' rule at scale 1; the conditional network is the answer and takes no part."""
    guidances = (
        GUIDANCES["classifier_free"](scale=0.0),
        GUIDANCES["classifier"](scale=1.0, workdir="-"),
    )
    level = diffusion.NoiseLevel(*(jnp.asarray(f, jnp.float32) for f in level))
    x, condition = jnp.asarray(X, jnp.float32), {"label": jnp.full(3, label)}
    got = guided(*guidances, level=level, companions=(None, log_prob), x=x, condition=condition)
    wanted = exact(x, level, condition)
    assert_same(got, wanted, rtol=1e-5, atol=1e-5)
    null = exact(x, level, {"label": jnp.full(3, NONE)})
    assert np.abs(null.x0 - wanted.x0).max() > 1e-2


def test_classifier_shift_is_adms_shift_of_the_ancestral_mean():
    """Mean + variance * gradient (algorithm 1) with variance beta, but for 1 / sqrt(1 - beta).

    ADM's is Bayes' rule to first order in the step; the shift of x0 is exact for any step.
    """
    schedule = linear()
    grid = diffusion.GRIDS["respaced"]()(schedule, 1000, "zero")
    solver = diffusion.SOLVERS["ddpm"](variance="fixed_large")
    plan = solver.plan(grid, schedule)
    k = 400
    row = jax.tree.map(lambda leaf: jnp.asarray(leaf[k], jnp.float32), plan)
    x, condition = jnp.asarray(X, jnp.float32), {"label": jnp.full(3, 2)}
    shift = GUIDANCES["classifier"](scale=2.0, workdir="-")

    def step(guidances, companions):
        denoise = guide(exact, guidances, EPS, NULL, companions)
        return solver.step(x, lambda x, level: denoise(x, level, condition), row, 0.0 * x)

    moved = step((shift,), (log_prob,)) - step((), ())
    gradient = jax.grad(lambda x: log_prob(x, row.now, condition["label"]).sum())(x)
    beta = np.exp(plan.log_high[k])
    adm = 2.0 * beta * gradient
    np.testing.assert_allclose(moved, adm / np.sqrt(1.0 - beta), rtol=2e-3, atol=1e-6)


def test_autoguidance_moves_away_from_the_weaker_network():
    level = LEVELS[0][1]

    def weak(x, level, condition):
        out = exact(x, level, condition)
        return Prediction(0.9 * out.x0, out.eps + 0.1 * out.x0)

    for scale in (1.0, 2.0):
        auto = GUIDANCES["autoguidance"](scale=scale, ema="other")
        got = guided(auto, level=level, companions=(weak,))
        own, other = exact(X, level, LABELS), weak(X, level, LABELS)
        np.testing.assert_allclose(
            got.x0, other.x0 + scale * (own.x0 - other.x0), rtol=1e-9, atol=1e-12
        )
        assert calls((auto,), NULL) == 2
    off = guided(GUIDANCES["autoguidance"](scale=1.0, ema="o"), level=level, companions=(weak,))
    np.testing.assert_array_equal(off.eps, exact(X, level, LABELS).eps)


def test_adaptive_projection_keeps_what_lies_across():
    level = LEVELS[0][1]
    make = GUIDANCES["adaptive_projected"]
    plain = guided(GUIDANCES["classifier_free"](scale=3.0), level=level)
    assert_same(guided(make(scale=3.0, parallel=1.0), level=level), plain, rtol=1e-9, atol=1e-9)
    own = exact(X, level, LABELS)
    got = guided(make(scale=3.0), level=level)
    assert_consistent(got, level)
    across = ((got.x0 - own.x0) * own.x0).sum((1, 2, 3))
    np.testing.assert_allclose(across, 0.0, atol=1e-12)
    assert np.abs(((plain.x0 - own.x0) * own.x0).sum((1, 2, 3))).min() > 1e-3
    short = guided(make(scale=3.0, parallel=1.0, threshold=1e-3), level=level)
    length = np.sqrt(((short.x0 - own.x0) ** 2).sum((1, 2, 3)))
    np.testing.assert_allclose(length, 2e-3, rtol=1e-9)


def test_learned_variance_is_that_of_the_condition():
    def learned(x, level, condition):
        fraction = condition["label"].reshape(-1, 1, 1, 1) + 0.0 * x
        return exact(x, level, condition)._replace(variance_fraction=fraction)

    level = LEVELS[0][1]
    for name, numbers in (("classifier_free", {"w": 3.0}), ("cfg_plus_plus", {"scale": 0.5})):
        got = guide(learned, (GUIDANCES[name](**numbers),), EPS, NULL)(X, level, LABELS)
        np.testing.assert_array_equal(got.variance_fraction[:, 0, 0, 0], LABELS["label"])


def test_numbers_are_leaves_and_choices_are_structure():
    make = GUIDANCES["classifier_free"]
    traces = []

    @jax.jit
    def program(guidances, x, level):
        traces.append(1)
        return guide(exact, guidances, EPS, NULL)(x, level, {"label": jnp.arange(3)}).eps

    level = diffusion.NoiseLevel(*(jnp.asarray(f, jnp.float32) for f in LEVELS[0][1]))
    x = jnp.asarray(X, jnp.float32)
    same = [
        make(scale=3.0),
        make(w=1.0, rescale=0.7),
        make(scale=2.0, interval=(0.28, 5.42), rescale=0.1),
    ]
    out = [program((guidance,), x, level) for guidance in same]
    assert len(traces) == 1
    assert not np.allclose(out[0], out[1])
    program((make(scale=3.0, negative=1),), x, level)
    program((make(scale=3.0, negative=2),), x, level)
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("classifier_free", {}, "give one of scale"),
        ("classifier_free", {"scale": 2.0, "w": 1.0}, "give one of scale"),
        ("classifier_free", {"scale": float("inf")}, "must be finite"),
        ("classifier_free", {"scale": 2.0, "rescale": 1.5}, "rescale=1.5: must be from 0"),
        ("classifier_free", {"scale": 2.0, "interval": (2.0, 1.0)}, r"interval=\(2.0, 1.0\)"),
        ("classifier_free", {"scale": 2.0, "interval": (2.0,)}, "must be .low, high. of sigma"),
        ("cfg_plus_plus", {"scale": 7.5}, "scale=7.5: must be from 0 to 1"),
        ("perturbed_attention", {"scale": 1.0, "places": ()}, r"places=\(\): must be a tuple"),
        ("autoguidance", {"scale": 2.0}, "would be the sampled one itself"),
        ("adaptive_projected", {"scale": 2.0, "threshold": 0.0}, "threshold=0.0: must be above"),
        ("classifier", {"scale": float("nan"), "workdir": "-"}, "must be finite"),
    ],
)
def test_what_makes_no_sense_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        GUIDANCES[name](**arguments)


def test_a_network_without_labels_has_no_classifier_free_guidance():
    with pytest.raises(ValueError, match="a network without labels has no such guidance"):
        guided(GUIDANCES["classifier_free"](scale=2.0), level=LEVELS[0][1], condition=None)
