"""The public names: all documented, all importable, no accident among them."""

from __future__ import annotations

import importlib
import inspect
import types

import pytest

from farsum_kernels import errors

PUBLIC = ["farsum", "farsum.numpy", "farsum.torch", "farsum.jax"]


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_what_is_there(name: str) -> None:
    module = importlib.import_module(name)
    listed = set(module.__all__)
    for public in listed:
        assert getattr(module, public) is not None, f"{name}.{public}"
    visible = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and not isinstance(value, types.ModuleType)
        if getattr(value, "__module__", "").startswith("farsum")
    }
    assert visible <= listed, f"public in {name} by accident: {sorted(visible - listed)}"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{public}"


def error_classes() -> list[type[errors.FarsumError]]:
    return [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.FarsumError)]


@pytest.mark.parametrize("cls", error_classes(), ids=lambda c: c.__name__)
def test_every_error_says_what_it_means_and_crosses_the_wire(cls: type[errors.FarsumError]) -> None:
    assert "__doc__" in vars(cls) and cls.__doc__
    assert isinstance(cls.status, errors.Status)
    assert cls.__name__ in (errors.__doc__ or ""), "the tree in the module's docstring shows every class"
    again = errors.error_named(cls.__name__, "some words")
    assert type(again) is cls
    assert str(again) == "some words"


def test_statuses_are_grpc_names_and_http_codes() -> None:
    import grpc

    for status in errors.Status:
        assert hasattr(grpc.StatusCode, status.grpc)
        assert 400 <= status.http < 600


def test_errors_are_reachable_from_the_top() -> None:
    import farsum

    assert farsum.errors.FarsumError is errors.FarsumError
