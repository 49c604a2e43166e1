/* SPDX-License-Identifier: MIT */
#include "../src/ops/ops.h"
#include <string.h>

const bool cuda_built = false;

int cuda_open_at(struct backend *be, int32_t threads, int32_t place)
{
    (void)threads;
    (void)place;
    memset(be, 0, sizeof *be);
    return err_set(ERR_INPUT, "this build has no CUDA (make CUDA=1 makes one that has)");
}

void cuda_close(struct ctx *cx)
{
    (void)cx;
}

int cuda_use_cudnn(struct backend *be)
{
    (void)be;
    return err_set(ERR_INPUT, "this build has no CUDA");
}
