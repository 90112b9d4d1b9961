import collections
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.collectives import Collective, collectives, summary

ROOT = Path(__file__).parent.parent.parent

PROGRAM = """
HloModule jit_step, is_scheduled=true, num_partitions=8

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %number = s32[] get-tuple-element(%state), index=0
  %part = f32[4]{0} get-tuple-element(%state), index=1
  %inside = f32[16]{0:T(128)} all-gather(%part), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %back = f32[4]{0} slice(%inside), slice={[0:4]}
  ROOT %next = (s32[], f32[4]{0}) tuple(%number, %back)
}

%cond (state.1: (s32[], f32[4])) -> pred[] {
  %state.1 = (s32[], f32[4]{0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

%wrapped (part.1: bf16[64,8]) -> bf16[8,8] {
  %part.1 = bf16[64,8]{1,0} parameter(0)
  ROOT %scattered = bf16[8,8]{1,0} reduce-scatter(%part.1), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

%fused (whole: f32[16,16], place: s32[]) -> f32[2,16] {
  %whole = f32[16,16]{1,0} parameter(0)
  %place = s32[] parameter(1)
  %turned = f32[16,16]{0,1} transpose(%whole), dimensions={1,0}
  ROOT %own = f32[2,16]{1,0} dynamic-slice(%turned, %place, %place), dynamic_slice_sizes={2,16}
}

ENTRY %main (a: f32[4], b: bf16[64,8], c: f32[16,16]) -> f32[2,16] {
  %a = f32[4]{0} parameter(0)
  %b = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(1)
  %c = f32[16,16]{1,0} parameter(2)
  %i = s32[] constant(0)
  %start = (s32[], f32[4]{0}) tuple(%i, %a)
  %loop = (s32[], f32[4]{0}) while(%start), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %gather = (f32[4]{0}, f32[32]{0}) all-gather-start(%a), replica_groups=mesh['x'=4,'y'=2] {'x','y'}, dimensions={0}
  %gathered = f32[32]{0} all-gather-done(%gather)
  %begun = ((bf16[64,8]), bf16[8,8], u32[]) async-start(%b), calls=%wrapped
  %ended = bf16[8,8] async-done(%begun)
  %sums = (f32[16,16]{1,0}, /*index=1*/f32[]) all-reduce(%c, %i), replica_groups=mesh['x'=4,'y'=2] {'y'}, to_apply=%add
  %sum = f32[16,16]{1,0} get-tuple-element(%sums), index=0
  %scalar = f32[] get-tuple-element(%sums), index=1
  %used = f32[] negate(%scalar)
  %sent = f32[16,16]{1,0} collective-permute(%c), source_target_pairs={{0,1},{1,0}}
  ROOT %out = f32[2,16]{1,0} fusion(%sum, %i), kind=kLoop, calls=%fused, metadata={op_name="all-to-all(x)"}
}
"""  # noqa: E501


def test_kinds_shapes_groups_and_rounds_of_a_program():
    assert collectives(PROGRAM) == [
        Collective("all-gather", "f32", (16,), 4, 3, False, "inside"),
        Collective("reduce-scatter", "bf16", (64, 8), 8, 1, False, "scattered"),
        Collective("all-gather", "f32", (32,), 8, 1, False, "gather"),
        Collective("all-reduce", "f32", (16, 16), 2, 1, True, "sums"),
        Collective("all-reduce", "f32", (), 2, 1, False, "sums"),
        Collective("collective-permute", "f32", (16, 16), 8, 1, False, "sent"),
    ]


def test_bytes_and_what_a_ring_sends():
    table = summary(collectives(PROGRAM))
    assert table["all-gather"] == {
        "count": 4,
        "bytes": 3 * 64 + 128,
        "sent": 3 * 64 * 3 / 4 + 128 * 7 / 8,
    }
    assert table["reduce-scatter"] == {"count": 1, "bytes": 1024, "sent": 1024 * 7 / 8}
    assert table["all-reduce"] == {"count": 1, "bytes": 1028, "sent": 2 * 1028 / 2}
    assert table["collective-permute"]["sent"] == 1024


def test_a_sum_that_is_used_otherwise_too_is_not_sliced():
    used = PROGRAM.replace("negate(%scalar)", "negate(%sum)")
    sums = [each for each in collectives(used) if each.kind == "all-reduce"]
    assert [each.sliced for each in sums] == [False, False]


def compiled(*arguments):
    """What `fsdp_program` tells."""
    done = subprocess.run(
        [sys.executable, "tests/training/fsdp_program.py", *arguments],
        cwd=ROOT,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=64",
            # A compiler that looks for no TPU and bears others beside it.
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def sizes(items, dtype_bytes=4):
    return collections.Counter(math.prod(item["shape"]) * dtype_bytes for item in items)


@pytest.mark.parametrize("memory", ["keep", pytest.param("remat", marks=pytest.mark.slow)])
def test_fsdp_gathers_and_scatters_each_parameter_and_sends_nothing_else(memory):
    told = compiled("cpu", memory)
    sharded = [p for p in told["parameters"] if p["sharded"]]
    whole = [p for p in told["parameters"] if not p["sharded"]]
    assert len(sharded) > 10
    by_kind = collections.defaultdict(list)
    for each in told["collectives"]:
        assert each["times"] == 1
        assert each["group"] == 64
        by_kind[each["kind"]].append(each)
    # The CPU's compiler has no reduce-scatter: it sums, and each device takes its slice.
    assert set(by_kind) == {"all-gather", "all-reduce"}

    # Kept for the backward pass, or with remat gathered for it again, inside of the blocks.
    again = [p for p in sharded if "residual" in p["path"]] if memory == "remat" else []
    assert sizes(by_kind["all-gather"]) == sizes(sharded) + sizes(again)

    # In parts, where the backend has the gradient of a convolution as several products.
    def of_all(items):
        return sum(4 * math.prod(p["shape"]) for p in items)

    scattered = [each for each in by_kind["all-reduce"] if each["sliced"]]
    rest = [each for each in by_kind["all-reduce"] if not each["sliced"]]
    assert sum(each["bytes"] for each in scattered) == of_all(sharded)
    # Gradients of what is whole everywhere, and scalars.
    assert sum(each["bytes"] for each in rest if each["bytes"] > 4) == of_all(whole)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, TPU's compiler, is not installed"
)
def test_fsdp_on_a_tpu_sums_each_gradient_into_slices():
    told = compiled("tpu", "keep")
    sharded = [p for p in told["parameters"] if p["sharded"]]
    assert {each["kind"] for each in told["collectives"]} <= {
        *("all-gather", "all-reduce", "reduce-scatter"),
    }
    scattered = [c for c in told["collectives"] if c["sliced"] or c["kind"] == "reduce-scatter"]
    assert collections.Counter(math.prod(c["shape"]) for c in scattered) == collections.Counter(
        math.prod(p["shape"]) for p in sharded
    )
