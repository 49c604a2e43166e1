/* SPDX-License-Identifier: MIT */
#include "watch.h"
#include "signals.h"
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
    bool stop;    /* under `gate` */
    double grace; /* seconds after a SIGTERM; 0: it is not told */
    double term;  /* seconds since one was seen */
    bool told;    /* of it */
    atomic_bool muted, speaking;
} w;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t stopping;
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

static struct timespec time_of(double seconds)
{
    return (struct timespec){ (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };
}

static void nap(double seconds)
{
    const struct timespec t = time_of(seconds);
    nanosleep(&t, NULL);
}

/* "WHO WHAT at STAGE step N, waiting for other ranks in call K (CALL): WAITS", or ", ELSE" outside of a call. */
static void compose(char text[512], const char *what, const char *waits, const char *alone)
{
    const char *at = atomic_load(&stage), *in = atomic_load(&call);
    char place[128] = "";
    if (at && *at)
        snprintf(place, sizeof place, " at %s step %lld", at, (long long)atomic_load(&step));
    if (in)
        snprintf(text, 512, "%s%s%s, waiting for other ranks in call %lld (%s): %s", w.who, what,
                 place, (long long)atomic_load(&calls), in, waits);
    else
        snprintf(text, 512, "%s%s%s, %s", w.who, what, place, alone);
}

static void give_up(double waited)
{
    char text[512], what[64];
    snprintf(what, sizeof what, "no progress for %.3g s", waited);
    compose(text, what, "one of them hangs or is lost",
            "outside of any communication: this process hangs itself");
    err_print(text);
    pthread_kill(w.watched, SIGURG);
    for (int i = 0; i < 20 && !atomic_load(&stack_done); i++)
        nap(0.05);
    if (w.fn) w.fn(w.payload, text, true);
    _exit(w.exit_code);
}

static const char LOST[] = "nothing is saved since the last checkpoint";

/* It may be a user's wish, which is fulfilled after the step; or there is no time for that any more. */
static void tell_of_term(double passed)
{
    char text[512];
    if (w.grace <= 0 || w.told || signals_pending() != SIGTERM) return;
    w.term += passed;
    if (w.term < w.grace) return;
    w.told = true;
    compose(text, "SIGTERM (a launcher sends it when a rank is lost)", LOST, LOST);
    atomic_store(&w.speaking, true);
    if (w.fn && !atomic_load(&w.muted)) w.fn(w.payload, text, false);
    atomic_store(&w.speaking, false);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Waits so long, or until watch_stop: does it want the end? */
static bool stop_within(double seconds)
{
    const struct timespec t = time_of(now() + seconds);
    pthread_mutex_lock(&gate);
    while (!w.stop && pthread_cond_timedwait(&stopping, &gate, &t) == 0)
        ;
    const bool stop = w.stop;
    pthread_mutex_unlock(&gate);
    return stop;
}

static void *watcher(void *unused)
{
    const double period = MIN(w.seconds / 20, w.grace > 0 ? 0.1 : 0.5);
    long long seen = -1;
    double idle = 0, last = now();
    (void)unused;
    while (!stop_within(period)) {
        const double t = now(), passed = t - last;
        const long long b = atomic_load(&beats);
        last = t;
        if (b != seen)
            idle = 0;
        else
            idle += passed < 3 * period ? passed : period; /* else everything stood still */
        seen = b;
        if (idle > w.seconds * atomic_load(&patience)) give_up(idle);
        tell_of_term(passed);
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
    w.term = 0;
    w.told = false;
    atomic_store(&w.muted, false);
    snprintf(w.who, sizeof w.who, "%s", who);
    w.stop = false;
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&stopping, &clock);
    pthread_condattr_destroy(&clock);
    watch_beat();
    sigfillset(&all); /* signals are for the main thread */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int code = pthread_create(&w.thread, NULL, watcher, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (code) {
        pthread_cond_destroy(&stopping);
        return err_set(ERR_OOM, "cannot start the watching thread: %s", strerror(code));
    }
    w.running = true;
    return 0;
}

void watch_term(double grace)
{
    w.grace = grace;
}

void watch_mute(void)
{
    atomic_store(&w.muted, true);
    while (atomic_load(&w.speaking))
        nap(0.001);
}

void watch_stop(void)
{
    if (!w.running) return;
    pthread_mutex_lock(&gate);
    w.stop = true;
    pthread_cond_signal(&stopping);
    pthread_mutex_unlock(&gate);
    pthread_join(w.thread, NULL);
    pthread_cond_destroy(&stopping);
    w.running = false;
}
