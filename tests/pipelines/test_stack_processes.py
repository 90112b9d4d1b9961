"""A stack in two real processes: the first one writes, and pictures are those of one process."""

import json
import shutil

import numpy as np

from pipelines import generate
from tests.pipelines import stack_process
from tests.training import many_processes


def test_two_processes_train_draw_and_measure_as_one(tmp_path, one_device):
    root = tmp_path / "stack"
    command = ["-m", "tests.pipelines.stack_process", f"--workdir={root}"]
    codes = many_processes.run(command, 2, 1, tmp_path / "process")
    told = [(tmp_path / f"process-{index}.log").read_text() for index in range(2)]
    assert codes == [0, 0], told
    # What there is one of is told and written by one.
    assert told[0].count("done already") == 3
    assert told[0].count("% of the variance") == 1
    # Gloo writes on the same stream.
    assert [line for line in told[1].splitlines() if not line.startswith("[Gloo]")] == []
    assert len(json.loads((root / "run.json").read_text())) == 2
    for metric in ("decoded_quality", "prior_quality"):
        assert len((root / "evaluation" / f"{metric}.jsonl").read_text().splitlines()) == 1
    asked, measured = (root / "generated").glob("*-6-seed0-*"), (root / "generated").glob("*-4-*")
    (out,), (_,) = asked, measured
    chunks = {path.name for path in (out / "chunks").iterdir()}
    assert chunks == {f"{k:06d}.{index}.npz" for k in range(2) for index in range(2)}
    images = np.load(out / "samples.npz")["arr_0"]
    shutil.rmtree(root / "generated")
    generate.generate(stack_process.tiny(), root)
    (again,) = (root / "generated").iterdir()
    assert again.name == out.name
    alone = np.load(again / "samples.npz")["arr_0"]
    assert len(np.unique(alone)) > 10
    np.testing.assert_allclose(alone.astype(int), images.astype(int), atol=1)
