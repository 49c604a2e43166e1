/* SPDX-License-Identifier: MIT */
#include "plan.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const cat_names[PLAN_CATS] = { "weights", "master",      "gradients",
                                                  "moments", "activations", "head",
                                                  "scratch", "batch",       "communication" };

const char *plan_cat_name(enum plan_cat c)
{
    BUG_IF((int)c < 0 || c >= PLAN_CATS);
    return cat_names[c];
}

int plan_book(struct plan *p, enum plan_cat cat, struct tensor *view, enum dtype dtype, int64_t d0,
              int64_t d1, int64_t d2, int64_t d3)
{
    const int64_t dim[4] = { d0, d1, d2, d3 };
    int64_t bytes = dtype_size(dtype), end, total = 0;
    BUG_IF(p->granted || (int)cat < 0 || cat >= PLAN_CATS);
    for (int i = 0; i < 4; i++) {
        BUG_IF(dim[i] < 0);
        if (!mul_ok(bytes, dim[i], &bytes))
            return err_set(ERR_OOM, "the plan's %s overflow 64 bits", plan_cat_name(cat));
    }
    if (!add_ok(p->bytes[cat], bytes, &end) || !add_ok(end, 63, &end))
        return err_set(ERR_OOM, "the plan's %s overflow 64 bits", plan_cat_name(cat));
    end = end / 64 * 64;
    for (int i = 0; i < PLAN_CATS; i++)
        if (!add_ok(total, i == (int)cat ? end : p->bytes[i], &total))
            return err_set(ERR_OOM, "the plan overflows 64 bits");
    TRY(MEM_GROW(&p->items, &p->cap, p->n + 1));
    *view = tensor_view(NULL, dtype, d0, d1, d2, d3);
    p->items[p->n++] = (struct plan_item){ .cat = cat, .view = view, .offset = p->bytes[cat] };
    p->bytes[cat] = end;
    return 0;
}

int64_t plan_total(const struct plan *p)
{
    int64_t total = 0;
    for (int i = 0; i < PLAN_CATS; i++)
        total += p->bytes[i];
    return total;
}

static void drop(struct plan *p, const struct backend *be)
{
    for (int i = 0; i < PLAN_CATS; i++) {
        if (p->base[i]) be->mem->release(be->cx, p->base[i]);
        p->base[i] = NULL;
    }
    for (int64_t i = 0; i < p->n && p->granted; i++)
        p->items[i].view->data = NULL;
    p->granted = false;
}

int plan_grant(struct plan *p, const struct backend *be)
{
    BUG_IF(p->granted);
    for (int i = 0; i < PLAN_CATS; i++) {
        const int rc = be->mem->alloc(be->cx, &p->base[i], p->bytes[i]);
        if (rc == 0) continue;
        struct buf table = { 0 };
        char size[32];
        drop(p, be);
        if (plan_print(p, &table) < 0) buf_clear(&table);
        err_set(rc, "out of memory: cannot reserve %s for %s (%s)", bytes_human(size, p->bytes[i]),
                plan_cat_name((enum plan_cat)i), table.data ? table.data : "no table");
        buf_release(&table);
        return rc;
    }
    for (int64_t i = 0; i < p->n; i++)
        p->items[i].view->data = (char *)p->base[p->items[i].cat] + p->items[i].offset;
    p->granted = true;
    return 0;
}

int plan_print(const struct plan *p, struct buf *b)
{
    char size[32];
    TRY(buf_adds(b, "plan: "));
    for (int i = 0; i < PLAN_CATS; i++)
        if (p->bytes[i])
            TRY(buf_addf(b, "%s %s, ", plan_cat_name((enum plan_cat)i),
                         bytes_human(size, p->bytes[i])));
    return buf_addf(b, "total %s", bytes_human(size, plan_total(p)));
}

void plan_release(struct plan *p, const struct backend *be)
{
    if (p->granted) drop(p, be);
    free(p->items);
    memset(p, 0, sizeof *p);
}
