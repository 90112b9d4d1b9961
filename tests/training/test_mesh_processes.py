"""The rows that each of two real processes loads come to their place in the batch."""

from tests.training import many_processes


def test_rows_of_both_processes_are_in_order_on_every_mesh(tmp_path):
    command = ["-m", "tests.training.mesh_process"]
    codes = many_processes.run(command, 2, 2, tmp_path / "process", timeout=120)
    told = [(tmp_path / f"process-{index}.log").read_text() for index in range(2)]
    assert codes == [0, 0], told
    rows = list(range(8))
    halves = ((4, 1, 1), (1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2))
    for process, lines in enumerate(told):
        expected = [f"{sizes} {(process, 2)} {rows}" for sizes in halves]
        # Both hold all rows, and load all of them.
        # Gloo writes of its own on the same stream.
        found = [line for line in lines.splitlines() if line.startswith("(")]
        assert found == [*expected, f"{(1, 1, 4)} {(0, 1)} {rows}"]
