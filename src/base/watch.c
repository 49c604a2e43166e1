/* SPDX-License-Identifier: MIT */
#include "watch.h"
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { STACK_MAX = 64 };

static struct {
    pthread_t thread, watched;
    bool running;
    double seconds;
    int exit_code;
    char who[64];
    watch_fn *fn;
    void *payload;
    atomic_bool stop;
} w;
static atomic_llong beats, calls, step;
static atomic_int patience = 1;
static const char *_Atomic stage, *_Atomic call;
static atomic_bool stack_done;

void watch_beat(void)
{
    atomic_fetch_add_explicit(&beats, 1, memory_order_relaxed);
}

void watch_stage(const char *name, int64_t number)
{
    atomic_store(&stage, name);
    atomic_store(&step, number);
    watch_beat();
}

void watch_call(const char *name, int times)
{
    atomic_store(&call, name);
    atomic_store(&patience, MAX(times, 1));
    if (name) atomic_fetch_add(&calls, 1);
    watch_beat();
}

/* Runs on the watched thread, wherever that is. */
static void print_stack(int number)
{
    void *frame[STACK_MAX];
    const int keep = errno;
    (void)number;
    backtrace_symbols_fd(frame, backtrace(frame, STACK_MAX), err_fd());
    atomic_store(&stack_done, true);
    errno = keep;
}

static void nap(double seconds)
{
    const struct timespec t = { (time_t)seconds,
                                (long)((seconds - (double)(time_t)seconds) * 1e9) };
    nanosleep(&t, NULL);
}

static void give_up(double waited)
{
    char text[512];
    const char *at = atomic_load(&stage), *in = atomic_load(&call);
    const int n = snprintf(text, sizeof text, "%sno progress for %.3g s", w.who, waited);
    char *p = text + MIN(n, (int)sizeof text - 1);
    size_t room = (size_t)(text + sizeof text - p);
    if (at && *at) {
        const int k = snprintf(p, room, " at %s step %lld", at, (long long)atomic_load(&step));
        p += MIN(k, (int)room - 1);
        room = (size_t)(text + sizeof text - p);
    }
    if (in)
        snprintf(p, room,
                 ", waiting for other ranks in call %lld (%s): one of them hangs or is lost",
                 (long long)atomic_load(&calls), in);
    else
        snprintf(p, room, ", outside of any communication: this process hangs itself");
    err_print(text);
    pthread_kill(w.watched, SIGURG);
    for (int i = 0; i < 20 && !atomic_load(&stack_done); i++)
        nap(0.05);
    if (w.fn) w.fn(w.payload, text);
    _exit(w.exit_code);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *watcher(void *unused)
{
    const double period = w.seconds < 10 ? w.seconds / 20 : 0.5;
    long long seen = -1;
    double idle = 0, last = now();
    (void)unused;
    while (!atomic_load(&w.stop)) {
        nap(period);
        const double t = now(), passed = t - last;
        const long long b = atomic_load(&beats);
        last = t;
        if (b != seen)
            idle = 0;
        else
            idle += passed < 3 * period ? passed : period; /* else everything stood still */
        seen = b;
        if (idle > w.seconds * atomic_load(&patience)) give_up(idle);
    }
    return NULL;
}

int watch_start(double seconds, int exit_code, const char *who, watch_fn *fn, void *payload)
{
    void *frame[2];
    sigset_t all, old;
    struct sigaction a;
    BUG_IF(w.running || seconds <= 0);
    memset(&a, 0, sizeof a);
    a.sa_handler = print_stack;
    a.sa_flags = SA_RESTART;
    sigemptyset(&a.sa_mask);
    sigaction(SIGURG, &a, NULL);
    (void)backtrace(frame, 2); /* the first call loads a library */
    w.seconds = seconds;
    w.exit_code = exit_code;
    w.fn = fn;
    w.payload = payload;
    w.watched = pthread_self();
    snprintf(w.who, sizeof w.who, "%s", who);
    atomic_store(&w.stop, false);
    watch_beat();
    sigfillset(&all); /* signals are for the main thread */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int code = pthread_create(&w.thread, NULL, watcher, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (code) return err_set(ERR_OOM, "cannot start the watching thread: %s", strerror(code));
    w.running = true;
    return 0;
}

void watch_stop(void)
{
    if (!w.running) return;
    atomic_store(&w.stop, true);
    pthread_join(w.thread, NULL);
    w.running = false;
}
