"""The kernel that carries states from one stretch of the columns to the next: all parts of a row into its first.

The columns of a job that does not fit the device arrive a stretch at a time. The states of what has been are split 0,
those of the stretch at hand the other splits; `fold` merges them, in rising order, into split 0 of another set.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from farsum_kernels.backends.cuda.layout import MAX_LIST_SPLITS, Layout
from farsum_kernels.backends.cuda.rules import TYPES, run_rule
from farsum_kernels.backends.cuda.skeleton import Skeleton
from farsum_kernels.backends.cuda.sources import ELEMENTS, SCALARS
from farsum_kernels.backends.cuda.text import Source, Value, literal
from farsum_kernels.formula.lower import Program
from farsum_kernels.job import Part

if TYPE_CHECKING:
    from farsum_kernels.backends.cuda.states import State

FOLD_THREADS = 128


def fold_text(program: Program, parts: Sequence[Part], dtype: str, computed: str, layout: Layout) -> str:
    """The text of "fold" for the states of the kernels that `kernel_text` writes from the same.

    Parts of a row are numbered thread_j * splits + split. With `used` 0 the new set holds identities.
    """
    states = Skeleton(program, parts, SCALARS[computed], ELEMENTS[dtype], layout).states
    src = Source()
    stored = [t for state in states for t in state.stored]
    old = ", ".join(f"const {t}* o{c}" for c, t in enumerate(stored))
    new = ", ".join(f"{t}* n{c}" for c, t in enumerate(stored))
    head = (
        f'extern "C" __global__ void fold({old}, {new}, long long all_rows, int parts, int used, int splits)'
    )
    with src.block(head):
        src.do(
            "const long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;",
            "const int component = blockIdx.y;",
            "if (row >= all_rows) return;",
        )
        for state in states:
            with src.block(f"if (component < {state.extent})"):
                (_lists if state.listed else _merged)(src, state)
    prelude = [files(__package__).joinpath(name).read_text() for name in ("prelude.cuh", "numbers.cuh")]
    return "\n".join([*prelude, src.text()])


def _merged(src: Source, state: State) -> None:
    count, kinds = len(state.kinds), ["i" if t == "long long" else "f" for t in state.stored]
    names = [src.name("s") for _ in kinds]
    start = [
        "0" if kind == "i" else literal(x, "double") for kind, x in zip(kinds, state.identity, strict=True)
    ]
    types = [TYPES[kind]["double"] for kind in kinds]
    for name, type_, value in zip(names, types, start, strict=True):
        src.do(f"{type_} {name} = {value};")
    own = [Value(name, kind) for name, kind in zip(names, kinds, strict=True)]
    with src.block("for (int part = 0; part < used; ++part)"):
        src.do("const long long at = ((long long)component * parts + part) * all_rows + row;")
        others = [src.name("p") for _ in kinds]
        for c, (name, type_) in enumerate(zip(others, types, strict=True)):
            src.do(f"const {type_} {name} = ({type_})o{state.first + c}[at];")
        args = [*own, *(Value(t, k) for t, k in zip(others, kinds, strict=True))]
        new = run_rule(src, "double", args, lambda a: state.rule.merge(tuple(a[:count]), tuple(a[count:])))
        src.do(*(f"{v.text} = {x.text};" for v, x in zip(own, new, strict=True)))
    with src.block("for (int part = 0; part < parts; part += splits)"):
        src.do("const long long at = ((long long)component * parts + part) * all_rows + row;")
        for c, (name, value, type_) in enumerate(zip(names, start, state.stored, strict=True)):
            src.do(f"n{state.first + c}[at] = ({type_})(part == 0 ? {name} : {value});")


def _lists(src: Source, state: State) -> None:
    """Ordered lists: the best of the heads of the parts, K times; of equal values the smallest index."""
    k, scalar = state.listed, state.scalar
    worst = literal(state.identity[0], scalar)
    better = "<" if state.identity[0] > 0 else ">"
    for d in range(state.dim):
        values, places = state.first + d, state.first + state.dim + d
        with src.block(""):
            src.do(f"int head[{MAX_LIST_SPLITS}];")
            with src.block("for (int part = 0; part < used; ++part)"):
                src.do("head[part] = 0;")
            with src.block(f"for (int s = 0; s < {k}; ++s)"):
                slot = f"((long long)component * {k} + {{}}) * parts"
                src.do(f"{scalar} best = {worst};", "long long index = 0;", "int taken = -1;")
                with src.block("for (int part = 0; part < used; ++part)"):
                    src.do(
                        f"if (head[part] >= {k}) continue;",
                        f"const long long at = ({slot.format('head[part]')} + part) * all_rows + row;",
                        f"const {scalar} value = o{values}[at];",
                        f"const long long mine = o{places}[at];",
                        f"if (value {better} best || (value == best && taken >= 0 && mine < index)) "
                        "{ best = value; index = mine; taken = part; }",
                    )
                src.do("if (taken >= 0) ++head[taken];")
                with src.block("for (int part = 0; part < parts; part += splits)"):
                    src.do(
                        f"const long long at = ({slot.format('s')} + part) * all_rows + row;",
                        f"n{values}[at] = part == 0 ? best : {worst};",
                        f"n{places}[at] = part == 0 ? index : 0;",
                    )
