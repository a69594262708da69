"""`farsum run`: a script or module written for pykeops, run as Python would run it, on farsum."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from types import CodeType, ModuleType, TracebackType

from farsum.pykeops_alias import install


def run(command: Sequence[str], module: bool = False, target: str | None = None) -> int:
    """Run a script, or a module, as __main__; gives the exit status where Python itself would not raise.

    command   the file, or the name of the module, and its arguments
    target    where work goes, in this process and those it starts; None leaves FARSUM_TARGET as it is

    What the script raises, SystemExit too, is raised: Python prints it and sets the status. Tracebacks
    begin in the script.
    """
    if target:
        os.environ["FARSUM_TARGET"] = target
    install()
    sys.excepthook = _print_without_us
    sys.argv = list(command)
    return _run_module(command[0]) if module else _run_script(command[0])


def _run_script(script: str) -> int:
    try:
        with open(script, "rb") as file:
            source = file.read()
    except FileNotFoundError:
        return _refused(f"there is no file {script}", 2)
    except OSError as error:
        return _refused(f"{script} cannot be read: {error.strerror}", 2)
    path = os.path.abspath(script)
    _lead_path(os.path.dirname(os.path.realpath(script)))
    code = compile(source, path, "exec", dont_inherit=True)
    return _run_main(code, __file__=path, __loader__=SourceFileLoader("__main__", path), __cached__=None)


def _run_module(name: str) -> int:
    _lead_path(os.getcwd())
    spec = _runnable(name)
    code_of = getattr(spec and spec.loader, "get_code", None)
    code = code_of(spec.name) if spec and code_of else None
    if spec is None or code is None:  # the second: a module that is not written in Python
        return _refused(f"there is no module {name} to run", 1)
    sys.argv[0] = spec.origin or name
    return _run_main(
        code, __file__=spec.origin, __loader__=spec.loader, __cached__=spec.cached, __package__=spec.parent,
        __spec__=spec,
    )  # fmt: skip


def _run_main(code: CodeType, **names: object) -> int:
    # Not by runpy, which takes its __main__ away before what runs at exit.
    main = ModuleType("__main__")
    main.__dict__.update(names, __builtins__=builtins)
    sys.modules["__main__"] = main
    exec(code, main.__dict__)
    return 0


def _runnable(name: str) -> ModuleSpec | None:
    """Where a module is, and of a package its __main__; None if there is none."""
    try:
        spec = find_spec(name)
        if spec and spec.submodule_search_locations is not None:
            spec = find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that a parent of this one imports, and that is missing
        return None
    return spec


def _lead_path(folder: str) -> None:
    """What Python puts first on sys.path, in place of what it put there for the command `farsum`."""
    if not sys.flags.safe_path:
        sys.path[:1] = [folder]


def _refused(sentence: str, status: int) -> int:
    print(f"farsum run: {sentence}", file=sys.stderr)
    return status


def _print_without_us(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback from its first frame in the script on. A script that does not parse has none."""
    start = _after_us(trace)
    if start is None and not isinstance(error, SyntaxError):
        start = trace
    sys.__excepthook__(kind, error.with_traceback(start), start)


def _after_us(trace: TracebackType | None) -> TracebackType | None:
    seen = False
    while trace:
        ours = trace.tb_frame.f_globals is globals()
        if seen and not ours:
            return trace
        seen, trace = ours, trace.tb_next
    return None
