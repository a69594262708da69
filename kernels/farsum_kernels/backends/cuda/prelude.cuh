// What the generated CUDA needs of the machine below C++: everything that is PTX goes through these words, and
// kernels contain no other inline assembly. A host that runs the same source defines FARSUM_EMULATOR and brings
// its own versions of those in the first part. Includes nothing.

#ifndef FARSUM_EMULATOR

// The special function unit: about 2 ulp, subnormal numbers count as zero.
__device__ __forceinline__ float fs_exp2(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float fs_log2(float x) { float r; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float fs_rsqrt(float x) { float r; asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float fs_rcp(float x) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }

// Copies from global to shared memory that do not wait. fs_copy_commit closes a group; fs_copy_wait<N> waits
// until at most the N groups closed last are under way, for the copies of the calling thread only: others see
// them after a barrier. Both addresses are multiples of the size; const-ness of the target is the caller's word.
__device__ __forceinline__ void fs_copy_async16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global) : "memory");
}
__device__ __forceinline__ void fs_copy_async4(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global) : "memory");
}
__device__ __forceinline__ void fs_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void fs_copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// d += a b for a tile of 16 × 8 outputs over 16 products, by the whole warp. With g = lane / 4 and q = lane % 4:
//   a[0..3]  rows g, g+8, g, g+8; columns 2q, 2q+1 in the first two, 2q+8, 2q+9 in the last two; low half first
//   b[0..1]  column g; rows 2q, 2q+1, then 2q+8, 2q+9
//   d[0..3]  rows g, g, g+8, g+8; columns 2q, 2q+1, 2q, 2q+1
__device__ __forceinline__ void fs_mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same, d = a b.
__device__ __forceinline__ void fs_mma_f16_from_zero(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
}
__device__ __forceinline__ void fs_mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// float16 as its bits; to the nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ float fs_from_half(unsigned short h) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h)); return r; }
__device__ __forceinline__ unsigned short fs_to_half(float x) { unsigned short h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }

#endif

// bfloat16 as its bits, by integers on every machine: the instruction for one value needs sm_90.
__device__ __forceinline__ float fs_from_bfloat16(unsigned short h) { return __uint_as_float((unsigned)h << 16); }
__device__ __forceinline__ unsigned short fs_to_bfloat16(float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)(bits >> 16 | 0x40u);  // rounding could make it infinite
    return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
