"""Examples of another split of the data by number, which samples and previews are made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

import input_pipeline
from input_pipeline.decoder import Decoder
from training.components import ConfigError, build, changed


def reader(config: Any, split: str, fields: Sequence[str]) -> Decoder:
    """Reads `fields` of the examples of `config.data.source` in another split of it.

    Raises:
        ConfigError: the source has no such split or fields.
    """
    spec = changed(config.data.source, split=split)
    source = build(input_pipeline.SOURCES, spec, "config.data.source")
    if missing := [field for field in fields if field not in source.fields]:
        raise ConfigError(
            f"config.data.source = {spec!r}: has no {', '.join(missing)}, only "
            f"{', '.join(source.fields)}"
        )
    return Decoder(source, config.data.image_size, config.data.channels, tuple(fields), "raise")


def examples(
    decoder: Decoder, indices: Int[np.ndarray, " batch"]
) -> dict[str, Shaped[np.ndarray, "batch ..."]]:
    """The examples of these numbers, in the split's order, from the first again after the last."""
    wanted = [int(index) % len(decoder.source) for index in indices]
    rows = list(decoder(wanted, []))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
