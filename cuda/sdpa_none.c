/* SPDX-License-Identifier: MIT
 * The twin of attention_cudnn.cpp in a build without cuDNN's headers. */
#include "sdpa.h"

int sdpa_open(struct ctx *cx)
{
    (void)cx;
    return err_set(ERR_INPUT, "this build has no cuDNN; use \"builtin\"");
}

void sdpa_close(struct ctx *cx)
{
    (void)cx;
}

int sdpa_plan(struct ctx *cx, const struct sdpa *s, bool backward, int64_t *bytes)
{
    (void)s;
    (void)backward;
    (void)bytes;
    return sdpa_open(cx);
}

int sdpa_run(struct ctx *cx, const struct sdpa *s, bool backward, void *workspace)
{
    (void)s;
    (void)backward;
    (void)workspace;
    return sdpa_open(cx);
}
