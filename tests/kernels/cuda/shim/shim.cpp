// The scheduler behind shim.h: blocks one after another, the threads of a block as fibers.
//
// Faults (an access outside of the arrays, undefined behaviour, a barrier that never fills) end the launch with a
// number instead of ending the process.

#include "shim.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

enum Schedule { FORWARD, REVERSE, RANDOM, ROUND_ROBIN }; // which thread runs next, and for how long
enum Fault { NONE, BAD_ACCESS, UNDEFINED, DEADLOCK, BAD_MASK };

constexpr size_t STACK_BYTES = 128 << 10;
constexpr int WARP = 32, MOST_THREADS = 1024;

struct Barrier { // opens when `needed` threads have come
    int needed = 0, arrived = 0;
    unsigned generation = 0;
};

struct Fiber {
    ucontext_t start;
    jmp_buf place;
    bool started, done;
    const Barrier *waits_at; // null: may run
    unsigned generation;
    unsigned exchanges; // shuffles so far
};

std::vector<Fiber> fibers;
std::vector<Barrier> warp_barriers;
Barrier all_barrier;
uint64_t lanes[2][MOST_THREADS]; // of the shuffles; two, so that one barrier for each is enough
int current, schedule_;
jmp_buf scheduler;
sigjmp_buf fault_exit;
void (*body_)(void **);
void **args_;
unsigned char *stacks, *shared_end;
size_t shared_bytes_, page_bytes;

void switch_to_scheduler() {
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

void arrive_and_wait(Barrier &barrier) {
    Fiber &fiber = fibers[current];
    fiber.generation = barrier.generation;
    if (++barrier.arrived == barrier.needed) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
    fiber.waits_at = &barrier;
    switch_to_scheduler();
}

void enter() {
    body_(args_);
    fibers[current].done = true;
    _longjmp(scheduler, 1);
}

void resume(int thread) {
    Fiber &fiber = fibers[current = thread];
    threadIdx = {(unsigned)thread, 0, 0};
    fiber.waits_at = nullptr;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

bool can_run(const Fiber &fiber) {
    return !fiber.done && !(fiber.waits_at && fiber.waits_at->generation == fiber.generation);
}

// Threads that have left never come to a barrier again: whoever waits for them waits for ever.
void run_block() {
    const int threads = fibers.size();
    static unsigned random = 1;
    for (int left = threads; left > 0;) {
        bool ran = false;
        for (int i = 0; i < threads; ++i) {
            random = random * 1664525u + 1013904223u;
            const int thread = schedule_ == REVERSE ? threads - 1 - i : schedule_ == RANDOM ? (random >> 8) % threads : i;
            if (!can_run(fibers[thread])) continue;
            resume(thread);
            ran = true;
            left -= fibers[thread].done;
        }
        if (ran) continue;
        bool stuck = true; // the random schedule may have missed those that can run
        for (const Fiber &fiber : fibers) stuck = stuck && !can_run(fiber);
        if (stuck) siglongjmp(fault_exit, DEADLOCK);
    }
}

void start_block(int threads) {
    memset(shared_end - shared_bytes_, 0xff, shared_bytes_);
    all_barrier = {threads};
    warp_barriers.assign((threads + WARP - 1) / WARP, {});
    for (int thread = 0; thread < threads; ++thread) {
        ++warp_barriers[thread / WARP].needed;
        Fiber &fiber = fibers[thread];
        fiber.started = fiber.done = false;
        fiber.waits_at = nullptr;
        fiber.exchanges = 0;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = stacks + STACK_BYTES * thread;
        fiber.start.uc_stack.ss_size = STACK_BYTES;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, enter, 0);
    }
}

void on_signal(int signal) {
    siglongjmp(fault_exit, signal == SIGSEGV || signal == SIGBUS ? BAD_ACCESS : UNDEFINED);
}

// Stacks, and shared memory that ends where a page begins which nobody may touch.
void allocate_once() {
    if (stacks) return;
    page_bytes = sysconf(_SC_PAGESIZE);
    const size_t shared_limit = 64 << 10, bytes = STACK_BYTES * MOST_THREADS + page_bytes + shared_limit + page_bytes;
    stacks = (unsigned char *)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    shared_end = stacks + bytes - page_bytes;
    mprotect(shared_end, page_bytes, PROT_NONE);
}

} // namespace

void *shim::shared_memory() { return shared_end - shared_bytes_; }

void shim::access() {
    if (schedule_ == ROUND_ROBIN) switch_to_scheduler();
}

void shim::block_barrier() { arrive_and_wait(all_barrier); }

uint64_t shim::exchange(unsigned mask, uint64_t value, unsigned lane) {
    if (mask != 0xffffffffu || blockDim.x % WARP) siglongjmp(fault_exit, BAD_MASK); // all that the kernels need
    const int first = current / WARP * WARP;
    uint64_t *const values = lanes[fibers[current].exchanges++ % 2];
    values[current] = value;
    arrive_and_wait(warp_barriers[current / WARP]);
    return values[first + lane % WARP];
}

// Launch a kernel and wait for it; the number of a Fault. blockIdx and threadIdx say where it happened.
int shim::run(const unsigned *grid, unsigned threads, size_t shared_bytes, int schedule, void (*body)(void **),
              void **args) {
    allocate_once();
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT};
    struct sigaction ours = {}, theirs[6];
    ours.sa_handler = on_signal;
    for (int i = 0; i < 6; ++i) sigaction(signals[i], &ours, &theirs[i]);
    gridDim = {grid[0], grid[1], 1};
    blockDim = {threads, 1, 1};
    fibers.resize(threads);
    body_ = body, args_ = args, shared_bytes_ = shared_bytes, schedule_ = schedule;
    const int fault = sigsetjmp(fault_exit, 1);
    if (!fault) {
        for (unsigned y = 0; y < grid[1]; ++y)
            for (unsigned x = 0; x < grid[0]; ++x) {
                blockIdx = {x, y, 0};
                start_block(threads);
                run_block();
            }
    }
    for (int i = 0; i < 6; ++i) sigaction(signals[i], &theirs[i], nullptr);
    return fault;
}
