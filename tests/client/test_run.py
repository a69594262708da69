"""`farsum run`: scripts written for pykeops, run as Python runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.service.server import running

FARSUM = [sys.executable, "-m", "farsum_server.cli", "run"]

# As a person wrote it, with the real thing in mind.
KMEANS = '''"""K-means with pykeops."""
import sys
import time

import numpy as np
from matplotlib_or_none import plt
from pykeops.numpy import LazyTensor
import pykeops.config

dtype = "float32"


def KMeans(x, K=10, Niter=10, verbose=True):
    N, D = x.shape
    c = np.copy(x[:K, :])
    x_i = LazyTensor(x[:, None, :])
    for i in range(Niter):
        c_j = LazyTensor(c[None, :, :])
        D_ij = ((x_i - c_j) ** 2).sum(-1)
        cl = D_ij.argmin(axis=1).astype(int).reshape(N)
        Ncl = np.bincount(cl).astype(dtype)
        for d in range(D):
            c[:, d] = np.bincount(cl, weights=x[:, d]) / Ncl
    return cl, c


if __name__ == "__main__":
    N, D, K = 10000 if pykeops.config.gpu_available else 500, 2, 5
    x = np.random.RandomState(0).randn(N, D).astype(dtype) / 6 + 0.5
    cl, c = KMeans(x, K)
    near = ((x[:, None] - c) ** 2).sum(-1).argmin(1)
    print(cl.dtype, c.shape, (near == cl).mean() > 0.98, sys.argv[1:], plt)
'''

PROBE = """import os, sys
print(sys.argv, __name__, __file__, sys.path[0], __spec__ is None, __doc__)
import pykeops
print(pykeops.__version__, type(sys.modules["__main__"]).__name__, sys.modules["__main__"].pykeops is pykeops)
"""


def run(*arguments: str, cwd: Path, command: list[str] = FARSUM, **environment: str):
    return subprocess.run(
        [*command, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, **environment},
    )  # fmt: skip


def python(*arguments: str, cwd: Path):
    return run(*arguments, cwd=cwd, command=[sys.executable])


@pytest.mark.parity("X-61")
def test_a_script_for_pykeops_runs_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "matplotlib_or_none.py").write_text("plt = None\n")
    (tmp_path / "kmeans.py").write_text(KMEANS)
    done = run("kmeans.py", "--clusters", "5", cwd=tmp_path, PATH="")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout == "int64 (5, 2) True ['--clusters', '5'] None\n"


def test_the_command_that_is_installed(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    done = run("probe.py", cwd=tmp_path, command=[str(Path(sys.executable).with_name("farsum")), "run"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "2.3 module True"


def same(done, wanted) -> None:
    """Outputs equal to the letter, but for a part of tracebacks in which Python shows its own machinery."""
    machinery = r'  File "<frozen runpy>".*\n'
    assert done.returncode == wanted.returncode, done.stderr
    assert done.stdout == wanted.stdout
    assert done.stderr == re.sub(machinery, "", wanted.stderr)


def test_a_script_sees_what_python_shows_it(tmp_path: Path) -> None:
    (tmp_path / "pykeops.py").write_text("__version__ = 'of a neighbour'\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "helper.py").write_text("here = __name__\n")
    text = (
        '"""Its docstring."""\n'
        + PROBE.partition("import pykeops")[0]
        + "import helper\nprint(helper.here)\n"
    )
    (inner / "probe.py").write_text(text)
    (tmp_path / "link.py").symlink_to(inner / "probe.py")
    for script in ("inner/probe.py", "link.py", str(inner / "probe.py")):
        arguments = (script, "-v", "--target", "x", "-m", "--", "y")
        same(run(*arguments, cwd=tmp_path), python(*arguments, cwd=tmp_path))


def test_a_module_sees_what_python_shows_it(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    text = PROBE.partition("import pykeops")[0].replace(", __spec__ is None", ", __spec__.name, __package__")
    for name in ("__main__", "part"):
        (package / f"{name}.py").write_text(text)
    for module in ("package", "package.part"):
        arguments = ("-m", module, "-v", "-m", "x")
        same(run(*arguments, cwd=tmp_path), python(*arguments, cwd=tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.exit(3)",
        "raise SystemExit('words')",
        "raise SystemExit",
        "import sys; sys.exit(None)",
        "def f(n):\n    if n: f(n - 1)\n    raise ValueError('inside')\nf(2)",
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('chained') from e",
        "def broken(:",
        "import json\njson.loads('{')",
        "import not_there_at_all",
        "import atexit, sys\natexit.register(lambda: print(sys.modules['__main__'].x))\nx = 5",
        "import threading\ntry:\n    import sys\n    sys.excepthook = lambda *a: print('mine', a[0])\nfinally:\n    raise OSError",
        "import os\nos._exit(7)",
        "# -*- coding: latin-1 -*-\nprint(len('\xe9'))",
        "import os\nraise KeyboardInterrupt",
    ],
)
def test_a_script_ends_as_under_python(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.py").write_text(text, encoding="latin-1")
    same(run("s.py", cwd=tmp_path), python("s.py", cwd=tmp_path))
    if "excepthook" not in text and "latin" not in text:
        same(run("-m", "s", cwd=tmp_path), python("-m", "s", cwd=tmp_path))


def test_a_signal_from_the_keyboard_ends_it_as_it_ends_python(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    command = [*FARSUM, "s.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert said.splitlines()[-1] == "KeyboardInterrupt" and "farsum" not in said


def test_what_cannot_be_run_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "__init__.py").write_text("")
    for arguments, status, says in [
        (("nowhere.py",), 2, "farsum run: there is no file nowhere.py\n"),
        (("bare",), 2, "farsum run: bare cannot be read: Is a directory\n"),
        (("-m", "nowhere"), 1, "farsum run: there is no module nowhere to run\n"),
        (("-m", "nowhere.at.all"), 1, "farsum run: there is no module nowhere.at.all to run\n"),
        (("-m", "bare"), 1, "farsum run: there is no module bare to run\n"),
    ]:
        done = run(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (status, says)
    done = run(cwd=tmp_path)
    assert done.returncode == 2 and "script" in done.stderr and "Traceback" not in done.stderr


SAYS_WHERE = """import numpy as np, pykeops
from pykeops.numpy import Vi, Vj
x = np.ones((3, 2))
assert (Vi(x) - Vj(x)).sum(axis=1).sum() == 0
found = pykeops.check_health()
assert found["healthy"], found
print("AT", found["target"])
"""


def test_work_goes_to_the_target(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(SAYS_WHERE)
    assert run("s.py", cwd=tmp_path).stdout.endswith("AT embedded\n")
    with running() as server:
        for done in (
            run("--target", server.target, "s.py", cwd=tmp_path),
            run("s.py", cwd=tmp_path, FARSUM_TARGET=server.target),
            run("--target", server.target, "s.py", cwd=tmp_path, FARSUM_TARGET="grpc://127.0.0.1:9"),
        ):
            assert done.returncode == 0, done.stderr
            assert done.stdout.endswith(f"AT {server.target}\n")
    done = run("--target", "grpc://127.0.0.1:9", "s.py", cwd=tmp_path)
    assert done.returncode == 1 and "ServerUnreachable" in done.stderr
