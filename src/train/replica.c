/* SPDX-License-Identifier: MIT */
#include "replica.h"
#include "../base/sha256.h"
#include "../model/nf4.h"
#include <stdlib.h>
#include <string.h>

enum { DIGEST = 32 };

static int digest_param(uint8_t out[DIGEST], const struct model *m, int32_t i, uint8_t *host)
{
    const struct param *p = &m->params[i];
    struct tensor most = { 0 };
    if (p->nf4) nf4_most_of(m, p, &most);
    const struct tensor *const parts[] = { p->nf4 ? &p->q : &p->w, p->nf4 ? &p->absmax : NULL,
                                           most.data ? &most : NULL };
    struct sha256 s;
    sha256_init(&s);
    for (size_t k = 0; k < COUNT_OF(parts) && parts[k]; k++) {
        const int64_t bytes = tensor_count(parts[k]) * dtype_size(parts[k]->dtype);
        TRY(m->be->mem->to_host(m->be->cx, host, parts[k]->data, bytes));
        sha256_add(&s, host, (size_t)bytes);
    }
    sha256_end(&s, out);
    return 0;
}

/* The value that most ranks have; of as many the lowest rank's. */
static int32_t most_common(const uint8_t *all, int32_t ranks, int64_t stride)
{
    int32_t best = 0, votes = 0;
    for (int32_t a = 0; a < ranks; a++) {
        int32_t n = 0;
        for (int32_t b = 0; b < ranks; b++)
            n += memcmp(all + a * stride, all + b * stride, DIGEST) == 0;
        if (n > votes) {
            votes = n;
            best = a;
        }
    }
    return best;
}

static int differs(const struct param *p, const uint8_t *all, int32_t ranks, int64_t stride)
{
    const int32_t good = most_common(all, ranks, stride);
    struct buf who = { 0 };
    int rc = 0;
    for (int32_t r = 0; r < ranks && rc == 0; r++)
        if (memcmp(all + r * stride, all + good * stride, DIGEST) != 0)
            rc = buf_addf(&who, "%s%d", who.len ? ", " : "", r);
    if (rc == 0 && who.len)
        rc = err_set(ERR_REPLICA,
                     "the weights of the ranks differ: tensor %s%s of rank %s is not rank %d's: "
                     "memory or a transfer is faulty; go on from the last checkpoint",
                     p->slice[0].name, p->n_slices > 1 ? " (and those fused with it)" : "",
                     who.data, good);
    buf_release(&who);
    return rc;
}

int replica_check(struct dist *d, const struct model *m)
{
    const int32_t ranks = dist_size(d);
    const int64_t stride = (int64_t)m->n_params * DIGEST;
    uint8_t *mine = NULL, *all = NULL, *host = NULL;
    int64_t largest = 0;
    int rc = 0;
    if (ranks == 1) return 0;
    for (int32_t i = 0; i < m->n_params; i++)
        largest = MAX(largest, tensor_count(&m->params[i].w) * dtype_size(m->dtype));
    TRY_OUT(MEM_NEW(&mine, stride));
    TRY_OUT(MEM_NEW(&all, stride * ranks));
    TRY_OUT(MEM_NEW(&host, largest));
    for (int32_t i = 0; i < m->n_params && rc == 0; i++)
        rc = digest_param(mine + (int64_t)i * DIGEST, m, i, host);
    TRY_OUT(dist_agree(d, rc));
    TRY_OUT(dist_gather(d, mine, all, stride));
    for (int32_t i = 0; i < m->n_params && rc == 0; i++)
        rc = differs(&m->params[i], all + (int64_t)i * DIGEST, ranks, stride);
    rc = dist_agree(d, rc);
out:
    free(mine);
    free(all);
    free(host);
    return rc;
}
