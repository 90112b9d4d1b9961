"""Bilinear operations that are computed in another way on a CPU than XLA would.

Each is a JAX primitive and no `custom_vjp`: the gradients of one are two others, so forward mode,
higher derivatives and vmap work. Which way it is is decided when a program is lowered for its
devices; under vmap it is XLA's.
"""

from collections.abc import Callable

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# What each primitive stands for, by its name, in XLA's own terms.
PLAIN: dict[str, Callable] = {}


def bilinear(name: str, plain: Callable, shape: Callable, *, cpu: Callable, cpus: Callable):
    """A primitive of two arrays: `cpu` on one CPU device, `cpus` on several, elsewhere `plain`.

    shape: that of the result by those of the arrays; its type is that of the first.
    """
    primitive, PLAIN[name] = Primitive(name), plain
    primitive.def_impl(jax.jit(primitive.bind))
    primitive.def_abstract_eval(lambda a, b: a.update(shape=shape(a.shape, b.shape)))

    def lower(ctx, *args):
        # A loop over a batch that lies on several devices would move it between them.
        devices = getattr(ctx.module_context.axis_context, "num_devices", 1)
        function = cpu if devices == 1 else cpus
        return mlir.lower_fun(function, multiple_results=False)(ctx, *args)

    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(primitive, lower, platform="cpu")
    batching.primitive_batchers[primitive] = lambda arguments, axes: (
        jax.vmap(plain, in_axes=axes)(*arguments),
        0,
    )
    return primitive


def trilinear(value: Primitive, transposed: Primitive, kernel: Primitive) -> None:
    """Makes value(x, k), transposed(g, k) and kernel(x, g) the gradients of each other.

    They are one trilinear form of input x, kernel k and output g: whichever is left out, the
    gradient of the form there is a primitive of the other two.
    """
    ad.defbilinear(value, lambda g, x, k: transposed.bind(g, k), lambda g, x, k: kernel.bind(x, g))
    ad.defbilinear(transposed, lambda x, g, k: value.bind(x, k), lambda x, g, k: kernel.bind(x, g))
    ad.defbilinear(kernel, lambda k, x, g: transposed.bind(g, k), lambda k, x, g: value.bind(x, k))
