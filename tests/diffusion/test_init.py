import inspect

import pytest

import diffusion

REGISTRIES = ("SCHEDULES", "PARAMETERIZATIONS", "WEIGHTINGS", "TIME_SAMPLERS", "GRIDS", "SOLVERS")


@pytest.mark.parametrize("registry", REGISTRIES)
def test_components_are_called_with_literal_keywords(registry):
    """Every argument has a default, a literal one, so that a name alone is a full config string."""
    for make in getattr(diffusion, registry).values():
        for parameter in inspect.signature(make).parameters.values():
            assert isinstance(parameter.default, int | float | str | bool)
        assert make() is not None


def test_public_names_exist():
    assert all(hasattr(diffusion, name) for name in diffusion.__all__)
