"""Values of a parametrised test that are tried on request only (`make test-slow`)."""

import pytest


def slow(*values):
    """These, marked."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def all_but(often, values):
    """All values, those that are not in `often` marked."""
    return [value if value in often else pytest.param(value, marks=pytest.mark.slow) for value in values]
