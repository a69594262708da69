// Scalar products of vectors by the tensor cores, each component as the sum of two float16 numbers: of the four
// products of such halves the three that count. The generator defines, before this text: TENSOR_DIM (components),
// TENSOR_TRIPLES (the three products lie side by side in one step of sixteen, which takes five components at most),
// TENSOR_WARPS, TENSOR_TILE (columns staged at once), TENSOR_CHUNK (steps staged at once).
//
// What a tensor core cuts off is in proportion to the largest of the numbers that it adds up at once. So each step
// begins at zero, the small products come first, and steps are added up in float32, which rounds to the nearest.

constexpr int TENSOR_STEPS = (TENSOR_DIM + 15) / 16, TENSOR_HALVES = TENSOR_TRIPLES ? 1 : 2;
constexpr int TENSOR_FRAGMENTS = TENSOR_STEPS * TENSOR_HALVES;  // of a vector, of sixteen numbers each
constexpr int TENSOR_GROUPS = TENSOR_TILE / 16;                 // of columns, a tile of them
constexpr int TENSOR_CHUNKS = (TENSOR_STEPS + TENSOR_CHUNK - 1) / TENSOR_CHUNK;
constexpr bool TENSOR_HELD = TENSOR_CHUNKS == 1;  // the rows of a warp stay in registers

// The centre: the mean of some columns. Clears what `tensor_largest` gathers in.
extern "C" __global__ void tensor_centre(const float* y, float* centre, int* marks, int columns) {
    const int first = blockIdx.x * blockDim.x + threadIdx.x, samples = fs_lesser(columns, 1024);
    if (first < 4) marks[first] = 0;
    for (int d = first; d < TENSOR_DIM; d += gridDim.x * blockDim.x) {
        double sum = 0;
        for (int s = 0; s < samples; ++s) sum += fs_load(y, (long long)s * columns / samples * TENSOR_DIM + d);
        const float mean = (float)(sum / samples);
        centre[d] = fabsf(mean) < 0x1p60f ? mean : 0.0f;
    }
}

// The largest squared norm of all rows about the origin and about the centre, as bits: those of NaN and infinity are
// larger than those of any number. A warp per row; side 0 for rows, 1 for columns.
extern "C" __global__ void tensor_largest(const float* x, const float* centre, int* marks, int rows, int side) {
    int most[2] = {0, 0};
    for (int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32; row < rows; row += gridDim.x * blockDim.x / 32) {
        float size[2] = {0, 0};
        for (int d = threadIdx.x % 32; d < TENSOR_DIM; d += 32) {
            const float v = fs_load(x, (long long)row * TENSOR_DIM + d), w = v - centre[d];
            size[0] = fs_fma(v, v, size[0]), size[1] = fs_fma(w, w, size[1]);
        }
        for (int about = 0; about < 2; ++about) {
            for (int k = 16; k > 0; k /= 2) size[about] += __shfl_xor_sync(0xffffffffu, size[about], k);
            const int bits = __float_as_int(size[about]) & 0x7fffffff;
            most[about] = bits > most[about] ? bits : most[about];
        }
    }
    for (int about = 0; threadIdx.x % 32 == 0 && about < 2; ++about) atomicMax(marks + 2 * about + side, most[about]);
}

extern "C" __global__ void tensor_move(const float* x, const float* centre, float* moved, long long count) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x; n < count; n += step)
        moved[n] = fs_load(x, n) - centre[n % TENSOR_DIM];
}

// Rows or columns times a factor, in the order of the fragments of fs_mma_f16, zeros past the last one:
//   rows      [task][fragment][warp][m][lane], 16 rows in each: row (2 m + h) · 8 · warps + 8 · warp + lane / 4 of the task
//   columns   [tile][fragment][group][lane], 16 columns in each
template <bool COLUMNS>
__device__ __forceinline__ void tensor_pack(const float* x, unsigned* packed, int rows, long long words, double factor) {
    for (long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x; n < words; n += (long long)gridDim.x * blockDim.x) {
        const int e = (int)(n % 4), lane = (int)(n / 4 % 32);
        long long rest = n / 128, row;
        int fragment, k;
        if (COLUMNS) {
            const int group = (int)(rest % TENSOR_GROUPS);
            rest /= TENSOR_GROUPS, fragment = (int)(rest % TENSOR_FRAGMENTS), rest /= TENSOR_FRAGMENTS;
            row = rest * TENSOR_TILE + group * 16 + e / 2 * 8 + lane / 4, k = lane % 4 * 2 + e % 2 * 8;
        } else {
            const int m = (int)(rest % 2), warp = (int)(rest / 2 % TENSOR_WARPS);
            rest /= 2 * TENSOR_WARPS, fragment = (int)(rest % TENSOR_FRAGMENTS), rest /= TENSOR_FRAGMENTS;
            row = rest * (32 * TENSOR_WARPS) + (2 * m + e % 2) * 8 * TENSOR_WARPS + warp * 8 + lane / 4, k = lane % 4 * 2 + e / 2 * 8;
        }
        unsigned word = 0;
        for (int half = 0; half < 2; ++half) {
            const int d = TENSOR_TRIPLES ? (k + half) / 3 : fragment / 2 * 16 + k + half;
            const bool low = TENSOR_TRIPLES ? (k + half) % 3 == (COLUMNS ? 1 : 2) : fragment % 2 == 1;
            if (row >= rows || d >= TENSOR_DIM) continue;
            const double v = factor * (double)fs_load(x, row * TENSOR_DIM + d);
            unsigned short h = fs_to_half((float)v);
            if (low) h = fs_to_half((float)(v - (double)fs_from_half(h)));
            word |= (unsigned)h << 16 * half;
        }
        packed[n] = word;
    }
}

// Chunk number `chunk` of a tile of packed columns into shared memory, by copies that are not waited for.
__device__ __forceinline__ void tensor_fetch(uint4* staged, const uint4* packed, int tile, int chunk) {
    const int steps = fs_lesser(TENSOR_CHUNK, TENSOR_STEPS - chunk * TENSOR_CHUNK);
    const uint4* const from = packed + ((long long)tile * TENSOR_STEPS + chunk * TENSOR_CHUNK) * TENSOR_HALVES * TENSOR_GROUPS * 32;
    for (int n = threadIdx.x; n < steps * TENSOR_HALVES * TENSOR_GROUPS * 32; n += 32 * TENSOR_WARPS) fs_copy_async16(staged + n, from + n);
    fs_copy_commit();
}

// The fragments of the rows of this warp for one step.
__device__ __forceinline__ void tensor_rows(uint4 (&a)[TENSOR_HALVES][2], const uint4* packed, int task, int step) {
#pragma unroll
    for (int half = 0; half < TENSOR_HALVES; ++half)
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const long long fragment = (long long)task * TENSOR_FRAGMENTS + step * TENSOR_HALVES + half;
            a[half][m] = __ldg(packed + ((fragment * TENSOR_WARPS + threadIdx.x / 32) * 2 + m) * 32 + threadIdx.x % 32);
        }
}

// One step of the products of four rows with N columns of this thread; `staged` is at its first group of columns.
template <bool FIRST, int N> __device__ __forceinline__ void tensor_step(float (&total)[4][N], const uint4 (&a)[TENSOR_HALVES][2], const uint4* staged) {
#pragma unroll
    for (int group = 0; group < N / 4; ++group) {
        float d[2][2][4];
        const uint4 high = staged[group * 32 + threadIdx.x % 32];
        const uint4 low = TENSOR_TRIPLES ? high : staged[(TENSOR_GROUPS + group) * 32 + threadIdx.x % 32];
#pragma unroll
        for (int turn = TENSOR_TRIPLES ? 2 : 0; turn < 3; ++turn)
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    // high · low, then low · high, then high · high
                    const uint4 r = a[turn == 1 ? TENSOR_HALVES - 1 : 0][m], c = turn == 0 ? low : high;
                    const unsigned rows[4] = {r.x, r.y, r.z, r.w}, columns[2] = {n ? c.z : c.x, n ? c.w : c.y};
                    if (turn == (TENSOR_TRIPLES ? 2 : 0)) fs_mma_f16_from_zero(d[m][n], rows, columns);
                    else fs_mma_f16(d[m][n], rows, columns);
                }
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    float& sum = total[2 * m + e / 2][group * 4 + 2 * n + e % 2];
                    sum = FIRST ? d[m][n][e] : sum + d[m][n][e];
                }
    }
}

// All steps, with rows in registers.
template <int N> __device__ __forceinline__ void tensor_products(float (&total)[4][N], const uint4 (&a)[TENSOR_STEPS][TENSOR_HALVES][2], const uint4* staged) {
    tensor_step<true>(total, a[0], staged);
#pragma unroll
    for (int step = 1; step < TENSOR_STEPS; ++step) tensor_step<false>(total, a[step], staged + step * TENSOR_HALVES * TENSOR_GROUPS * 32);
}
