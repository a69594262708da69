"""Vectors of one width in LLVM IR: how this machine says each primitive.

Vector math intrinsics (llvm.exp, llvm.sin, …) lower to one libm call per lane, 17 times slower than
a polynomial in place; sin and cos call them only where an argument is out of a polynomial's range. Fast-math
flags are given per instruction: `contract` lets a multiply and an add fuse, and `reassoc` is never
given, since it folds away the rounding steps of the functions below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from farsum_kernels.backends.cpu import coefficients as co
from farsum_kernels.backends.cpu import functions
from farsum_kernels.backends.cpu.text import Function, literal
from farsum_kernels.scalar.ir import Prim

LARGEST = {"float": 3.4028234663852886e38, "double": 1.7976931348623157e308}


class Value(NamedTuple):
    """A vector value in the text: its name, and "f" numbers, "i" integers or "m" mask."""

    name: str
    kind: str


@dataclass(frozen=True)
class Shape:
    """A vector type: `lanes` of float or double, and what the machine offers for it."""

    lanes: int
    scalar: str
    scalef: bool = False  # AVX-512 with DQ: multiplies by a power of two, saturating; the rest of rounding
    flush: bool = False  # results too small for a normal number are zero

    @property
    def bits(self) -> int:
        return 32 if self.scalar == "float" else 64

    @property
    def integer(self) -> str:
        return f"i{self.bits}"

    @property
    def f(self) -> str:
        return f"<{self.lanes} x {self.scalar}>"

    @property
    def i(self) -> str:
        return f"<{self.lanes} x {self.integer}>"

    @property
    def m(self) -> str:
        return f"<{self.lanes} x i1>"

    @property
    def suffix(self) -> str:
        return f"v{self.lanes}f{self.bits}"

    def type(self, kind: str) -> str:
        return {"f": self.f, "i": self.i, "m": self.m}[kind]

    def number(self, value: float) -> str:
        return f"splat ({self.scalar} {literal(value, self.scalar)})"

    def whole(self, value: int) -> str:
        return f"splat ({self.integer} {value})"


class Vec:
    """The arithmetic of one vector type, appended to one function."""

    def __init__(self, fn: Function, shape: Shape) -> None:
        self.fn = fn
        self.shape = shape
        self.f = shape.f

    # construction and conversion

    def splat(self, scalar: str, kind: str | None = None) -> str:
        kind = kind or self.shape.scalar
        vector = f"<{self.shape.lanes} x {kind}>"
        first = self.fn.let(f"insertelement {vector} poison, {kind} {scalar}, i64 0")
        return self.fn.let(
            f"shufflevector {vector} {first}, {vector} poison, <{self.shape.lanes} x i32> zeroinitializer"
        )

    def any(self, mask: str) -> str:
        bits = f"i{self.shape.lanes}"
        packed = self.fn.let(f"bitcast {self.shape.m} {mask} to {bits}")
        return self.fn.let(f"icmp ne {bits} {packed}, 0")

    # masks

    def either(self, a: str, b: str) -> str:
        return self.fn.let(f"or {self.shape.m} {a}, {b}")

    def both(self, a: str, b: str) -> str:
        return self.fn.let(f"and {self.shape.m} {a}, {b}")

    def sign_of(self, x: str) -> str:
        """The sign bit of a number, as an integer."""
        return self.integer("and", self.bits(x), -1 << self.shape.bits - 1)

    def is_negative(self, x: str) -> str:
        """By the sign: true for -0, and for some NaN."""
        return self.fn.let(f"icmp slt {self.shape.i} {self.bits(x)}, zeroinitializer")

    # numbers

    def binary(self, op: str, a: str, b: str) -> str:
        return self.fn.let(f"{op} contract {self.f} {a}, {b}")

    def intrinsic(self, name: str, *args: str) -> str:
        return self.fn.call(self.f, f"llvm.{name}.{self.shape.suffix}", *((self.f, a) for a in args))

    def fma(self, a: str, b: str, c: str) -> str:
        # fmuladd, not fma: on a machine without the instruction llvm.fma is a libm call.
        return self.intrinsic("fmuladd", a, b, c)

    def compare(self, how: str, a: str, b: str) -> str:
        return self.fn.let(f"fcmp {how} {self.f} {a}, {b}")

    def choose(self, mask: str, a: str, b: str, kind: str = "f") -> str:
        t = self.shape.type(kind)
        return self.fn.let(f"select {self.shape.m} {mask}, {t} {a}, {t} {b}")

    def minimum(self, a: str, b: str) -> str:
        # This pair is one vminps, which gives b when either is NaN. llvm.minnum would cost more.
        return self.choose(self.compare("olt", a, b), a, b)

    def maximum(self, a: str, b: str) -> str:
        return self.choose(self.compare("ogt", a, b), a, b)

    def clamped(self, x: str, low: float, high: float) -> str:
        # The bound comes first, so that a NaN in x survives.
        return self.minimum(self.shape.number(high), self.maximum(self.shape.number(low), x))

    def polynomial(self, x: str, coefficients: tuple[float, ...]) -> str:
        *rest, top = coefficients
        total = self.shape.number(top)
        for c in reversed(rest):
            total = self.fma(total, x, self.shape.number(c))
        return total

    def bits(self, x: str) -> str:
        return self.fn.let(f"bitcast {self.f} {x} to {self.shape.i}")

    def as_number(self, bits: str) -> str:
        return self.fn.let(f"bitcast {self.shape.i} {bits} to {self.f}")

    def integer(self, op: str, a: str, b: int | str) -> str:
        right = self.shape.whole(b) if isinstance(b, int) else b
        return self.fn.let(f"{op} {self.shape.i} {a}, {right}")

    @property
    def mantissa(self) -> int:
        return 23 if self.shape.scalar == "float" else 52

    @property
    def _rounder(self) -> float:
        """What takes a whole number to the last digits when it is added: AVX2 converts no double to int64."""
        return 1.5 * 2.0**self.mantissa

    def _avx512(self, name: str, *args: tuple[str, str]) -> str:
        """An operation of AVX-512, unmasked, rounding as everywhere."""
        which, mask = ("ps", "i16") if self.shape.scalar == "float" else ("pd", "i8")
        return self.fn.call(
            self.f, f"llvm.x86.avx512.mask.{name}.{which}.512",
            *args, (self.f, "zeroinitializer"), (mask, "-1"), ("i32", "4"),
        )  # fmt: skip

    def _rest(self, x: str) -> str:
        """x less the nearest whole number, with AVX-512."""
        return self._avx512("reduce", (self.f, x), ("i32", "0"))

    def _scaled(self, x: str, n: str) -> str:
        """x · 2^n for a whole number n."""
        shape = self.shape
        if shape.scalef:
            return self._avx512("scalef", (self.f, x), (self.f, n))
        # In two steps, so that results below the smallest normal number are reached gradually.
        bias = shape.number(self._rounder + (127 if shape.scalar == "float" else 1023))
        half = self.binary("fadd", self.binary("fmul", n, shape.number(0.5)), bias)
        rest = self.binary("fadd", self.binary("fsub", n, self.binary("fsub", half, bias)), bias)
        for part in (half, rest):
            x = self.binary("fmul", x, self.as_number(self.integer("shl", self.bits(part), self.mantissa)))
        return x

    def exp(self, x: str) -> str:
        """e^x to 2 ulp; 0 and inf outside the range, NaN stays."""
        s = self.shape
        low, high = (-104.0, 89.0) if s.scalar == "float" else (-746.0, 710.0)
        x = self.clamped(x, low, high)
        big, small = co.LOG2E[s.scalar]
        n = self.intrinsic("roundeven", self.binary("fmul", x, s.number(big)))
        minus_n = self.fn.let(f"fneg {self.f} {n}")
        f = self.fma(x, s.number(small), self.fma(x, s.number(big), minus_n))
        return self.two_to(n, f)

    def exp2(self, x: str) -> str:
        """2^x to 2 ulp; 0 and inf outside the range, NaN stays."""
        if self.shape.scalef:
            # What is left after rounding comes in one instruction where rounding takes two, and is 0 of an infinite x.
            f = self._rest(x)
            return self.two_to(self.fn.let(f"fsub {self.f} {x}, {f}"), f)
        low, high = (-151.0, 129.0) if self.shape.scalar == "float" else (-1077.0, 1025.0)
        x = self.clamped(x, low, high)
        n = self.intrinsic("roundeven", x)
        return self.two_to(n, self.binary("fsub", x, n))

    def two_to(self, n: str, f: str) -> str:
        """2^(n + f) for a whole n and |f| of at most a half."""
        s = self.shape
        p = self.fma(self.polynomial(f, co.EXP2[s.scalar]), f, s.number(1.0))
        return self._scaled(p, n)

    def log(self, x: str) -> str:
        """The natural logarithm to 2 ulp; -inf at 0, NaN below."""
        s = self.shape
        mantissa, e = functions.parted(self, x)
        f = self.binary("fsub", mantissa, s.number(1.0))
        t = self.binary("fdiv", f, self.binary("fadd", mantissa, s.number(1.0)))
        z = self.binary("fmul", t, t)
        tail = self.binary("fmul", self.binary("fmul", t, z), self.polynomial(z, co.LOG[s.scalar]))
        high, low = co.LN2[s.scalar]
        tail = self.fma(e, s.number(low), tail)
        value = self.fma(e, s.number(high), self.fma(t, s.number(2.0), tail))
        value = self.choose(self.compare("oeq", x, s.number(float("inf"))), x, value)
        value = self.choose(self.compare("oeq", x, s.number(0.0)), s.number(float("-inf")), value)
        return self.choose(
            self.compare("uge", x, s.number(0.0)), self._nan_kept(x, value), s.number(float("nan"))
        )

    def _nan_kept(self, x: str, value: str) -> str:
        return self.choose(self.compare("uno", x, x), x, value)

    def wide(self) -> Vec:
        """The arithmetic of as many doubles."""
        return Vec(self.fn, Shape(self.shape.lanes, "double"))

    def _reduced(self, x: str) -> tuple[str, str]:
        """x = r + n·π/2 with |r| <= π/4; gives r and an integer with the last digits of n."""
        s, fn = self.shape, self.fn
        wide = self.wide()
        y = x if s.scalar == "double" else fn.let(f"fpext {self.f} {x} to {wide.f}")
        n = wide.intrinsic("roundeven", wide.binary("fmul", y, wide.shape.number(co.TWO_OVER_PI)))
        minus = fn.let(f"fneg {wide.f} {n}")
        parts = co.HALF_PI if s.scalar == "double" else co.HALF_PI[:2]
        for part in parts:
            y = wide.fma(minus, wide.shape.number(part), y)
        count = wide.bits(wide.binary("fadd", n, wide.shape.number(wide._rounder)))
        if s.scalar == "float":
            y = fn.let(f"fptrunc {wide.f} {y} to {self.f}")
            count = fn.let(f"trunc <{s.lanes} x i64> {count} to {s.i}")
        return y, count

    def _circular(self, x: str, name: str, shift: int) -> str:
        """sin (shift 0) or cos (shift 1) of x, to 2 ulp."""
        s, fn = self.shape, self.fn
        r, n = self._reduced(x)
        n = self.integer("add", n, shift)
        z = self.binary("fmul", r, r)
        sine = self.fma(self.binary("fmul", r, z), self.polynomial(z, co.SIN[s.scalar]), r)
        bend = self.fma(z, s.number(-0.5), s.number(1.0))
        cosine = self.fma(self.binary("fmul", z, z), self.polynomial(z, co.COS[s.scalar]), bend)
        odd = fn.let(f"icmp ne {s.i} {self.integer('and', n, 1)}, {s.whole(0)}")
        value = self.choose(odd, cosine, sine)
        flip = self.integer("shl", self.integer("and", n, 2), s.bits - 2)
        value = self.as_number(self.integer("xor", self.bits(value), flip))
        size = self.intrinsic("fabs", x)
        # Also true for NaN and infinities, which the polynomial would not keep.
        far = self.compare("ugt", size, s.number(co.REDUCIBLE[s.scalar]))

        def slow() -> list[str]:
            return [self.choose(far, self.intrinsic(name, x), value)]

        return fn.when(self.any(far), [(self.f, value)], slow)[0]

    def sin(self, x: str) -> str:
        return self._circular(x, "sin", 0)

    def cos(self, x: str) -> str:
        return self._circular(x, "cos", 1)


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def _f(name: str) -> Callable[..., Value]:
    return lambda v, *args: Value(getattr(v, name)(*(a.name for a in args)), "f")


def _function(emit: Callable[..., str]) -> Callable[..., Value]:
    return lambda v, *args: Value(emit(v, *(a.name for a in args)), "f")


def _binary(op: str) -> Callable[..., Value]:
    return lambda v, a, b: Value(v.binary(op, a.name, b.name), "f")


def _intrinsic(name: str) -> Callable[..., Value]:
    return lambda v, *args: Value(v.intrinsic(name, *(a.name for a in args)), "f")


def _compare(ordered: str, integer: str) -> Callable[..., Value]:
    def emit(v: Vec, a: Value, b: Value) -> Value:
        a, b = _alike(v, a, b)
        if a.kind == "i":
            return Value(v.fn.let(f"icmp {integer} {v.shape.i} {a.name}, {b.name}"), "m")
        return Value(v.compare(ordered, a.name, b.name), "m")

    return emit


def _mask(op: str) -> Callable[..., Value]:
    return lambda v, a, b: Value(v.fn.let(f"{op} {v.shape.m} {a.name}, {b.name}"), "m")


def _alike(v: Vec, a: Value, b: Value) -> tuple[Value, Value]:
    """Beside an integer, the constant 0 is one too: the rules write numbers for both."""
    if a.kind == b.kind:
        return a, b
    zero = Value("zeroinitializer", "i")
    return (a, zero) if a.kind == "i" else (zero, b)


def _select(v: Vec, mask: Value, a: Value, b: Value) -> Value:
    a, b = _alike(v, a, b)
    return Value(v.choose(mask.name, a.name, b.name, a.kind), a.kind)


LLVM: dict[Prim, Callable[..., Value]] = {
    Prim.NEG: lambda v, a: Value(v.fn.let(f"fneg {v.f} {a.name}"), "f"),
    Prim.ABS: _intrinsic("fabs"),
    Prim.SQRT: _intrinsic("sqrt"),
    Prim.EXP: _f("exp"),
    Prim.EXP2: _f("exp2"),
    Prim.LOG: _f("log"),
    Prim.SIN: _f("sin"),
    Prim.COS: _f("cos"),
    Prim.ASIN: _function(functions.asin),
    Prim.ACOS: _function(functions.acos),
    Prim.ATAN: _function(functions.atan),
    Prim.FLOOR: _intrinsic("floor"),
    Prim.ROUND: _intrinsic("round"),
    Prim.ADD: _binary("fadd"),
    Prim.SUB: _binary("fsub"),
    Prim.MUL: _binary("fmul"),
    Prim.DIV: _binary("fdiv"),
    Prim.POW: _function(functions.power),
    Prim.ATAN2: _function(functions.atan2),
    Prim.MIN: _f("minimum"),
    Prim.MAX: _f("maximum"),
    Prim.LT: _compare("olt", "slt"),
    Prim.LE: _compare("ole", "sle"),
    Prim.EQ: _compare("oeq", "eq"),
    Prim.OR: _mask("or"),
    Prim.AND: _mask("and"),
    Prim.SELECT: _select,
}
"""How LLVM IR says each primitive, for any vector type. FOLD is a loop, and the emitter's matter."""
