"""How CUDA C++ says each primitive. FOLD is a loop, and the emitter's matter.

Products are written so that the compiler never fuses them on its own: which sums take a product along
in one rounding is chosen in backends/fusion.py, so that equal pairs give equal bits wherever they stand. The rules of
reductions have no such need; there the compiler fuses freely, and minima are single instructions, since
what stands second in them is a state and never a NaN.
"""

from __future__ import annotations

from collections.abc import Callable

from farsum_kernels.backends.cuda.text import Value
from farsum_kernels.scalar.ir import Prim


def _call(name: str) -> Callable[..., Value]:
    return lambda *args: Value(f"{name}({', '.join(a.text for a in args)})", "f")


def _infix(op: str, kind: str = "f") -> Callable[..., Value]:
    def say(a: Value, b: Value) -> Value:
        a, b = _alike(a, b)
        return Value(f"({a.text} {op} {b.text})", kind)

    return say


def _alike(a: Value, b: Value) -> tuple[Value, Value]:
    """Beside an integer, the constant 0 is one too: the rules write numbers for both."""
    if a.kind == b.kind:
        return a, b
    zero = Value("0", "i")
    return (a, zero) if a.kind == "i" else (zero, b)


def _select(mask: Value, a: Value, b: Value) -> Value:
    a, b = _alike(a, b)
    return Value(f"({mask.text} ? {a.text} : {b.text})", a.kind)


def _pick(op: str) -> Callable[..., Value]:
    return lambda a, b: Value(f"({a.text} {op} {b.text} ? {a.text} : {b.text})", "f")


CUDA: dict[Prim, Callable[..., Value]] = {
    Prim.NEG: lambda a: Value(f"(-{a.text})", "f"),
    Prim.ABS: _call("fs_abs"),
    Prim.SQRT: _call("fs_sqrt"),
    Prim.EXP: _call("fs_exp"),
    Prim.EXP2: _call("fs_exp2"),
    Prim.LOG: _call("fs_log"),
    Prim.SIN: _call("fs_sin"),
    Prim.COS: _call("fs_cos"),
    Prim.ASIN: _call("fs_asin"),
    Prim.ACOS: _call("fs_acos"),
    Prim.ATAN: _call("fs_atan"),
    Prim.FLOOR: _call("fs_floor"),
    Prim.ROUND: _call("fs_round"),
    Prim.ADD: _infix("+"),
    Prim.SUB: _infix("-"),
    Prim.MUL: _call("fs_mul"),
    Prim.DIV: _call("fs_div"),
    Prim.POW: _call("fs_pow"),
    Prim.ATAN2: _call("fs_atan2"),
    Prim.MIN: _pick("<"),
    Prim.MAX: _pick(">"),
    Prim.LT: _infix("<", "m"),
    Prim.LE: _infix("<=", "m"),
    Prim.EQ: _infix("==", "m"),
    Prim.OR: _infix("||", "m"),
    Prim.AND: _infix("&&", "m"),
    Prim.SELECT: _select,
}

RULES = CUDA | {Prim.MUL: _infix("*"), Prim.MIN: _call("fs_min"), Prim.MAX: _call("fs_max")}
"""How the rules of reductions are said."""
