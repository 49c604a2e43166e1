/* SPDX-License-Identifier: MIT
 * ops.h - tensors and the backend interface. Shape letters: T tokens, S sequences, P pairs, N response positions,
 * C hidden, F ffn, H/K query/kv heads, D head size, V vocabulary, L layers.
 * All op_* return 0 or ERR_DEVICE; wrong shapes are bugs (BUG_IF). Results are bit-equal between two runs with the
 * same inputs and thread count. f32 accumulation unless said.
 * A is the dtype of the activations, F32 or BF16, the same for all tensors of a call that say A; the others are F32
 * (statistics always are) or I32. A kernel computes in f32 and rounds to the nearest even where it stores BF16. */
#ifndef BDPO_OPS_H
#define BDPO_OPS_H
#include "../base/base.h"
#ifdef __cplusplus
extern "C" {
#endif

enum dtype { DT_F32, DT_I32, DT_BF16, DT_U8, DT_I16 }; /* BF16: the upper half of an F32, in a uint16_t; I16: what is left of one (split.h). U8: two elements of 4 bits (nf4.h) */

/* A view: never owns `data`. Row-major, dim[0] slowest, unused trailing dims are 1. Rows (the index dim[0]) may be
 * strided: `ld` elements apart; ld = product of dim[1..3] when contiguous, and only ops that say so take another. */
struct tensor {
    void *data;
    int64_t dim[4];
    int64_t ld;
    enum dtype dtype;
};

/* Varlen attention: segment s has `len` query rows from row `q` of q/o. They attend to the whole prefix, kv rows
 * [prefix, prefix + prefix_len), and causally to their own kv rows [own, own + len). In training own = q.
 * Segments of one group (a pair's prompt, chosen, rejected) are consecutive; kv rows are shared only inside a group. */
struct segment {
    int32_t q, len, own, prefix, prefix_len;
};
struct segments {
    const struct segment *seg; /* host memory [n] */
    const int32_t *group;      /* host memory [n_groups + 1]: first segment of each group */
    int32_t n, n_groups;
};

struct adamw { /* one AdamW update, as in PyTorch: decoupled decay, bias correction */
    double lr, beta1, beta2, eps, weight_decay;
    int64_t step;      /* from 1 */
    double grad_scale; /* multiplies g first (mean and clip) */
    uint64_t key;      /* of the random bits that round what is BF16 (stochastic.h); another one each step */
    int64_t first;     /* index of the first element for them, so that shares of an array round as the whole does */
};

struct dropout { /* which elements of a matrix are dropped: a pure function of this and of row and column (stochastic.h) */
    double p;          /* with this probability, in [0, 1), to 2^-16 */
    uint64_t key;
    int64_t first;     /* number of the first row, so that rows of a step drop the same however they are cut into matrices */
};

struct ctx; /* a backend's private state: device, stream, library handles, threads */

#include "ops_list.h"
struct ops { /* one table per backend; every slot is filled or the link fails */
#define OP(name, ...) int (*name)(struct ctx * cx, __VA_ARGS__);
    OPS(OP)
#undef OP
};
#define OP(name, ...)                            \
    int cpu_##name(struct ctx *cx, __VA_ARGS__); \
    int cuda_##name(struct ctx *cx, __VA_ARGS__);
OPS(OP)
#undef OP

struct op_sizes { /* the largest of a run, for the scratch that a backend has of its own */
    int64_t T, C, F, H, K, D, V;
    int64_t group; /* tokens of the longest group of segments */
    int64_t rank;  /* of adapters beside the linear layers; 0: none */
    enum dtype A;
    bool train;
};
struct memops { /* memory of a backend, apart from math */
    int (*alloc)(struct ctx *cx, void **out, int64_t bytes); /* 64-byte aligned, zeroed, and really there (touched); ERR_OOM */
    void (*release)(struct ctx *cx, void *p);
    int (*to_device)(struct ctx *cx, void *dst, const void *host, int64_t bytes);
    int (*to_host)(struct ctx *cx, void *host, const void *src, int64_t bytes);
    int (*copy)(struct ctx *cx, void *dst, const void *src, int64_t bytes); /* device to device, may not overlap */
    int64_t (*scratch)(const struct ctx *cx, const struct op_sizes *s);     /* bytes that the kernels take for themselves */
    int (*reserve)(struct ctx *cx, const struct op_sizes *s); /* take them now: kernels up to these sizes allocate nothing; ERR_OOM */
    int64_t (*allocations)(const struct ctx *cx);             /* made so far by alloc, reserve and kernels */
    /* Bytes of the device's own memory that a run may take, and that this process has taken. *limit 0: it has none, memory is the host's. */
    int (*memory)(struct ctx *cx, int64_t *limit, int64_t *used);
};

enum { NET_SLOTS = 4, NET_TICKET = 128, NET_WHERE = 32 };
struct net_message { /* between two ranks; data in the backend's memory */
    void *data;
    int64_t bytes;
    int32_t rank; /* the other one */
    bool send;
};
/* What several ranks need of a backend whose memory is not the host's. Work here goes on beside the kernels, after those that were queued before it;
 * a slot is one piece of it, of NET_SLOTS. All return 0 or ERR_DEVICE where no other error is named. */
struct netops {
    /* The device, by a text that no other device of the machine has. */
    int (*where)(struct ctx *cx, char out[NET_WHERE]);
    /* Through the host. Memory of the host that the device copies to and from; ERR_OOM. */
    int (*pin)(struct ctx *cx, void **out, int64_t bytes);
    void (*unpin)(struct ctx *cx, void *p);
    /* Copy bytes to host, pinned; several calls for a slot add up. */
    int (*fetch)(struct ctx *cx, int32_t slot, void *host, const void *src, int64_t bytes);
    /* *done: what was fetched for the slot is there; wait: wait until it is. */
    int (*fetched)(struct ctx *cx, int32_t slot, bool wait, bool *done);
    /* From device to device. A ticket that rank 0 makes (the others: NULL) and all ranks open with; ERR_INPUT: the library for it is not
     * there, ERR_COMM. */
    int (*ticket)(struct ctx *cx, void *ticket);
    int (*open)(struct ctx *cx, const void *ticket, int32_t rank, int32_t size);
    /* Start n messages together. Between two ranks they meet in the order in which both start them. */
    int (*start)(struct ctx *cx, int32_t slot, const struct net_message *m, int32_t n);
    /* Kernels from now on come after the slot's messages. */
    int (*join)(struct ctx *cx, int32_t slot);
    /* Wait until all messages have arrived; ERR_COMM: another rank or the way to it has failed. */
    int (*drain)(struct ctx *cx);
    void (*close)(struct ctx *cx);
};

/* Elements [begin, end) of a flat array that a smaller array holds from its element `at` on. */
struct flat_part {
    int64_t begin, end, at;
};

struct backend {
    const char *name;  /* "cpu", "cuda" */
    const char *about; /* of a device: its name, memory, versions; NULL for the CPU */
    struct ctx *cx;
    const struct ops *op;
    const struct memops *mem;
    const struct netops *net; /* NULL: memory is the host's */
    bool net_open;            /* net->open has succeeded, on all ranks */
    int32_t threads; /* CPU threads in use */
};
/* CPU: threads 0 = the cores this process may use. Valid until backend_close. */
int cpu_open(struct backend *be, int32_t threads);
/* 0, or ERR_INPUT with the reason that no device can be used (link-time twin cuda/none.c in a build without CUDA). */
int cuda_open_at(struct backend *be, int32_t threads, int32_t place); /* device `place`, modulo their number */
static inline int cuda_open(struct backend *be, int32_t threads)
{
    return cuda_open_at(be, threads, 0);
}
/* Attention of a backend that cuda_open made by cuDNN from now on, where that takes the shapes. ERR_INPUT: it cannot be used, and why. */
int cuda_use_cudnn(struct backend *be);
extern const bool cuda_built; /* whether this build has more than the twin */
void backend_close(struct backend *be);
/* out[n] (host) = the floats of n bfloat16 in the backend's memory and, unless low is NULL, their lower halves (split.h). */
int backend_join(const struct backend *be, float *out, const uint16_t *upper, const int16_t *low, int64_t n);
/* The other way: the bfloat16 of in[n] (host), and what it leaves of it; either may be NULL, and is not written then. */
int backend_split(const struct backend *be, uint16_t *upper, int16_t *low, const float *in, int64_t n);
void cpu_close(struct ctx *cx);
void cuda_close(struct ctx *cx);

/* --- tensors ------------------------------------------------------------------------------------------------- */
int64_t dtype_size(enum dtype t);                 /* bytes an element */
int64_t tensor_count(const struct tensor *t);     /* elements: product of dims */
int64_t tensor_row(const struct tensor *t);       /* elements a row: dim[1] * dim[2] * dim[3] */
bool tensor_contiguous(const struct tensor *t);
/* A contiguous view of `data` with up to 4 dims (pass 1 for unused). */
struct tensor tensor_view(void *data, enum dtype dtype, int64_t d0, int64_t d1, int64_t d2, int64_t d3);
/* Rows [first, first + n) of t. */
struct tensor tensor_rows(const struct tensor *t, int64_t first, int64_t n);
/* Columns [first, first + n) of every row of a 2-d t (a strided view). */
struct tensor tensor_cols(const struct tensor *t, int64_t first, int64_t n);

/* --- the ops: checked entries, one per row of ops_list.h ------------------------------------------------------- */
/* y[M,N] = alpha op(a) op(b) + beta y; op(a) is [M,K] (a stored [K,M] if ta), op(b) is [K,N] (b stored [N,K] if tb).
 * a, b A (on the CPU b may be BF16 beside an a of F32); y F32 or A. beta is 0 (y is not read) or 1 (the sum is rounded once to y). All three may have strided rows. y aliases neither input.
 * packed: NULL, or what op_pack made of the same b and tb; the caller packs anew after b has changed. */
int op_gemm(const struct backend *be, struct tensor *y, const struct tensor *a, bool ta, const struct tensor *b, bool tb,
            const void *packed, float alpha, float beta);
/* *bytes (host): of the copy of b that op_gemm with this tb is faster with on this machine; 0: it wants none, pass NULL. */
int op_pack_bytes(const struct backend *be, int64_t *bytes, const struct tensor *b, bool tb);
/* packed = that copy: op_pack_bytes bytes of the backend's memory, 64-byte aligned. */
int op_pack(const struct backend *be, void *packed, const struct tensor *b, bool tb);
/* y[M,N] = a b^T + bias in every row, rounded once to y. a [M,K], b [N,K] as in op_gemm; y, bias[N] of a's dtype A. Strided rows and aliasing as there. */
int op_gemm_bias(const struct backend *be, struct tensor *y, const struct tensor *a, const struct tensor *b, const struct tensor *bias);
/* y[M,N] += a^T b, db[M] += sum_K a: the gradients of a weight and a bias, with a [K,M] that of the output and b [K,N] the input. a, b A; y, db F32.
 * Strided rows and aliasing as in op_gemm; db is contiguous. */
int op_gemm_bgrad(const struct backend *be, struct tensor *y, struct tensor *db, const struct tensor *a, const struct tensor *b);
/* y[n,C] = x[index[n], C], both A; index i32, in range (the caller's duty, as data are checked at load). y and x do not
 * overlap. */
int op_gather(const struct backend *be, struct tensor *y, const struct tensor *x, const struct tensor *index);
/* y[index[n], C] = x[n, C], both A, rows of x may be strided; index as there, no two the same. y and x do not overlap. */
int op_put_rows(const struct backend *be, struct tensor *y, const struct tensor *x, const struct tensor *index);
/* dx[index[n], C] += dy[n, C], in the order of n (repeated indices add in that order). dy A; dx F32 or A. */
int op_scatter_add(const struct backend *be, struct tensor *dx, const struct tensor *dy, const struct tensor *index);
/* y, sum, x, r, w A; rstd F32. s = sum = x + r, rounded to A (r NULL: sum is not written and may be NULL, s = x);
 * y[T,C] = s * rstd * w, rstd[T] = 1/sqrt(mean_C(s^2) + eps). sum may alias x or r. y may not alias them. */
int op_rmsnorm_fwd(const struct backend *be, struct tensor *y, struct tensor *rstd, struct tensor *sum,
                   const struct tensor *x, const struct tensor *r, const struct tensor *w, float eps);
/* y[T,C] = x * rstd * w: what op_rmsnorm_fwd gave, to the bit, with x its sum (or its x where r was NULL). x, w, y A; rstd F32. */
int op_rmsnorm_apply(const struct backend *be, struct tensor *y, const struct tensor *x, const struct tensor *rstd, const struct tensor *w);
/* dx[T,C] += dL/ds, dw[C] += dL/dw for y = s * rstd * w; x is s. dx may not alias dy.
 * dy, x, w A; dx F32 or A; dw, rstd F32. dw NULL: not wanted.
 * dw is summed over fixed blocks of 64 rows, then over blocks in order (independent of the thread count).
 * Scratch: op_rmsnorm_bwd_scratch(T, C) bytes. */
int op_rmsnorm_bwd(const struct backend *be, struct tensor *dx, struct tensor *dw, const struct tensor *dy,
                   const struct tensor *x, const struct tensor *w, const struct tensor *rstd, struct tensor *scratch);
int64_t op_rmsnorm_bwd_scratch(int64_t T, int64_t C);
/* Per-head RMSNorm (Qwen3's QK-norm), dtypes as op_rmsnorm_*, dx A: x, y are [T, n*D] with strided rows allowed, w[D],
 * rstd[T, n] contiguous; every run of D columns is normed by itself. y may alias x. */
int op_headnorm_fwd(const struct backend *be, struct tensor *y, struct tensor *rstd, const struct tensor *x,
                    const struct tensor *w, float eps);
/* dx[T, n*D] = (not +=) dL/dx; dw[D] += (NULL: not wanted); x is the forward's input. dx may alias dy. Strided rows allowed.
 * Scratch: op_headnorm_bwd_scratch(T, D). */
int op_headnorm_bwd(const struct backend *be, struct tensor *dx, struct tensor *dw, const struct tensor *dy,
                    const struct tensor *x, const struct tensor *w, const struct tensor *rstd, struct tensor *scratch);
int64_t op_headnorm_bwd_scratch(int64_t T, int64_t D);
/* Rotary embedding in place on x[T, n*D] (A; strided rows allowed): in each head, with c, s = table[pos[t], 0/1, i],
 * (x_i, x_{i+D/2}) -> (x_i c - x_{i+D/2} s, x_{i+D/2} c + x_i s); inverse: s negated (the backward).
 * pos i32[T]; table f32 [positions, 2, D/2] (cos, then sin). */
int op_rope(const struct backend *be, struct tensor *x, int32_t head_size, const struct tensor *pos,
            const struct tensor *table, bool inverse);
/* o, q, k, v, and their gradients A; lse F32. o[T, H*D], lse[T, H] (contiguous) = softmax(scale q k^T) v over each
 * segment's keys (see struct segment), blocked, with an online log-sum-exp; q[T, H*D], k, v [Tk, K*D] may have strided
 * rows; query head h reads kv head h / (H/K). */
int op_attention_fwd(const struct backend *be, struct tensor *o, struct tensor *lse, const struct tensor *q,
                     const struct tensor *k, const struct tensor *v, const struct segments *segs, int32_t head_size,
                     float scale);
/* dq, dk, dv (strided rows allowed) = (not +=) gradients; dk, dv rows of a shared prompt are the sums over its group's
 * segments in order. Every row of dk, dv that some segment owns is written. */
int op_attention_bwd(const struct backend *be, struct tensor *dq, struct tensor *dk, struct tensor *dv,
                     const struct tensor *dout, const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                     const struct tensor *k, const struct tensor *v, const struct segments *segs, int32_t head_size,
                     float scale);
/* All A. y[T,F] = silu(g) * u, gu[T,2F] = [g | u]. */
int op_swiglu_fwd(const struct backend *be, struct tensor *y, const struct tensor *gu);
/* All A. dgu[T,2F] = gradients of g and u (not +=). dgu may alias gu. y: NULL, or [T,F] = what op_swiglu_fwd gives for gu, to the bit
 * (so that it need not be kept for the product that y went into); may alias dy. */
int op_swiglu_bwd(const struct backend *be, struct tensor *dgu, struct tensor *y, const struct tensor *dy, const struct tensor *gu);
/* logp[n] = z[target[n]] - lse[n], lse = log sum_V exp(z), z = h[N,C] w[V,C]^T: in tiles over N x V with an online
 * log-sum-exp. h, w A; logp, lse F32. Scratch: op_logp_scratch(N, C, V, A) bytes.
 * kept: NULL, and the whole of z never exists; or op_logp_kept(N, V, A) bytes, which get what op_logp_bwd else computes again:
 * exp(z - the running maximum) [N,V] of A and what turns it into probabilities, laid out as the backend likes. */
int op_logp_fwd(const struct backend *be, struct tensor *logp, struct tensor *lse, struct tensor *kept,
                const struct tensor *h, const struct tensor *w, const struct tensor *target, struct tensor *scratch);
/* With coef[n] = dL/dlogp[n]: dz = coef (onehot(target) - exp(z - lse)), from kept, or (NULL) recomputed by tiles;
 * dh[N,C] = dz w (not +=), dw[V,C] += dz^T h (NULL: not wanted). h, w, dh A; dw, coef, lse F32. kept may be used up. */
int op_logp_bwd(const struct backend *be, struct tensor *dh, struct tensor *dw, const struct tensor *coef,
                const struct tensor *lse, struct tensor *kept, const struct tensor *h, const struct tensor *w,
                const struct tensor *target, struct tensor *scratch);
int64_t op_logp_kept(int64_t N, int64_t V, enum dtype A);
int64_t op_logp_scratch(int64_t N, int64_t C, int64_t V, enum dtype A);
/* g' = grad_scale g; m = b1 m + (1-b1) g'; v = b2 v + (1-b2) g'^2; w -= lr wd w; w -= lr mh / (sqrt(vh) + eps),
 * mh = m / (1 - b1^step), vh = v / (1 - b2^step). Flat; g F32. Loshchilov & Hutter, as torch.optim.AdamW.
 * w F32 or BF16; m and v both F32 or both BF16: what is BF16 is computed with in f32 and rounded stochastically.
 * low: NULL, or I16 of the same count beside a w of BF16: together they are an F32 (split.h), which is updated, and nothing of w is random. */
int op_adamw(const struct backend *be, struct tensor *w, struct tensor *m, struct tensor *v, const struct tensor *g,
             const struct adamw *opt, struct tensor *low);
/* *out (host) = sum x^2, accumulated in double over fixed blocks (independent of the thread count). */
int op_sumsq(const struct backend *be, double *out, const struct tensor *x);
/* out[i] (host) = sum x^2 over elements [i block, (i + 1) block) of x, in double, whatever stands beside them; ceil(count / block) of them. */
int op_sumsq_blocks(const struct backend *be, double *out, const struct tensor *x, int64_t block);
/* y += x; the same count; each F32 or BF16. */
int op_add(const struct backend *be, struct tensor *y, const struct tensor *x);
/* y = x, the same count; each F32 or BF16. To BF16 it rounds to the nearest even; a NaN stays one (quiet). */
int op_cast(const struct backend *be, struct tensor *y, const struct tensor *x);
/* y[n] = code of q times its block's absmax (nf4.h), the product rounded to A. q U8 [n / 2], absmax F32 [n / 64]; n a multiple of 64. */
int op_nf4(const struct backend *be, struct tensor *y, const struct tensor *q, const struct tensor *absmax);
/* absmax[n] = value of codes[n] (nf4_scale_table) times most[1 + i / 256] plus most[0], the mean: blocks' scales that are held in 8 bits, of one matrix.
 * codes U8 [n], absmax F32, most F32 [1 + ceil(n / 256)]. */
int op_nf4_scales(const struct backend *be, struct tensor *absmax, const struct tensor *codes, const struct tensor *most);
/* y[T,K] = (with add: +=) x with a share p of its elements 0 and the others times 1 / (1 - p), row t being number first + t. Both A; y may be x
 * without add. */
int op_dropout(const struct backend *be, struct tensor *y, const struct tensor *x, const struct dropout *drop, bool add);
/* y = value, in y's dtype. */
int op_fill(const struct backend *be, struct tensor *y, float value);
#ifdef __cplusplus
}
#endif
#endif
