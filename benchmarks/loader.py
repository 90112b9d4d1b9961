"""Times the loader of any config's data section, in numpy on the host.

    python -m benchmarks.loader --config=configs/cifar10_ddpm.py --workers=0,1,2 --json=out.json \\
        --config.data.source="records(path='data/cifar10')" --config.train.batch_size=256

Each number of workers is measured several times, as other programs disturb it; the table has the
best and the worst. Memory is that of this process and its workers, without cached files.
"""

import argparse
import contextlib
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks import command
from training import command_line
from training.components import ConfigError
from training.loop import make_loader, make_source
from training.workdir import provenance

_WARM_UP = 10
_SECONDS_A_SAMPLE = 0.5


def main(arguments: Sequence[str]) -> None:
    """Reads the flags, measures, prints a table and writes JSON."""
    overrides, rest = command_line.split(arguments)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="file.py or file.py:variant")
    parser.add_argument("--workers", default="0,1,2,4", help="numbers of worker processes")
    parser.add_argument("--fields", default="", help="of a batch; default: image, and the label")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each")
    parser.add_argument("--json", help="file for the result")
    flags = parser.parse_args(rest)
    workers = flags.workers.split(",")
    if not all(number.isdecimal() for number in workers):
        parser.error(f"--workers={flags.workers}: must be numbers with commas between")
    if flags.seconds <= 0 or flags.repeats < 1:
        parser.error("--seconds must be above 0 and --repeats at least 1")
    try:
        config = command.checked_config(flags.config, overrides)
        fields = tuple(filter(None, flags.fields.split(",")))
        result = measure(config, fields, list(map(int, workers)), flags.seconds, flags.repeats)
    except ConfigError as error:
        parser.error(str(error))
    result = {"config": flags.config, "overrides": overrides} | result
    print(table(result))
    command.write_json(flags.json, result)


def measure(
    config: Any, fields: Sequence[str], workers: Sequence[int], seconds: float, repeats: int
) -> dict[str, Any]:
    """Times the loader with each number of workers; JSON values, seconds and bytes."""
    source = make_source(config)
    fields = fields or (("image", "label") if source.num_classes else ("image",))
    return {
        "source": config.data.source,
        "examples": len(source),
        "batch_size": config.train.batch_size,
        "fields": list(fields),
        "augmentations": list(config.data.augmentations),
        "seconds": seconds,
        "repeats": repeats,
        "workers": {
            str(n): time_loader(config, source, fields, n, seconds, repeats) for n in workers
        },
        "provenance": provenance(),
    }


def time_loader(
    config: Any, source: Any, fields: Sequence[str], workers: int, seconds: float, repeats: int
) -> dict[str, Any]:
    """Rates of one loader, the bytes of an example, and how its memory grows."""
    config = ConfigDict(config.to_dict())
    config.data.workers = workers
    rates, memory = [], []
    with contextlib.closing(make_loader(config, source, fields)) as loader:
        start = time.perf_counter()
        batch = next(loader)
        first = time.perf_counter() - start
        for _ in range(_WARM_UP):
            next(loader)
        for _ in range(repeats):
            start, count, sampled = time.perf_counter(), 0, 0.0
            while (now := time.perf_counter()) < start + seconds:
                count += len(next(loader)[fields[0]])
                if now > sampled + _SECONDS_A_SAMPLE and (size := resident_bytes()) is not None:
                    memory.append((now, size))
                    sampled = now
            rates.append(count / (time.perf_counter() - start))
    return {
        "examples_per_second": rates,
        "first_batch_seconds": first,
        "bytes_per_example": sum(rows.nbytes for rows in batch.values()) / len(batch[fields[0]]),
        "resident_bytes": memory[-1][1] if memory else None,
        "resident_bytes_growth_per_second": slope(memory),
    }


def resident_bytes() -> int | None:
    """Memory of this process and its workers, shared memory too; None where the system hides it."""
    pids = [str(child.pid) for child in multiprocessing.active_children()]
    total = 0
    for pid in ("self", *pids):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return None
        sizes = dict(line.split(":", 1) for line in lines)
        total += sum(1024 * int(sizes[name].split()[0]) for name in ("RssAnon", "RssShmem"))
    return total


def slope(samples: Sequence[tuple[float, float]]) -> float | None:
    """Least-squares slope of (time, value) pairs, without the first fifth, which is filling up."""
    samples = samples[len(samples) // 5 :]
    if len(samples) < 3:
        return None
    times, values = np.array(samples, float).T
    return float(np.polyfit(times - times[0], values, 1)[0])


def table(result: dict[str, Any]) -> str:
    """The result as text: what was read, and a line for each number of workers."""
    lines = [
        f"{result['source']}: {result['examples']:,} examples, batches of {result['batch_size']}, "
        f"{', '.join(result['fields'])}, augmentations: "
        f"{', '.join(result['augmentations']) or 'none'}",
        "workers  examples/s best     worst  bytes/example  first batch s  memory MiB  MiB an hour",
    ]
    for workers, row in result["workers"].items():
        rates, growth = row["examples_per_second"], row["resident_bytes_growth_per_second"]
        memory = row["resident_bytes"]
        lines.append(
            f"{workers:>7}{max(rates):>17,.0f}{min(rates):>10,.0f}{row['bytes_per_example']:>15,.0f}"
            f"{row['first_batch_seconds']:>15.2f}"
            f"{'unknown' if memory is None else f'{memory / 2**20:,.0f}':>12}"
            f"{'unknown' if growth is None else f'{growth * 3600 / 2**20:,.1f}':>13}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
