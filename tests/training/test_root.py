"""training.root: a stack may be moved, a single run keeps its paths."""

import json

import pytest

from configs import base, unclip_shapes
from training.config import load, save
from training.root import fill, stack_of, unfill
from training.workdir import Workdir


def stage(root):
    """A config with paths: of the stack, of a neighbour of like name, of elsewhere."""
    config = base.get_config()
    config.data.source = f"records(path='{root}/clip/embeddings', split='train')"
    config.data.tokenizer = f"file(path='{root}2/tokenizer.json')"
    config.init.workdir = f"/mnt{root}/clip"
    config.evaluate.metrics = (f"fid(reference='{root}')",)
    return config


@pytest.fixture
def stack(tmp_path):
    """Work directory of a stack with a stage 'prior'."""
    root = tmp_path / "stack"
    root.mkdir()
    (root / "config.json").write_text(json.dumps({"stages": {"prior": {}}, "order": ["prior"]}))
    return root


def test_paths_of_the_root_alone_are_replaced_and_come_back():
    fields = stage("/runs/a").to_dict()
    stored = unfill(fields, "/runs/a")
    assert stored["data"]["source"] == "records(path='{root}/clip/embeddings', split='train')"
    assert stored["evaluate"]["metrics"] == ("fid(reference='{root}')",)
    for section, name in (("data", "tokenizer"), ("init", "workdir")):
        assert stored[section][name] == fields[section][name]
    assert fill(stored, "/runs/a") == fields
    assert unfill("/runs/a", "/runs/a") == "{root}"


def test_a_stage_finds_its_paths_where_the_stack_was_moved_to(stack, tmp_path, monkeypatch):
    config = stage(stack)
    Workdir(stack / "prior").start(config, [])
    assert Workdir(stack / "prior").read_config() == config
    moved = tmp_path / "elsewhere"
    stack.rename(moved)
    there = Workdir(moved / "prior").read_config()
    assert there.data.source == f"records(path='{moved}/clip/embeddings', split='train')"
    assert there.data.tokenizer == config.data.tokenizer
    assert there.init.workdir == config.init.workdir
    # From any directory, by a relative path.
    for place, path in (
        (moved, "prior/config.json"),
        (moved / "prior", "config.json"),
        (tmp_path, "elsewhere/prior/config.json"),
    ):
        monkeypatch.chdir(place)
        assert load(path) == there


def test_a_run_by_itself_keeps_its_paths(stack, tmp_path):
    config = stage(stack)
    # Not a stage of the stack, and beside a file of another program.
    for place in (stack / "other", tmp_path / "alone" / "prior"):
        Workdir(place).start(config, [])
        assert json.loads(Workdir(place).config.read_text()) == json.loads(
            json.dumps(config.to_dict())
        )
    for text in ("no JSON", "[]", '{"model_type": "clip"}', '{"stages": 3}'):
        (tmp_path / "alone" / "config.json").write_text(text)
        assert stack_of(tmp_path / "alone" / "prior" / "config.json") is None


def test_a_bucket_has_a_root_too():
    config = unfill({"task": "prior(clip='gs://b/r/clip')"}, "gs://b/r")
    assert config == {"task": "prior(clip='{root}/clip')"}


def test_a_stored_stack_keeps_its_placeholders(stack):
    config = unclip_shapes.get_config("smoke_priors")
    save(config, stack / "config.json")
    task = load(stack / "config.json").stages.prior_ar.task
    assert "'{root}/prior_ar/quantizer.npz'" in task
