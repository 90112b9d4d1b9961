import dataclasses
import sys
import types
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import components
from training.components import ConfigError, build, construct, lookup, parse, resolve, spell

FIELD = "config.diffusion.schedule"


def cosine(timesteps: int = 1000, s: float = 0.008):
    return "cosine", timesteps, s


def respaced(schedule, steps: int, last_step: str = "zero"):
    return "respaced", schedule, steps, last_step


def ddpm(variance: Literal["fixed_small", "fixed_large"] = "fixed_large", clip: int | None = None):
    return "ddpm", variance, clip


def anything(**arguments):
    return arguments


@dataclasses.dataclass(frozen=True)
class Linear:
    timesteps: int

    def __post_init__(self):
        if self.timesteps < 1:
            raise ValueError(f"timesteps must be 1 or more, got {self.timesteps}")


def zero_terminal(schedule: Linear, keep: float = 1.0):
    return "zero_terminal", schedule, keep


def mixture(parts: tuple):
    return "mixture", parts


REGISTRY = {
    "cosine": cosine,
    "respaced": respaced,
    "ddpm": ddpm,
    "anything": anything,
    "linear": Linear,
    "zero_terminal": zero_terminal,
    "mixture": mixture,
}


@pytest.mark.parametrize(
    ("string", "expected"),
    [
        ("cosine", ("cosine", {})),
        (" cosine() ", ("cosine", {})),
        ("cosine(timesteps=4000)", ("cosine", {"timesteps": 4000})),
        ("ddpm(variance='fixed_large')", ("ddpm", {"variance": "fixed_large"})),
        ("a(x=-1e-3, y=(1, 'b'), z=None)", ("a", {"x": -1e-3, "y": (1, "b"), "z": None})),
    ],
)
def test_parse(string, expected):
    assert parse(string) == expected


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.tuples(inner, inner),
    max_leaves=3,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["a", "beta_1", "x"]), literals))
def test_parse_reads_back_what_repr_writes(arguments):
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    assert parse(f"name({call})") == ("name", arguments)


def test_calls_inside_of_calls_are_of_the_same_registry():
    built = build(REGISTRY, "zero_terminal(schedule=linear(timesteps=7), keep=0.5)", FIELD)
    assert built == ("zero_terminal", Linear(7), 0.5)
    parts = build(REGISTRY, "mixture(parts=(linear(timesteps=1), cosine(), 3))", FIELD)
    assert parts == ("mixture", (Linear(1), ("cosine", 1000, 0.008), 3))


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("zero_terminal(schedule=liner(timesteps=7))", "no 'liner'; did you mean 'linear'"),
        ("zero_terminal(schedule=linear(timestep=7))", "did you mean 'timesteps'"),
        ("zero_terminal(schedule=linear())", r"write linear\(timesteps=\.\.\.\)"),
        ("zero_terminal(schedule=linear(timesteps=0))", "timesteps must be 1 or more"),
        ("zero_terminal(schedule='linear')", "schedule must be a call that gives a Linear"),
        ("zero_terminal(schedule=linear(timesteps=7), keep=cosine())", "keep must be float"),
        ("mixture(parts=(linear(timesteps='a'),))", "timesteps must be int, not 'a'"),
    ],
)
def test_mistakes_inside_of_calls(string, message):
    with pytest.raises(ConfigError, match=message):
        build(REGISTRY, string, FIELD)


@given(st.text(max_size=20))
def test_parse_refuses_or_parses_any_text(string):
    try:
        name, _ = parse(string)
    except ConfigError:
        return
    assert name.isidentifier()


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("", "does not read like"),
        ("cosine(", "does not read like"),
        ("diffusion.cosine", "does not read like"),
        ("lambda: 1", "does not read like"),
        ("a()()", "does not read like"),
        ("a(**{'b': 1})", "does not read like"),
        ("a(b=1, b=2)", "does not read like"),
        ("cosine(4000)", r"cosine\(argument=value\)"),
        ("cosine(timesteps=n)", "n is not a plain value"),
        ("cosine(timesteps=__import__('os'))", "write each argument with its name"),
        ("cosine(timesteps=os.getpid())", "does not read like"),
        ("cosine(timesteps={[]})", "is not a plain value"),
    ],
)
def test_parse_errors(string, message):
    with pytest.raises(ConfigError, match=message):
        parse(string)


def test_build_calls_with_literals_and_the_context_that_the_signature_names():
    assert build(REGISTRY, "cosine(timesteps=4000)", FIELD) == ("cosine", 4000, 0.008)
    assert build(REGISTRY, "cosine", FIELD, schedule="unused") == ("cosine", 1000, 0.008)
    assert build(REGISTRY, "respaced", FIELD, schedule="s", steps=5) == (
        ("respaced", "s", 5, "zero")
    )  # fmt: skip
    assert build(REGISTRY, "anything(a=1)", FIELD, b=2) == {"a": 1, "b": 2}
    assert build(REGISTRY, "linear(timesteps=3)", FIELD) == Linear(3)
    assert build(REGISTRY, "cosine(s=1)", FIELD) == ("cosine", 1000, 1)


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("cosin", "no 'cosin'; did you mean 'cosine'? allowed: anything, cosine, ddpm, linear"),
        ("cosine(timestep=3)", "cosine has no argument 'timestep'; did you mean 'timesteps'?"),
        ("cosine(timesteps='3')", "timesteps must be int, not '3'"),
        ("cosine(timesteps=True)", "timesteps must be int, not True"),
        ("cosine(timesteps=3.0)", "timesteps must be int, not 3.0"),
        ("ddpm(variance='fixed')", "variance must be 'fixed_small' or 'fixed_large', not 'fixed'"),
        ("ddpm(clip='no')", "clip must be int | None, not 'no'"),
        ("linear", "write linear(timesteps=...); it has no default"),
        ("linear(timesteps=0)", "timesteps must be 1 or more, got 0"),
        ("cosine(4000)", "write each argument with its name"),
    ],
)
def test_build_errors_name_field_value_and_what_is_allowed(string, message):
    with pytest.raises(ConfigError) as caught:
        build(REGISTRY, string, FIELD)
    assert str(caught.value).startswith(f"{FIELD} = {string!r}: ")
    assert message in str(caught.value)


def test_the_string_may_not_set_what_the_program_supplies():
    with pytest.raises(ConfigError, match="no argument 'schedule'; allowed: last_step, steps"):
        build(REGISTRY, "respaced(schedule=1, steps=2)", FIELD, schedule="s")


def test_resolve_calls_nothing():
    component, arguments = resolve(REGISTRY, "linear(timesteps=0)", FIELD)
    assert (component, arguments) == (Linear, {"timesteps": 0})


def test_lookup():
    assert lookup({"diffusion": 3}, "diffusion", "config.task") == 3
    with pytest.raises(ConfigError, match=r"config\.task = 'difusion'.*mean 'diffusion'"):
        lookup({"diffusion": 3}, "difusion", "config.task")


@pytest.fixture
def config(monkeypatch):
    """A config with one plain name, one call, a tuple of calls and an average."""
    module = types.ModuleType("some_registries")
    module.TASKS, module.SCHEDULES, module.EMAS = {"t": None}, REGISTRY, {"constant": cosine}
    monkeypatch.setitem(sys.modules, "some_registries", module)
    monkeypatch.setitem(sys.modules, "training.ema", module)
    monkeypatch.setattr(components, "NAMES", {"task": "some_registries:TASKS"})
    calls = dict.fromkeys(("data.augmentations", "a.b"), "some_registries:SCHEDULES")
    monkeypatch.setattr(components, "CALLS", calls)
    return {
        "task": "t",
        "data": {"augmentations": ("cosine", "ddpm")},
        "a": {"b": "linear(timesteps=1)"},
        "ema": {"default": "constant(s=0.9)"},
    }


def test_check_takes_a_right_config(config):
    components.check(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "u"}, "config.task = 'u'"),
        ({"data": {"augmentations": ("cosine", "flip")}}, "config.data.augmentations = 'flip'"),
        ({"a": {"b": "linear(steps=1)"}}, "config.a.b = .* no argument 'steps'"),
        ({"ema": {"default": "cosine"}}, "config.ema.default = 'cosine'"),
    ],
)
def test_check_finds_every_kind_of_mistake(config, change, message):
    with pytest.raises(ConfigError, match=message):
        components.check(config | change)


def test_construct_names_the_section():
    def network(depth):
        if depth < 1:
            raise ValueError(f"depth={depth}: must be positive")
        return depth

    assert construct({"net": network}, "net", "config.model", depth=2) == 2
    with pytest.raises(ConfigError, match=r"config\.model: depth=0: must be positive"):
        construct({"net": network}, "net", "config.model", depth=0)
    with pytest.raises(ConfigError, match=r"config\.model\.name = 'nett'.*mean 'net'"):
        construct({"net": network}, "nett", "config.model", depth=0)


@pytest.mark.parametrize(
    "string",
    [
        "cosine()",
        "ddpm(variance='fixed_large', clip=None)",
        """mixture(sources=(folder(path="it's"), records(path='b')), weights=(1, 0.5))""",
        "zero_terminal(schedule=linear(timesteps=10), only=('a',), none=())",
    ],
)
def test_a_call_that_was_spelled_reads_the_same(string):
    assert parse(spell(parse(string))) == parse(string)
