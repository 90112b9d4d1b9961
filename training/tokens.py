"""The tokenizer of a run: made when it starts, kept in its work directory."""

import os

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import input_pipeline
from input_pipeline.tokenizer import Tokenizer, captions_of
from training import components
from training.components import ConfigError
from training.files import atomic_write
from training.workdir import Workdir


def prepare(config: ConfigDict, source, workdir: Workdir) -> Tokenizer | None:
    """The tokenizer of `config.data.tokenizer`, stored in the work directory if it is not there.

    None where the config has none: then the source has to have tokens.

    Raises:
        ConfigError: the network has too few tokens for it, or the source no captions.
    """
    spec = config.data.tokenizer
    if not spec:
        if "tokens" in source.fields:
            return None
        raise ConfigError(
            "config.data.tokenizer = '': the task needs token ids, which "
            f"{source.name} has not; take 'bpe(vocab_size=512)' or 'file(path=...)'"
        )
    if "caption" not in source.fields:
        raise ConfigError(f"config.data.tokenizer = {spec!r}: {source.name} has no captions")
    if jax.process_index() == 0 and not workdir.tokenizer.exists():
        made = components.build(
            input_pipeline.TOKENIZERS,
            spec,
            "config.data.tokenizer",
            context=config.data.context,
            captions=captions_of(source),
        )
        atomic_write(workdir.tokenizer, made.to_json().encode())
    multihost_utils.sync_global_devices("tokenizer")
    tokenizer = read(workdir)
    # Without a table of its own (none, or 0) a network is given what a CLIP says of the tokens.
    rows = config.model.get("vocab_size", 0)
    if 0 < rows < tokenizer.vocab_size:
        raise ConfigError(
            f"config.model.vocab_size = {rows}: must be {tokenizer.vocab_size} or more, the ids of "
            f"config.data.tokenizer = {spec!r}"
        )
    return tokenizer


def read(workdir: Workdir) -> Tokenizer:
    """The tokenizer that a run was trained with.

    Raises:
        ConfigError: there is none.
    """
    if not workdir.tokenizer.exists():
        raise ConfigError(
            f"{os.fspath(workdir)}: has no tokenizer.json; it is written when a run with "
            "config.data.tokenizer starts"
        )
    return Tokenizer(workdir.tokenizer.read_text())
