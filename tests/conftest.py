"""Set-up of every test process: eight CPU devices, checked shapes, no network."""

import inspect
import os
import socket
import sys
import types
import typing
from pathlib import Path

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py could set its devices")
os.environ["JAX_PLATFORMS"] = "cpu"
# Goldens of singular covariances hold for these kernels: others' eigenvalues end in other digits.
os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
# Programs compiled by an earlier run are read back; the first run pays.
cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "jax-diffusion"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import beartype
import hypothesis
import jax
import orbax.checkpoint as ocp
import pytest
from absl import flags
from jaxtyping import install_import_hook

# Every shape and type in these packages' signatures is checked at each call.
CHECKED = (
    "diffusion",
    "models",
    "input_pipeline",
    "training",
    "evaluation",
    "pipelines",
    "experiments",
    "launch",
)


def check(function):
    """beartype, but a whole number is good for a float, and any string for a Literal of strings.

    A wrong option is for the code to refuse: its message names the nearest right one.
    """
    if inspect.isfunction(function):
        hints = function.__annotations__
        options = {
            name for name, hint in hints.items() if typing.get_origin(hint) is typing.Literal
        }
        function.__annotations__ = hints | {
            name: str for name in options if isinstance(typing.get_args(hints[name])[0], str)
        }
    return beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))(function)


# The hook takes the checker by its name in a module.
checker = types.ModuleType("annotation_checker")
checker.check = check
sys.modules[checker.__name__] = checker
install_import_hook(CHECKED, "annotation_checker.check")

hypothesis.settings.register_profile(
    "project", max_examples=20, deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("project")

# Grain's worker processes read absl flags, which only a main program parses.
flags.FLAGS.mark_as_parsed()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


# XLA's older code generator takes half of the time of the newer one to compile a training step, and
# in one piece: the other cores have tests of their own.
QUICK_COMPILATION = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def pytest_configure(config):
    if not config.option.slow:
        # Read when the first program is compiled.
        os.environ["XLA_FLAGS"] += f" {QUICK_COMPILATION}"


# Files of a minute or more, begun first so that no process is left alone with one at the end.
LONG = (
    "test_resume.py",
    "test_unclip_stack.py",
    "test_loop.py",
    "test_many_processes.py",
    "test_few_steps.py",
    "test_inception.py",
)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name not in LONG)
    if config.option.slow or config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True, scope="session")
def compilation(request):
    """Compiles with few optimizations: most of a test's time is compilation.

    Not with --slow, and not in programs that tests start, which have the flags alone.
    """
    jax.config.update("jax_disable_most_optimizations", not request.config.option.slow)


@pytest.fixture(autouse=True, scope="session")
def whole_arrays():
    """Orbax writes small arrays in one piece, not an eighth from each device.

    To cut them takes longer than a tiny network's step: a second or two a checkpoint.
    """
    handler = ocp.type_handlers.get_type_handler(jax.Array)
    handler._min_slice_bytes_for_replica_parallel = 2**20


@pytest.fixture(scope="module")
def one_device():
    """Runs of this module see one of the eight devices: its programs compile in half the time."""
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices)
        patch.setattr(jax, "local_devices", lambda **_: devices)
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fails a test that would leave the machine."""
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test tried to reach {address}; tests use no network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
