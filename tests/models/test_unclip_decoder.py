"""Decoders of unCLIP: what of embedding and caption reaches the image, and what may not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import networks
from models import MODELS, count_parameters
from models.unclip_decoder import UnCLIPDecoderConfig, make_unclip_decoder
from models.unclip_dit import UnCLIPDiTConfig, make_unclip_dit

# Four examples, four image tokens, width 16 of both: a mistaken axis would fit here.
BATCH, DIM, WORDS, WIDTH = 4, 16, 5, 16
TOKENS = UnCLIPDecoderConfig(
    in_channels=3,
    out_channels=6,
    image_size=8,
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    norm_groups=4,
    dropout=0.0,
    embedding_dim=DIM,
    text_width=WIDTH,
    context_length=WORDS,
    vocab_size=11,
    text_depth=2,
    text_heads=2,
)
FEATURES = dataclasses.replace(TOKENS, text_dim=3, text_depth=0, learned_null=True)
# In the middle alone, which compiles sooner.
CROSS = dataclasses.replace(FEATURES, context="cross", attention_resolutions=())
ALONE = dataclasses.replace(TOKENS, context_length=0)
DIT = UnCLIPDiTConfig(
    in_channels=3,
    out_channels=6,
    image_size=8,
    patch_size=4,
    hidden_size=16,
    depth=2,
    num_heads=2,
    positions="learned",
    embedding_dim=DIM,
    learned_null=True,
    context_length=WORDS,
    text_dim=3,
)
CONFIGS = {"tokens": TOKENS, "cross": CROSS, "features": FEATURES, "alone": ALONE, "dit": DIT}
X = np.random.RandomState(3).standard_normal((BATCH, 8, 8, 3)).astype("float32")
TIME = np.array([0, 37, 500, 999])
MASK = np.arange(WORDS) < np.array([[5], [2], [1], [3]])


class Case:
    """A small network at weights that leave nothing at zero, and what it is told."""

    def __init__(self, config):
        make = make_unclip_dit if isinstance(config, UnCLIPDiTConfig) else make_unclip_decoder
        self.config, self.network = config, make(config)
        shapes = jax.eval_shape(self.network.init, jax.random.key(0))
        random = np.random.RandomState(0)
        self.params = jax.tree.map(
            lambda s: (random.standard_normal(s.shape) * (0.3 if len(s.shape) < 2 else 0.5)).astype(
                "float32"
            ),
            shapes,
        )
        self.apply = jax.jit(self.network.apply)

    def told(self, seed=0, **fields):
        random = np.random.RandomState(seed)
        embedding = random.standard_normal((2, BATCH, DIM)).astype("float32")
        embedding /= np.linalg.norm(embedding, axis=-1, keepdims=True)
        values = {
            "image_embedding": embedding[0],
            "text_embedding": embedding[1],
            "text_features": random.standard_normal((BATCH, WORDS, 3)).astype("float32"),
            "tokens": random.randint(0, 11, (BATCH, WORDS)),
            "text_mask": MASK,
        }
        told = {name: values[name] for name in self.config.shapes} | {"no_image": off()}
        return told | ({"no_text": off()} if self.config.caption else {}) | fields

    def __call__(self, told):
        return np.asarray(self.apply(self.params, X, TIME, told))


def off():
    return np.zeros(BATCH, bool)


def on():
    return np.ones(BATCH, bool)


def difference(a, b):
    """Largest of each image."""
    return np.abs(a - b).max((1, 2, 3))


@pytest.fixture(scope="module")
def cases():
    return {name: Case(config) for name, config in CONFIGS.items()}


@pytest.fixture(params=CONFIGS)
def case(request, cases):
    return cases[request.param]


@pytest.fixture(params=["tokens", "cross", "features", "dit"])
def with_caption(request, cases):
    return cases[request.param]


def test_all_that_is_told_matters(case):
    base = case(case.told())
    assert base.shape == (BATCH, 8, 8, 6)
    assert base.dtype == np.float32
    other = case.told(seed=1)
    for name in (name for name in case.config.shapes if name != "text_mask"):
        assert difference(base, case(case.told(**{name: other[name]}))).min() > 1e-4, name
    assert difference(base, case(case.told(no_image=on()))).min() > 1e-4
    later = np.asarray(case.apply(case.params, X, TIME[::-1].copy(), case.told()))
    assert difference(base, later).min() > 1e-4


def test_a_withheld_embedding_has_no_influence(case):
    null = case(case.told(no_image=on()))
    nan = np.full((BATCH, DIM), np.nan, "float32")
    np.testing.assert_array_equal(null, case(case.told(no_image=on(), image_embedding=nan)))


def test_a_withheld_caption_has_no_influence_not_even_its_length(with_caption):
    case, other = with_caption, with_caption.told(seed=1)
    null = case(case.told(no_text=on()))
    changed = {name: other[name] for name in case.config.caption} | {"text_mask": ~MASK}
    np.testing.assert_array_equal(null, case(case.told(no_text=on(), **changed)))
    assert difference(null, case(case.told())).min() > 1e-4


def test_nothing_goes_from_one_example_to_another(case):
    """Four examples and four tokens an embedding: broadcast to one another they would fit."""
    base, other = case(case.told()), case.told(seed=1)
    for name in (name for name in case.config.shapes if name != "text_mask"):
        told = case.told()
        told[name] = np.concatenate([told[name][:3], other[name][3:]])
        after = case(told)
        np.testing.assert_array_equal(after[:3], base[:3])
        assert difference(after, base)[3] > 1e-4
    one = case(case.told(no_image=np.array([False, True, False, False])))
    np.testing.assert_array_equal(one[[0, 2, 3]], base[[0, 2, 3]])
    assert difference(one, base)[1] > 1e-4


def test_masked_tokens_have_no_influence(with_caption):
    case, told, other = with_caption, with_caption.told(), with_caption.told(seed=1)
    name = case.config.caption[0]
    mask = MASK.reshape(BATCH, WORDS, *(1,) * (told[name].ndim - 2))
    after = case(case.told(**{name: np.where(mask, told[name], other[name])}))
    np.testing.assert_array_equal(after, case(told))


def test_the_end_token_is_the_vector_of_a_caption(cases):
    """A network that attends to nothing is told of the caption by its end alone."""
    case = cases["tokens"]
    none = jax.tree.map(np.zeros_like, case.params["text"]["blocks"])
    text = case.params["text"] | {"blocks": none}
    names = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            0 * leaf if "['attention']['context']" in jax.tree_util.keystr(path) else leaf
        ),
        case.params["unet"],
    )
    params = case.params | {"text": text, "unet": names}
    told = case.told()
    base = np.asarray(case.apply(params, X, TIME, told))
    for offset, moved in ((1, True), (2, False)):
        tokens = told["tokens"].copy()
        rows = np.arange(BATCH)
        place = np.maximum(MASK.sum(1) - offset, 0)
        tokens[rows, place] = (tokens[rows, place] + 1) % 11
        after = np.asarray(case.apply(params, X, TIME, case.told(tokens=tokens)))
        long = MASK.sum(1) >= offset
        changed = difference(after, base)[long]
        assert changed.min() > 1e-4 if moved else changed.max() == 0


def test_embeddings_of_length_1_are_brought_to_coordinates_of_size_1(cases):
    case = cases["alone"]
    raw = make_unclip_decoder(dataclasses.replace(ALONE, embedding_scale=1.0))
    told = case.told()
    scaled = told | {"image_embedding": DIM**0.5 * told["image_embedding"]}
    expected = jax.jit(raw.apply)(case.params, X, TIME, scaled)
    np.testing.assert_allclose(case(told), expected, atol=1e-5)


def test_every_parameter_is_learned(case):
    """Under a condition of which one row is withheld each way."""
    first = np.arange(BATCH) == 0
    flags = {name: first for name in ("no_image", "no_text") if name in case.told()}

    def loss(params, x, time, told):
        return jnp.square(case.network.apply(params, x, time, told)).sum()

    slopes = jax.jit(jax.grad(loss))(case.params, X, TIME, case.told(**flags))
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
        assert np.any(leaf != 0), jax.tree_util.keystr(path)


def test_a_dit_is_told_a_caption_by_the_mean_of_its_tokens(cases):
    case = cases["dit"]
    told = case.told()
    length = MASK.sum(1)[:, None, None]
    mean = (MASK[..., None] * told["text_features"]).sum(1, keepdims=True) / length
    same = case(case.told(text_features=np.broadcast_to(mean, told["text_features"].shape)))
    np.testing.assert_allclose(same, case(told), atol=1e-5)
    nothing = case(case.told(text_mask=np.zeros_like(MASK)))
    assert np.all(np.isfinite(nothing))


def test_a_dit_attends_as_others_do(cases):
    case = cases["dit"]
    assert case.network.attention == (0, 1)
    flag = np.array([True, False, False, False])
    after, base = case(case.told(identity_attention={1: flag})), case(case.told())
    np.testing.assert_array_equal(after[1:], base[1:])
    assert difference(after, base)[0] > 1e-4


@pytest.mark.parametrize(
    ("context", "reader", "readers"),
    [("kv", "['context']['kernel']", 4), ("cross", "['attention2']['kv']['kernel']", 6)],
)
def test_all_attention_reads_the_context(context, reader, readers):
    """One in the encoder, two in the decoder and one in the middle, of their level's depth."""
    config = dataclasses.replace(
        TOKENS, context=context, attention_resolutions=(8,), transformer_depth=(1, 3)
    )
    shapes = jax.eval_shape(make_unclip_decoder(config).init, jax.random.key(0))
    kernels = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["unet"])
    }
    found = [shape for path, shape in kernels.items() if path.endswith(reader)]
    assert len(found) == readers
    assert {inputs for inputs, _ in found} == {WIDTH}


def test_remat_and_bfloat16(cases):
    case = cases["tokens"]
    again = make_unclip_decoder(dataclasses.replace(TOKENS, remat=True, dtype="bfloat16"))
    out = jax.jit(again.apply)(case.params, X, TIME, case.told())
    exact = case(case.told())
    assert out.dtype == jnp.float32
    assert 0 < np.abs(out - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("name", ["tokens", "cross"])
def test_attention_can_be_perturbed(cases, name):
    case = cases[name]
    assert case.network.attention == (4,)
    flag = np.array([True, False, False, False])
    after = case(case.told(identity_attention={4: flag}))
    base = case(case.told())
    np.testing.assert_array_equal(after[1:], base[1:])
    assert difference(after, base)[0] > 1e-4


def test_the_papers_size():
    """3.5 billion (table 3), of which 1.3 are the text's."""
    fields = networks.unclip_decoder().to_dict()
    fields.pop("name")
    network = MODELS["unclip_decoder"](3, 6, 64, **fields)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert count_parameters(shapes) == pytest.approx(3.5e9, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim=0: must be positive"),
        ({"image_tokens": 0}, "image_tokens=0: must be positive"),
        ({"text_depth": 0}, "text_depth=0: must be positive where a caption is token ids"),
        ({"text_heads": 3}, "text_heads=3: must divide text_width=16"),
        ({"text_dim": 4}, "text_depth=2: must be 0 with text_dim=4"),
        ({"embedding_scale": -1.0}, "embedding_scale=-1.0: must not be negative"),
        ({"num_classes": 3}, "num_classes=3: a decoder is told of a CLIP alone"),
        ({"norm_groups": 3}, "norm_groups=3: must divide the channels"),
        ({"context": "none"}, "context='none': must be 'kv' or 'cross': the image is told"),
        ({"context_dim": 4}, "context_dim=4: must be 0: tokens of context have text_width=16"),
        ({"transformer_depth": (1, 2, 3)}, r"transformer_depth=\(1, 2, 3\): .* the 2 levels"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TOKENS, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim=0: must be positive"),
        ({"text_dim": 0}, "text_dim=0: must be positive with a caption"),
        ({"num_classes": 3}, "num_classes=3: a decoder is told of a CLIP alone"),
        ({"embedding_scale": -1.0}, "embedding_scale=-1.0: must not be negative"),
        ({"patch_size": 3}, "patch_size=3: must divide image_size=8"),
    ],
)
def test_mistakes_in_a_dit_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DIT, **fields)


def test_another_condition_is_refused(cases):
    case = cases["tokens"]
    with pytest.raises(ValueError, match=r"condition has \[\], but a decoder with context_length"):
        case.apply(case.params, X, TIME, None)
    wide = np.zeros((BATCH, 12), "float32")
    with pytest.raises(ValueError, match=r"\(12,\) for each image, but embedding_dim=16"):
        case(case.told(image_embedding=wide))
    with pytest.raises(ValueError, match=r"model.text_widht: .* did you mean 'text_width'"):
        MODELS["unclip_decoder"](3, 3, 8, text_widht=3)
