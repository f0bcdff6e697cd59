"""Examples in docstrings: they run, and what a user builds with has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import canobatch
import canobatch.models

#: What examples may use without importing it.
NAMES = {name: getattr(package, name) for package in (canobatch, canobatch.models) for name in package.__all__}


def _examples() -> dict[str, doctest.DocTest]:
    found = {}
    for info in pkgutil.walk_packages(canobatch.__path__, "canobatch."):
        if not info.name.endswith("__main__"):
            module = importlib.import_module(info.name)
            tests = doctest.DocTestFinder().find(module, globs={**NAMES, **vars(module)})
            found.update({test.name: test for test in tests if test.examples})
    return found


EXAMPLES = _examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path, monkeypatch):
    """Each example in a docstring does what it shows."""
    monkeypatch.chdir(tmp_path)
    said = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(EXAMPLES[name], out=said.append)
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize(
    "cls",
    [
        *(getattr(canobatch.models, name) for name in canobatch.models.__all__ if name.endswith("Task")),
        *(canobatch.models.Node, canobatch.models.ErrorPolicy, canobatch.models.Window),
        *(canobatch.CircuitBreaker, canobatch.RateLimiter, canobatch.WindowedRateLimiter, canobatch.MultiRateLimiter),
        *(canobatch.Semaphore, canobatch.Counter, canobatch.Resource, canobatch.Resources),
        *(canobatch.SharedStore, canobatch.MemoryStore, canobatch.Retry, canobatch.TaskConfig, canobatch.Task),
        *(canobatch.JoinConfig, canobatch.JoinStrategy, canobatch.WorkerPool, canobatch.Workflow),
    ],
    ids=lambda cls: cls.__name__,
)
def test_what_a_user_builds_with_has_an_example(cls):
    """Every model, resource and limit shows in its docstring how it is used."""
    assert f"{cls.__module__}.{cls.__qualname__}" in EXAMPLES
