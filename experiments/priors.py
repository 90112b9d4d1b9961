"""The priors of unCLIP before one decoder (Ramesh et al. 2022, section 5.1 and table 1).

    python -m experiments.priors --config=configs/unclip_shapes.py:priors --workdir=runs/unclip

Trains the stages that are not trained yet, then gives one decoder the image embeddings of each
prior among them, the text embedding in place of any, and the true embedding, as a perfect prior
would. Captions and noise are the same for all. Writes

    <workdir>/report/priors.json  priors.md  priors.png

Pictures lie in <workdir>/generated and values in <workdir>/evaluation as soon as they are there: a
killed program goes on.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

import evaluation.stack
import models
from evaluation.stack_metrics import captioned, embedded
from experiments import priors_report
from pipelines import stack as stacks
from pipelines.text_to_image import Stage, TextToImage
from training import allocator, command_line, stack
from training.components import ConfigError
from training.config import freeze
from training.files import atomic_write
from training.stack import check_stack, is_stack, validate_stack
from training.workdir import Workdir, provenance

# Networks of priors, from the one that adds least to the text embedding to the one that adds most.
KINDS = {
    "": "text embedding",
    "linear_prior": "linear",
    "mlp_prior": "MLP",
    "autoregressive_prior": "autoregressive",
    "prior": "diffusion",
}
TRUE = "true embedding"


@dataclasses.dataclass(frozen=True)
class TrueEmbeddings:
    """In the place of a prior's task: embedding i is that of held-out image i."""

    def sample(
        self,
        params: Float[np.ndarray, "count embedding"],
        condition: Mapping[str, Any],
        key: Key[Array, ""],
        indices: Int[Array | np.ndarray, " batch"],
    ) -> Float[Array, "batch embedding"]:
        """Rows `indices` of params; caption and key change nothing."""
        return jnp.asarray(params)[jnp.asarray(indices)]


def priors_of(config: Any) -> list[tuple[str, str]]:
    """(what it is, stage) of every prior of a stack, in the order of `KINDS`; '' is no prior.

    Raises:
        ConfigError: the stack has fewer than two, so that nothing is to be compared.
    """
    found = [("", "")]
    for name in config.order:
        if stack.task_of(config.stages[name]).name in stack.PRIORS:
            found.append((config.stages[name].model.name, name))
    if len(found) < 3:
        raise ConfigError(
            f"config.stages: {', '.join(config.order)} have {len(found) - 1} prior, and a "
            "comparison needs two or more; configs/unclip_shapes.py:priors has four"
        )
    found.sort(key=lambda pair: list(KINDS).index(pair[0]))
    kinds = [kind for kind, _ in found]
    return [
        (KINDS[kind] if kinds.count(kind) == 1 else f"{KINDS[kind]} ({name})", name)
        for kind, name in found
    ]


def compare(config: Any, directory: str | os.PathLike[str], split: str, count: int) -> dict:
    """All numbers of all priors, as JSON values.

    split: of the pairs of the stack, whose first `count` captions are drawn.

    Raises:
        ConfigError: a stage is missing or does not fit, or there is no such split.
    """
    names = priors_of(config)
    specs = {
        what: f"{what}(split={split!r}, count={count})"
        for what in ("prior_quality", "caption_accuracy", "decoded_quality")
    }
    metrics = evaluation.stack.build(list(specs.values()), config)
    pipeline, rows = TextToImage(config, directory), []
    for label, name in [*names, (TRUE, None)]:
        prior = _true(pipeline, config, split, count) if name is None else name
        here = pipeline.with_prior(prior)
        print(f"{label}:", flush=True)
        values = evaluation.stack.measure(metrics, here, config, directory)
        row = {"prior": label, "stage": name or "", "parameters": 0}
        if name:
            row["parameters"] = models.count_parameters(here.prior.params)
            row |= {"checkpoint": here.prior.identity["checkpoint"]}
        rows.append(row | {what: values[spec] for what, spec in specs.items()})
    rest = pipeline.with_prior("").identity
    return {
        "split": split,
        "count": rows[0]["caption_accuracy"]["count"],
        "seed": config.generate.seed,
        "rows": rows,
        "stages": rest,
        "provenance": provenance(),
    }


def _true(pipeline: TextToImage, config: Any, split: str, count: int) -> Stage:
    """The embeddings of the split's images as a stage that draws them."""
    source, clip = captioned(config, split), pipeline.clip
    _, embeddings = embedded(clip, source, range(min(count, len(source))))
    identity = {"embeddings": f"of the images of {source.name}"}
    return Stage(TRUE, clip.workdir, TrueEmbeddings(), embeddings, identity)


def write(result: dict[str, Any], directory: str | os.PathLike[str]) -> Path:
    """priors.json, priors.md and priors.png in <directory>/report, which is returned."""
    out = Path(directory) / "report"
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "priors.json", (json.dumps(result, indent=2) + "\n").encode())
    atomic_write(out / "priors.md", priors_report.tables(result).encode())
    priors_report.plot(result, out / "priors.png")
    return out


def main(arguments: Sequence[str]) -> None:
    """Trains what is missing, measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="of a stack with several priors")
    parser.add_argument("--workdir", required=True, help="of the stack")
    parser.add_argument("--split", default="test", help="of the pairs, held out from training")
    parser.add_argument("--count", type=int, default=256, help="captions of it that are drawn")
    overrides, rest = command_line.split(arguments)
    flags = parser.parse_args(rest)
    if flags.count < 2:
        raise ConfigError(f"--count={flags.count}: must be 2 or more, to tell captions apart")
    config = command_line.read(flags.config)
    command_line.override(config, overrides)
    if not is_stack(config):
        raise ConfigError(f"--config={flags.config}: is a single run, and a stack is needed")
    validate_stack(config)
    check_stack(config)
    config = freeze(config)
    priors_of(config)
    allocator.keep_freed_memory()
    stacks.train(config, flags.workdir)
    result = compare(config, flags.workdir, flags.split, flags.count)
    out = write(result, Workdir(flags.workdir).path)
    print(priors_report.tables(result))
    print(out / "priors.png")


if __name__ == "__main__":
    if not jax.config.jax_compilation_cache_dir:
        # As main.py: a start after the first one reads its programs back.
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "jax-diffusion"))
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"experiments.priors: {error}")
