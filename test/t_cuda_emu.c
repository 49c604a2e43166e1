/* SPDX-License-Identifier: MIT
 * The emulated device itself: it finds what is wrong with a kernel, and says what. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "cuda_emu/emu.h"
#include "cuda_emu/include/cuda_runtime_api.h"

/* Runs a kernel in a process of its own; what it says on stderr is in text. Returns whether it died. */
static int dies(const char *name, uint64_t seed, char *text, size_t size)
{
    int fd[2], status, out[64];
    size_t n = 0;
    assert_int_equal(pipe(fd), 0);
    fflush(NULL);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fd[1], 2);
        for (int s = 1; s < NSIG; s++)
            signal(s, SIG_DFL); /* cmocka would go on with its other tests here */
        close(fd[0]);
        close(fd[1]);
        emu_seed(seed);
        _exit(emu_faulty(name, out) == 0 ? 0 : 3);
    }
    close(fd[1]);
    for (ssize_t k; n < size - 1 && (k = read(fd[0], text + n, size - 1 - n)) > 0;)
        n += (size_t)k;
    text[n] = 0;
    close(fd[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_cuda_emu__finds(void **state)
{
    static const struct {
        const char *name, *says; /* NULL: the processor says it */
    } faults[] = {
        { "branch_barrier", "barrier" },
        { "two_barriers", "waits at" },
        { "lost_lane", "wait" },
        { "two_shuffles", "different collectives" },
        { "wrong_mask", "not in it" },
        { "past_shared", NULL }, /* "wrote outside", or the sanitizer's word */
        { "past_dynamic", NULL },
        { "past_global", NULL },
        { "trap", "trap at" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
        for (uint64_t seed = 0; seed < 6; seed++) {
            char text[4096];
            if (!dies(faults[i].name, seed, text, sizeof text))
                fail_msg("%s, seed %d: nothing was found", faults[i].name, (int)seed);
            if (faults[i].says && !strstr(text, faults[i].says))
                fail_msg("%s: \"%s\" is not in \"%s\"", faults[i].name, faults[i].says, text);
        }
}

/* a race shows as another result in some order; without one all orders agree */
static void test_cuda_emu__orders(void **state)
{
    int first[64], out[64], differ = 0;
    (void)state;
    for (uint64_t seed = 0; seed < 8; seed++) {
        emu_seed(seed);
        assert_int_equal(emu_faulty("right", out), 0);
        if (seed == 0) memcpy(first, out, sizeof first);
        assert_memory_equal(first, out, sizeof first);
    }
    /* shared memory is fresh: -1; lanes 1, 3, 5, 7 vote */
    assert_int_equal(first[0], 0 + 100 + 4000);
    assert_int_equal(first[40], (41 % 32 ^ 1) + 100);
    assert_int_equal(first[63], 1 + 100);
    for (uint64_t seed = 0; seed < 8; seed++) {
        emu_seed(seed);
        assert_int_equal(emu_faulty("race", out), 0);
        if (seed == 0) memcpy(first, out, sizeof first);
        differ += memcmp(first, out, sizeof first) != 0;
    }
    assert_true(differ > 0);
}

static void test_cuda_emu__asynchronous_copies(void **state)
{
    int out[64];
    (void)state;
    assert_int_equal(emu_faulty("late_wait", out), 0);
    assert_int_equal(out[0], -1); /* read before the wait */
    assert_int_equal(out[1], 0);
}

/* A byte written on one stream and read on another, which was told to wait or was not; an event that has not happened at first. */
static void test_cuda_emu__streams(void **state)
{
    cudaStream_t a, b;
    cudaEvent_t e;
    unsigned char *host;
    void *p;
    (void)state;
    assert_int_equal(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking), 0);
    assert_int_equal(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking), 0);
    assert_int_equal(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), 0);
    assert_int_equal(cudaMalloc(&p, 1), 0);
    assert_int_equal(cudaMallocHost((void **)&host, 1), 0);
    for (int told = 0; told < 2; told++) {
        assert_int_equal(cudaMemsetAsync(p, 1, 1, a), 0);
        assert_int_equal(cudaStreamSynchronize(a), 0);
        assert_int_equal(cudaMemsetAsync(p, 2, 1, a), 0);
        assert_int_equal(cudaEventRecord(e, a), 0);
        if (told) assert_int_equal(cudaStreamWaitEvent(b, e, 0), 0);
        assert_int_equal(cudaEventQuery(e), cudaErrorNotReady);
        assert_int_equal(cudaMemcpyAsync(host, p, 1, cudaMemcpyDeviceToHost, b), 0);
        assert_int_equal(cudaStreamSynchronize(b), 0);
        assert_int_equal(host[0], 1 + told);
        assert_int_equal(cudaEventQuery(e), cudaSuccess);
    }
    assert_int_equal(cudaFreeHost(host), 0);
    assert_int_equal(cudaFree(p), 0);
    assert_int_equal(cudaEventDestroy(e), 0);
    assert_int_equal(cudaStreamDestroy(b), 0);
    assert_int_equal(cudaStreamDestroy(a), 0);
}

static void test_cuda_emu__refuses_launches(void **state)
{
    (void)state;
    assert_int_equal(emu_bad_launch(0), 9);
    assert_int_equal(emu_bad_launch(1), 9);
    assert_int_equal(emu_bad_launch(2), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_emu__finds),
        cmocka_unit_test(test_cuda_emu__orders),
        cmocka_unit_test(test_cuda_emu__asynchronous_copies),
        cmocka_unit_test(test_cuda_emu__streams),
        cmocka_unit_test(test_cuda_emu__refuses_launches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
