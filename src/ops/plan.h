/* SPDX-License-Identifier: MIT
 * plan.h - book, then grant: every buffer's size is booked first, then each category is allocated once. */
#ifndef BDPO_PLAN_H
#define BDPO_PLAN_H
#include "ops.h"
#include "../base/mem.h"
#ifdef __cplusplus
extern "C" {
#endif

enum plan_cat { PLAN_WEIGHTS, PLAN_MASTER, PLAN_GRADIENTS, PLAN_MOMENTS, PLAN_ACTIVATIONS, PLAN_HEAD, PLAN_SCRATCH, PLAN_BATCH, PLAN_COMM, PLAN_CATS };
struct plan_item {
    enum plan_cat cat;
    struct tensor *view; /* gets its data at plan_grant; borrowed, must outlive the plan */
    int64_t offset;
};
struct plan { /* valid when zeroed */
    struct plan_item *items;
    int64_t n, cap;
    int64_t bytes[PLAN_CATS];
    void *base[PLAN_CATS]; /* backend memory, owned */
    bool granted;
};
const char *plan_cat_name(enum plan_cat c);
/* Book a contiguous tensor (dims all >= 0; unused 1): *view is filled but for its data. Each starts at a multiple of 64 bytes.
 * ERR_OOM where the sizes overflow. */
int plan_book(struct plan *p, enum plan_cat cat, struct tensor *view, enum dtype dtype, int64_t d0, int64_t d1, int64_t d2, int64_t d3);
int64_t plan_total(const struct plan *p); /* bytes */
/* One allocation per category; every booked view gets its data (zeroed). ERR_OOM names the category and the whole table. */
int plan_grant(struct plan *p, const struct backend *be);
/* "plan: weights 1.9 GiB, ..." one line; adds to b. */
int plan_print(const struct plan *p, struct buf *b);
void plan_release(struct plan *p, const struct backend *be);
#ifdef __cplusplus
}
#endif
#endif
