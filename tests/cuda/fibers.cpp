// The scheduler: runs the threads of each block of a grid in a chosen order, from one meeting to the next.
#include "fibers.h"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>
#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define __sanitizer_start_switch_fiber(save, bottom, size)
#define __sanitizer_finish_switch_fiber(save, bottom, size)
#define __asan_unpoison_memory_region(from, size)
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
extern "C" __attribute__((weak, visibility("hidden"))) char __start_cuda_shared[], __stop_cuda_shared[];

namespace emulator {

// ---- fibers ----

// Saves the registers that a call must keep, stores the stack pointer in *from and continues from `to`.
extern "C" __attribute__((visibility("hidden"))) void emulator_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");
constexpr size_t SAVED = 8, ENTRY = 6;  // words on a new stack, and which of them is the address to return to
#elif defined(__aarch64__)
asm(R"(
.text
.type emulator_switch, %function
emulator_switch:
    stp x29, x30, [sp, #-160]!
    stp x19, x20, [sp, #16]; stp x21, x22, [sp, #32]; stp x23, x24, [sp, #48]; stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]; stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]; stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #16]; ldp x21, x22, [sp, #32]; ldp x23, x24, [sp, #48]; ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]; ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    ldp x29, x30, [sp], #160
    ret
)");
constexpr size_t SAVED = 20, ENTRY = 1;
#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif

enum State { READY, AT_BARRIER, AT_WARP, RETURNED };
struct Copy { void* shared; unsigned size, group; char bytes[16]; };

struct Thread : Lane {
    State state;
    uint3 index;
    // Where it waits, and with what.
    const char* at;
    int line;
    unsigned mask;
    Perform perform;
    // Asynchronous copies that have not landed, and how many groups of them were closed.
    std::vector<Copy> copies;
    unsigned groups;
    // Its fiber.
    void* pointer = nullptr;
    void* fake_stack = nullptr;
    char* stack = nullptr;
};

constexpr size_t STACK = 256 << 10;
constexpr unsigned long long UNTOUCHED = 0x5ca1ab1e0ddba115;  // at the far end of every stack
static char* stacks;  // of one launch: pages that hundreds of loaded modules must not keep
static std::vector<Thread> threads;
Lane* self;  // null while the scheduler runs
char* dynamic_shared;
static void (*kernel)(void**);
static void** arguments;
static void* scheduler;
static const void* scheduler_stack;
static size_t scheduler_size;
static std::string failure;

static void leave(State state) {
    Thread* me = (Thread*)self;
    me->state = state;
    __sanitizer_start_switch_fiber(state == RETURNED ? nullptr : &me->fake_stack, scheduler_stack, scheduler_size);
    emulator_switch(&me->pointer, scheduler);
    __sanitizer_finish_switch_fiber(me->fake_stack, &scheduler_stack, &scheduler_size);
}

static void begin() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
    kernel(arguments);
    leave(RETURNED);
}

static void resume(Thread& thread) {
    self = &thread;
    threadIdx = thread.index;
    [[maybe_unused]] void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, thread.stack, STACK);
    emulator_switch(&scheduler, thread.pointer);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
    self = nullptr;
    if (*(unsigned long long*)thread.stack != UNTOUCHED) fail("a thread takes more than %zu KB of stack", STACK >> 10);
}

static void prepare(Thread& thread, unsigned number) {
    thread.stack = stacks + number * STACK;
    __asan_unpoison_memory_region(thread.stack, STACK);  // a failed launch left its frames behind
    *(unsigned long long*)thread.stack = UNTOUCHED;
    void** top = (void**)(thread.stack + STACK) - SAVED;
    memset(top, 0, SAVED * sizeof(void*));
    top[ENTRY] = (void*)begin;
    thread.pointer = top;
    thread.state = READY;
    thread.number = number % warpSize;
    thread.index = {number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y};
    thread.copies.clear();
    thread.groups = 0;
}

// ---- failures ----

static std::string format(const char* text, ...) {
    char line[256];
    va_list values;
    va_start(values, text);
    vsnprintf(line, sizeof line, text, values);
    va_end(values);
    return line;
}

void fail(const char* text, ...) {
    if (failure.empty()) {
        char line[256];
        va_list values;
        va_start(values, text);
        vsnprintf(line, sizeof line, text, values);
        va_end(values);
        failure = line + format(" (block %u,%u,%u", blockIdx.x, blockIdx.y, blockIdx.z);
        failure += self ? format("; thread %u,%u,%u)", threadIdx.x, threadIdx.y, threadIdx.z) : ")";
    }
    if (self) leave(RETURNED);
}

// Who waits where, when nobody can go on.
static void fail_stuck() {
    std::vector<std::string> places;
    std::vector<unsigned> counts;
    for (const Thread& thread : threads) {
        std::string place = "returned";
        if (thread.state == AT_BARRIER) place = format("wait at %s of line %d", thread.at, thread.line);
        if (thread.state == AT_WARP) place = format("wait at %s of line %d with mask %08x", thread.at, thread.line, thread.mask);
        size_t k = 0;
        while (k < places.size() && places[k] != place) ++k;
        if (k == places.size()) places.push_back(place), counts.push_back(0);
        ++counts[k];
    }
    std::string all = "a block cannot go on:";
    for (size_t k = 0; k < places.size(); ++k) all += format("%s %u threads ", k ? "," : "", counts[k]) + places[k];
    fail("%s", all.c_str());
}

// ---- what a thread waits for ----

void barrier(const char* at, int line) {
    Thread& me = *(Thread*)self;
    me.at = at, me.line = line;
    leave(AT_BARRIER);
}

void meet(const char* at, int line, unsigned mask, void* data, Perform perform) {
    Thread& me = *(Thread*)self;
    if (!(mask >> me.number & 1)) fail("%s of line %d: lane %u is not in its own mask %08x", at, line, me.number, mask);
    me.at = at, me.line = line, me.mask = mask, me.data = data, me.perform = perform;
    leave(AT_WARP);
}

void copy(void* shared, const void* global, unsigned size, int line) {
    Thread& me = *(Thread*)self;
    if (((size_t)shared | (size_t)global) % size) fail("the copy of %u bytes of line %d is not aligned", size, line);
    Copy one{shared, size, me.groups, {}};
    memcpy(one.bytes, global, size);
    memset(shared, 0xff, size);
    me.copies.push_back(one);
}

void close_group() { ++((Thread*)self)->groups; }

void land(unsigned groups_under_way) {
    Thread& me = *(Thread*)self;
    size_t landed = 0;
    for (; landed < me.copies.size() && me.copies[landed].group + groups_under_way < me.groups; ++landed)
        memcpy(me.copies[landed].shared, me.copies[landed].bytes, me.copies[landed].size);
    me.copies.erase(me.copies.begin(), me.copies.begin() + landed);
}

// ---- the scheduler ----

// In which order threads of a warp, warps of a block and blocks of the grid run between two meetings.
enum Order { FORWARD, REVERSE, RANDOM };
static Order order;
static unsigned long long seed;

static void arrange(std::vector<unsigned>& list, size_t size) {
    if (list.size() != size || order == RANDOM) {
        list.resize(size);
        std::iota(list.begin(), list.end(), 0u);
        for (size_t k = 0; order == REVERSE && k < size / 2; ++k) std::swap(list[k], list[size - 1 - k]);
        for (size_t k = size; order == RANDOM && k > 1; --k) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(list[k - 1], list[(seed >> 33) % k]);
        }
    }
}

// The lanes of a mask meet when all of them wait at the same place with that mask.
static bool meeting(const Thread* lanes, unsigned present, const Thread& first) {
    for (unsigned k = 0; k < warpSize; ++k) {
        if (!(first.mask >> k & 1)) continue;
        if (k >= present || lanes[k].state != AT_WARP || lanes[k].line != first.line) return false;
        if (lanes[k].mask != first.mask || lanes[k].perform != first.perform) return false;
    }
    return true;
}

// Runs every ready lane of a warp once; false if there was none.
static bool run_warp(unsigned warp, std::vector<unsigned>& lanes_order) {
    Thread* lanes = &threads[warp * warpSize];
    unsigned present = std::min<size_t>(warpSize, threads.size() - warp * warpSize);
    bool any = false;
    arrange(lanes_order, present);
    for (unsigned k : lanes_order) {
        if (lanes[k].state != READY) continue;
        any = true;
        resume(lanes[k]);
        if (!failure.empty()) return false;
    }
    for (unsigned k = 0; any && k < present; ++k) {
        if (lanes[k].state != AT_WARP || !meeting(lanes, present, lanes[k])) continue;
        unsigned mask = lanes[k].mask;
        Lane* all[warpSize] = {};
        for (unsigned m = 0; m < present; ++m) all[m] = &lanes[m];
        lanes[k].perform(all, mask);
        for (unsigned m = 0; m < warpSize; ++m)
            if (mask >> m & 1) lanes[m].state = READY;
    }
    return any;
}

static void run_block() {
    std::vector<unsigned> warps, lanes;
    for (unsigned k = 0; k < threads.size(); ++k) prepare(threads[k], k);
    while (failure.empty()) {
        for (bool any = true; any;) {
            any = false;
            arrange(warps, (threads.size() + warpSize - 1) / warpSize);
            // In a fixed order a warp runs as far ahead of the others as it can; in random order they mix.
            for (unsigned w : warps)
                while (run_warp(w, lanes) && (any = true) && order != RANDOM) {}
        }
        size_t returned = 0, waiting = 0;
        for (const Thread& thread : threads) {
            returned += thread.state == RETURNED;
            waiting += thread.state == AT_BARRIER && thread.line == threads[0].line;
        }
        if (returned == threads.size()) return;
        if (waiting != threads.size()) return fail_stuck();
        for (Thread& thread : threads) thread.state = READY;
    }
}

// Shared memory holds NaN in every type when a block begins. Word by word, and unseen by the sanitizer, whose red
// zones lie between the arrays.
__attribute__((no_sanitize("address", "undefined"))) static void poison_shared(size_t dynamic) {
    char *from = __start_cuda_shared, *to = __stop_cuda_shared;
    for (; from && from + 8 <= to; from += 8) *(volatile unsigned long long*)from = ~0ull;
    for (; from && from < to; ++from) *(volatile char*)from = (char)0xff;
    memset(dynamic_shared, 0xff, dynamic);
}

// Runs a kernel over its grid, one block after the other. Returns what went wrong, or an empty string.
static const char* launch(void (*entry)(void**), void** values, const Launch& how) {
    kernel = entry, arguments = values, order = (Order)how.order, seed = how.seed, failure.clear();
    gridDim = {how.grid[0], how.grid[1], how.grid[2]}, blockDim = {how.block[0], how.block[1], how.block[2]};
    threads.resize((size_t)blockDim.x * blockDim.y * blockDim.z);
#if defined(__SANITIZE_ADDRESS__)
    size_t fence = 0;  // the sanitizer sees the first byte past the end
#else
    size_t fence = 64;
#endif
    if (posix_memalign((void**)&dynamic_shared, 128, how.shared + fence)) abort();
    memset(dynamic_shared + how.shared, 0x5a, fence);
    size_t room = threads.size() * STACK;
    stacks = (char*)mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) abort();
    std::vector<unsigned> blocks;
    arrange(blocks, (size_t)gridDim.x * gridDim.y * gridDim.z);
    for (unsigned block : blocks) {
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        poison_shared(how.shared);
        run_block();
        for (size_t k = 0; k < fence; ++k)
            if (dynamic_shared[how.shared + k] != 0x5a) fail("a block wrote past the end of its dynamic shared memory");
        if (!failure.empty()) break;
    }
    free(dynamic_shared);
    munmap(stacks, room);
    return failure.c_str();
}

}  // namespace emulator

#define EXPORT extern "C" __attribute__((visibility("default")))
static const emulator::Kernel* find(const char* name) {
    for (const emulator::Kernel* k = emulator::kernels; k->name; ++k)
        if (!strcmp(k->name, name)) return k;
    return nullptr;
}
EXPORT const char* emulator_parameters(const char* name) { return find(name)->parameters(); }
EXPORT const char* emulator_launch(const char* name, void** values, const emulator::Launch* how) {
    return emulator::launch(find(name)->call, values, *how);
}
