"""Every reduction: one declaration each.

A reduction is a monoid: `identity`, `lift` a term to a state, `merge` two states, `finish` a state.
Whatever cuts work into pieces (a tile, a split over j, a slice of time, a worker) merges states, so
partial results cross all those borders in the same form. Rules are written in the scalar IR over
flat tuples: a term is the components of F (and of the weight), a state is laid out by `state`.

`grad(e, y, x, w, j)` is its derivative, in the formula language: from the cotangent e of the output, the
saved output y (see `saves`), F, the weight and the index of the column, the cotangents of F and of the
weight at one pair. Its backward pass is then a Sum over the pairs.

Optional, for speed only:
  block    fold several terms into a state at once; default: merge the lifted terms one by one
  gate     a mask that says which states a block of terms can change at all
  better   of an extremum with its place: does the first value replace the second?
  pick     the better of two values; the second where the first is NaN
  step     for ordered lists of K: how one slot of the list meets an incoming term
  peak     of sums of exp(x)·g that are held as multiples of exp(m): the new m after a block of terms x
  share    of the same: what a term x counts for beside m, exp(x − m); sums so far are rescaled by it too
  calm     of the same: the state after terms of which none is far above m, so that nothing is rescaled

Conventions (docs/parity.md): NaN propagates through sums and is skipped by min and max; ties go to the
smallest index; an empty reduction gives the identity, with index 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce

from farsum_kernels.errors import UnknownOperation
from farsum_kernels.formula.expr import Expr
from farsum_kernels.formula.rewrite import add, make, mul, sub
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
      peaked    m itself is an output, so it has to be the largest term
    """

    name: str
    state: Callable[[int, int], tuple[Kind, ...]]
    identity: Callable[[int, int], tuple[float | str, ...]]
    lift: Callable[[Term, Val], State]
    merge: Callable[[State, State], State]
    finish: Callable[[State], tuple[tuple[Val, ...], ...]]
    outputs: tuple[Kind, ...]
    width: Callable[[int, int], int] = lambda d, w: d
    grad: Callable[[Expr, Expr, Expr, Expr | None, Expr], tuple[Expr | None, Expr | None]] | None = None
    saves: tuple[str, ...] = ()
    block: Callable[[State, Sequence[Term], Sequence[Val]], State] | None = None
    gate: Callable[[State, Sequence[Term]], Val] | None = None
    better: Callable[[Val, Val], Val] | None = None
    pick: Callable[[Val, Val], Val] | None = None
    step: Callable[[Val, Val, Val, Val, Val], tuple[Val, Val, Val, Val, Val]] | None = None
    peak: Callable[[Val, Sequence[Val]], Val] | None = None
    share: Callable[[Val, Val], Val] | None = None
    calm: Callable[[State, Sequence[Term]], State] | None = None
    scalar: bool = False
    weight: str = "none"
    additive: bool = False
    listed: bool = False
    peaked: bool = False

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
    grad=lambda e, y, x, w, j: (e, None),
    additive=True,
))  # fmt: skip


# The shifted family: the state (m, s_1, …) stands for s_k·exp(m), the sums of exp(x)·g_k. m is always
# finite: exp(-inf - -inf) would be nan, and so would exp(inf - inf). A term of -inf then adds
# exp(-inf) = 0, a term of +inf makes the sums infinite.


def _finite(x: Val) -> Val:
    low, high = x.block.constant("lowest"), x.block.constant("highest")
    return ir.minimum(ir.maximum(x, low), high)


def _peak(m: Val, terms: Sequence[Val]) -> Val:
    return _finite(reduce(lambda top, x: ir.maximum(x, top), terms, m))


def _share(x: Val, m: Val) -> Val:
    # The difference comes before the factor log2(e): it is exact where terms are large and close.
    return ir.exp2((x - m) * ir.LOG2_E)


def _merge_shifted(a: State, b: State) -> State:
    (m, *s), (n, *t) = a, b
    top = ir.maximum(m, n)
    left, right = ir.exp(m - top), ir.exp(n - top)
    return top, *(x * left + y * right for x, y in zip(s, t, strict=True))


def _shifted(
    name: str,
    finish: Callable[[State], tuple[Val, ...]],
    width: Callable[[int, int], int],
    weight: str,
    grad: Callable[..., tuple[Expr | None, Expr | None]] | None = None,
    saves: tuple[str, ...] = (),
    normalised: bool = False,
) -> Reduction:
    """A reduction of the shifted family; `normalised` also sums exp(x) itself, first."""

    def factors(term: Term) -> list[Val]:
        one = term[0].block.constant(1.0)
        return [one, *term[1:]] if normalised or len(term) == 1 else list(term[1:])

    def lift(term: Term, j: Val) -> State:
        m = _finite(term[0])
        p = ir.exp(term[0] - m)
        return m, *(p * g for g in factors(term))

    def inner(count: int, shares: Sequence[Val], terms: Sequence[Term]) -> list[Val]:
        gs = [factors(term) for term in terms]
        return [
            reduce(lambda a, b: a + b, (q * g[k] for q, g in zip(shares, gs, strict=True)))
            for k in range(count)
        ]

    def block(state: State, terms: Sequence[Term], indices: Sequence[Val]) -> State:
        # One rescale per block of terms: 1 + 1/len(terms) exponentials per pair instead of 2.
        m, *sums = state
        top = _peak(m, [term[0] for term in terms])
        scale = _share(m, top)
        new = inner(len(sums), [_share(term[0], top) for term in terms], terms)
        return top, *(s * scale + t for s, t in zip(sums, new, strict=True))

    def calm(state: State, terms: Sequence[Term]) -> State:
        m, *sums = state
        new = inner(len(sums), [_share(term[0], m) for term in terms], terms)
        return m, *(s + t for s, t in zip(sums, new, strict=True))

    def sums(w: int) -> int:
        return max(w, 1) if not normalised else 1 + w

    return _declare(Reduction(
        name,
        state=lambda d, w: (Kind.VALUE, *(Kind.WIDE,) * sums(w)),
        identity=lambda d, w: ("lowest", *(0.0,) * sums(w)),
        lift=lift,
        merge=_merge_shifted,
        block=block,
        peak=_peak,
        share=_share,
        calm=calm,
        finish=lambda s: (finish(s),),
        outputs=(Kind.VALUE,),
        width=width,
        grad=grad,
        saves=saves,
        scalar=True,
        weight=weight,
        peaked=finish is _raw,
    ))  # fmt: skip


def _log(s: State) -> tuple[Val, ...]:
    return tuple(s[0] + ir.log(t) for t in s[1:])


def _raw(s: State) -> tuple[Val, ...]:
    # Without a finite term the maximum is -inf, whatever stands in for it here.
    low = s[0].block.constant("lowest")
    return (ir.select(s[0] > low, s[0], float("-inf")), *s[1:])


def _grad_lse(e: Expr, y: Expr, x: Expr, w: Expr | None, j: Expr) -> tuple[Expr | None, Expr | None]:
    share = make("Exp", sub(x, y))
    if w is None:
        return mul(e, share), None
    return make("Scalprod", mul(e, w), share), mul(e, share)


def _grad_softmax(e: Expr, y: Expr, x: Expr, w: Expr | None, j: Expr) -> tuple[Expr | None, Expr | None]:
    assert w is not None
    mean = make("Extract", y, params=(0, w.dim))
    share = make("Exp", sub(x, make("Extract", y, params=(w.dim, 1))))
    return mul(share, make("Scalprod", e, sub(w, mean))), mul(share, e)


# fmt: off
_shifted("LogSumExp",       _log, lambda d, w: max(w, 1), "optional", _grad_lse, ("LogSumExp",))
_shifted("LogSumExpWeight", _log, lambda d, w: w,         "required", _grad_lse, ("LogSumExpWeight",))
for _name in ("SumSoftMaxWeight", "SoftMax"):
    _shifted(_name, lambda s: tuple(t / s[1] for t in s[2:]), lambda d, w: w, "required", _grad_softmax,
             (_name, "LogSumExp"), normalised=True)
# The raw (m, s): no derivative, since the log or quotient that users apply to it is not known here.
_shifted("Max_SumShiftExp",       _raw, lambda d, w: 2,             "none")
_shifted("Max_SumShiftExpWeight", _raw, lambda d, w: 1 + max(w, 1), "optional")
# fmt: on


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
        grad=_grad_at_place,
        saves=(f"Arg{name}",),
    ))  # fmt: skip


def _grad_at_place(e: Expr, y: Expr, x: Expr, w: Expr | None, j: Expr) -> tuple[Expr | None, Expr | None]:
    # All of e goes to the pair that was chosen; y holds its column, component by component.
    return mul(e, make("Equal", y, j)), None


def _grad_at_places(e: Expr, y: Expr, x: Expr, w: Expr | None, j: Expr) -> tuple[Expr | None, Expr | None]:
    chosen, dim = mul(e, make("Equal", y, j)), x.dim  # K × dim entries
    parts = (make("Extract", chosen, params=(k * dim, dim)) for k in range(chosen.dim // dim))
    return reduce(add, parts), None


def _grad_nowhere(e: Expr, y: Expr, x: Expr, w: Expr | None, j: Expr) -> tuple[Expr | None, Expr | None]:
    return None, None


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
        # From the state on, which is a number: a NaN among the terms is dropped and hides no other.
        masks = [better(_picked(pick, terms, k, v), v) for k, v in enumerate(values)]
        return reduce(lambda a, b: a | b, masks)

    return _declare(Reduction(
        name,
        state=lambda d, w: (Kind.VALUE,) * d + (Kind.INDEX,) * d,
        identity=lambda d, w: (worst,) * d + (0.0,) * d,
        lift=lift,
        merge=merge,
        block=block,
        gate=gate,
        better=better,
        pick=pick,
        finish=lambda s: tuple(_half(s)[kind is Kind.INDEX] for kind in outputs),
        outputs=outputs,
        grad=_grad_at_place if Kind.VALUE in outputs else _grad_nowhere,
        saves=("ArgMin" if better is _less else "ArgMax",) if Kind.VALUE in outputs else (),
    ))  # fmt: skip


def _picked(pick: Callable[[Val, Val], Val], terms: Sequence[Term], k: int, best: Val) -> Val:
    """The best of component k of some terms and of a number."""
    for term in terms:
        best = pick(term[k], best)
    return best


def _k_best(
    name: str, better: Callable[[Val, Val], Val], worst: float, outputs: tuple[Kind, ...]
) -> Reduction:
    arg = REDUCTIONS["Min_ArgMin" if better is _less else "Max_ArgMax"]
    first, last = (ir.minimum, ir.maximum) if better is _less else (ir.maximum, ir.minimum)

    def step(value: Val, index: Val, x: Val, j: Val, moved: Val) -> tuple[Val, Val, Val, Val, Val]:
        # A slot keeps the better of itself and the incoming pair and passes the other one on. A new value goes
        # behind equal ones, which came earlier; what it moved on stays before those that it came before.
        take = moved | better(x, value)
        # Of equal values either will do: values need no mask.
        kept, out = (first(x, value), last(value, x))
        return kept, ir.select(take, j, index), out, ir.select(take, index, j), take

    return _declare(Reduction(
        name,
        state=arg.state,
        identity=arg.identity,
        lift=arg.lift,
        merge=arg.merge,
        finish=arg.finish if outputs == arg.outputs else lambda s: tuple(_half(s)[k is Kind.INDEX] for k in outputs),
        outputs=outputs,
        grad=_grad_at_places if Kind.VALUE in outputs else _grad_nowhere,
        saves=("ArgKMin",) if Kind.VALUE in outputs else (),
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
for _name in ("Min_ArgMin", "MinArgMin"):
    _arg_extremum(_name,    _less,    _INF,  _VALUE + _INDEX)
for _name in ("Max_ArgMax", "MaxArgMax"):
    _arg_extremum(_name,    _greater, -_INF, _VALUE + _INDEX)
_k_best("KMin",         _less, _INF, _VALUE)
_k_best("ArgKMin",      _less, _INF, _INDEX)
for _name in ("KMin_ArgKMin", "KMinArgKMin"):
    _k_best(_name,      _less, _INF, _VALUE + _INDEX)
# fmt: on
