/* SPDX-License-Identifier: MIT */
#include "signals.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { REPEAT_MS = 200, WORDS = 4096 };
static const int stops[] = { SIGUSR1, SIGTERM, SIGINT };
static atomic_int pending; /* lock-free: the handler writes it, the watching thread reads it too */
static int64_t first_ms[COUNT_OF(stops)]; /* when it came first; 0: never. The handler's own */

/* Two, so that the handler never reads one that is being written. */
static struct words {
    char path[WORDS], tmp[WORDS], text[WORDS];
    size_t exit_at;
} words[2];
static volatile sig_atomic_t live = -1;

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000 + 1;
}

/* Only calls that a handler may make. */
static void end_at_once(int number)
{
    const int i = live;
    if (i >= 0) {
        struct words *w = &words[i];
        const size_t n = strlen(w->text);
        for (int k = 0, code = 128 + number; k < 3; k++, code /= 10)
            w->text[w->exit_at + 2 - (size_t)k] = (char)('0' + code % 10);
        const int fd = open(w->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
        /* first to be seen, then to last: there may be no time for a slow disk */
        if (fd >= 0 && write(fd, w->text, n) == (ssize_t)n && rename(w->tmp, w->path) == 0)
            (void)fsync(fd);
    } else {
        /* of several ranks: the first to end takes the others with it, and one has words to write */
        const struct timespec wait = { 0, 300000000 };
        nanosleep(&wait, NULL);
    }
    _exit(128 + number);
}

/* Launchers send SIGTERM after SIGUSR1, and some a signal to the process and to its group at once: neither is a second wish. */
static void on_signal(int number)
{
    const int64_t now = now_ms();
    for (size_t i = 0; i < COUNT_OF(stops); i++) {
        if (stops[i] != number) continue;
        if (first_ms[i] == 0)
            first_ms[i] = now;
        else if (number != SIGUSR1 && now - first_ms[i] >= REPEAT_MS)
            end_at_once(number);
    }
    atomic_store(&pending, number);
}

static void *listener(void *stops_set)
{
    pthread_sigmask(SIG_UNBLOCK, stops_set, NULL);
    for (;;)
        pause();
    return NULL;
}

/* A handler must not run on a thread that computes: oneDNN's kernels keep data below the stack pointer, where the kernel puts a handler's frame. Threads that are
 * made later inherit the mask. */
static void listen_apart(void)
{
    static sigset_t set;
    pthread_t thread;
    sigemptyset(&set);
    for (size_t i = 0; i < COUNT_OF(stops); i++)
        sigaddset(&set, stops[i]);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (pthread_create(&thread, NULL, listener, &set) == 0)
        pthread_detach(thread);
    else
        pthread_sigmask(SIG_UNBLOCK, &set, NULL); /* better than not to hear them */
}

void signals_install(void)
{
    struct sigaction a;
    memset(&a, 0, sizeof a);
    sigfillset(&a.sa_mask); /* the handler is not interrupted by itself */
    a.sa_handler = on_signal;
    a.sa_flags = SA_RESTART;
    for (size_t i = 0; i < COUNT_OF(stops); i++)
        sigaction(stops[i], &a, NULL);
    a.sa_handler = SIG_IGN;
    sigaction(SIGXFSZ, &a, NULL);
    sigaction(SIGPIPE, &a, NULL);
    listen_apart();
}

int signals_pending(void)
{
    return atomic_load(&pending);
}

const char *signals_name(int number)
{
    return number == SIGUSR1 ? "SIGUSR1" : number == SIGTERM ? "SIGTERM" : "SIGINT";
}

void signals_last_words(const char *path, const char *tmp, const char *text, size_t exit_at)
{
    struct words *w = &words[live == 0];
    BUG_IF(exit_at + 3 > strlen(text));
    if (strlen(path) >= WORDS || strlen(tmp) >= WORDS || strlen(text) >= WORDS) {
        live = -1;
        return;
    }
    snprintf(w->path, WORDS, "%s", path);
    snprintf(w->tmp, WORDS, "%s", tmp);
    snprintf(w->text, WORDS, "%s", text);
    w->exit_at = exit_at;
    live = live == 0;
}
