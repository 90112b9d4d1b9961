"""Texts as token ids: byte-level BPE that is trained here, or a published tokenizer.

A tokenizer is one file in the format of Hugging Face's `tokenizers`, which holds all there is to
know: vocabulary, start and end tokens, number of tokens and padding. It lies in the work directory
of the run that it was made for, and whatever is built on that run reads it from there.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Int32
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from input_pipeline.sources.base import Source

START, END = "<|startoftext|>", "<|endoftext|>"
# How CLIP takes a text apart: contractions, letters, single digits, runs of anything else.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_BYTES = 256


class Prompt(NamedTuple):
    """A text as tokens, and the part of it that did not fit; '' where all did."""

    tokens: Int32[np.ndarray, " context"]
    kept: str
    cut: str


class Tokenizer:
    """Texts to ids of one length: start, the text, end, padding.

    A longer text is cut before the end token. Every text has tokens: the empty one has start and
    end, and what the vocabulary lacks becomes bytes or the vocabulary's token for unknowns.

    Attributes:
        context: tokens of a text.
        vocab_size: all ids are below.
        end: id of the end token.
        fingerprint: changes with anything that changes ids.
    """

    def __init__(self, data: str):
        """`data`: what `to_json` gives."""
        self._tokenizer = tokenizers.Tokenizer.from_str(data)
        # Text that spells a special token is text.
        self._tokenizer.encode_special_tokens = True
        self._data = data
        self.context = self._tokenizer.truncation["max_length"]
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        whole = self._tokenizer.encode("")
        self.end = [i for i, m in zip(whole.ids, whole.attention_mask, strict=True) if m][-1]
        self.fingerprint = hashlib.sha256(data.encode()).hexdigest()[:16]

    def __reduce__(self):
        return Tokenizer, (self._data,)

    def to_json(self) -> str:
        """All of it, as tokenizer.json."""
        return self._data

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "count context"]:
        """Ids of each text."""
        # One by one: the library's threads do not outlive a fork.
        rows = [self._tokenizer.encode(str(text)).ids for text in texts]
        return np.array(rows, np.int32).reshape(len(rows), self.context)

    def prompt(self, text: str) -> Prompt:
        """Ids of one text, and what was cut off, for a program that tells its user."""
        encoding = self._tokenizer.encode(text)
        ids = np.array(encoding.ids, np.int32)
        if not encoding.overflowing:
            return Prompt(ids, text, "")
        own = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        end = max((stop for (_, stop), special in own if not special), default=0)
        return Prompt(ids, text[:end], text[end:])


def bpe(
    context: int, captions: Callable[[int], Iterable[str]], vocab_size: int = 512, count: int = 0
) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of the source's own captions.

    Lower-case. The 256 bytes are in the vocabulary, so that any text can be written in it; start
    and end tokens come last, as in CLIP, and padding is with the end token. The same captions give
    the same tokenizer.

    Args:
        context: tokens of a text.
        captions: `captions(count)` gives so many captions of the source, or with 0 all.
        vocab_size: ids at most; fewer where the captions have no more to merge.
        count: captions that are read; 0: all.
    """
    if vocab_size < _BYTES + 2:
        raise ValueError(
            f"vocab_size={vocab_size}: must be {_BYTES + 2} (bytes, start, end) or more"
        )
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = _normalizer()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(captions(count), trainer)
    made.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in (START, END)])
    return _finished(made, context, START, END)


def file(context: int, path: str, start: str = START, end: str = END) -> Tokenizer:
    """A published tokenizer.

    Args:
        context: tokens of a text.
        path: a tokenizer.json, or a directory with one, or with CLIP's vocab.json and merges.txt;
            of a disk or a bucket.
        start: token that texts begin with; '': none.
        end: token that they end with; padding is with it, too, unless the file says otherwise.
    """
    there = epath.Path(path).expanduser()
    if there.is_dir() and (there / "tokenizer.json").exists():
        there = there / "tokenizer.json"
    if there.is_dir():
        made = _clip(there)
    elif there.exists():
        made = tokenizers.Tokenizer.from_str(there.read_text())
    else:
        raise FileNotFoundError(f"path={path!r}: there is no such file or directory")
    return _finished(made, context, start, end)


def _clip(directory: epath.Path) -> tokenizers.Tokenizer:
    """Of vocab.json and merges.txt, whose words end with '</w>'."""
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    for needed in (vocab, merges):
        if not needed.exists():
            raise FileNotFoundError(
                f"path={str(directory)!r}: has no {needed.name}; a directory needs tokenizer.json, "
                "or vocab.json and merges.txt"
            )
    lines = merges.read_text().splitlines()
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    made = tokenizers.Tokenizer(
        models.BPE(
            json.loads(vocab.read_text()),
            pairs,
            unk_token=END,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    made.normalizer = _normalizer()
    words = pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def _normalizer() -> normalizers.Normalizer:
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    return normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Strip(), normalizers.Lowercase()]
    )


def _finished(made: tokenizers.Tokenizer, context: int, start: str, end: str) -> Tokenizer:
    """Start and end around every text, `context` tokens of each; kept in the file itself."""
    special = [(name, made.token_to_id(name)) for name in (start, end) if name]
    for argument, name in (("start", start), ("end", end)):
        if name and made.token_to_id(name) is None:
            raise ValueError(f"{argument}={name!r}: the vocabulary has no such token")
    if not end:
        raise ValueError("end='': a text needs an end token")
    if context < len(special):
        raise ValueError(f"context={context}: must be {len(special)} or more")
    before, padding = ([start] if start else []), made.padding
    made.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", end], special_tokens=special
    )
    made.enable_truncation(context)
    pad = (padding["pad_token"], padding["pad_id"]) if padding else (end, made.token_to_id(end))
    made.enable_padding(length=context, pad_token=pad[0], pad_id=pad[1])
    return Tokenizer(made.to_str())


def captions_of(source: Source) -> Callable[[int], Iterable[str]]:
    """`captions` of `bpe`: those of a source, of a part the same ones whatever its order."""

    def captions(count: int) -> Iterable[str]:
        total = len(source)
        indices = range(total) if not count else source.order(range(min(count, total)), 0, True)
        for index in indices:
            yield source.example(index, ("caption",))["caption"]

    return captions


TOKENIZERS = {"bpe": bpe, "file": file}
