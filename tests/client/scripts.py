"""Scripts in processes of their own: what takes the place of pykeops there is global."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

INSTALL = "import farsum.pykeops_alias as alias\nalias.install()\n"
ARRAYS = """
import numpy as np
rng = np.random.default_rng(0)
x, y, b = rng.random((20, 3)), rng.random((30, 3)), rng.random((30, 1))
dense = ((x[:, None] - y) ** 2).sum(-1)
"""


def says(code: str, before: str = INSTALL, **environment: str) -> str:
    """What a script prints; it must end well and warn of nothing."""
    command = [sys.executable, "-W", "error", "-c", before + textwrap.dedent(code)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout
