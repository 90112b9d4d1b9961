"""How a checkpoint lies on disk: one directory a step, of separate items.

`params`, one `ema.<name>` for each average, `training` (the rest of the train state), `data` (the
loader's position) and `meta`, with a fingerprint of every array that is compared at each reading.
"""

import dataclasses
from collections.abc import Mapping

import jax
import orbax.checkpoint as ocp
from etils import epath

from training import damage, fingerprint, partition
from training.components import ConfigError
from training.fingerprint import fingerprints
from training.state import TrainState

# Of the layout above; a reader refuses what it does not know.
FORMAT = 1


def as_items(state: TrainState) -> dict:
    """The state as checkpoint items."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    params, averages = fields.pop("params"), fields.pop("ema")
    # It is another run's, and comes from there.
    del fields["frozen"]
    if not fields["task"]:
        # Checkpoints of tasks without a state look as they did before there were any with one.
        del fields["task"]
    averages = {f"ema.{name}": tree for name, tree in averages.items()}
    return {"params": params, **averages, "training": fields}


@dataclasses.dataclass(frozen=True)
class Stored:
    """What was read of a checkpoint."""

    path: epath.Path
    items: dict
    # (dtype, shape, fingerprint) of every array as it was saved; None in old checkpoints.
    arrays: dict | None
    data: dict = dataclasses.field(default_factory=dict)


def train_state(stored: Stored) -> TrainState:
    """The state that `as_items` was given, without `frozen`."""
    items = stored.items
    averages = {
        name.removeprefix("ema."): tree for name, tree in items.items() if name.startswith("ema.")
    }
    return TrainState(params=items["params"], ema=averages, **({"task": {}} | items["training"]))


def read_meta(path: epath.Path) -> dict:
    """What a checkpoint says of itself.

    Raises:
        ConfigError: it is of another format.
    """
    meta = read_json(path / "meta")
    if meta["format"] != FORMAT:
        raise ConfigError(
            f"{path}: a checkpoint of format {meta['format']}; this code reads format {FORMAT}"
        )
    return meta


def read_json(path: epath.Path) -> dict:
    """An item that is no arrays: `data` or `meta`."""
    return ocp.JsonCheckpointHandler().restore(path, args=ocp.args.JsonRestore())


def read_item(path: epath.Path, name: str, abstract):
    """The arrays of one item, laid out as `abstract` says."""
    # The handler alone: a Checkpointer makes all processes wait for each other, for ever where one
    # of them finds damage.
    return ocp.StandardCheckpointHandler().restore(
        path / name, args=ocp.args.StandardRestore(abstract)
    )


def check_same_arrays(items: Mapping, arrays: Mapping | None, path: epath.Path) -> None:
    """Refuses a checkpoint whose arrays have other names, shapes or types than the run's."""
    if arrays is None:
        return  # of an older version, which did not list them
    wanted = {
        partition.name(at): fingerprint.kind(leaf)
        for at, leaf in jax.tree_util.tree_leaves_with_path(items)
    }
    there = {at: (dtype, tuple(shape)) for at, (dtype, shape, _) in arrays.items()}
    other = [at for at in sorted(wanted | there) if wanted.get(at) != there.get(at)]
    if other:

        def spell(kind):
            return "none" if kind is None else f"{kind[0]}{list(kind[1])}"

        listed = "; ".join(
            f"{at}: stored {spell(there.get(at))}, wanted {spell(wanted.get(at))}"
            for at in other[:5]
        )
        raise ConfigError(
            f"{path} does not fit the config in {len(other)} arrays: {listed}. Its run had another "
            "model, optimizer or averages; go on with those, or take a new work directory"
        )


def check_bits(stored: Stored) -> None:
    """Raises damage.Damaged where what was read is not what was written."""
    if stored.arrays is None:
        return
    found = fingerprints(stored.items)
    wrong = [at for at, (_, _, value) in found.items() if stored.arrays[at][2] != value]
    if wrong:
        raise damage.Damaged(
            f"{len(wrong)} of {len(found)} arrays are not what was saved, such as {wrong[0]}"
        )
