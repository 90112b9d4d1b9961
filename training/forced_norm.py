"""Forced weight normalization (EDM2: Karras et al., 2024, eq. 66) as a step of the optimizer."""

import jax
import optax

from models.magnitude_preserving import is_kernel, normalized_kernel


def forced_weight_norm(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`inner`, with updates after which (`optax.apply_updates`) every kernel is normalized.

    A kernel is a leaf of that name with two axes or more; each output channel (last axis) gets RMS
    1, up to the eps of `normalized_kernel`. Other leaves move as `inner` has it. The state is that
    of `inner`.

    EDM2 normalizes at the start of each forward pass in training, here it is the end of each
    update. The steps are the same if the first one starts from normalized kernels, as those of a
    fresh EDM2 network are; `models.magnitude_preserving.normalized_kernels` makes any others so.
    Kernels stacked along an axis of depth (DiT's) are not meant: the depth would be averaged over.

    Raises:
        ValueError: `update` was called without the params.
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("forced_weight_norm: update() needs params, the third argument")
        updates, state = inner.update(updates, state, params, **extra)

        def force(path, value, update):
            return normalized_kernel(value + update) - value if is_kernel(path, value) else update

        return jax.tree_util.tree_map_with_path(force, params, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
