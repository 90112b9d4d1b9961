"""A schedule read from a file of numbers."""

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64

from diffusion.options import check_option
from diffusion.schedules.discrete import Discrete, from_betas, from_log_alpha_bar

KINDS = ("alpha_bar", "betas", "logsnr")
_SUFFIXES = (".npy", ".npz", ".csv", ".txt")


def table(path: str, kind: Literal["alpha_bar", "betas", "logsnr"] = "alpha_bar") -> Discrete:
    """The discrete vp schedule of a file: one number for each step, the least noisy first.

    .npy, .npz (the array named `kind`, or the only one), or text of numbers separated by commas,
    blanks or lines. The last level may be pure noise: alpha_bar 0, beta 1 or logsnr -inf.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold such numbers, or they are no schedule.
    """
    check_option("table: kind", kind, KINDS)
    values = _read(Path(path), kind)
    try:
        if kind == "betas":
            return from_betas(values)
        if kind == "logsnr":
            return Discrete(values)
        if not np.all((values >= 0.0) & (values < 1.0)):
            seen = f"{values.min():.6g} to {values.max():.6g}"
            raise ValueError(f"alpha_bar must lie in [0, 1); seen {seen}")
        with np.errstate(divide="ignore"):
            return from_log_alpha_bar(np.log(values))
    except ValueError as error:
        raise ValueError(f"table: {path} read as kind={kind!r}: {error}") from error


def _read(path: Path, kind: str) -> Float64[np.ndarray, " timesteps"]:
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"table: path={str(path)!r} ends in {path.suffix!r}; it must be one of "
            f"{', '.join(_SUFFIXES)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"table: path={str(path)!r}: no such file")
    try:
        if path.suffix in (".csv", ".txt"):
            values = np.array(path.read_text().replace(",", " ").split(), np.float64)
        else:
            values = np.load(path, allow_pickle=False)
            if path.suffix == ".npz":
                values = values[_name(values.files, kind)]
            values = np.asarray(values, np.float64)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"table: {path} cannot be read as numbers: {error}") from error
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"table: {path} has shape {values.shape}; it must be one row of at least 2 numbers"
        )
    if np.any(np.isnan(values)):
        raise ValueError(f"table: {path}: entry {np.flatnonzero(np.isnan(values))[0]} is NaN")
    return values


def _name(names: list[str], kind: str) -> str:
    if kind in names:
        return kind
    if len(names) == 1:
        return names[0]
    raise ValueError(f"it has the arrays {', '.join(names)}, none of them named {kind!r}")
