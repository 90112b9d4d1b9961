"""Walks along a grid by a solver's own steps, and denoisers that are known exactly."""

import jax
import numpy as np

from diffusion import Prediction
from diffusion.solvers import at


def rows(plan):
    """The rows of a plan, one a call."""
    leaves, tree = jax.tree.flatten(plan)
    return [tree.unflatten(row) for row in zip(*leaves, strict=True)]


def walk(solver, grid, schedule, denoise, start, noises=None):
    """All x, the first one included, one a call; float64 from numpy."""
    plan = rows(solver.plan(grid, schedule))
    noises = np.zeros((len(plan), 1)) if noises is None else noises
    states = [solver.init(start)]
    for row, noise in zip(plan, noises, strict=True):
        states.append(solver.step(states[-1], denoise, row, noise + 0.0 * start))
    return np.stack([solver.output(state) for state in states])


def mixture(weights, means, variances):
    """The exact denoiser of a mixture of Gaussians, each pixel on its own."""
    weights, means, variances = map(np.asarray, (weights, means, variances))

    def denoise(x, level):
        total = level.alpha**2 * variances + level.sigma**2
        deviation = x[..., None] - level.alpha * means
        log_p = np.log(weights) - 0.5 * (np.log(total) + deviation**2 / total)
        p = np.exp(log_p - log_p.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x0 = means + level.alpha * variances / total * deviation
        # eps apart: no difference that is divided by sigma.
        return Prediction((p * x0).sum(-1), (p * (level.sigma / total * deviation)).sum(-1))

    return denoise


GAUSSIAN = mixture([1.0], [0.4], [0.3])
MIXTURE = mixture([0.3, 0.7], [-0.8, 0.6], [0.05, 0.1])


def marginal(level):
    """Mean and variance of GAUSSIAN noised to a level."""
    return level.alpha * 0.4, level.alpha**2 * 0.3 + level.sigma**2


def law(solver, grid, schedule):
    """Mean and variance of samples of GAUSSIAN: every step is affine in all that it remembers."""
    plan = rows(solver.plan(grid, schedule))
    state, tree = jax.tree.flatten(solver.init(np.zeros(1)))
    size = len(state)
    mean, covariance = np.zeros(size), np.zeros((size, size))
    mean[0], covariance[0, 0] = marginal(at(grid, 0))
    for row in plan:

        def step(z, noise, row=row):
            out = solver.step(tree.unflatten(np.split(z, size)), GAUSSIAN, row, np.array([noise]))
            return np.concatenate(jax.tree.leaves(out))

        offset = step(np.zeros(size), 0.0)
        linear_part = np.stack([step(unit, 0.0) - offset for unit in np.eye(size)], 1)
        spread = step(np.zeros(size), 1.0) - offset
        mean = offset + linear_part @ mean
        covariance = linear_part @ covariance @ linear_part.T + np.outer(spread, spread)
    return mean[0], covariance[0, 0]
