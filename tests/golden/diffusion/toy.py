"""The closed-form "networks" that golden values were made with, for numpy, jax and torch alike."""


def eps_of(xp, x, time):
    """A noise prediction that depends on x and time (0..1000)."""
    return xp.tanh(0.9 * x + 0.002 * time - 0.5)


def fraction_of(xp, x, time):
    """A learned variance's v; partly outside [-1, 1]."""
    return 1.3 * xp.sin(2.0 * x + 0.01 * time)


def x0_of(xp, y, sigma):
    """A denoiser of y = x0 + sigma eps that is smooth in y and log sigma."""
    return xp.tanh(1.5 * y / (1.0 + sigma**2) ** 0.5 + 0.4 * xp.sin(xp.log(sigma)))


def sigma_lists(np, alpha_bar):
    """sigma / alpha of the grids that solvers are compared on, each of 10 and of 25 steps to 0.

    alpha_bar [1000] is that of DDPM's linear schedule.
    """
    lists = {}
    for steps in (10, 25):
        t = np.arange(steps)[::-1] * (1000 // steps)
        flow = np.linspace(0.99, 0.0, steps + 1)
        roots = np.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), steps)
        lists[f"linear/{steps}"] = np.append(((1.0 - alpha_bar[t]) / alpha_bar[t]) ** 0.5, 0.0)
        lists[f"karras/{steps}"] = np.append(roots**7, 0.0)
        lists[f"flow/{steps}"] = flow / (1.0 - flow)
    return lists
