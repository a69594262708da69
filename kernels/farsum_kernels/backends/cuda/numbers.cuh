// The arithmetic and the movements that every generated kernel uses, over float and double. No PTX: see prelude.cuh.

#ifndef FARSUM_EMULATOR
// 1 and 2 ulp. The correctly rounded ones of the language take ten instructions and a branch.
__device__ __forceinline__ float fs_sqrt(float x) { float r; asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float fs_div(float a, float b) { float r; asm("div.full.ftz.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
#else
inline float fs_sqrt(float x) { return sqrtf(x); }
inline float fs_div(float a, float b) { return a / b; }
#endif
__device__ __forceinline__ double fs_sqrt(double x) { return sqrt(x); }
__device__ __forceinline__ double fs_div(double a, double b) { return a / b; }

// Products and sums that the compiler fuses only where it is told to.
__device__ __forceinline__ float fs_mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double fs_mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float fs_fma(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fs_fma(double a, double b, double c) { return fma(a, b, c); }

__device__ __forceinline__ double fs_exp2(double x) { return exp2(x); }

template <class T> __device__ __forceinline__ T fs_inf();
template <> __device__ __forceinline__ float fs_inf<float>() { return __int_as_float(0x7f800000); }
template <> __device__ __forceinline__ double fs_inf<double>() { return __longlong_as_double(0x7ff0000000000000LL); }
template <class T> __device__ __forceinline__ T fs_nan() { return fs_inf<T>() - fs_inf<T>(); }

// 2^x for x <= 0 or NaN by multiplications and additions, for pairs whose special functions wait for each other: within
// 1.7e-7 of the true one, and like the special function unit 0 below 2^-126.
__device__ __forceinline__ float fs_exp2_polynomial(float x) {
    x = x < -127.0f ? -127.0f : x;
    const float shifted = x + 0x1.8p23f;  // the nearest whole number, in the last bits
    const float r = x - (shifted - 0x1.8p23f);
    float p = 0x1.5bba14p-10f;
    p = fmaf(p, r, 0x1.3cea88p-7f), p = fmaf(p, r, 0x1.c6b752p-5f), p = fmaf(p, r, 0x1.ebf9bcp-3f);
    p = fmaf(p, r, 0x1.62e42ap-1f), p = fmaf(p, r, 1.0f);
    return p * __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);  // NaN stays: a product, not a sum of bits
}

// 2^(k / 2048) for k = 0 … 2047, by all threads of a block; read after a barrier.
constexpr int FS_POWERS = 2048;
__device__ __forceinline__ void fs_fill_powers(double* powers) {
    for (int k = threadIdx.x; k < FS_POWERS; k += blockDim.x) powers[k] = exp2((double)k / FS_POWERS);
}

// 2^x from that table and a cubic: half the operations of the library's. Below 2^-1022 it is 0. Without branches, which
// would keep pairs from overlapping.
template <bool DOWN> __device__ __forceinline__ double fs_exp2_by(const double* powers, double x) {
    const double shifted = fma(x, (double)FS_POWERS, 0x1.8p52);  // x in steps of the table, in the last bits
    const double r = fma(shifted - 0x1.8p52, -1.0 / FS_POWERS, x);
    const int n = __double2loint(shifted);
    const double entry = powers[n & (FS_POWERS - 1)];
    // Unsigned: far below 2^-1022 the exponent leaves its range, and what that gives is dropped.
    const unsigned high = (unsigned)__double2hiint(entry) + ((unsigned)(n >> 11) << 20);
    const double scaled = __hiloint2double((int)high, __double2loint(entry));
    const double p = fma(fma(0x1.c6b08d704a0bfp-5, r, 0x1.ebfbdff82c58ep-3), r, 0x1.62e42fefa39efp-1) * r;
    double value = fma(scaled, p, scaled);
    if (!DOWN) value = x >= 1024.0 ? fs_inf<double>() : value;
    return x < -1022.0 ? 0.0 : value;
}

#define FS_FUNCTION(name, single, wide) \
    __device__ __forceinline__ float name(float x) { return single(x); } \
    __device__ __forceinline__ double name(double x) { return wide(x); }
FS_FUNCTION(fs_abs, fabsf, fabs)
FS_FUNCTION(fs_exp, expf, exp)
FS_FUNCTION(fs_log, logf, log)
FS_FUNCTION(fs_sin, sinf, sin)
FS_FUNCTION(fs_cos, cosf, cos)
FS_FUNCTION(fs_asin, asinf, asin)
FS_FUNCTION(fs_acos, acosf, acos)
FS_FUNCTION(fs_atan, atanf, atan)
FS_FUNCTION(fs_floor, floorf, floor)
FS_FUNCTION(fs_round, roundf, round)
#undef FS_FUNCTION
#define FS_FUNCTION(name, single, wide) \
    __device__ __forceinline__ float name(float a, float b) { return single(a, b); } \
    __device__ __forceinline__ double name(double a, double b) { return wide(a, b); }
FS_FUNCTION(fs_pow, powf, pow)
FS_FUNCTION(fs_atan2, atan2f, atan2)
FS_FUNCTION(fs_min, fminf, fmin)
FS_FUNCTION(fs_max, fmaxf, fmax)
#undef FS_FUNCTION


__device__ __forceinline__ int fs_clip(int k, int top) { return k < 0 ? 0 : (k > top ? top : k); }
__device__ __forceinline__ int fs_lesser(int a, int b) { return a < b ? a : b; }

// Truths that are known when a kernel is compiled.
struct fs_yes { __device__ constexpr operator bool() const { return true; } };
struct fs_no { __device__ constexpr operator bool() const { return false; } };

// high + low = a + b + low, exactly but for the addition to low (Knuth's two-sum). An infinite or NaN sum has no
// error to speak of.
template <class T> __device__ __forceinline__ void fs_two_sum(T a, T b, T& high, T& low) {
    const T sum = a + b, back = sum - a;
    const T error = (a - (sum - back)) + (b - back);
    high = sum;
    low = low + (error == error ? error : T(0));
}

// Elements of an input as numbers. 16-bit ones come as their bits: the kind says which they are.
struct fs_half { unsigned short bits; };
struct fs_bfloat16 { unsigned short bits; };
__device__ __forceinline__ float fs_load(const float* x, long long n) { return __ldg(x + n); }
__device__ __forceinline__ double fs_load(const double* x, long long n) { return __ldg(x + n); }
__device__ __forceinline__ float fs_load(const fs_half* x, long long n) { return fs_from_half(__ldg(&x[n].bits)); }
__device__ __forceinline__ float fs_load(const fs_bfloat16* x, long long n) { return fs_from_bfloat16(__ldg(&x[n].bits)); }
__device__ __forceinline__ void fs_store(float* x, long long n, double v) { x[n] = (float)v; }
__device__ __forceinline__ void fs_store(double* x, long long n, double v) { x[n] = v; }
__device__ __forceinline__ void fs_store(fs_half* x, long long n, double v) { x[n].bits = fs_to_half((float)v); }
__device__ __forceinline__ void fs_store(fs_bfloat16* x, long long n, double v) { x[n].bits = fs_to_bfloat16((float)v); }
__device__ __forceinline__ void fs_store(long long* x, long long n, long long v) { x[n] = v; }

// N words from shared memory by loads of 16 bytes; N and the place are multiples of that.
template <int N> __device__ __forceinline__ void fs_read(const float* at, float (&to)[N]) {
#pragma unroll
    for (int n = 0; n < N; n += 4) {
        const float4 v = *reinterpret_cast<const float4*>(at + n);
        to[n] = v.x, to[n + 1] = v.y, to[n + 2] = v.z, to[n + 3] = v.w;
    }
}
template <int N> __device__ __forceinline__ void fs_read(const double* at, double (&to)[N]) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        const double2 v = *reinterpret_cast<const double2*>(at + n);
        to[n] = v.x, to[n + 1] = v.y;
    }
}

// One component of a panel for the N rows (or columns) of thread t of `SIDE`: runs of RUN neighbours.
template <int N, int RUN, int SIDE, class T> __device__ __forceinline__ void fs_read_runs(const T* at, int t, T (&to)[N]) {
#pragma unroll
    for (int n = 0; n < N; n += RUN) {
        if constexpr (RUN * sizeof(T) == 16) {
            T run[RUN];
            fs_read<RUN>(at + n * SIDE + t * RUN, run);
#pragma unroll
            for (int k = 0; k < RUN; ++k) to[n + k] = run[k];
        } else {
#pragma unroll
            for (int k = 0; k < RUN; ++k) to[n + k] = at[n * SIDE + t * RUN + k];
        }
    }
}

// COUNT components, from the given one on, of ROWS rows first, first + 1 … (the last one repeated), side by side:
// component d of row r at panel[d · (ROWS + 4) + r]. Neighbouring threads read neighbouring components.
template <int ROWS, int COUNT, int THREADS, class T, class S>
__device__ __forceinline__ void fs_stage(T* panel, const S* x, int first, int last, int dim, int component) {
    for (int n = threadIdx.x; n < ROWS * COUNT; n += THREADS) {
        const int row = n / COUNT, d = n % COUNT;
        panel[d * (ROWS + 4) + row] = fs_load(x, (long long)fs_lesser(first + row, last) * dim + component + d);
    }
}
