// The filter of nearest neighbours: products of vectors by the tensor cores in float16, with a bound on what that
// may be wrong by. The generator defines, before this text: fs_element, FILTER_DIM (components of a vector),
// FILTER_STEPS (of 16 components), FILTER_CENTRED (distances, which a common shift does not change), FILTER_SIGN (1 if
// the smallest values win, -1 if the largest do), and of both inputs the width of a row and the first component.
//
// Everything is scaled by powers of two: s for the rows, t for the columns. With X = s (x - c), Y = t (y - c) and a hat
// for what is rounded to float16, the key of a pair (the smaller, the better) times s t is
//     k + f,  f = C + a·Y,   for distances  a = -2 sign X,  k = sign |X|² t/s,  C = sign |Y|² s/t
//                            for products   a = sign X,     k = 0,              C = 0
// and the tensor cores compute f to within e |Ŷ| + |a| E + their own rounding, e = |â - a|, E = |Ŷ - Y|, by Cauchy and Schwarz.
// A tensor core may cut every product and every sum off one bit below the last of a float32 as large as the largest
// of them: 17 numbers and a sum for each 16 products. 20 units of 2^-23 are counted.

constexpr int FILTER_SAMPLES = 15, FILTER_TILE = 64, FILTER_WARPS = 4, FILTER_ROWS = 128;
constexpr int FILTER_CHUNK = FILTER_STEPS < 8 ? FILTER_STEPS : 8;
constexpr int FILTER_CHUNKS = (FILTER_STEPS + FILTER_CHUNK - 1) / FILTER_CHUNK;
constexpr float FILTER_SUMS = FILTER_STEPS * 20 * 0x1p-23f;           // rounding of the tensor cores, relative
constexpr float FILTER_DIRECT = 1.01f * (FILTER_DIM + 4) * 0x1p-24f;  // rounding of the direct form, relative
// What a key is uncertain by, relative to its parts: the direct form of a distance, a root, and the sums below.
constexpr float FILTER_GAP = 2 * FILTER_CENTRED * FILTER_DIRECT + 0x1p-19f;
constexpr float FILTER_TINY = 0x1p-20f;  // products that underflow in the direct form

// marks[0], marks[1]: the largest |x - c| and |y - c|, as bits. marks[2]: the filter has given up.
__device__ __forceinline__ bool filter_scalable(int bits) { return (bits >> 23) >= 97 && (bits >> 23) <= 157; }
// The power of two that brings the largest component to 2^13 … 2^14.
__device__ __forceinline__ double filter_scale(int bits) { return __hiloint2double((1023 + 13 + 127 - (bits >> 23)) << 20, 0); }

// The centre: of some columns the median of each component, which no point far outside moves. Clears what the other kernels gather in.
extern "C" __global__ void filter_begin(const fs_element* y, float* center, int* marks, int* tiles, int columns, int tile_count) {
    const int first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    if (first < 3) marks[first] = 0;
    for (int n = first; n < 3 * tile_count; n += step) tiles[n] = 0;
    for (int d = first; d < FILTER_DIM; d += step) {
        float some[FILTER_SAMPLES], middle = 0;
#pragma unroll
        for (int s = 0; s < FILTER_SAMPLES; ++s) {
            const long long j = (long long)s * columns / FILTER_SAMPLES;
            some[s] = FILTER_CENTRED ? fs_load(y, j * FILTER_Y_WIDTH + FILTER_Y_BASE + d) : 0.0f;
        }
#pragma unroll
        for (int s = 0; s < FILTER_SAMPLES; ++s) {
            int before = 0;
#pragma unroll
            for (int t = 0; t < FILTER_SAMPLES; ++t) before += some[t] < some[s] || (some[t] == some[s] && t < s);
            if (before == FILTER_SAMPLES / 2) middle = some[s];
        }
        center[d] = fabsf(middle) < 0x1p60f ? middle : 0.0f;
    }
}

// The largest component of all rows, as bits: of NaN and infinity they are larger than those of any number.
extern "C" __global__ void filter_largest(const fs_element* x, const float* center, int* marks, int rows, int width, int base, int side) {
    const long long all = (long long)rows * FILTER_DIM;
    int most = 0;
    for (long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x; n < all; n += (long long)gridDim.x * blockDim.x) {
        const int d = (int)(n % FILTER_DIM);
        const int bits = __float_as_int(fabsf(fs_load(x, n / FILTER_DIM * width + base + d) - center[d]));
        most = bits > most ? bits : most;
    }
    for (int k = 16; k > 0; k /= 2) {
        const int other = __shfl_xor_sync(0xffffffffu, most, k);
        most = other > most ? other : most;
    }
    if (threadIdx.x % 32 == 0) atomicMax(marks + side, most);
}

__device__ __forceinline__ float filter_up(double x) { return (float)x * (1 + 0x1p-20f); }

// Rows (side 0) or columns (side 1) as float16 in the order of the fragments of fs_mma_f16, zeros after the last one. A warp per row.
//   numbers of a row      what its bound takes of |Ŷ| and of E, k, nothing
//   numbers of a column   C
//   tiles                 the largest |Ŷ|, E and |C| of 64 columns, as bits
extern "C" __global__ void filter_pack(
    const fs_element* x, const float* center, int* marks, unsigned* packed, float* numbers, int* tiles, int rows, int width,
    int base, int side) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (!filter_scalable(marks[0]) || !filter_scalable(marks[1])) {
        marks[2] = 1;
        return;
    }
    const double s = filter_scale(marks[side]), ratio = filter_scale(marks[1 - side]) / s;
    const double factor = side ? 1 : FILTER_CENTRED ? -2 * FILTER_SIGN : FILTER_SIGN;
    double size = 0, error = 0, rounded = 0;
    for (int p = lane; p < FILTER_STEPS * 8; p += 32) {
        unsigned word = 0;
        for (int half = 0; half < 2; ++half) {
            const int d = 2 * p + half;
            if (d >= FILTER_DIM || row >= rows) break;
            const double v = s * ((double)fs_load(x, (long long)row * width + base + d) - (double)center[d]);
            const unsigned short h = fs_to_half((float)(factor * v));
            const double back = (double)fs_from_half(h), off = back - factor * v;
            size += v * v, error += off * off, rounded += back * back;
            word |= (unsigned)h << 16 * half;
        }
        const int step = p / 8, q = p % 4, upper = p % 8 / 4, g = row % 8;
        long long at;
        if (side) at = ((((long long)(row / 64) * FILTER_STEPS + step) * 4 + row % 64 / 16) * 32 + g * 4 + q) * 4 + row % 16 / 8 * 2 + upper;
        else at = (((long long)(row / 16) * FILTER_STEPS + step) * 32 + g * 4 + q) * 4 + row % 16 / 8 + 2 * upper;
        packed[at] = word;
    }
    for (int k = 16; k > 0; k /= 2) {
        size += __shfl_xor_sync(0xffffffffu, size, k);
        error += __shfl_xor_sync(0xffffffffu, error, k);
        rounded += __shfl_xor_sync(0xffffffffu, rounded, k);
    }
    if (lane != 0) return;
    const float e = filter_up(sqrt(error)), h = filter_up(sqrt(rounded)), a = filter_up(fabs(factor) * sqrt(size));
    const double own = FILTER_CENTRED ? FILTER_SIGN * size * ratio : 0;
    if (side) {
        numbers[row] = (float)own;
        atomicMax(tiles + row / 64 * 3, __float_as_int(h));
        atomicMax(tiles + row / 64 * 3 + 1, __float_as_int(e));
        atomicMax(tiles + row / 64 * 3 + 2, __float_as_int(filter_up(fabs(own))));
    } else {
        const float direct = FILTER_CENTRED ? 0.0f : FILTER_DIRECT * a;
        numbers[4 * row] = 1.001f * (e + FILTER_SUMS * h + direct);
        numbers[4 * row + 1] = 1.001f * (a + direct);
        numbers[4 * row + 2] = (float)own;
        numbers[4 * row + 3] = 0;
    }
}

// Chunk number `chunk` of the packed columns of a tile into shared memory, by copies that are not waited for.
__device__ __forceinline__ void filter_fetch(uint4* staged, const uint4* packed, int tile, int chunk) {
    const int steps = fs_lesser(FILTER_CHUNK, FILTER_STEPS - chunk * FILTER_CHUNK);
    const uint4* const from = packed + ((long long)tile * FILTER_STEPS + chunk * FILTER_CHUNK) * 128;
    for (int n = threadIdx.x; n < steps * 128; n += FILTER_ROWS) fs_copy_async16(staged + n, from + n);
    fs_copy_commit();
}

// f of 32 rows with 64 columns, for the chunk at hand: d[m][n] is the tile of rows 16 m … with columns 8 n …
template <int STEPS> __device__ __forceinline__ void filter_multiply(float (&d)[2][8][4], const uint4 (&a)[STEPS][2], const uint4* staged) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const uint4 f = staged[(k * 4 + n) * 32 + lane];
            const unsigned left[2] = {f.x, f.y}, right[2] = {f.z, f.w};
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                const unsigned rows[4] = {a[k][m].x, a[k][m].y, a[k][m].z, a[k][m].w};
                fs_mma_f16(d[m][2 * n], rows, left);
                fs_mma_f16(d[m][2 * n + 1], rows, right);
            }
        }
    }
}

// The fragments of the rows of this warp for STEPS steps of 16 components.
template <int STEPS> __device__ __forceinline__ void filter_rows(uint4 (&a)[STEPS][2], const uint4* packed, int tile, int step) {
#pragma unroll
    for (int k = 0; k < STEPS; ++k)
#pragma unroll
        for (int m = 0; m < 2; ++m)
            a[k][m] = __ldg(packed + ((long long)(tile + m) * FILTER_STEPS + step + k) * 32 + threadIdx.x % 32);
}

// The number up to which f may be that of a pair whose key is at most `key`, but for what depends on the columns.
__device__ __forceinline__ float filter_base(float key, float k) {
    return (key - k) + (FILTER_GAP * (fabsf(key) + fabsf(k)) + FILTER_TINY);
}
