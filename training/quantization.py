"""Image embeddings as codes: principal components, each in equal buckets; their inverse.

DALL-E 2's autoregressive prior (Ramesh et al. 2022, section 2.2) keeps the principal components of
largest eigenvalue, in that order, and puts each into one of 1024 discrete buckets. The paper says
no more of the buckets. Here they are equally wide between the least and the largest value that the
component has in the training data, so the error of a value in that range is at most half a bucket;
values beyond go to the outermost bucket. The dot product of image and text embedding is put into
buckets that hold equally many training pairs: the top half of its distribution, from which the
paper samples it, is the upper half of its codes.
"""

import os
import zipfile
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from diffusion.levels import AnyArray, namespace
from training.files import atomic_write, npz


class Quantizer(NamedTuple):
    """What `fit` found; float64, `buckets` of each component and of the dot product."""

    mean: Float[np.ndarray, " dim"]
    basis: Float[np.ndarray, "dim components"]
    low: Float[np.ndarray, " components"]
    high: Float[np.ndarray, " components"]
    # Between the buckets of the dot product: one fewer.
    dot_edges: Float[np.ndarray, " edges"]
    # Share of the variance of the training data that the components hold.
    explained: float

    @property
    def buckets(self) -> int:
        """How many values a code has."""
        return len(self.dot_edges) + 1

    @property
    def width(self) -> Float[np.ndarray, " components"]:
        """Of the buckets of each component."""
        return (self.high - self.low) / self.buckets

    def encode(self, embedding: Float[AnyArray, "batch dim"]) -> Int[AnyArray, "batch components"]:
        """Codes from 0 to buckets - 1, of the component of largest eigenvalue first."""
        xp = namespace(embedding)
        values = _product(xp, embedding - self._in(xp, self.mean), self._in(xp, self.basis))
        codes = xp.floor((values - self._in(xp, self.low)) / self._in(xp, self.width))
        return xp.clip(codes, 0, self.buckets - 1).astype(np.int32)

    def decode(self, codes: Int[AnyArray, "batch components"]) -> Float[AnyArray, "batch dim"]:
        """The embedding at the middle of each bucket; what was no component is the mean's."""
        xp = namespace(codes)
        middle = codes.astype(np.float64 if xp is np else np.float32) + 0.5
        values = self._in(xp, self.low) + middle * self._in(xp, self.width)
        return _product(xp, values, self._in(xp, self.basis).T) + self._in(xp, self.mean)

    def encode_dot(self, dot: Float[AnyArray, " batch"]) -> Int[AnyArray, " batch"]:
        """The code of a dot product: how many edges it has reached."""
        xp = namespace(dot)
        edges = self._in(xp, self.dot_edges)
        return xp.searchsorted(edges, dot, side="right").astype(np.int32)

    def save(self, path: str | os.PathLike) -> None:
        """Write the numbers as .npz; a reader finds it whole or not at all."""
        atomic_write(path, npz(**self._asdict()))

    def _in(self, xp: Any, array: np.ndarray) -> Any:
        return array if xp is np else xp.asarray(array, np.float32)


def _product(xp: Any, a: Any, b: Any) -> Any:
    """a @ b in full float32: by an accelerator's default small components are off by buckets."""
    return a @ b if xp is np else xp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def fit(
    images: Float[np.ndarray, "count dim"],
    texts: Float[np.ndarray, "count dim"],
    components: int,
    buckets: int,
) -> Quantizer:
    """The quantizer of training pairs, whose embeddings are in the space that is modelled.

    Raises:
        ValueError: fewer pairs than buckets or than components, or too many components.
    """
    count, dim = images.shape
    if not 0 < components <= dim:
        raise ValueError(f"components={components}: must be from 1 to the embeddings' {dim}")
    if count < max(buckets, components + 1):
        raise ValueError(
            f"{count} pairs are too few for {buckets} buckets of {components} components; fit on "
            f"{max(buckets, components + 1)} or more"
        )
    images, texts = images.astype(np.float64), texts.astype(np.float64)
    mean = images.mean(0)
    centered = images - mean
    values, vectors = np.linalg.eigh(centered.T @ centered / count)
    basis = vectors[:, ::-1][:, :components]
    kept = centered @ basis
    low, high = kept.min(0), kept.max(0)
    # A component that does not vary has buckets of some width nevertheless.
    high = np.maximum(high, low + np.finfo(np.float32).eps)
    dots = np.sum(images * texts, axis=1)
    edges = np.quantile(dots, np.arange(1, buckets) / buckets)
    explained = float(values[::-1][:components].sum() / max(values.sum(), np.finfo(float).tiny))
    return Quantizer(mean, basis, low, high, edges, explained)


def load(path: str | os.PathLike) -> Quantizer:
    """What `Quantizer.save` wrote.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        with epath.Path(path).open("rb") as stored, np.load(stored) as file:
            arrays = {name: file[name] for name in Quantizer._fields}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"quantizer={os.fspath(path)!r} cannot be read: {error!r}; write it by "
            "main.py --mode=quantize"
        ) from error
    return Quantizer(**arrays | {"explained": float(arrays["explained"])})
