"""Inverse circular functions and powers as straight-line vector code: none of them ever calls libm.

Not every machine fuses a multiply with an add. Where a product must be exact, its factors are cut to
half of their digits first, so that fused or not it is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from farsum_kernels.backends.cpu import coefficients as co

if TYPE_CHECKING:
    from farsum_kernels.backends.cpu.vector import Vec

INF = float("inf")


def parted(v: Vec, x: str) -> tuple[str, str]:
    """x = m·2^e with m in [√½, √2); gives m and e, both as numbers. Only for positive finite x."""
    s, shift = v.shape, v.mantissa
    single = s.scalar == "float"
    tiny, bias = (2.0**-126, 127) if single else (2.0**-1022, 1023)
    root_half = 0x3F3504F3 if single else 0x3FE6A09E667F3BCD
    scale = 2.0**shift
    is_tiny = v.compare("olt", x, s.number(tiny))
    bits = v.bits(v.choose(is_tiny, v.binary("fmul", x, s.number(scale)), x))
    moved = v.integer("add", bits, (bias << shift) - root_half)
    mantissa = v.integer("add", v.integer("and", moved, (1 << shift) - 1), root_half)
    # The exponent as the last digits of 2^shift. AVX2 converts no int64 to double and shifts none with its sign.
    exponent = v.integer("or", v.integer("lshr", moved, shift), bias + shift << shift)
    bases = v.choose(is_tiny, s.number(scale + bias + shift), s.number(scale + bias))
    return v.as_number(mantissa), v.binary("fsub", v.as_number(exponent), bases)


# ── inverse circular functions ────────────────────────────────────────────────────────────────────


def _negated(v: Vec, x: str) -> str:
    return v.fn.let(f"fneg {v.f} {x}")


def _constant(v: Vec, cases: tuple[tuple[str, tuple[float, float]], ...]) -> tuple[str, str]:
    """The (high, low) constant of the first mask that holds, or zeros."""
    high = low = v.shape.number(0.0)
    for mask, pair in reversed(cases):
        high, low = (v.choose(mask, v.shape.number(p), old) for p, old in zip(pair, (high, low), strict=True))
    return high, low


def _turned(v: Vec, t: str, high: str, low: str) -> str:
    """high + low + atan(t) for |t| <= 1."""
    z = v.binary("fmul", t, t)
    tail = v.fma(v.binary("fmul", t, z), v.polynomial(z, co.ATAN[v.shape.scalar]), low)
    return v.binary("fadd", high, v.binary("fadd", t, tail))


def atan(v: Vec, x: str) -> str:
    """atan(x) to 1.5 ulp."""
    one = v.shape.number(1.0)
    size = v.intrinsic("fabs", x)
    steep = v.compare("ogt", size, one)
    # The quotient comes second, so that a NaN survives.
    t = v.minimum(size, v.binary("fdiv", one, size))
    high, low = _constant(v, ((steep, co.QUARTER_TURN[v.shape.scalar]),))
    angle = _turned(v, v.choose(steep, _negated(v, t), t), high, low)
    return v.intrinsic("copysign", angle, x)


def atan2(v: Vec, y: str, x: str) -> str:
    """The angle of (x, y) to 2 ulp, for signed zeros and infinities as in C."""
    s = v.shape
    wide, tall = v.intrinsic("fabs", x), v.intrinsic("fabs", y)
    steep = v.compare("ogt", tall, wide)
    t = v.binary("fdiv", v.choose(steep, wide, tall), v.choose(steep, tall, wide))
    # 0/0 and inf/inf are 0 and 1 here.
    same = v.choose(v.compare("ogt", wide, s.number(0.0)), s.number(1.0), s.number(0.0))
    t = v.choose(v.compare("oeq", wide, tall), same, t)
    left = v.is_negative(x)
    turn = v.fn.let(f"xor {s.m} {steep}, {left}")
    quarter, half = co.QUARTER_TURN[s.scalar], co.HALF_TURN[s.scalar]
    high, low = _constant(v, ((steep, quarter), (left, half)))
    angle = _turned(v, v.choose(turn, _negated(v, t), t), high, low)
    return v.intrinsic("copysign", angle, y)


def _arc(v: Vec, size: str) -> tuple[str, str, str]:
    """Where |x| <= ½; and r, c with asin(|x|) = r + c there, asin(√((1-|x|)/2)) = r + c elsewhere."""
    s = v.shape
    near = v.compare("ole", size, s.number(0.5))
    far = v.fma(size, s.number(-0.5), s.number(0.5))  # exact; negative beyond 1, and its root NaN
    z = v.choose(near, v.binary("fmul", size, size), far)
    r = v.choose(near, size, v.intrinsic("sqrt", far))
    return near, r, v.binary("fmul", v.binary("fmul", r, z), v.polynomial(z, co.ASIN[s.scalar]))


def asin(v: Vec, x: str) -> str:
    """asin(x) to 1.5 ulp; NaN outside [-1, 1]."""
    s = v.shape
    near, r, c = _arc(v, v.intrinsic("fabs", x))
    # π/4 + (π/4 - 2·asin(…)) near 1: in two steps, since the first takes most of the rounding with it.
    quarter, rest = co.QUARTER_TURN[s.scalar]
    high, low = (v.choose(near, s.number(0.0), s.number(part)) for part in (quarter / 2, rest))
    factor = v.choose(near, s.number(1.0), s.number(-2.0))
    angle = v.binary("fadd", v.fma(factor, r, high), v.fma(factor, c, low))
    return v.intrinsic("copysign", v.binary("fadd", high, angle), x)


def acos(v: Vec, x: str) -> str:
    """acos(x) to 1.5 ulp; NaN outside [-1, 1]."""
    s = v.shape
    near, r, c = _arc(v, v.intrinsic("fabs", x))
    # π/2 - asin(x) near 0, 2·asin(…) near 1, π - 2·asin(…) near -1.
    high, low = _constant(v, ((near, co.QUARTER_TURN[s.scalar]), (v.is_negative(x), co.HALF_TURN[s.scalar])))
    factor = v.choose(near, s.number(-1.0), s.number(2.0))
    factor = v.as_number(v.integer("xor", v.bits(factor), v.sign_of(x)))
    return v.binary("fadd", high, v.fma(factor, r, v.fma(factor, c, low)))


# ── powers ────────────────────────────────────────────────────────────────────────────────────────


def power(v: Vec, x: str, y: str) -> str:
    """x^y to 2 ulp (float: 2.5), in every special case as in C: 1 for y = 0 or x = 1 even beside NaN."""
    s = v.shape
    size = v.intrinsic("fabs", x)
    value = _power_of_float(v, size, y) if s.scalar == "float" else _power_of_double(v, size, y)
    odd_base = v.either(v.compare("ule", x, s.number(0.0)), v.compare("oeq", x, s.number(INF)))
    # Also true for NaN.
    rare = v.either(odd_base, v.compare("uge", v.intrinsic("fabs", y), s.number(INF)))
    return v.fn.when(v.any(rare), [(v.f, value)], lambda: [_special(v, x, y, size, value)])[0]


def _special(v: Vec, x: str, y: str, size: str, value: str) -> str:
    """x^y for any x and y, where `value` is |x|^y for positive finite |x| and finite y."""
    s = v.shape
    zero, one, infinity = s.number(0.0), s.number(1.0), s.number(INF)
    large = v.compare("ogt", size, one)
    value = v.choose(v.compare("oeq", size, one), one, value)
    shrinks = v.compare("olt", y, zero)
    limit = v.choose(v.fn.let(f"xor {s.m} {large}, {shrinks}"), infinity, zero)
    at_limit = v.either(v.compare("oeq", size, zero), v.compare("oeq", size, infinity))
    value = v.choose(at_limit, limit, value)
    # A negative base: the sign of an odd power, NaN for a power that is not whole.
    whole = v.compare("oeq", v.intrinsic("roundeven", y), y)
    half = v.binary("fmul", y, s.number(0.5))
    odd = v.both(whole, v.compare("une", v.intrinsic("roundeven", half), half))
    value = v.choose(v.both(odd, v.is_negative(x)), _negated(v, value), value)
    inside = v.both(v.compare("olt", x, zero), v.compare("ogt", x, s.number(-INF)))
    not_whole = v.fn.let(f"xor {s.m} {whole}, splat (i1 true)")
    nothing = v.either(v.both(inside, not_whole), v.compare("uno", x, y))
    value = v.choose(nothing, s.number(float("nan")), value)
    return v.choose(v.either(v.compare("oeq", x, one), v.compare("oeq", y, zero)), one, value)


def _power_of_float(v: Vec, x: str, y: str) -> str:
    """x^y = 2^(y·log2 x), the logarithm and its product in double; only the reciprocal is made in float."""
    s, wide = v.shape, v.wide()

    def widened(a: str) -> str:
        return v.fn.let(f"fpext {v.f} {a} to {wide.f}")

    def narrowed(a: str) -> str:
        return v.fn.let(f"fptrunc {wide.f} {a} to {v.f}")

    number = wide.shape.number
    m, e = parted(v, x)
    f = widened(v.binary("fsub", m, s.number(1.0)))
    r = widened(v.binary("fdiv", s.number(1.0), v.binary("fadd", m, s.number(1.0))))
    # t = f/(2+f): one Newton step takes the 23 digits of the reciprocal to 46.
    error = wide.fma(wide.binary("fsub", number(-2.0), f), r, number(1.0))
    t = wide.binary("fmul", f, r)
    t = wide.fma(t, error, t)
    log2 = wide.fma(t, wide.polynomial(wide.binary("fmul", t, t), co.LOG2_SHORT), widened(e))
    z = wide.clamped(wide.binary("fmul", widened(y), log2), -151.0, 129.0)
    n = wide.intrinsic("roundeven", z)
    return v.two_to(narrowed(n), narrowed(wide.binary("fsub", z, n)))


def _cut(v: Vec, x: str) -> str:
    """A double to 26 binary digits: the product of two such is exact."""
    return v.as_number(v.integer("and", v.bits(x), -1 << 27))


def _log2_of_double(v: Vec, x: str) -> tuple[str, str]:
    """log2(x) as the sum of two doubles, the first cut, with a relative error of 2^-65."""
    s = v.shape
    one, three = s.number(1.0), s.number(3.0)
    m, e = parted(v, x)
    f, d = v.binary("fsub", m, one), v.binary("fadd", m, one)
    # t = t1 + t2 = f/d, from the product with a reciprocal and the exact remainder of that.
    r = v.binary("fdiv", one, d)
    t = v.binary("fmul", f, r)
    t1, d1 = _cut(v, t), _cut(v, d)
    d2 = v.binary("fsub", m, v.binary("fsub", d1, one))
    rest = v.binary("fsub", f, v.binary("fmul", t1, d1))
    t2 = v.binary("fmul", v.binary("fsub", rest, v.binary("fmul", t1, d2)), r)
    # log m = ⅔·t·(3 + t² + t⁴·P(t²)), the bracket as b1 + b2.
    z, q = v.binary("fmul", t, t), v.binary("fmul", t1, t1)
    tail = v.binary("fmul", v.binary("fmul", z, z), v.polynomial(z, co.LOG2_LONG))
    tail = v.fma(t2, v.binary("fadd", t1, t), tail)
    b1 = _cut(v, v.binary("fadd", v.binary("fadd", q, three), tail))
    b2 = v.binary("fsub", tail, v.binary("fsub", v.binary("fsub", b1, three), q))
    # t·b, then times 2/(3·ln 2), then plus e: each time a cut sum and what it lost.
    u = v.binary("fmul", t1, b1)
    w = v.fma(t2, b1, v.binary("fmul", b2, t))
    p1 = _cut(v, v.binary("fadd", u, w))
    p2 = v.binary("fsub", w, v.binary("fsub", p1, u))
    c, c1, c2 = (s.number(part) for part in co.LOG2_FACTOR)
    high = v.binary("fmul", p1, c1)
    low = v.fma(p2, c, v.binary("fmul", p1, c2))
    l1 = _cut(v, v.binary("fadd", v.binary("fadd", high, low), e))
    return l1, v.binary("fsub", low, v.binary("fsub", v.binary("fsub", l1, e), high))


def _power_of_double(v: Vec, x: str, y: str) -> str:
    """x^y = 2^(y·log2 x), the logarithm and the product as sums of two doubles."""
    l1, l2 = _log2_of_double(v, x)
    # Past 2^66 every power of a number other than 1 is 0 or infinite: no product overflows.
    y = v.clamped(y, -(2.0**66), 2.0**66)
    y1 = _cut(v, y)
    high = v.binary("fmul", y1, l1)
    low = v.fma(v.binary("fsub", y, y1), l1, v.binary("fmul", y, l2))
    n = v.intrinsic("roundeven", v.clamped(high, -1077.0, 1025.0))
    f = v.binary("fadd", v.binary("fsub", high, n), low)
    return v.two_to(n, v.clamped(f, -1.0, 1.0))
