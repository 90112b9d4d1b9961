import pickle
import shutil

import pytest

from input_pipeline.sources.class_captions import ClassCaptions
from input_pipeline.sources.digits import digits
from input_pipeline.sources.folder import folder
from training import components

TEMPLATES = ("a photo of a {}.", "one {}, small")


@pytest.fixture
def bare(photos):
    """Its training split without captions, one class renamed to two words."""
    for file in photos.glob("train/*/*.txt"):
        file.unlink()
    shutil.move(photos / "train" / "dog", photos / "train" / "guide_dog")
    return str(photos)


def test_templates_take_turns_with_the_name_of_the_class(bare):
    source = pickle.loads(pickle.dumps(folder(bare, "train", templates=TEMPLATES)))
    plain = folder(bare, "train")
    assert source.fields == (*plain.fields, "caption")
    assert (len(source), source.class_names) == (10, ("cat", "guide_dog"))
    captions = [example["caption"] for example in source.examples(range(3, 6), ("caption",))]
    assert captions == ["one cat, small", "a photo of a cat.", "one guide dog, small"]
    assert source[6]["caption"] == "a photo of a guide dog."
    assert {k: v for k, v in source[6].items() if k != "caption"} == plain[6]
    assert "caption" not in source.examples([0], ("image",))[0]
    assert source.describe(6) == plain.describe(6)


def test_the_config_names_split_and_templates(bare):
    spec = f"folder(path={bare!r}, split='train', templates={TEMPLATES!r})"
    made = components.build({"folder": folder}, spec, "config.data.source")
    assert made.name == spec
    assert components.parse(components.changed(spec, split="test")).name == "folder"


def test_other_captions_are_another_fingerprint(bare):
    one, same, other = (
        folder(bare, "train", templates=templates).fingerprint
        for templates in (TEMPLATES, TEMPLATES, TEMPLATES[:1])
    )
    assert one == same
    assert len({one, other, folder(bare, "train").fingerprint}) == 3


def test_what_cannot_be_is_refused_by_name(bare):
    with pytest.raises(ValueError, match=r"template 'a photo' must have one '\{\}'"):
        folder(bare, "train", templates=("a photo",))
    with pytest.raises(ValueError, match="there are captions already; leave templates out"):
        ClassCaptions(digits(), TEMPLATES, "digits()")
    with pytest.raises(ValueError, match="there are no classes"):
        folder(f"{bare}/train/cat", templates=TEMPLATES)
