/* SPDX-License-Identifier: MIT
 * Blocks, one after the other, each thread a fiber. A fiber runs until it meets a barrier or a collective of its warp, or
 * ends; which one runs next is a matter of the seed. */
#include "block.h"
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { THREADS = 1024, STACK = 256 << 10, PAGE = 4096, GUARD = 256, ARENA = 512 << 10, ARRAYS = 64 };
enum { RUN, AT_BLOCK, AT_WARP, DONE };
enum { STATIC_MAX = 48 << 10, SHARED_MAX = 227 << 10 }; /* of sm_90 */

struct emu_thread *emu_cur;
dim3 emu_block_idx, emu_block_dim, emu_grid_dim;

struct array { /* of shared memory */
    const void *key;
    size_t at, bytes;
};
static struct {
    emu_thread thread[THREADS];
    char *stacks;
    void *main_sp;
    int n, alive, waiting; /* threads; not done; at the block's barrier */
    const emu_launch_info *launch;
    void (*run)(const void *body);
    const void *body;
    uint64_t seed, random;
    alignas(128) unsigned char arena[ARENA];
    array arrays[ARRAYS];
    int n_arrays;
    size_t used, statics; /* bytes of the arena with guards; of static arrays */
    void *main_fake;
    const void *main_stack;
    size_t main_stack_size;
} g;

void emu_fail(const char *format, ...)
{
    va_list ap;
    fprintf(stderr, "emulated device: %s, block (%u %u %u), thread %d: ", g.launch ? g.launch->name : "no kernel", emu_block_idx.x,
            emu_block_idx.y, emu_block_idx.z, emu_cur ? emu_cur->linear : -1);
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    fflush(stderr);
    abort();
}

void emu_seed(uint64_t seed)
{
    g.seed = seed;
    g.random = seed * 0x9e3779b97f4a7c15u + 1;
}

int emu_orders()
{
#ifdef EMU_ASAN
    return 1; /* what a kernel reads and writes is not a matter of order */
#else
    return EMU_ORDERS;
#endif
}

static uint32_t draw(uint32_t n)
{
    g.random ^= g.random << 13;
    g.random ^= g.random >> 7;
    g.random ^= g.random << 17;
    return (uint32_t)((g.random >> 32) * n >> 32);
}

/* --- switching: what the calling convention keeps, then the stack ------------------------------------------------------ */
extern "C" void emu_switch(void **save, void *to);
#ifndef __x86_64__
#error "the emulated device switches fibers on x86-64 only"
#endif
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch
.section .note.GNU-stack, "", @progbits
.text
)");

static char *stack_of(int i)
{
    return g.stacks + (size_t)i * STACK;
}

static void to_thread(emu_thread *t)
{
    emu_cur = t;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&g.main_fake, stack_of(t->linear) + PAGE, STACK - PAGE);
#endif
    emu_switch(&g.main_sp, t->sp);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(g.main_fake, nullptr, nullptr);
#endif
    emu_cur = nullptr;
}

/* from the running thread; it comes back when it is run again */
static void to_main(bool for_good)
{
    emu_thread *t = emu_cur;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(for_good ? nullptr : &t->fake_stack, g.main_stack, g.main_stack_size);
#else
    (void)for_good;
#endif
    emu_switch(&t->sp, g.main_sp);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(t->fake_stack, &g.main_stack, &g.main_stack_size);
#endif
}

static void wait_as(int state)
{
    emu_cur->state = state;
    to_main(false);
}

/* --- collectives of a warp ------------------------------------------------------------------------------------------------- */
static emu_thread *warp_of(const emu_thread *t)
{
    return g.thread + (t->linear & ~31);
}

static uint32_t lanes_alive(const emu_thread *warp)
{
    uint32_t mask = 0;
    const int first = warp->linear, n = g.n - first < 32 ? g.n - first : 32;
    for (int l = 0; l < n; l++)
        if (warp[l].state != DONE) mask |= 1u << l;
    return mask;
}

/* Whether all lanes of `mask` that live wait there; `self` counts as waiting. Then f has run and the others go on. */
static bool complete(emu_thread *warp, uint32_t mask, const emu_thread *self, void (*f)(emu_thread *, uint32_t))
{
    const uint32_t live = mask & lanes_alive(warp);
    for (int l = 0; l < 32; l++)
        if ((live >> l & 1) && &warp[l] != self && (warp[l].state != AT_WARP || warp[l].mask != mask)) return false;
    f(warp, live);
    for (int l = 0; l < 32; l++)
        if ((live >> l & 1) && &warp[l] != self) warp[l].state = RUN;
    return true;
}

void emu_collect(uint32_t mask, void (*f)(emu_thread *warp, uint32_t mask))
{
    emu_thread *t = emu_cur, *warp = warp_of(t);
    const int lane = t->linear & 31;
    if (!(mask >> lane & 1)) emu_fail("a collective with the mask %08x from lane %d, which is not in it", mask, lane);
    for (int l = 0; l < 32; l++) {
        if (!(mask >> l & 1) || warp[l].state != AT_WARP || &warp[l] == t) continue;
        if (warp[l].mask != mask || warp[l].collective != f)
            emu_fail("lanes %d and %d meet in different collectives (masks %08x, %08x)", lane, l, mask, warp[l].mask);
    }
    t->mask = mask;
    t->collective = f;
    if (!complete(warp, mask, t, f)) wait_as(AT_WARP);
}

/* --- the block's barrier ---------------------------------------------------------------------------------------------------- */
void emu_syncthreads(const char *site)
{
    emu_cur->site = site;
    for (int i = 0; i < g.n && g.waiting; i++)
        if (g.thread[i].state == AT_BLOCK && strcmp(g.thread[i].site, site) != 0)
            emu_fail("at the barrier %s, where thread %d waits at %s", site, i, g.thread[i].site);
        else if (g.thread[i].state == AT_BLOCK)
            break; /* all that wait there wait at the same one */
    if (g.alive != g.n) emu_fail("at the barrier %s, which %d threads left out", site, g.n - g.alive);
    if (++g.waiting < g.n) {
        wait_as(AT_BLOCK);
        return;
    }
    for (int i = 0; i < g.n; i++)
        if (&g.thread[i] != emu_cur) g.thread[i].state = RUN;
    g.waiting = 0;
}

/* --- asynchronous copies ----------------------------------------------------------------------------------------------------- */
struct emu_copy {
    emu_copy *next;
    void *to;
    const void *from;
    bool there;
    int group; /* counts down: 0 the one that is being filled */
};

void emu_copy_async(void *shared, const void *global, bool there)
{
    emu_copy *c = static_cast<emu_copy *>(malloc(sizeof *c));
    if (!c || (uintptr_t)shared % 16 || (there && (uintptr_t)global % 16)) emu_fail("an asynchronous copy that is not at multiples of 16 bytes");
    *c = { emu_cur->copies, shared, global, there, 0 };
    emu_cur->copies = c;
    memset(shared, 0xff, 16);
}

void emu_copy_commit()
{
    for (emu_copy *c = emu_cur->copies; c; c = c->next)
        c->group++;
}

void emu_copy_wait(int pending)
{
    emu_copy **at = &emu_cur->copies;
    while (*at) {
        emu_copy *c = *at;
        if (c->group <= pending) {
            at = &c->next;
            continue;
        }
        if (c->there)
            memcpy(c->to, c->from, 16);
        else
            memset(c->to, 0, 16);
        *at = c->next;
        free(c);
    }
}

/* --- shared memory -------------------------------------------------------------------------------------------------------------- */
static void guard(size_t at)
{
    memset(g.arena + at, 0xa5, GUARD);
#ifdef EMU_ASAN
    __asan_poison_memory_region(g.arena + at, GUARD);
#endif
}

static void *array_of(const void *key, size_t bytes, size_t align)
{
    for (int i = 0; i < g.n_arrays; i++)
        if (g.arrays[i].key == key) return g.arena + g.arrays[i].at;
    /* its end stands at the guard, so that a sanitizer sees the first byte past it */
    const size_t room = (bytes + 127) / 128 * 128, at = g.used + (room - bytes) / align * align;
    if (g.n_arrays == ARRAYS || g.used + room + GUARD > ARENA) emu_fail("too much shared memory");
    g.arrays[g.n_arrays++] = { key, at, bytes };
    memset(g.arena + at, 0xff, bytes);
    guard(g.used + room);
    g.used += room + GUARD;
    return g.arena + at;
}

void *emu_shared(const void *key, size_t bytes, size_t align)
{
    const int before = g.n_arrays;
    void *p = array_of(key, bytes, align);
    if (g.n_arrays > before) g.statics += bytes;
    if (g.statics > STATIC_MAX) emu_fail("%zu bytes of static shared memory; 48 KiB is the most", g.statics);
    if (g.statics + g.launch->shared > SHARED_MAX) emu_fail("%zu bytes of shared memory", g.statics + g.launch->shared);
    return p;
}

void *emu_dynamic_shared()
{
    static const char key = 0;
    if (!g.launch->shared) emu_fail("dynamic shared memory, and the launch gave none");
    return array_of(&key, g.launch->shared, 16);
}

static void shared_begin()
{
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(g.arena, g.used);
#endif
    g.used = g.statics = 0;
    g.n_arrays = 0;
    guard(0);
    g.used = GUARD;
}

static void shared_end()
{
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(g.arena, g.used);
#endif
    size_t at = 0;
    for (int i = 0; i <= g.n_arrays; i++) {
        for (int k = 0; k < GUARD; k++)
            if (g.arena[at + k] != 0xa5) emu_fail("wrote outside of its shared arrays, of %zu bytes", i ? g.arrays[i - 1].bytes : (size_t)0);
        if (i < g.n_arrays) at += GUARD + (g.arrays[i].bytes + 127) / 128 * 128;
    }
}

/* --- running ---------------------------------------------------------------------------------------------------------------------- */
static void thread_main()
{
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &g.main_stack, &g.main_stack_size);
#endif
    g.run(g.body);
    emu_thread *t = emu_cur;
    while (t->copies) { /* never waited for */
        emu_copy *c = t->copies;
        t->copies = c->next;
        free(c);
    }
    if (g.waiting) emu_fail("ended, and %d threads wait at a barrier", g.waiting);
    t->state = DONE;
    g.alive--;
    /* those that waited for this lane need not any more */
    emu_thread *warp = warp_of(t);
    for (int l = 0; l < 32 && warp->linear + l < g.n; l++)
        if (warp[l].state == AT_WARP) complete(warp, warp[l].mask, nullptr, warp[l].collective);
    to_main(true);
    abort();
}

static void make_thread(int i)
{
    emu_thread *t = &g.thread[i];
    const dim3 b = emu_block_dim;
    void **sp = reinterpret_cast<void **>(stack_of(i) + STACK - 64);
    *--sp = nullptr; /* the return address of thread_main: never used; it keeps the stack at 16n + 8 there */
    *--sp = reinterpret_cast<void *>(thread_main);
    for (int k = 0; k < 6; k++)
        *--sp = nullptr;
    *t = {};
    t->sp = sp;
    t->linear = i;
    t->idx = dim3((unsigned)i % b.x, (unsigned)i / b.x % b.y, (unsigned)i / (b.x * b.y));
}

/* Every thread that can run, once, in the order of the seed; in a random one a third of the warps are left behind. */
static bool run_round()
{
    static int order[THREADS];
    bool asleep[THREADS / 32] = { false }, any = false;
    for (int i = 0; i < g.n; i++)
        order[i] = g.seed == 1 ? g.n - 1 - i : i;
    for (int i = g.n - 1; i > 0 && g.seed > 1; i--) {
        const int k = (int)draw((uint32_t)i + 1), was = order[i];
        order[i] = order[k];
        order[k] = was;
    }
    for (int w = 0; w < THREADS / 32 && g.seed > 1; w++)
        asleep[w] = draw(3) == 0;
    for (int i = 0; i < g.n; i++) {
        emu_thread *t = &g.thread[order[i]];
        if (t->state != RUN) continue;
        any = true; /* there is one, though it may sleep */
        if (!asleep[t->linear / 32]) to_thread(t);
    }
    return any;
}

static void stuck()
{
    for (int i = 0; i < g.n; i++)
        if (g.thread[i].state == AT_BLOCK)
            emu_fail("stuck: %d of %d threads wait at %s", g.waiting, g.n, g.thread[i].site);
    emu_fail("stuck: lanes wait for others that do not come");
}

static void run_block()
{
    g.alive = g.n;
    g.waiting = 0;
    shared_begin();
    for (int i = 0; i < g.n; i++)
        make_thread(i);
    while (g.alive)
        if (!run_round() && g.alive) stuck();
    shared_end();
}

void emu_run(const emu_launch_info *l, void (*run)(const void *body), const void *body)
{
    if (!g.stacks) {
        void *p = mmap(nullptr, (size_t)THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) emu_fail("no memory for stacks");
        g.stacks = static_cast<char *>(p);
        for (int i = 0; i < THREADS; i++)
            mprotect(stack_of(i), PAGE, PROT_NONE);
    }
    g.launch = l;
    g.run = run;
    g.body = body;
    emu_block_dim = l->block;
    emu_grid_dim = l->grid;
    g.n = (int)(l->block.x * l->block.y * l->block.z);
    for (unsigned z = 0; z < l->grid.z; z++)
        for (unsigned y = 0; y < l->grid.y; y++)
            for (unsigned x = 0; x < l->grid.x; x++) {
                emu_block_idx = dim3(x, y, z);
                run_block();
            }
    g.launch = nullptr;
}
