import numpy as np
import pytest

from input_pipeline import make_loader, records
from input_pipeline.convert import convert
from input_pipeline.sources.gaussian_pairs import gaussian_pairs

SOURCE = gaussian_pairs(dim=4, noise=0.5, context_length=6, count=4000)


def arrays(source, count=4000):
    examples = [source[k] for k in range(count)]
    return {name: np.stack([e[name] for e in examples]) for name in source.fields}


def test_the_law_is_the_documented_one():
    pairs = arrays(SOURCE)
    text, image = pairs["text_embedding"], pairs["image_embedding"]
    np.testing.assert_allclose(np.cov(text.T), np.eye(4), atol=0.1)
    np.testing.assert_allclose(np.linalg.lstsq(text, image, rcond=None)[0], SOURCE.map, atol=0.05)
    np.testing.assert_allclose(np.cov((image - text @ SOURCE.map).T), 0.25 * np.eye(4), atol=0.03)
    np.testing.assert_allclose(
        np.linalg.svd(SOURCE.map, compute_uv=False), np.linspace(1.5, 0.5, 4)
    )


def test_features_are_the_text_where_the_mask_is():
    pairs = arrays(SOURCE, 200)
    mask = pairs["text_mask"]
    told = np.broadcast_to(pairs["text_embedding"][:, None], pairs["text_features"].shape)
    np.testing.assert_array_equal(pairs["text_features"][mask], told[mask])
    assert not np.any(pairs["text_features"][~mask] == told[~mask])
    assert set(mask.sum(1)) == {1, 2, 3, 4, 5, 6}
    assert np.all(mask[:, :-1] >= mask[:, 1:])


def test_splits_are_apart_and_repeatable():
    test = gaussian_pairs(dim=4, split="test", count=10)
    again = gaussian_pairs(dim=4, split="test", count=10)
    np.testing.assert_array_equal(test[3]["text_embedding"], again[3]["text_embedding"])
    assert not np.any(test[3]["text_embedding"] == SOURCE[3]["text_embedding"])
    assert test.fingerprint != SOURCE.fingerprint


@pytest.mark.parametrize(
    "fields", [{"dim": 0}, {"noise": -1.0}, {"split": "val"}, {"count": 0}, {"context_length": 0}]
)
def test_mistakes_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        gaussian_pairs(**fields)


def test_records_give_the_same_batches(tmp_path):
    """What a CLIP's embeddings are stored in keeps arrays and masks."""
    small = gaussian_pairs(dim=4, context_length=3, count=10)
    convert(small, tmp_path, split="train", image_size=8, channels=3, fields=small.fields)
    stored = records(path=str(tmp_path))
    settings = {"image_size": 8, "channels": 3, "batch_size": 10, "seed": 0, "shuffle": False}
    one, other = (
        next(make_loader(source, fields=small.fields, **settings)) for source in (small, stored)
    )
    assert one["text_mask"].dtype == other["text_mask"].dtype == bool
    for field in small.fields:
        np.testing.assert_array_equal(one[field], other[field])
