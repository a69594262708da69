// The words of CUDA C++ for g++: generated kernels run on a CPU, their source unchanged, to be checked where there is
// no GPU. Meetings of threads are real (fibers.h); arithmetic is the host's; what the kernels' prelude says in PTX is
// said here in C++. Not modelled: timing, and races inside a warp that no order of its lanes shows.
#pragma once
#define FARSUM_EMULATOR 1
#include "fibers.h"
#include <cmath>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// emulate.py writes `extern __shared__ type name[];` as EMULATOR_DYNAMIC(type, name): C++ has no such array.
#define EMULATOR_DYNAMIC(type, name) type* const name = (type*)emulator::dynamic_shared

// ---- vector types ----

#define EMULATOR_VECTORS(T, name)                                           \
    struct __align__(2 * sizeof(T)) name##2 { T x, y; };                    \
    struct __align__(16) name##4 { T x, y, z, w; };                         \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }       \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(double, double)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS(unsigned, uint)

// ---- bits and arithmetic ----

namespace emulator {
template <class To, class From> static inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace emulator

static inline float __int_as_float(int x) { return emulator::bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emulator::bits<float>(x); }
static inline int __float_as_int(float x) { return emulator::bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emulator::bits<unsigned>(x); }
static inline double __longlong_as_double(long long x) { return emulator::bits<double>(x); }
static inline long long __double_as_longlong(double x) { return emulator::bits<long long>(x); }
static inline int __double2loint(double x) { return (int)emulator::bits<unsigned long long>(x); }
static inline int __double2hiint(double x) { return (int)(emulator::bits<unsigned long long>(x) >> 32); }
static inline double __hiloint2double(int high, int low) {
    return emulator::bits<double>((unsigned long long)(unsigned)high << 32 | (unsigned)low);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return std::sqrt(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) { return b < a ? b : a; }
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) { return a < b ? b : a; }
template <class T> static inline T __ldg(const T* p) { return *p; }

// Threads change places only where they wait, so nothing comes between the halves of an atomic operation.
template <class T> static inline T atomicAdd(T* p, std::common_type_t<T> value) { T old = *p; *p = old + value; return old; }
template <class T> static inline T atomicMin(T* p, std::common_type_t<T> value) { T old = *p; *p = min(old, value); return old; }
template <class T> static inline T atomicMax(T* p, std::common_type_t<T> value) { T old = *p; *p = max(old, value); return old; }
template <class T> static inline T atomicExch(T* p, std::common_type_t<T> value) { T old = *p; *p = value; return old; }
template <class T> static inline T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> value) {
    T old = *p;
    if (old == expected) *p = value;
    return old;
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline long long clock64() { return 0; }
static inline void __trap(int line = __builtin_LINE()) { emulator::fail("__trap() of line %d", line); }

// ---- meetings ----

static inline void __syncthreads(int line = __builtin_LINE()) { emulator::barrier("__syncthreads()", line); }

namespace emulator {

template <class T> struct Shuffle { T value; unsigned from; T result; };

// What a lane outside the mask holds is undefined: NaN, in every type.
template <class T> static T shuffle(const char* at, int line, unsigned mask, T value, unsigned from) {
    Shuffle<T> mine{value, from, value};
    meet(at, line, mask, &mine, [](Lane* const* lanes, unsigned mask) {
        for (unsigned k = 0; k < warpSize; ++k) {
            if (!(mask >> k & 1)) continue;
            auto& to = *(Shuffle<T>*)lanes[k]->data;
            if (mask >> to.from & 1) to.result = ((Shuffle<T>*)lanes[to.from]->data)->value;
            else memset((void*)&to.result, 0xff, sizeof(T));
        }
    });
    return mine.result;
}

struct Vote { bool yes; unsigned ballot; };
static unsigned vote(const char* at, int line, unsigned mask, bool yes) {
    Vote mine{yes, 0};
    meet(at, line, mask, &mine, [](Lane* const* lanes, unsigned mask) {
        unsigned ballot = 0;
        for (unsigned k = 0; k < warpSize; ++k) if (mask >> k & 1 && ((Vote*)lanes[k]->data)->yes) ballot |= 1u << k;
        for (unsigned k = 0; k < warpSize; ++k) if (mask >> k & 1) ((Vote*)lanes[k]->data)->ballot = ballot;
    });
    return mine.ballot;
}

}  // namespace emulator

static inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
    emulator::meet("__syncwarp()", line, mask, nullptr, [](emulator::Lane* const*, unsigned) {});
}
template <class T> static inline T __shfl_sync(unsigned mask, T value, int from, int width = 32, int line = __builtin_LINE()) {
    unsigned lane = emulator::self->number, segment = lane & ~(width - 1u);
    return emulator::shuffle("__shfl_sync()", line, mask, value, segment + (from & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
    unsigned lane = emulator::self->number, from = lane ^ bits, end = (lane & ~(width - 1u)) + width;
    return emulator::shuffle("__shfl_xor_sync()", line, mask, value, from < end ? from : lane);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    unsigned lane = emulator::self->number, end = (lane & ~(width - 1u)) + width;
    return emulator::shuffle("__shfl_down_sync()", line, mask, value, lane + by < end ? lane + by : lane);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    unsigned lane = emulator::self->number, start = lane & ~(width - 1u);
    return emulator::shuffle("__shfl_up_sync()", line, mask, value, lane >= start + by ? lane - by : lane);
}
static inline unsigned __ballot_sync(unsigned mask, int yes, int line = __builtin_LINE()) {
    return emulator::vote("__ballot_sync()", line, mask, yes);
}
static inline int __any_sync(unsigned mask, int yes, int line = __builtin_LINE()) {
    return emulator::vote("__any_sync()", line, mask, yes) != 0;
}
static inline int __all_sync(unsigned mask, int yes, int line = __builtin_LINE()) {
    return emulator::vote("__all_sync()", line, mask, yes) == mask;
}

// ---- the prelude's words: the special function unit ----

namespace emulator {
// Subnormal numbers count as zero, going in and coming out.
static inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
}  // namespace emulator
static inline float fs_exp2(float x) { return emulator::flush(exp2f(emulator::flush(x))); }
static inline float fs_log2(float x) { return log2f(emulator::flush(x)); }
static inline float fs_rsqrt(float x) { return 1.0f / std::sqrt(emulator::flush(x)); }
static inline float fs_rcp(float x) { return emulator::flush(1.0f / emulator::flush(x)); }

// ---- the prelude's words: asynchronous copies ----

static inline void fs_copy_async16(void* shared, const void* global, int line = __builtin_LINE()) {
    emulator::copy(shared, global, 16, line);
}
static inline void fs_copy_async4(void* shared, const void* global, int line = __builtin_LINE()) {
    emulator::copy(shared, global, 4, line);
}
static inline void fs_copy_commit() { emulator::close_group(); }
template <int N> static inline void fs_copy_wait() { emulator::land(N); }

// ---- the prelude's words: half precision and the tensor cores ----

static inline float fs_from_half(unsigned short h) {
    unsigned exponent = h >> 10 & 31, fraction = h & 0x3ff;
    float magnitude = exponent ? __uint_as_float((exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13) : fraction * 0x1p-24f;
    return h & 0x8000 ? -magnitude : magnitude;
}
static inline unsigned short fs_to_half(float x) {
    unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7fff;
    if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and above: infinite
    // Below 2^-14 the spacing is 2^-24, that of float32 just above a half: its addition rounds.
    if (bits < 0x38800000) return sign | (__float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000);
    bits += 0xfff + (bits >> 13 & 1) - (112 << 23);
    return sign | bits >> 13;
}

namespace emulator {

// The 8 columns of one row of a tile.
typedef double Row __attribute__((vector_size(64)));
typedef unsigned long long RowBits __attribute__((vector_size(64)));
typedef int RowWhole __attribute__((vector_size(32)));
typedef unsigned RowSum __attribute__((vector_size(32)));  // wraps where numbers are infinite or NaN, whose sum is plain

// c plus 16 exact products as the tensor core that keeps least adds: all are cut off, towards zero, at the last bit of a
// float32 as large as the largest of them, and so is their sum.
static inline void tensor_sum(float (&c)[8], const float (&a)[16], const Row (&b)[16]) {
    Row products[17], largest = {}, plain = {};
    for (unsigned k = 0; k < 16; ++k) products[k] = (double)a[k] * b[k];
    for (unsigned n = 0; n < 8; ++n) products[16][n] = c[n];
    for (const Row& p : products) {
        Row size = p < 0 ? -p : p;
        largest = largest < size ? size : largest;
        plain += p;
    }
    Row step = (Row)((RowBits)largest & 0x7ff0000000000000ull) * 0x1p-23, scale = 1 / step;
    RowSum whole = {};
    for (const Row& p : products) whole += (RowSum)__builtin_convertvector(p * scale, RowWhole);
    Row sum = __builtin_convertvector((RowWhole)whole, Row) * step;
    for (unsigned n = 0; n < 8; ++n) {
        if (!std::isfinite(plain[n]) || largest[n] < 0x1p-100) sum[n] = plain[n];
        float nearest = (float)sum[n];
        bool above = std::isfinite(nearest) && std::fabs((double)nearest) > std::fabs(sum[n]);
        c[n] = above ? __uint_as_float(__float_as_uint(nearest) - 1) : nearest;
    }
}

struct Fragments { float* d; const unsigned *a, *b; };
static inline float from_half(unsigned h) { return fs_from_half((unsigned short)h); }
static inline float from_bfloat16(unsigned h) { return __uint_as_float(h << 16); }

template <float (*decode)(unsigned)> static void multiply(Lane* const* lanes, unsigned) {
    float a[16][16], d[16][8];
    Row b[16];
    for (unsigned lane = 0; lane < warpSize; ++lane) {
        const Fragments& mine = *(Fragments*)lanes[lane]->data;
        unsigned g = lane / 4, q = lane % 4;
        for (unsigned half = 0; half < 2; ++half) {
            for (unsigned r = 0; r < 4; ++r) a[g + r % 2 * 8][2 * q + r / 2 * 8 + half] = decode(mine.a[r] >> 16 * half & 0xffff);
            for (unsigned r = 0; r < 2; ++r) b[2 * q + 8 * r + half][g] = decode(mine.b[r] >> 16 * half & 0xffff);
            for (unsigned r = 0; r < 2; ++r) d[g + 8 * r][2 * q + half] = mine.d[2 * r + half];
        }
    }
    for (unsigned row = 0; row < 16; ++row) tensor_sum(d[row], a[row], b);
    for (unsigned lane = 0; lane < warpSize; ++lane)
        for (unsigned e = 0; e < 4; ++e) ((Fragments*)lanes[lane]->data)->d[e] = d[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
}
}  // namespace emulator
static inline void fs_mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    emulator::Fragments mine{d, a, b};
    emulator::meet("fs_mma_f16()", line, ~0u, &mine, emulator::multiply<emulator::from_half>);
}
static inline void fs_mma_f16_from_zero(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    for (float& each : d) each = 0;
    fs_mma_f16(d, a, b, line);
}
static inline void fs_mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    emulator::Fragments mine{d, a, b};
    emulator::meet("fs_mma_bf16()", line, ~0u, &mine, emulator::multiply<emulator::from_bfloat16>);
}

#include "kernels.h"
