/* SPDX-License-Identifier: MIT
 * The runtime's calls. Work is queued and runs when something waits for it, as late as a device might, so what a host
 * buffer holds at that time is what is copied; a stream does not wait for another one's work unless it was told to (BDPO_EMU_EAGER: the first
 * stream runs as early as a device might). Device memory can be reached only while such work runs. */
#include "block.h"
#include <stdio.h>
#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(p, n) ((void)(p), (void)(n))
#define __asan_unpoison_memory_region(p, n) ((void)(p), (void)(n))
#endif

enum { BLOCKS = 4096, KERNELS = 256, PAGE = 4096, ALIGN = 256, FILLED = 4 << 20, SHARED_UNASKED = 48 << 10, SHARED_MAX = 227 << 10, SMS = 4 };
struct memory {
    char *map, *p;
    size_t mapped, bytes;
};
struct work {
    struct work *next;
    void (*run)(struct work *w);
    emu_launch_info launch;
    void (*body_run)(const void *body);
    void *body;
    void *dst;
    const void *src;
    size_t bytes;
    int value;
    cudaStream_t other; /* to wait for, until so much of its work is done */
    uint64_t at;
};
struct CUstream_st {
    CUstream_st *next;
    work *first, **last;
    uint64_t queued, done; /* pieces of work so far */
};
static CUstream_st default_stream;
static struct {
    memory device[BLOCKS], pinned[BLOCKS];
    int n_device, n_pinned, devices;
    size_t total, used, most;
    bool eager; /* the first stream's work runs before anything else is queued */
    CUstream_st *eager_stream;
    int open; /* pieces of work that run: one may wait for another stream's */
    CUstream_st *streams;
    char name[KERNELS][64];
    int n_kernels;
    emu_counts counts;
    struct {
        const void *kernel;
        int shared;
    } asked[KERNELS];
    int n_asked;
    cudaError_t error;
} r;

__attribute__((constructor)) static void begin()
{
    const char *devices = getenv("BDPO_EMU_DEVICES"); /* for ranks of one job */
    r.devices = devices ? atoi(devices) : 1;
    r.eager = getenv("BDPO_EMU_EAGER") != nullptr;
    r.total = (size_t)64 << 30;
    default_stream.last = &default_stream.first;
    r.streams = &default_stream;
}

static cudaError_t fail(cudaError_t e)
{
    r.error = e;
    return e;
}

void emu_devices(int n)
{
    r.devices = n;
}

void emu_memory(size_t bytes)
{
    r.total = bytes;
}

void emu_memory_use(size_t *now, size_t *most, int64_t *alive)
{
    *now = r.used;
    *most = r.most;
    *alive = r.n_device + r.n_pinned;
}

int emu_kernels()
{
    return r.n_kernels;
}

const char *emu_kernel(int i)
{
    return r.name[i];
}

void emu_counts_now(struct emu_counts *now)
{
    *now = r.counts;
}

/* --- devices --------------------------------------------------------------------------------------------------------------- */
cudaError_t cudaGetDeviceCount(int *n)
{
    if (r.devices < 0) return fail(cudaErrorInsufficientDriver); /* and *n stays as it was */
    *n = r.devices;
    return r.devices ? cudaSuccess : fail(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device)
{
    return device >= 0 && device < r.devices ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    if (device < 0 || device >= r.devices) return fail(cudaErrorInvalidValue);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated device");
    p->totalGlobalMem = r.total;
    p->sharedMemPerBlockOptin = SHARED_MAX;
    p->major = 9;
    p->multiProcessorCount = SMS;
    p->l2CacheSize = 1 << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device)
{
    snprintf(id, (size_t)size, "0000:%02d:00.0", device);
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = r.devices < 0 ? 0 : 13000;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

/* --- memory --------------------------------------------------------------------------------------------------------------- */
static void reach(bool open)
{
    for (int i = 0; i < r.n_device; i++)
        if (r.device[i].mapped > PAGE)
            mprotect(r.device[i].map, r.device[i].mapped - PAGE, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

/* the end stands at a page that nobody may touch */
static bool map_block(memory *m, size_t bytes)
{
    const size_t room = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    m->mapped = (room + PAGE - 1) / PAGE * PAGE + PAGE;
    void *p = mmap(nullptr, m->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return false;
    m->map = static_cast<char *>(p);
    m->p = m->map + m->mapped - PAGE - room;
    m->bytes = bytes;
    /* what is touched costs time whenever it is put within reach */
    if (m->mapped <= FILLED) memset(m->map, 0xff, m->mapped - PAGE);
    mprotect(m->map + m->mapped - PAGE, PAGE, PROT_NONE);
    __asan_poison_memory_region(m->p + bytes, room - bytes);
    return true;
}

static void unmap_block(memory *m)
{
    __asan_unpoison_memory_region(m->map, m->mapped);
    munmap(m->map, m->mapped);
}

static memory *find(memory *all, int n, const void *p, size_t bytes)
{
    const char *c = static_cast<const char *>(p);
    for (int i = 0; i < n; i++)
        if (c >= all[i].p && c + bytes <= all[i].p + all[i].bytes) return &all[i];
    return nullptr;
}

static bool on_device(const void *p, size_t bytes)
{
    return find(r.device, r.n_device, p, bytes) != nullptr;
}

static bool is_pinned(const void *p, size_t bytes)
{
    return find(r.pinned, r.n_pinned, p, bytes) != nullptr;
}

struct CUevent_st {
    cudaStream_t stream; /* NULL: not recorded yet */
    uint64_t at;         /* it has happened when so much of the stream's work is done */
    bool asked;
};

static void flush_to(cudaStream_t s, uint64_t at)
{
    if (s->done >= at) return;
    if (r.open++ == 0) reach(true);
    while (s->done < at) {
        work *w = s->first;
        s->first = w->next;
        if (!s->first) s->last = &s->first;
        w->run(w);
        free(w->body);
        free(w);
        s->done++;
    }
    if (--r.open == 0) reach(false);
}

/* The host waits. */
static void wait_for(cudaStream_t s, uint64_t at)
{
    r.counts.waits += s->done < at;
    flush_to(s, at);
}

static void flush()
{
    for (cudaStream_t s = r.streams; s; s = s->next)
        wait_for(s, s->queued);
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    *p = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (r.n_device == BLOCKS || bytes > r.total - r.used) return fail(cudaErrorMemoryAllocation);
    if (!map_block(&r.device[r.n_device], bytes)) return fail(cudaErrorMemoryAllocation);
    *p = r.device[r.n_device++].p;
    r.used += bytes;
    if (r.used > r.most) r.most = r.used;
    reach(false);
    return cudaSuccess;
}

static cudaError_t drop(memory *all, int *n, void *p)
{
    for (int i = 0; i < *n; i++) {
        if (all[i].p != p) continue;
        if (all == r.device) r.used -= all[i].bytes;
        unmap_block(&all[i]);
        all[i] = all[--*n];
        return cudaSuccess;
    }
    return fail(cudaErrorInvalidValue);
}

cudaError_t cudaFree(void *p)
{
    if (!p) return cudaSuccess;
    flush();
    return drop(r.device, &r.n_device, p);
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    *p = nullptr;
    if (r.n_pinned == BLOCKS || !map_block(&r.pinned[r.n_pinned], bytes)) return fail(cudaErrorMemoryAllocation);
    *p = r.pinned[r.n_pinned++].p;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    if (!p) return cudaSuccess;
    flush();
    return drop(r.pinned, &r.n_pinned, p);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *free_bytes = r.total - r.used;
    *total = r.total;
    return cudaSuccess;
}

/* --- work ------------------------------------------------------------------------------------------------------------------ */
static work *queue(void (*run)(work *w), cudaStream_t s)
{
    work *w = static_cast<work *>(calloc(1, sizeof *w));
    if (!w) emu_fail("no memory for work");
    if (!s) s = &default_stream;
    if (r.eager_stream && !r.open) flush_to(r.eager_stream, r.eager_stream->queued);
    w->run = run;
    *s->last = w;
    s->last = &w->next;
    s->queued++;
    return w;
}

static void run_copy(work *w)
{
    memmove(w->dst, w->src, w->bytes);
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s)
{
    if (bytes == 0) return cudaSuccess;
    const bool to = kind != cudaMemcpyDeviceToHost, from = kind != cudaMemcpyHostToDevice;
    if (on_device(dst, bytes) != to || on_device(src, bytes) != from) return fail(cudaErrorInvalidValue);
    if (to && from && static_cast<char *>(dst) < static_cast<const char *>(src) + bytes && static_cast<const char *>(src) < static_cast<char *>(dst) + bytes)
        return fail(cudaErrorInvalidValue);
    work *w = queue(run_copy, s);
    r.counts.copies++;
    w->dst = dst;
    w->src = src;
    w->bytes = bytes;
    const void *host = to ? from ? nullptr : src : dst;
    if (host && !is_pinned(host, bytes)) flush();
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s)
{
    if (bytes == 0) return cudaSuccess;
    if (!on_device(p, bytes)) return fail(cudaErrorInvalidValue);
    work *w = queue([](work *v) { memset(v->dst, v->value, v->bytes); }, s);
    r.counts.fills++;
    w->dst = p;
    w->value = value;
    w->bytes = bytes;
    return cudaSuccess;
}

cudaError_t cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t rows, cudaStream_t s)
{
    if (width > pitch) return fail(cudaErrorInvalidValue);
    for (size_t i = 0; i < rows; i++) {
        const cudaError_t e = cudaMemsetAsync(static_cast<char *>(p) + i * pitch, value, width, s);
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}

static void note_kernel(const char *name)
{
    while (*name == '(' || *name == ' ')
        name++;
    const size_t n = strcspn(name, "<)( ");
    for (int i = 0; i < r.n_kernels; i++)
        if (strncmp(r.name[i], name, n) == 0 && r.name[i][n] == 0) return;
    if (r.n_kernels == KERNELS || n >= sizeof r.name[0]) emu_fail("too many kernels, or too long a name: %s", name);
    memcpy(r.name[r.n_kernels++], name, n);
}

static size_t shared_asked(const void *kernel)
{
    for (int i = 0; i < r.n_asked; i++)
        if (r.asked[i].kernel == kernel) return (size_t)r.asked[i].shared;
    return SHARED_UNASKED;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute a, int value)
{
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > SHARED_MAX) return fail(cudaErrorInvalidValue);
    int i = 0;
    while (i < r.n_asked && r.asked[i].kernel != kernel)
        i++;
    if (i == KERNELS) return fail(cudaErrorInvalidValue);
    if (i == r.n_asked) r.n_asked++;
    r.asked[i] = { kernel, value };
    return cudaSuccess;
}

cudaError_t emu_enqueue(const emu_launch_info *l, cudaStream_t s, void (*run)(const void *body), const void *body, size_t bytes)
{
    const dim3 b = l->block, g = l->grid;
    const uint64_t threads = (uint64_t)b.x * b.y * b.z;
    if (threads == 0 || threads > 1024 || b.z > 64) return fail(cudaErrorInvalidConfiguration);
    if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffff || g.y > 65535 || g.z > 65535) return fail(cudaErrorInvalidConfiguration);
    if (l->shared > shared_asked(l->kernel)) return fail(cudaErrorInvalidValue);
    note_kernel(l->name);
    r.counts.kernels++;
    work *w = queue([](work *v) { emu_run(&v->launch, v->body_run, v->body); }, s);
    w->launch = *l;
    w->body_run = run;
    w->body = malloc(bytes);
    if (!w->body) emu_fail("no memory for arguments");
    memcpy(w->body, body, bytes);
    return cudaSuccess;
}

void emu_host_work(void (*run)(void *arguments), const void *arguments, size_t bytes, cudaStream_t s)
{
    struct call {
        void (*run)(void *);
        char arguments[];
    };
    work *w = queue([](work *v) { static_cast<call *>(v->body)->run(static_cast<call *>(v->body)->arguments); }, s);
    call *c = static_cast<call *>(malloc(sizeof *c + bytes));
    r.counts.library++;
    if (!c) emu_fail("no memory for arguments");
    c->run = run;
    memcpy(c->arguments, arguments, bytes);
    w->body = c;
}

/* --- streams and events ------------------------------------------------------------------------------------------------------ */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    (void)flags;
    CUstream_st *n = static_cast<CUstream_st *>(calloc(1, sizeof *n));
    *s = n;
    if (!n) return fail(cudaErrorMemoryAllocation);
    n->last = &n->first;
    n->next = r.streams;
    if (r.eager && n->next == &default_stream) r.eager_stream = n;
    r.streams = n;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    if (!s) s = &default_stream;
    wait_for(s, s->queued);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    flush();
    if (r.eager_stream == s) r.eager_stream = nullptr;
    for (CUstream_st **p = &r.streams; *p; p = &(*p)->next) {
        if (*p != s) continue;
        *p = s->next;
        free(s);
        return cudaSuccess;
    }
    return fail(cudaErrorInvalidValue);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    if (!e || flags) return fail(cudaErrorInvalidValue);
    if (!e->stream) return cudaSuccess;
    work *w = queue([](work *v) { flush_to(v->other, v->at); }, s);
    w->other = e->stream;
    w->at = e->at;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    (void)flags;
    *e = static_cast<cudaEvent_t>(calloc(1, sizeof **e));
    return *e ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    if (!e) return fail(cudaErrorInvalidValue);
    e->stream = s ? s : &default_stream;
    e->at = e->stream->queued;
    e->asked = false;
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    if (!e) return fail(cudaErrorInvalidValue);
    if (e->stream) wait_for(e->stream, e->at);
    return cudaSuccess;
}

/* not the first time, where there is work before it */
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    if (!e) return fail(cudaErrorInvalidValue);
    if (!e->stream || e->stream->done >= e->at) return cudaSuccess;
    if (!e->asked) {
        e->asked = true;
        return cudaErrorNotReady;
    }
    flush_to(e->stream, e->at);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    free(e);
    return cudaSuccess;
}

cudaError_t cudaGetLastError()
{
    const cudaError_t e = r.error;
    r.error = cudaSuccess;
    return e;
}

const char *cudaGetErrorName(cudaError_t e)
{
    return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : e == cudaErrorInsufficientDriver ? "cudaErrorInsufficientDriver" : "cudaError";
}

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorInsufficientDriver:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    default:
        return "no error";
    }
}
