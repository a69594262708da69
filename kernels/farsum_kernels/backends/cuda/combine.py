"""The kernel that ends a job: merge the states of a row, finish them, write the results in the dtype of the job.

A row's states lie at o[component][repeat][part][row]: its parts, threads and splits of the columns, are merged in
rising order, so equal plans give equal bits. A block is `threadIdx.y` lanes for each of its rows: each lane
merges a run of neighbouring parts, the first lane merges the lanes. Arithmetic is float64; there is little of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from farsum_kernels.backends.cuda.layout import MAX_LIST_SPLITS, Layout
from farsum_kernels.backends.cuda.rules import TYPES, run_rule
from farsum_kernels.backends.cuda.text import Source, Value, literal
from farsum_kernels.formula.reductions import Kind
from farsum_kernels.scalar.ir import Val

if TYPE_CHECKING:
    from farsum_kernels.backends.cuda.states import State


def combine_text(states: Sequence[State], element: str, layout: Layout) -> str:
    """The text of "combine". Row p of a split, or the identity where `places` holds -1 for it."""
    src = Source()
    stored = ", ".join(f"const {t}* o{c}" for c, t in enumerate(t for s in states for t in s.stored))
    kinds = [kind for s in states for kind in s.rule.outputs]
    outputs = ", ".join(
        f"{'long long' if kind is Kind.INDEX else element}* out{n}" for n, kind in enumerate(kinds)
    )
    head = (
        f'extern "C" __global__ void combine({stored}, {outputs}, const long long* places, long long rows, '
        "long long m, long long per_batch, long long all_rows, int parts)"
    )
    with src.block(head):
        src.do(
            "extern __shared__ __align__(16) unsigned char memory[];",
            "const long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;",
            "const int component = blockIdx.y, lane = threadIdx.y, lanes = blockDim.y;",
            "const bool here = row < rows;",
            "const long long place = !here ? -1 : places ? places[row] : row / m * per_batch + row % m;",
            "const int first = (int)((long long)parts * lane / lanes);",
            "const int end = place < 0 ? first : (int)((long long)parts * (lane + 1) / lanes);",
        )
        output = 0
        for state in states:
            with src.block(""):
                (_lists if state.listed else _merged)(src, state, output)
            output += len(state.rule.outputs)
    return src.text()


def _limit(state: State) -> str:
    """The condition that this component of a long F exists."""
    return f"component < {state.extent}" if state.loop else "component == 0"


def _wide(state: State) -> list[str]:
    return ["i" if kind is Kind.INDEX else "f" for kind in state.kinds]


def _merged(src: Source, state: State, output: int) -> None:
    kinds, count = _wide(state), len(state.kinds)
    names = [src.name("s") for _ in kinds]
    for name, kind, start in zip(names, kinds, state.identity, strict=True):
        src.do(f"{_type(kind)} {name} = {'0' if kind == 'i' else literal(start, 'double')};")
    own = [Value(name, kind) for name, kind in zip(names, kinds, strict=True)]

    def merge(others: Sequence[str]) -> None:
        args = [*own, *(Value(t, k) for t, k in zip(others, kinds, strict=True))]
        new = run_rule(src, "double", args, lambda a: state.rule.merge(tuple(a[:count]), tuple(a[count:])))
        src.do(*(f"{v.text} = {x.text};" for v, x in zip(own, new, strict=True)))

    with src.block(f"if ({_limit(state)})"), src.block("for (int part = first; part < end; ++part)"):
        src.do("const long long at = ((long long)component * parts + part) * all_rows + place;")
        parts = [src.name("p") for _ in kinds]
        for c, (name, kind) in enumerate(zip(parts, kinds, strict=True)):
            src.do(f"const {_type(kind)} {name} = ({_type(kind)})o{state.first + c}[at];")
        merge(parts)
    # Through shared memory, component by component, to the first lane.
    with src.block("if (lanes > 1)"):
        at = "(lane * blockDim.x + threadIdx.x)"
        size = "(lanes * blockDim.x)"
        src.do("__syncthreads();")
        for c, (value, kind) in enumerate(zip(own, kinds, strict=True)):
            src.do(f"(({_type(kind)}*)memory)[{c} * {size} + {at}] = {value.text};")
        src.do("__syncthreads();")
        with src.block("if (lane == 0)"), src.block("for (int other = 1; other < lanes; ++other)"):
            others = [
                f"(({_type(kind)}*)memory)[{c} * {size} + other * blockDim.x + threadIdx.x]"
                for c, kind in enumerate(kinds)
            ]
            merge(others)
    with src.block(f"if (lane == 0 && here && {_limit(state)})"):
        groups: list[int] = []

        def finish(args: list[Val]) -> Sequence[Val]:
            found = state.rule.finish(tuple(args))
            groups.extend(len(g) for g in found)
            return [v for g in found for v in g]

        values = run_rule(src, "double", own, finish)
        for group, size_ in enumerate(groups):
            mine, values = values[:size_], values[size_:]
            width = state.extent if state.loop else size_
            for d, value in enumerate(mine):
                column = "component" if state.loop else str(d)
                src.do(f"fs_store(out{output + group}, row * {width} + {column}, {value.text});")


def _lists(src: Source, state: State, output: int) -> None:
    """Merge the ordered lists of the parts: the best of their heads, K times; of equal ones the smallest index."""
    k, dim = state.listed, state.dim
    total = state.terms.dim
    scalar = state.scalar
    better = "<" if state.identity[0] > 0 else ">"
    with src.block(f"if (lane == 0 && here && {_limit(state)})"):
        for d in range(dim):
            values, places = f"o{state.first + d}", f"o{state.first + dim + d}"
            src.do(f"int head{d}[{MAX_LIST_SPLITS}];")
            with src.block("for (int part = 0; part < parts; ++part)"):
                src.do(f"head{d}[part] = 0;")
            with src.block(f"for (int s = 0; s < {k}; ++s)"):
                worst = literal(state.identity[0], scalar)
                src.do(f"{scalar} best = {worst};", "long long index = 0;", "int taken = -1;")
                with src.block("for (int part = 0; place >= 0 && part < parts; ++part)"):
                    src.do(f"if (head{d}[part] >= {k}) continue;")
                    src.do(
                        f"const long long at = (((long long)component * {k} + head{d}[part]) * parts + part) "
                        "* all_rows + place;",
                        f"const {scalar} value = {values}[at];",
                        f"const long long mine = {places}[at];",
                        f"if (value {better} best || (value == best && taken >= 0 && mine < index)) "
                        "{ best = value; index = mine; taken = part; }",
                    )
                src.do(f"if (taken >= 0) ++head{d}[taken];")
                column = "component" if state.loop else str(d)
                at = f"(row * {k} + s) * {total} + {column}"
                for group, kind in enumerate(state.rule.outputs):
                    what = "index" if kind is Kind.INDEX else "best"
                    src.do(f"fs_store(out{output + group}, {at}, {what});")


def _type(kind: str) -> str:
    return TYPES[kind]["double"]
