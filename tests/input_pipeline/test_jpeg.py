import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from input_pipeline.jpeg import jpeg
from input_pipeline.sources import shapes_render


def pil(images, quality, subsampling):
    out = []
    for image in images:
        file = io.BytesIO()
        chroma = 2 if subsampling else 0
        Image.fromarray(image).save(file, "jpeg", quality=quality, subsampling=chroma)
        out.append(np.asarray(Image.open(file)))
    return np.stack(out).astype(float)


@pytest.fixture(scope="module")
def images():
    """Sides that are no multiple of a block: shapes, and smooth colours."""
    rng = np.random.default_rng(0)
    scenes = [shapes_render.render(shapes_render.scene("test", i), 64) for i in range(4)]
    walk = rng.normal(0, 1, (4, 64, 64, 3)).cumsum(1).cumsum(2)
    smooth = np.clip(walk + 128, 0, 255).astype(np.uint8)
    return np.concatenate([np.stack(scenes), smooth])[:, :50, :59]


@pytest.mark.parametrize(("subsampling", "tolerance"), [(True, 0.9), (False, 0.4)])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_as_pil(images, quality, subsampling, tolerance):
    """Rounding differs: libjpeg works in whole numbers. What JPEG loses is several times more."""
    theirs = pil(images, quality, subsampling)
    ours = jpeg(jnp.asarray(images, jnp.float32), jnp.full(8, float(quality)), subsampling)
    off = abs(np.asarray(ours) - theirs)
    assert off.mean() < tolerance
    assert off.mean() < 0.35 * abs(theirs - images).mean()
    assert np.quantile(off, 0.99) <= 6


def test_each_image_has_its_own_quality(images):
    x = jnp.asarray(images, jnp.float32)
    mixed = jpeg(x, jnp.array([30.0, 95.0] * 4))
    np.testing.assert_array_equal(mixed[::2], jpeg(x, jnp.full(8, 30.0))[::2])
    np.testing.assert_array_equal(mixed[1::2], jpeg(x, jnp.full(8, 95.0))[1::2])


def test_grey_blocks_come_back_as_they_are():
    flat = jnp.broadcast_to(jnp.array([0.0, 128.0, 255.0])[:, None, None, None], (3, 16, 16, 3))
    np.testing.assert_allclose(jpeg(flat, jnp.full(3, 95.0)), flat, atol=1)
