/* SPDX-License-Identifier: MIT */
#include "tokenizer_impl.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { KEEP_BYTES = 16 << 20 };

void scratch_release(struct scratch *k)
{
    for (int i = 0; i < 2; i++) {
        buf_release(&k->norm[i]);
        buf_release(&k->text[i]);
        free(k->pieces[i].v);
    }
    buf_release(&k->mapped);
    regex_end(k->run);
    free(k->bpe.id);
    free(k->bpe.prev);
    free(k->bpe.next);
    free(k->bpe.heap);
    free(k->best);
    free(k->words);
    memset(k, 0, sizeof *k);
}

struct scratch_pool {
    pthread_mutex_t lock;
    struct scratch *first;
};

int scratch_pool_open(struct scratch_pool **out)
{
    TRY(MEM_NEW(out, 1));
    if (pthread_mutex_init(&(*out)->lock, NULL) == 0) return 0;
    free(*out);
    *out = NULL;
    return err_set(ERR_OOM, "out of memory for a lock");
}

void scratch_pool_close(struct scratch_pool *p)
{
    if (!p) return;
    for (struct scratch *s = p->first, *next; s; s = next) {
        next = s->next;
        scratch_release(s);
        free(s);
    }
    pthread_mutex_destroy(&p->lock);
    free(p);
}

int scratch_take(struct scratch_pool *p, struct scratch **out)
{
    pthread_mutex_lock(&p->lock);
    *out = p->first;
    if (*out) p->first = (*out)->next;
    pthread_mutex_unlock(&p->lock);
    return *out ? 0 : MEM_NEW(out, 1);
}

/* What one huge text has left is not kept. */
static bool is_large(const struct scratch *s)
{
    size_t bytes = (size_t)s->bpe.cap * sizeof *s->bpe.id +
                   (size_t)s->bpe.heap_cap * sizeof *s->bpe.heap + s->mapped.cap +
                   (size_t)s->best_cap * sizeof *s->best;
    for (int i = 0; i < 2; i++)
        bytes +=
            s->norm[i].cap + s->text[i].cap + (size_t)s->pieces[i].cap * sizeof *s->pieces[i].v;
    return bytes > KEEP_BYTES;
}

void scratch_give(struct scratch_pool *p, struct scratch *s)
{
    if (is_large(s)) scratch_release(s);
    pthread_mutex_lock(&p->lock);
    s->next = p->first;
    p->first = s;
    pthread_mutex_unlock(&p->lock);
}
