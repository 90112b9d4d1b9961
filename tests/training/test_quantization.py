import os

import jax
import numpy as np
import pytest
from etils.epath import testing as epath_testing
from hypothesis import given
from hypothesis import strategies as st

from training import quantization

RANDOM = np.random.RandomState(0)
# Variances fall from 4 to almost nothing: the last components are worth leaving out.
SPREAD = np.array([2.0, 1.0, 0.5, 0.25, 0.1, 0.01])
TURN = np.linalg.qr(RANDOM.standard_normal((6, 6)))[0]
IMAGES = RANDOM.standard_normal((4000, 6)) * SPREAD @ TURN + 3.0
TEXTS = IMAGES + RANDOM.standard_normal((4000, 6))
ALL = quantization.fit(IMAGES, TEXTS, 6, 64)
FOUR = quantization.fit(IMAGES, TEXTS, 4, 64)


def test_components_fall_in_eigenvalue():
    values = (IMAGES - ALL.mean) @ ALL.basis
    variances = values.var(0)
    assert np.all(np.diff(variances) < 0)
    np.testing.assert_allclose(variances, SPREAD**2, rtol=0.1)
    np.testing.assert_allclose(ALL.basis.T @ ALL.basis, np.eye(6), atol=1e-12)


def test_explained_variance_is_what_the_left_out_do_not_hold():
    left = (IMAGES - IMAGES.mean(0)) @ ALL.basis[:, 4:]
    share = 1 - np.square(left).sum() / np.square(IMAGES - IMAGES.mean(0)).sum()
    assert FOUR.explained == pytest.approx(share, rel=1e-9)
    assert ALL.explained == pytest.approx(1.0)
    assert 0.99 < FOUR.explained < 1.0


def test_training_values_come_back_within_half_a_bucket():
    back = ALL.decode(ALL.encode(IMAGES))
    error = np.abs((back - IMAGES) @ ALL.basis)
    assert np.all(error <= 0.5 * ALL.width * (1 + 1e-9))
    # The bound is tight: some value lies almost at the border of its bucket.
    assert np.all(error.max(0) > 0.45 * ALL.width)


@given(st.lists(st.integers(0, 63), min_size=6, max_size=6))
def test_codes_come_back_exactly(codes):
    codes = np.array([codes], np.int32)
    np.testing.assert_array_equal(ALL.encode(ALL.decode(codes)), codes)


@given(st.floats(-1e3, 1e3), st.integers(0, 5))
def test_values_beyond_go_to_the_outermost_bucket(value, axis):
    code = ALL.encode((ALL.mean + value * ALL.basis[:, axis])[None])[0, axis]
    assert 0 <= code <= 63
    if value > ALL.high[axis]:
        assert code == 63
    if value < ALL.low[axis]:
        assert code == 0


def test_on_the_device_as_on_the_host():
    codes = jax.jit(ALL.encode)(IMAGES.astype(np.float32))
    # A value at a border may fall to either side in float32.
    near = np.abs(np.asarray(codes) - ALL.encode(IMAGES))
    assert near.max() <= 1
    assert np.mean(near > 0) < 1e-3
    back = jax.jit(ALL.decode)(codes)
    np.testing.assert_allclose(back, ALL.decode(np.asarray(codes)), atol=1e-5)


def test_on_accelerators_products_keep_their_digits():
    """By default they are of bfloat16 or TF32, and codes of small components off by buckets."""
    codes = ALL.encode(IMAGES[:2])
    for function, x in ((ALL.encode, IMAGES[:2].astype(np.float32)), (ALL.decode, codes)):
        program = jax.make_jaxpr(function)(x)
        products = [eqn for eqn in program.eqns if eqn.primitive.name == "dot_general"]
        assert [eqn.params["precision"] for eqn in products] == [(jax.lax.Precision.HIGHEST,) * 2]


def test_dot_products_fill_their_buckets_evenly():
    dots = np.sum(IMAGES * TEXTS, axis=1)
    codes = ALL.encode_dot(dots)
    counts = np.bincount(codes, minlength=64)
    assert counts.min() >= 4000 // 64 - 1
    assert counts.max() <= 4000 // 64 + 2
    np.testing.assert_array_equal(codes >= 32, dots >= np.median(dots))
    device = np.asarray(jax.jit(ALL.encode_dot)(dots.astype(np.float32)))
    assert np.abs(device - codes).max() <= 1


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            FOUR.save(tmp_path / "quantizer.npz")
    assert not (tmp_path / "quantizer.npz").exists()
    FOUR.save(tmp_path / "quantizer.npz")
    whole = (tmp_path / "quantizer.npz").read_bytes()
    (tmp_path / "quantizer.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot be read.*--mode=quantize"):
        quantization.load(tmp_path / "quantizer.npz")


def test_a_file_in_a_bucket(tmp_path):
    def local(original, path, *args, **kwargs):
        return original(str(path).replace("gs:/", str(tmp_path), 1), *args, **kwargs)

    with epath_testing.mock_epath(open=local, exists=local, mkdir=local, makedirs=local):
        FOUR.save("gs://bucket/prior/quantizer.npz")
        again = quantization.load("gs://bucket/prior/quantizer.npz")
    np.testing.assert_array_equal(again.basis, FOUR.basis)


def test_file(tmp_path):
    FOUR.save(tmp_path / "quantizer.npz")
    for stored, value in zip(quantization.load(tmp_path / "quantizer.npz"), FOUR, strict=True):
        np.testing.assert_array_equal(stored, value)
    with pytest.raises(ValueError, match=r"cannot be read.*--mode=quantize"):
        quantization.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("count", "components", "message"),
    [(60, 6, "60 pairs are too few for 64 buckets"), (4000, 7, "components=7: must be from 1")],
)
def test_mistakes_are_named(count, components, message):
    with pytest.raises(ValueError, match=message):
        quantization.fit(IMAGES[:count], TEXTS[:count], components, 64)
