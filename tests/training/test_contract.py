import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from training import mesh
from training.components import ConfigError
from training.contract import EmbeddingContract, check_same, identify

OURS = EmbeddingContract(
    encoder="abc",
    dimension=3,
    normalized=True,
    scale=3**0.5,
    mean=(0.1, 0.2, 0.3),
    std=(0.5, 1.5, 2.0),
    null=(0.0, 0.0, 0.0),
)
MODEL = {"name": "clip", "image_width": 8, "dtype": "float32", "attention": "xla"}


def test_is_read_as_it_was_written(tmp_path):
    OURS.write(tmp_path / "run")
    assert EmbeddingContract.read(tmp_path / "run") == OURS
    check_same(OURS, EmbeddingContract.read(tmp_path / "run"), ("prior", "decoder"))


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": "def"},
        {"normalized": False},
        {"scale": 17.2},
        {"mean": (0.1, 0.2, 0.31)},
        {"std": (0.5, 1.5, 2.1)},
        {"null": (0.0, 0.0, 1.0)},
        {"dimension": 1, "mean": (0.1,), "std": (0.5,), "null": (0.0,)},
    ],
)
def test_any_difference_is_one_line_with_both(change):
    theirs = dataclasses.replace(OURS, **change)
    with pytest.raises(ConfigError) as caught:
        check_same(OURS, theirs, ("prior runs/prior", "decoder runs/decoder"))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("prior runs/prior is of", "decoder runs/decoder is of", str(OURS), str(theirs)):
        assert part in message
    assert message.endswith(", ".join(name for name in dataclasses.asdict(OURS) if name in change))


def test_what_is_no_contract_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"contract\.json: there is no such file; --mode=embed"):
        EmbeddingContract.read(tmp_path)
    stored = dataclasses.asdict(OURS)
    for wrong in (stored | {"mean": [1.0]}, stored | {"colour": 1}, {"encoder": "abc"}):
        (tmp_path / "contract.json").write_text(json.dumps(wrong))
        with pytest.raises(ConfigError, match="is no embedding contract"):
            EmbeddingContract.read(tmp_path)


def test_identity_is_of_fields_and_parameters():
    params = {"a": jnp.arange(32768.0).reshape(128, 256), "b": jnp.ones(3)}
    identity = identify(MODEL, params)
    assert identify(MODEL | {"dtype": "bfloat16"}, params) == identity
    assert identify(MODEL | {"image_width": 9}, params) != identity
    assert identify(MODEL, params | {"b": params["b"].at[0].add(1e-6)}) != identity
    assert identify(MODEL, {"a": params["a"], "c": params["b"]}) != identity
    # However it lies on devices.
    devices = mesh.make_mesh(fsdp=8)
    laid = jax.device_put(params, mesh.state_sharding(params, devices))
    assert not laid["a"].sharding.is_fully_replicated
    assert identify(MODEL, laid) == identity
    assert identify(MODEL, jax.device_get(params)) == identity
