"""A test's function in a Python of its own, which ends with it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_alone(function: Callable[..., object], *args: Any) -> None:
    """Call a function of a module; an error of it is an error here.

    Args:
        function: Found by its name in its module.
        args: What `repr` writes as Python.
    """
    name = function.__name__
    call = f"from {function.__module__} import {name}; {name}(*{args!r})"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", call], check=True, cwd=root)
