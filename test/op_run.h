/* SPDX-License-Identifier: MIT
 * op_run.h - one run of an op under test: tensors with guard bytes around them and between strided
 * rows, inputs that must not change, outputs that must meet an oracle in double. Every backend's op
 * tests use it. */
#ifndef BDPO_OP_RUN_H
#define BDPO_OP_RUN_H
#include "../src/base/sha256.h"
#include "../src/ops/ops.h"

enum { OP_RUN_BOXES = 24, OP_RUN_DOUBLES = 48 };
enum box_kind { BOX_INPUT, BOX_INOUT, BOX_OUTPUT };
struct op_box {
    struct tensor t;             /* a view into the backend's memory at `device`, after a guard of 64 bytes */
    void *device;
    unsigned char *mem, *before; /* host copies: as fetched last, from before the run */
    int64_t bytes;
    enum box_kind kind;
    const double *want; /* NULL: guards only */
    double tolerance;   /* absolute */
    double relative;    /* besides, of each element: what storing BF16 costs */
};
struct op_run { /* valid when zeroed but for be, seed, act */
    const struct backend *be;
    enum dtype act; /* of the activations, F32 or BF16 */
    uint64_t seed;
    struct op_box box[OP_RUN_BOXES];
    int n_box;
    double *doubles[OP_RUN_DOUBLES];
    int n_doubles;
    uint64_t n_random;
};

/* A tensor [d0, d1] with rows pad elements further apart than d1: normal random numbers times
 * `spread` (inputs, in and out) or NaN (outputs). */
struct tensor *op_run_f32(struct op_run *r, enum box_kind kind, int64_t d0, int64_t d1, int64_t pad,
                          double spread);
/* The same in the dtype of the activations, rounded to it. */
struct tensor *op_run_act(struct op_run *r, enum box_kind kind, int64_t d0, int64_t d1, int64_t pad,
                          double spread);
/* Round n values to float, and then to the dtype of the activations. */
void op_run_round(const struct op_run *r, double *p, int64_t n);
/* i32 [n], uniform in [0, limit). */
struct tensor *op_run_index(struct op_run *r, int64_t n, int64_t limit);
/* i32 [n], from limit - 1 down. */
struct tensor *op_run_distinct(struct op_run *r, int64_t n, int64_t limit);
/* u8 [n], uniform. */
struct tensor *op_run_bytes(struct op_run *r, int64_t n);
/* i16 [n], in and out; op_run_put fills it. */
struct tensor *op_run_low(struct op_run *r, int64_t n);
const uint8_t *op_run_bytes_of(struct op_run *r, const struct tensor *t); /* the host's copy */
/* The host's copy of an index tensor. */
const int32_t *op_run_indices(struct op_run *r, const struct tensor *t);
/* Overwrite the first bytes of a tensor, from the host. */
void op_run_put(struct op_run *r, const struct tensor *t, const void *bytes, int64_t n);
/* The tensor's elements as they are now, contiguous; freed with the run. */
double *op_run_double(struct op_run *r, const struct tensor *t);
/* n zeros. */
double *op_run_zeros(struct op_run *r, int64_t n);
/* After the op, t must equal want[count] to within factor * eps(f32) * sqrt(length) * max(size, max
 * |want|), and half a unit of a BF16 t; size: that of the terms, where they cancel. */
void op_run_expect(struct op_run *r, const struct tensor *t, const double *want, double factor,
                   int64_t length, double size);
/* The same where values on the way were rounded to the activations' dtype: with its eps. */
void op_run_expect_rounded(struct op_run *r, const struct tensor *t, const double *want,
                           double factor, int64_t length, double size);
/* And not even that half unit: t, expected already, is rounded as want is. */
void op_run_exact(struct op_run *r, const struct tensor *t);
/* Guards, constant inputs, expectations: fails the test through cmocka. digest: of all outputs'
 * bytes. */
void op_run_check(struct op_run *r, uint8_t digest[32]);
void op_run_release(struct op_run *r);
#endif
