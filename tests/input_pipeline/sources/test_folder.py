import json
import pickle
import shutil

import pytest

from input_pipeline.sources.folder import folder


def packed(root, kind):
    if kind == "directory":
        return str(root)
    return shutil.make_archive(str(root), kind, root)


def examples(source):
    return [source[i] for i in range(len(source))]


def test_classes_labels_and_captions(photos):
    source = folder(str(photos), split="train")
    assert source.class_names == ("cat", "dog")
    assert source.fields == ("image", "label", "caption")
    assert [example["label"] for example in examples(source)] == [0] * 5 + [1] * 5
    assert source[6]["caption"] == "dog number 1"
    assert source[6]["image"] == (photos / "train/dog/01.png").read_bytes()
    assert source.describe(6).endswith("photos/train/dog/01.png")
    test = folder(str(photos), split="test")
    assert [example["caption"] for example in examples(test)][1:3] == [
        "cat number 1",
        "dog number 0",
    ]


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_archives_hold_the_same_as_the_directory(photos, kind, split):
    directory = folder(str(photos), split=split)
    archive = pickle.loads(pickle.dumps(folder(packed(photos, kind), split=split)))
    assert examples(archive) == examples(directory)
    assert archive.fingerprint == directory.fingerprint
    assert archive.class_names == directory.class_names


def test_captions_file_by_either_name_and_key(photos):
    expected = examples(folder(str(photos), split="test"))
    rows = map(json.loads, (photos / "test/metadata.jsonl").read_text().splitlines())
    lines = [json.dumps({"file_name": r["file_name"], "text": r["caption"]}) for r in rows]
    (photos / "test/captions.jsonl").write_text("\n\n".join(lines))
    with pytest.raises(ValueError, match=r"in test/metadata\.jsonl and in test/captions\.jsonl"):
        folder(str(photos), split="test")
    (photos / "test/metadata.jsonl").unlink()
    assert examples(folder(str(photos), split="test")) == expected


def shards(photos, tmp_path):
    """The train split in one tar for each class; captions beside the images."""
    for kind in ("cat", "dog"):
        part = tmp_path / kind / "train"
        part.mkdir(parents=True)
        shutil.copytree(photos / "train" / kind, part / kind)
        shutil.make_archive(str(tmp_path / f"shards/{kind}"), "tar", part.parent)
    return tmp_path / "shards"


def test_shards_are_read_as_one(photos, tmp_path):
    directory = folder(str(photos), split="train")
    path = str(shards(photos, tmp_path) / "*.tar")
    source = pickle.loads(pickle.dumps(folder(path, split="train")))
    assert source.fields == ("image", "label", "caption")
    assert examples(source) == examples(directory)
    assert source.fingerprint == directory.fingerprint


def test_errors_of_shards(photos, tmp_path):
    path = shards(photos, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file matches .*/\*\.zip"):
        folder(str(path / "*.zip"))
    shutil.copy(path / "cat.tar", path / "copy.tar")
    with pytest.raises(ValueError, match=r"train/cat/00\.\w+ is in .*cat\.tar and in .*copy\.tar"):
        folder(str(path / "*.tar"))


def test_captions_are_read_only_when_asked_for(photos):
    source = folder(str(photos), split="train")
    (photos / "train/cat/00.txt").unlink()
    assert source.example(0, ("image", "label")).keys() == {"image", "label"}


def test_fingerprint_follows_the_data(photos):
    def fingerprint():
        return folder(str(photos), split="train").fingerprint

    first = fingerprint()
    assert first == fingerprint()
    assert first != folder(str(photos), split="test").fingerprint
    (photos / "train/cat/00.txt").write_text("another caption")
    second = fingerprint()
    (photos / "train/cat/00.png").rename(photos / "train/cat/99.png")
    assert len({first, second, fingerprint()}) == 3


def test_folder_without_classes(photos):
    source = folder(str(photos), split="train/cat")
    assert source.num_classes == 0
    assert source.fields == ("image", "caption")
    assert "label" not in source[0]


def test_given_classes_keep_labels_where_one_is_absent(photos):
    shutil.rmtree(photos / "test/cat")
    source = folder(str(photos), split="test", classes=("cat", "dog"))
    assert [example["label"] for example in examples(source)] == [1, 1]
    with pytest.raises(ValueError, match="'dog' is none of the classes cat, bird"):
        folder(str(photos), split="test", classes=("cat", "bird"))


def test_errors_say_what_is_there(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing at '/no/such'"):
        folder("/no/such")
    with pytest.raises(ValueError, match="no file under split 'valid'; it has test, train"):
        folder(str(photos), split="valid")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="it has no folders"):
        folder(str(empty))
    (empty / "readme.md").write_text("nothing here")
    with pytest.raises(ValueError, match=r"no images \(\.png .*\) among 1 files"):
        folder(str(empty))
    with pytest.raises(ValueError, match="neither a directory nor"):
        folder(str(empty / "readme.md"))
    with pytest.raises(ValueError, match=r"compressed, .* unpack it"):
        folder(packed(photos, "gztar"))


def test_missing_caption_is_named_when_captions_are_asked_for(photos):
    (photos / "train/dog/02.txt").unlink()
    source = folder(str(photos), split="train")
    source.require(("image", "label"))
    with pytest.raises(ValueError, match=r"train/dog/02\.png in .*photos has none; .*02\.txt"):
        source.require(("image", "caption"))


def test_image_beside_the_classes_is_named(photos):
    (photos / "train/cat/00.png").rename(photos / "train/stray.png")
    with pytest.raises(ValueError, match=r"stray\.png lies beside the class folders \(cat, dog\)"):
        folder(str(photos), split="train")


def test_faulty_metadata_is_named(photos):
    (photos / "test/metadata.jsonl").write_text('{"file_name"')
    with pytest.raises(ValueError, match=r"line 1 of test/metadata\.jsonl is not JSON"):
        folder(str(photos), split="test")
    (photos / "test/metadata.jsonl").write_text('{"file_name": "cat/00.png", "words": "a cat"}')
    with pytest.raises(ValueError, match=r"line 1 of test/metadata\.jsonl needs 'file_name'"):
        folder(str(photos), split="test")
