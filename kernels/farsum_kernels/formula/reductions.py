"""Every reduction: one declaration each.

A reduction is a monoid: `identity`, `lift` a term to a state, `merge` two states, `finish` a state.
Whatever cuts work into pieces (a tile, a split over j, a slice of time, a worker) merges states, so
partial results cross all those borders in the same form. Rules are written in the scalar IR over
flat tuples: a term is the components of F (and of the weight), a state is laid out by `state`.

Optional, for speed only:
  block    fold several terms into a state at once; default: merge the lifted terms one by one
  gate     a mask that says which states a block of terms can change at all
  step     for ordered lists of K: how one slot of the list meets an incoming term

Conventions (docs/parity.md): NaN propagates through sums and is skipped by min and max; ties go to the
smallest index; an empty reduction gives the identity, with index 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce

from farsum_kernels.errors import UnknownOperation
from farsum_kernels.scalar import ir
from farsum_kernels.scalar.ir import Val

State = tuple[Val, ...]
Term = tuple[Val, ...]


class Kind(Enum):
    """How a component of a state is kept.

    VALUE  in the data dtype
    WIDE   in the data dtype inside a tile of columns, in float64 across tiles: its error does not
           grow with the number of terms
    INDEX  an integer
    """

    VALUE = "value"
    WIDE = "wide"
    INDEX = "index"


@dataclass(frozen=True)
class Reduction:
    """One reduction over the pairs of a row. See the module docstring for the parts.

      outputs   the kind of each result array: VALUE or INDEX
      scalar    F must have dimension 1
      weighted  a weight formula is required
      additive  merging is adding, component by component
    listed    the state is a list of K (value, index) pairs per component, best first
    """

    name: str
    state: Callable[[int, int], tuple[Kind, ...]]
    identity: Callable[[int, int], tuple[float | str, ...]]
    lift: Callable[[Term, Val], State]
    merge: Callable[[State, State], State]
    finish: Callable[[State], tuple[tuple[Val, ...], ...]]
    outputs: tuple[Kind, ...]
    block: Callable[[State, Sequence[Term], Sequence[Val]], State] | None = None
    gate: Callable[[State, Sequence[Term]], Val] | None = None
    step: Callable[[Val, Val, Val, Val], tuple[Val, Val, Val, Val]] | None = None
    scalar: bool = False
    weighted: bool = False
    additive: bool = False
    listed: bool = False

    def accumulate(self, state: State, terms: Sequence[Term], indices: Sequence[Val]) -> State:
        """The state after a block of terms, in order."""
        if self.block:
            return self.block(state, terms, indices)
        lifted = (self.lift(t, j) for t, j in zip(terms, indices, strict=True))
        return reduce(self.merge, lifted, state)


REDUCTIONS: dict[str, Reduction] = {}


def _declare(reduction: Reduction) -> Reduction:
    if reduction.name in REDUCTIONS:
        raise ValueError(f"reduction {reduction.name!r} is declared twice")
    REDUCTIONS[reduction.name] = reduction
    return reduction


def reduction_named(name: str) -> Reduction:
    """The reduction of that name, or `UnknownOperation` with the list of names."""
    if found := REDUCTIONS.get(name):
        return found
    raise UnknownOperation(f"unknown reduction {name!r}; there are {', '.join(REDUCTIONS)}")


# Sum


def _add(a: State, b: State) -> State:
    return tuple(x + y for x, y in zip(a, b, strict=True))


_declare(Reduction(
    "Sum",
    state=lambda d, w: (Kind.WIDE,) * d,
    identity=lambda d, w: (0.0,) * d,
    lift=lambda x, j: x,
    merge=_add,
    finish=lambda s: (s,),
    outputs=(Kind.VALUE,),
    additive=True,
))  # fmt: skip


# LogSumExp: the state (m, s) stands for s·exp(m). m is always finite: exp(-inf - -inf) would be nan,
# and so would exp(inf - inf). A term of -inf then adds exp(-inf) = 0, a term of +inf makes s infinite.


def _finite(x: Val) -> Val:
    low, high = x.block.constant("lowest"), x.block.constant("highest")
    return ir.minimum(ir.maximum(x, low), high)


def _merge_shifted(a: State, b: State) -> State:
    (m, s), (n, t) = a, b
    top = ir.maximum(m, n)
    return top, s * ir.exp(m - top) + t * ir.exp(n - top)


def _block_shifted(state: State, terms: Sequence[Term], indices: Sequence[Val]) -> State:
    # One rescale per block of terms: 1 + 1/len(terms) exponentials per pair instead of 2.
    m, s = state
    top = m
    for (x,) in terms:
        top = ir.maximum(x, top)
    top = ir.minimum(top, top.block.constant("highest"))
    inner = reduce(lambda a, b: a + b, (ir.exp(x - top) for (x,) in terms))
    return top, s * ir.exp(m - top) + inner


_declare(Reduction(
    "LogSumExp",
    state=lambda d, w: (Kind.VALUE, Kind.WIDE),
    identity=lambda d, w: ("lowest", 0.0),
    lift=lambda x, j: (_finite(x[0]), ir.exp(x[0] - _finite(x[0]))),
    merge=_merge_shifted,
    block=_block_shifted,
    finish=lambda s: ((s[0] + ir.log(s[1]),),),
    outputs=(Kind.VALUE,),
    scalar=True,
))  # fmt: skip


# Min, Max and their arguments. `better(a, b)`: does a replace b?


def _less(a: Val, b: Val) -> Val:
    return a < b


def _greater(a: Val, b: Val) -> Val:
    return b < a


def _extremum(name: str, better: Callable[[Val, Val], Val], worst: float) -> Reduction:
    pick = ir.minimum if better is _less else ir.maximum
    return _declare(Reduction(
        name,
        state=lambda d, w: (Kind.VALUE,) * d,
        identity=lambda d, w: (worst,) * d,
        # A NaN is dropped here: pick(nan, worst) is worst.
        lift=lambda x, j: tuple(pick(v, v.block.constant(worst)) for v in x),
        merge=lambda a, b: tuple(pick(y, x) for x, y in zip(a, b, strict=True)),
        block=lambda s, terms, j: tuple(
            reduce(lambda best, t: pick(t[k], best), terms, s[k]) for k in range(len(s))
        ),
        finish=lambda s: (s,),
        outputs=(Kind.VALUE,),
    ))  # fmt: skip


def _half(state: State) -> tuple[State, State]:
    """Values and indices of a state that holds first all values, then all indices."""
    return state[: len(state) // 2], state[len(state) // 2 :]


def _arg_extremum(
    name: str, better: Callable[[Val, Val], Val], worst: float, outputs: tuple[Kind, ...]
) -> Reduction:
    pick = ir.minimum if better is _less else ir.maximum

    def lift(x: Term, j: Val) -> State:
        keep = [better(v, v.block.constant(worst)) for v in x]
        values = [ir.select(k, v, worst) for k, v in zip(keep, x, strict=True)]
        return (*values, *(ir.select(k, j, 0.0) for k in keep))

    def merge(a: State, b: State) -> State:
        (av, ai), (bv, bi) = _half(a), _half(b)
        take = [better(y, x) | (ir.equal(x, y) & (j < i)) for x, y, i, j in zip(av, bv, ai, bi, strict=True)]
        values = [ir.select(t, y, x) for t, x, y in zip(take, av, bv, strict=True)]
        return (*values, *(ir.select(t, j, i) for t, i, j in zip(take, ai, bi, strict=True)))

    def block(state: State, terms: Sequence[Term], indices: Sequence[Val]) -> State:
        # Terms come in rising order of index, so a strict comparison keeps the smallest.
        values, places = map(list, _half(state))
        for term, j in zip(terms, indices, strict=True):
            for k, x in enumerate(term):
                take = better(x, values[k])
                values[k], places[k] = ir.select(take, x, values[k]), ir.select(take, j, places[k])
        return (*values, *places)

    def gate(state: State, terms: Sequence[Term]) -> Val:
        values, _ = _half(state)
        masks = [better(reduce(pick, (t[k] for t in terms)), v) for k, v in enumerate(values)]
        return reduce(lambda a, b: a | b, masks)

    return _declare(Reduction(
        name,
        state=lambda d, w: (Kind.VALUE,) * d + (Kind.INDEX,) * d,
        identity=lambda d, w: (worst,) * d + (0.0,) * d,
        lift=lift,
        merge=merge,
        block=block,
        gate=gate,
        finish=lambda s: tuple(_half(s)[kind is Kind.INDEX] for kind in outputs),
        outputs=outputs,
    ))  # fmt: skip


def _k_best(
    name: str, better: Callable[[Val, Val], Val], worst: float, outputs: tuple[Kind, ...]
) -> Reduction:
    arg = REDUCTIONS["Min_ArgMin" if better is _less else "Max_ArgMax"]

    def step(value: Val, index: Val, x: Val, j: Val) -> tuple[Val, Val, Val, Val]:
        # A slot keeps the better of itself and the incoming pair and passes the other one on. Equal
        # values stay where they are: they came earlier.
        take = better(x, value)
        return (
            ir.select(take, x, value), ir.select(take, j, index),
            ir.select(take, value, x), ir.select(take, index, j),
        )  # fmt: skip

    return _declare(Reduction(
        name,
        state=arg.state,
        identity=arg.identity,
        lift=arg.lift,
        merge=arg.merge,
        finish=arg.finish if outputs == arg.outputs else lambda s: tuple(_half(s)[k is Kind.INDEX] for k in outputs),
        outputs=outputs,
        gate=arg.gate,
        step=step,
        listed=True,
    ))  # fmt: skip


_VALUE, _INDEX = (Kind.VALUE,), (Kind.INDEX,)
_INF = float("inf")

# fmt: off
_extremum("Min", _less, _INF)
_extremum("Max", _greater, -_INF)
_arg_extremum("ArgMin",     _less,    _INF,  _INDEX)
_arg_extremum("ArgMax",     _greater, -_INF, _INDEX)
_arg_extremum("Min_ArgMin", _less,    _INF,  _VALUE + _INDEX)
_arg_extremum("Max_ArgMax", _greater, -_INF, _VALUE + _INDEX)
_k_best("KMin",         _less, _INF, _VALUE)
_k_best("ArgKMin",      _less, _INF, _INDEX)
_k_best("KMin_ArgKMin", _less, _INF, _VALUE + _INDEX)
# fmt: on
