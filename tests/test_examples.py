"""Every public class shows how it is used, by an example that runs."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest

PUBLIC = ["flawmap", "flawmap.datasets", "flawmap.decision", "flawmap.detectors", "flawmap.evaluation"]
PUBLIC += ["flawmap.evaluation.metrics", "flawmap.prediction", "flawmap.results"]


def public_classes():
    found = {}
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            if inspect.isclass(value := getattr(module, name)):
                found[value] = f"{value.__module__}.{value.__qualname__}"
    return found


CLASSES = public_classes()


@pytest.mark.parametrize("kind", CLASSES, ids=CLASSES.values())
def test_the_example_of_a_class_runs(kind):
    module = importlib.import_module(kind.__module__)
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(kind), dict(vars(module)), CLASSES[kind], None, 0)
    assert examples.examples, f"{CLASSES[kind]} shows no example"
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(examples, out=printed.append)
    assert runner.failures == 0, "".join(printed)
