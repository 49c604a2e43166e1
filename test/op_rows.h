/* SPDX-License-Identifier: MIT
 * op_rows.h - the table of op tests: an op, a shape. Every backend walks it. */
#ifndef BDPO_OP_ROWS_H
#define BDPO_OP_ROWS_H
#include "op_run.h"

struct op_row {
    const char *op;
    void (*run)(struct op_run *r, const int64_t *d); /* makes tensors, runs the op, asks the oracle */
    bool any_threads;                                /* bit-equal for all thread counts of the CPU */
    int64_t d[7];
};
/* Of op_rows_bits.c. */
void op_rows_nf4(struct op_run *r, const int64_t *d);
void op_rows_nf4_scales(struct op_run *r, const int64_t *d);
void op_rows_dropout(struct op_run *r, const int64_t *d);
void op_rows_adamw_split(struct op_run *r, const int64_t *d);
void op_rows_adamw_bf16(struct op_run *r, const int64_t *d);
extern const struct op_row op_rows[];
extern const int op_rows_count;
/* "test_PREFIX__OP (sizes)", in out. Returns out. */
char *op_row_name(char out[96], const char *prefix, const struct op_row *row);
#endif
