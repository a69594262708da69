// Threads of a CUDA block as fibers of one CPU thread: each runs until it has to wait for others, and the last to
// arrive lets all go on. What a kernel calls; the scheduler is in fibers.cpp, compiled once for all kernels.
#pragma once
#include <cstddef>

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
constexpr int warpSize = 32;

#pragma GCC visibility push(hidden)
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// Every __shared__ array lies in a section of its own, whose ends the linker names.
#define __shared__ static __attribute__((section("cuda_shared")))

namespace emulator {

extern char* dynamic_shared;

struct Lane;
using Perform = void (*)(Lane* const* lanes, unsigned mask);  // a warp's operation, once all its lanes have arrived

// A thread, as operations of its warp see it: its number in the warp, and what it came with.
struct Lane {
    unsigned number;
    void* data;
};
extern Lane* self;  // the thread that runs

// Waits for the whole block.
void barrier(const char* at, int line);

// Waits for the lanes of `mask`; then `perform` is run once for all of them, and finds each one's `data`.
void meet(const char* at, int line, unsigned mask, void* data, Perform perform);

// Ends the launch; the first failure is the one that is told. Does not return to a kernel.
void fail(const char* text, ...) __attribute__((format(printf, 1, 2)));

// Asynchronous copies: the source is read at once and lands when its own thread waits for its group; until then the
// target is NaN.
void copy(void* shared, const void* global, unsigned size, int line);
void close_group();
void land(unsigned groups_under_way);

struct Launch {
    unsigned grid[3], block[3], order, shared;
    unsigned long long seed;
};

// A kernel by its name; "f4 i8 u2" for numbers, "s24" for structures, "*f4" for a pointer to one; sizes in bytes.
struct Kernel {
    const char* name;
    void (*call)(void**);
    const char* (*parameters)();
};
extern const Kernel kernels[];  // ends with one without a name

}  // namespace emulator
#pragma GCC visibility pop
