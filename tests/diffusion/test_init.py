import inspect

import pytest

import diffusion

REGISTRIES = ("SCHEDULES", "PARAMETERIZATIONS", "WEIGHTINGS", "TIME_SAMPLERS", "GRIDS", "SOLVERS")
# Arguments that have no sensible default.
REQUIRED = {"table": {"path"}, "zero_terminal_snr": {"schedule"}}


@pytest.mark.parametrize("registry", REGISTRIES)
def test_components_are_called_with_literal_keywords(registry):
    """All other arguments have a literal default: a name alone is a full config string."""
    for name, make in getattr(diffusion, registry).items():
        parameters = inspect.signature(make).parameters
        required = REQUIRED.get(name, set())
        empty = {k for k, p in parameters.items() if p.default is inspect.Parameter.empty}
        assert empty == required
        for parameter in parameters.keys() - required:
            assert isinstance(parameters[parameter].default, int | float | str | bool)
        if not required:
            assert make() is not None


def test_public_names_exist():
    assert all(hasattr(diffusion, name) for name in diffusion.__all__)
