/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../src/base/signals.h"
#include "../src/base/watch.h"

static void nap(double seconds)
{
    const struct timespec t = { (time_t)seconds,
                                (long)((seconds - (double)(time_t)seconds) * 1e9) };
    nanosleep(&t, NULL);
}

static void hangs(void)
{
    for (;;)
        pause();
}

static void beats(void)
{
    for (int i = 0; i < 40; i++) {
        nap(0.05);
        watch_beat();
    }
}

static void waits_with_patience(void)
{
    watch_call("waiting", 100);
    nap(1.5);
    watch_call(NULL, 1);
}

static void hangs_in_a_call(void)
{
    watch_stage("sft", 17);
    watch_call("reduction", 1);
    hangs();
}

static void is_stopped(void)
{
    const pid_t self = getpid();
    if (fork() == 0) { /* as a batch system does: a stop, and much later a continuation */
        nap(0.2);
        kill(self, SIGSTOP);
        nap(3);
        kill(self, SIGCONT);
        _exit(0);
    }
    for (int i = 0; i < 10; i++) {
        nap(0.1);
        watch_beat();
    }
}

static void told(void *payload, const char *reason, bool ends)
{
    const int fd = *(int *)payload;
    (void)!write(fd, reason, strlen(reason));
    (void)!write(fd, ends ? "; ends" : "; goes on", ends ? 6 : 9);
}

/* A launcher says that a rank is lost, and the process gets no further. */
static void is_told_to_end(void)
{
    watch_stage("sft", 3);
    watch_call("sum", 1);
    kill(getpid(), SIGTERM);
    for (int i = 0; i < 10; i++) {
        nap(0.05);
        watch_beat();
    }
    watch_call(NULL, 1);
}

/* It says itself how it ended. */
static void is_told_and_ends(void)
{
    kill(getpid(), SIGTERM);
    watch_mute();
    beats();
}

/* The exit code of a process that is watched for 0.5 s of silence while it does `work`; what the watcher told. */
static int watched(void (*work)(void), char *out, size_t size)
{
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        const int nothing = open("/dev/null", O_WRONLY);
        dup2(nothing, STDERR_FILENO);
        signals_install();
        watch_term(0.2);
        if (watch_start(0.5, 76, "who: ", told, &ends[1]) < 0) _exit(1);
        work();
        watch_stop();
        nap(0.8); /* nobody looks any more */
        _exit(0);
    }
    close(ends[1]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    const ssize_t n = read(ends[0], out, size - 1);
    out[n < 0 ? 0 : n] = 0;
    close(ends[0]);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_watch__a_process_that_hangs(void **state)
{
    char text[512];
    (void)state;
    assert_int_equal(watched(hangs, text, sizeof text), 76);
    assert_non_null(strstr(text, "who: no progress for 0."));
    assert_non_null(strstr(text, "this process hangs itself"));
    assert_int_equal(watched(hangs_in_a_call, text, sizeof text), 76);
    assert_non_null(strstr(text, "at sft step 17, waiting for other ranks in call 1 (reduction)"));
    assert_non_null(strstr(text, "; ends"));
}

static void test_watch__a_signal_that_a_launcher_sends(void **state)
{
    char text[512];
    (void)state;
    assert_int_equal(watched(is_told_to_end, text, sizeof text), 0);
    assert_non_null(strstr(text, "who: SIGTERM (a launcher sends it when a rank is lost) at sft "
                                 "step 3, waiting for other ranks in call 1 (sum): "));
    assert_non_null(strstr(text, "; goes on"));
    assert_null(strstr(strstr(text, "; goes on") + 1, "SIGTERM")); /* once */
    assert_int_equal(watched(is_told_and_ends, text, sizeof text), 0);
    assert_string_equal(text, "");
}

static void test_watch__progress_and_patience(void **state)
{
    char text[512];
    (void)state;
    assert_int_equal(watched(beats, text, sizeof text), 0);
    assert_int_equal(watched(waits_with_patience, text, sizeof text), 0);
    assert_string_equal(text, "");
}

static void test_watch__a_stopped_process_is_not_one_that_hangs(void **state)
{
    char text[512];
    (void)state;
    assert_int_equal(watched(is_stopped, text, sizeof text), 0);
    assert_string_equal(text, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_watch__a_process_that_hangs),
        cmocka_unit_test(test_watch__progress_and_patience),
        cmocka_unit_test(test_watch__a_signal_that_a_launcher_sends),
        cmocka_unit_test(test_watch__a_stopped_process_is_not_one_that_hangs),
    };
    return cmocka_run_group_tests_name("watch", tests, NULL, NULL);
}
