import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from etils.epath import testing as epath_testing
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import TOKENIZERS, make_loader
from input_pipeline.sources.base import Source
from input_pipeline.tokenizer import Tokenizer, bpe, captions_of, file

GOLDEN = pathlib.Path("tests/golden/models")
WORDS = ("small", "large", "red", "blue", "circle", "square")
CAPTIONS = [f"a {a} {b} {c}" for a in WORDS[:2] for b in WORDS[2:4] for c in WORDS[4:]]


class Captions(Source):
    name, fields, class_names = "captions", ("image", "label", "caption"), ("one", "two")
    fingerprint = "captions"

    def __len__(self):
        return len(CAPTIONS)

    def example(self, index, fields):
        image = np.full((4, 4, 1), index, np.uint8)
        return {"image": image, "label": index % 2, "caption": CAPTIONS[index]}


def captions(count):
    return CAPTIONS[: count or None]


TOKENIZER = bpe(12, captions, vocab_size=300)
# Bytes, then 28 merges, after which each word of the captions is one token.
START, END = 284, 285


def loader(**settings):
    fixed = {"image_size": 4, "channels": 1, "batch_size": 4, "seed": 1, "tokenizer": TOKENIZER}
    return make_loader(Captions(), **(fixed | settings))


def test_start_text_end_padding():
    start, end = START, END
    empty, red, long = TOKENIZER(["", "a red circle", "red circle " * 20])
    assert TOKENIZER.vocab_size == END + 1 <= 300
    assert TOKENIZER.end == end
    assert empty.tolist() == [start] + [end] * 11
    assert red[0] == start
    assert 0 < (red[1:] != end).sum() < 10
    assert end not in long[:-1]
    assert long[-1] == end
    # A word of the captions is one token; case and spaces make no difference.
    np.testing.assert_array_equal(red, TOKENIZER(["  A Red\n CIRCLE "])[0])
    assert (red != end).sum() == 4
    assert TOKENIZER([]).shape == (0, 12)


@given(st.text(max_size=30))
def test_any_text_has_tokens(text):
    """The bytes are there for what the captions never had, also for names of special tokens."""
    (ids,) = TOKENIZER([text])
    assert ids[0] == START
    assert ids[-1] == END
    # One end, then nothing else: the text cannot say that it ends.
    first = ids.tolist().index(END)
    assert (ids[first:] == END).all()
    assert START not in ids[1:]


def test_words_that_no_caption_had_are_pieces_and_none_is_lost():
    known, unknown = TOKENIZER(["a red circle", "☃ ödd"])
    assert (known[1:] != END).sum() == 3, "a token for each word"
    pieces = unknown[(unknown != START) & (unknown != END)]
    assert len(pieces) > 3
    written = tokenizers.Tokenizer.from_str(TOKENIZER.to_json()).decode(pieces.tolist())
    assert written.strip() == "☃ ödd"


def test_special_tokens_in_a_text_are_text():
    (ids,) = TOKENIZER(["<|endoftext|>"])
    assert (ids[1:5] < START).all()


def test_the_same_captions_give_the_same_tokenizer_in_any_process():
    program = (
        "from tests.input_pipeline.test_tokenizer import *; print(TOKENIZER.fingerprint, end='')"
    )
    setup = "import tests.conftest; "
    done = subprocess.run(
        [sys.executable, "-c", setup + program], capture_output=True, text=True, check=True
    )
    assert done.stdout == TOKENIZER.fingerprint
    assert bpe(12, lambda count: CAPTIONS[::-1], vocab_size=300).fingerprint == done.stdout
    assert bpe(12, lambda count: CAPTIONS[:1], vocab_size=300).fingerprint != done.stdout
    assert bpe(13, captions, vocab_size=300).fingerprint != done.stdout


def test_its_file_holds_all_of_it():
    for copy in (Tokenizer(TOKENIZER.to_json()), pickle.loads(pickle.dumps(TOKENIZER))):
        texts = [*CAPTIONS, "", "<|endoftext|>", "a red circle " * 9]
        np.testing.assert_array_equal(copy(texts), TOKENIZER(texts))
        assert (copy.end, copy.context, copy.fingerprint) == (END, 12, TOKENIZER.fingerprint)


def test_a_prompt_tells_what_was_cut():
    whole = TOKENIZER.prompt("a red circle")
    assert (whole.kept, whole.cut) == ("a red circle", "")
    text = "A red circle, ÉTÉ " + "blue square " * 8
    prompt = TOKENIZER.prompt(text)
    assert prompt.kept + prompt.cut == text
    assert "red circle" in prompt.kept
    assert prompt.cut.endswith("blue square ")
    np.testing.assert_array_equal(prompt.tokens, TOKENIZER([text])[0])
    np.testing.assert_array_equal(TOKENIZER.prompt(prompt.kept).tokens, prompt.tokens)


def clip_files(path):
    told = json.loads((GOLDEN / "clip.json").read_text())["tokenizer"]
    (path / "vocab.json").write_text(json.dumps(told["vocab"]))
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *told["merges"]]) + "\n")
    return told["texts"]


def test_clips_files_as_transformers_reads_them(tmp_path):
    texts = clip_files(tmp_path)
    expected = np.load(GOLDEN / "clip.npz")["ids"]
    # There the name of a special token, written in a text, becomes that token.
    plain = [k for k, text in enumerate(texts) if "<|" not in text]
    assert len(plain) == 3
    read = file(24, str(tmp_path))
    np.testing.assert_array_equal(read(texts)[plain], expected[plain])
    # As one published file.
    (tmp_path / "other.json").write_text(read.to_json())
    np.testing.assert_array_equal(file(24, str(tmp_path / "other.json"))(texts), read(texts))
    assert file(9, str(tmp_path / "other.json"))(texts).shape == (len(texts), 9)


def test_a_file_in_a_bucket(tmp_path):
    def local(original, path, *args, **kwargs):
        return original(str(path).replace("gs:/", str(tmp_path), 1), *args, **kwargs)

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer.json").write_text(TOKENIZER.to_json())
    with epath_testing.mock_epath(open=local, exists=local, isdir=local):
        there = file(12, "gs://run/tokenizer.json")
    assert there.fingerprint == TOKENIZER.fingerprint


def test_mistakes_name_the_argument(tmp_path):
    with pytest.raises(ValueError, match="vocab_size=257: must be 258"):
        bpe(12, captions, vocab_size=257)
    with pytest.raises(FileNotFoundError, match="path='nowhere'"):
        file(12, "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no vocab\.json"):
        file(12, str(tmp_path))
    clip_files(tmp_path)
    with pytest.raises(ValueError, match=r"end='</s>': the vocabulary has no such token"):
        file(12, str(tmp_path), end="</s>")
    with pytest.raises(ValueError, match="context=1: must be 2"):
        file(1, str(tmp_path))
    assert set(TOKENIZERS) == {"bpe", "file"}


def test_captions_of_a_part_of_a_source():
    source = Captions()
    assert list(captions_of(source)(0)) == CAPTIONS
    some = list(captions_of(source)(3))
    assert len(set(some)) == 3
    assert list(captions_of(source)(3)) == some


def test_batches_have_the_tokens_of_their_captions():
    with_tokens = loader(fields=("tokens", "image"))
    batch = next(with_tokens)
    assert list(batch) == ["tokens", "image"]
    assert batch["tokens"].dtype == np.int32
    captions = [CAPTIONS[k] for k in batch["image"][:, 0, 0, 0]]
    np.testing.assert_array_equal(batch["tokens"], TOKENIZER(captions))
    with_tokens.close()
    both = loader(fields=("caption", "tokens"))
    batch = next(both)
    np.testing.assert_array_equal(batch["tokens"], TOKENIZER(batch["caption"].tolist()))
    both.close()


def test_workers_and_resuming_give_the_same_tokens():
    here = loader(fields=("tokens",))
    expected = [next(here)["tokens"] for _ in range(4)]
    there = loader(fields=("tokens",), workers=1)
    try:
        got = [next(there)["tokens"] for _ in range(2)]
        state = there.state()
    finally:
        there.close()
    resumed = loader(fields=("tokens",))
    resumed.restore(json.loads(json.dumps(state)))
    got += [next(resumed)["tokens"] for _ in range(2)]
    np.testing.assert_array_equal(got, expected)
    assert len({batch.tobytes() for batch in expected}) > 1
    other = loader(fields=("tokens",), tokenizer=bpe(12, captions, vocab_size=270))
    with pytest.raises(ValueError, match="stored with tokenizer"):
        other.restore(state)
    for each in (here, resumed):
        each.close()


def test_tokens_without_a_tokenizer_are_the_sources_own():
    with pytest.raises(ValueError, match="captions has no 'tokens'"):
        loader(fields=("tokens",), tokenizer=None)
    # The position of a stream without tokens does not depend on a tokenizer.
    assert "tokenizer" not in loader(fields=("image",)).state()
