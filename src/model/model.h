/* SPDX-License-Identifier: MIT
 * model.h - a decoder-only transformer (Qwen2/2.5/3, LLaMA): parameters, forward, log-probabilities, backward. */
#ifndef BDPO_MODEL_H
#define BDPO_MODEL_H
#include "arch.h"
#include "../data/batch.h"
#include "../io/safetensors.h"
#include "../ops/plan.h"

enum { PARAM_SLICES_MAX = 3 };
struct param_slice { /* one Hugging Face tensor: rows [row, row + rows) of a parameter */
    char name[96];
    int64_t row, rows;
};
struct param { /* q, k, v and gate, up are stored fused: one matrix each */
    struct tensor w;         /* model.dtype, 1-d or 2-d; a view into model.weights (with half_matrices: BF16, or into model.vectors) */
    int64_t offset;          /* elements from the start of the flat weights (64-byte aligned) */
    int64_t grad_at;         /* of its gradient in model.grads; = offset unless grad_windows */
    bool nf4;                /* held in 4 bits: w has no data, offset counts elements of model.quant, q and absmax are views into that */
    struct tensor q, absmax; /* absmax F32, or (arch.nf4_double) U8 codes of it, whose meaning slice by slice is in `most` (op_nf4_scales) */
    int64_t most_at;         /* of the first slice in model.most */
    bool decay;              /* weight decay applies: matrices only */
    int32_t n_slices;
    struct param_slice slice[PARAM_SLICES_MAX];
};

struct linear { /* y = x w^T + b: indices into params; -1: none. The one place where dense, LoRA and 4-bit weights differ (linear.c) */
    int32_t w, b;
    int32_t lora_a, lora_b; /* of the slices of w that are targets, stacked by rows: A [n rank, in], B [their rows, rank] */
    uint32_t lora_slices;   /* bit j: slice j of w is one */
};
struct layer { /* indices into params; -1: absent. A layer's parameters are [norm1, end), its adapters [lora, lora_end) */
    int32_t norm1, norm2, q_norm, k_norm, end, lora, lora_end;
    struct linear qkv, o, gate_up, down;
};

/* What one layer's backward needs; see docs/DESIGN.md for the walk. x [T,C] is the layer's input, rstd1 its norm's (the normed rows and
 * the MLP's activation are made again, which costs less than to read them back from memory), qkv [T,(H+2K)D] (q and k rotated in place, or before their norm when qk_norm; then qk [T,(H+K)D] holds them normed and
 * rotated), att [T,HD], lse [T,H], x2 = x + o(att), rstd2, gu [T,2F], which the backward overwrites. */
struct acts {
    struct tensor x, rstd1, qkv, qk, rstd_q, rstd_k, att, lse, x2, rstd2, gu;
};

/* Which elements of the master weights this process holds. All zero: all. */
struct model_shard {
    const struct flat_part *part; /* [n] in order, borrowed */
    int32_t n;
    int64_t elements;             /* of all parts together */
    int (*fetch)(void *payload, int64_t at, int64_t n, float *out); /* reads elements wherever they are held */
    void *payload;
};

struct model { /* valid when zeroed */
    struct arch arch;
    const struct backend *be;
    enum dtype dtype;           /* of weights and activations: DT_F32 or DT_BF16. Gradients, statistics and sums are f32 */
    bool half_matrices;         /* set before model_plan_weights, for a decoder with F32 activations on the CPU and a dense model whose matrices are BF16 in their files
                                 * (model_dir_half): held as they are there, which loses nothing and halves what decoding reads */
    struct param *params;
    int32_t n_params, embed, final_norm, head; /* head == embed when tied. Order: embed, layers, final norm, head, adapters of the layers */
    int32_t n_base;             /* of n_params without adapters */
    int32_t first_trained, end_trained; /* parameters that are trained: all, or the adapters; their elements are the first of the flat weights */
    struct layer *layers;
    int64_t n_flat;             /* elements of the flat weights with padding */
    int64_t n_trained;          /* of these, from the start, the trained ones */
    struct tensor weights;      /* flat [n_flat] of `dtype`; with half_matrices BF16, and the vectors' places are empty */
    struct tensor vectors;      /* f32, with half_matrices: biases and weights of norms */
    const struct model *base;   /* set before model_plan_weights, with adapters: a model on the same base, whose weights but for the adapters are this one's too */
    int64_t n_quant;            /* elements of the weights that are held in 4 bits, and in none of the other arrays */
    struct tensor quant, absmax; /* u8 [n_quant / 2], f32 (u8) [n_quant / 64] */
    int64_t n_most;             /* with arch.nf4_double, else 0 */
    struct tensor most;         /* f32 [n_most] of each slice in order the mean of its scales, then one of 256 of them */
    struct model_shard shard;   /* set before model_plan_weights */
    struct tensor low;          /* i16, the shard's elements of [n_trained]: with the weights, its upper halves, the float32 master that the optimizer
                                 * changes (split.h); data NULL where dtype is DT_F32 (weights are the master) or nothing is trained */
    struct tensor grads;        /* f32 [n_trained], or the windows; data NULL where not training */
    bool no_master;             /* set before model_plan_weights: weights in bfloat16 are all there is, and the optimizer rounds them stochastically */
    bool grad_windows;          /* set before model_plan_weights, not with adapters: gradients of two layers at a time, which share memory in turns, and of
                                 * the other parameters. model_backward zeroes a layer's before it writes them */

    struct tensor rope;         /* [positions, 2, D/2] */
    struct acts *acts;          /* [n_acts]: one set for each layer from first_kept on; 1 in inference */
    int32_t n_acts, first_kept; /* layers before first_kept share the first set: recomputed, or (all of them) inference */
    struct tensor *block_in;    /* [2 first_kept] their x and rstd1, in training */
    struct tensor stream, h, act; /* a branch's output [T,C] before it is added; its input, normed [T,C]; the MLP's activation [T,F], in the
                                 * backward first its gradient */
    struct tensor xf, rstd_f, hf; /* the final norm */
    struct tensor hsel, logp, lse;     /* response positions: hidden, log-probability, log-sum-exp */
    struct tensor kept;         /* op_logp_kept() bytes; data NULL where logits are computed again */
    bool has_kept;              /* the last model_logp left something there */
    struct tensor dx, dh, dqkv, datt, dhsel, coef, scratch; /* backward; dx f32, the residual stream's gradient */
    struct tensor dxc;          /* [T,C] dx rounded for a product; not booked where dtype is DT_F32 */
    struct tensor lora_x, lora_dx; /* [T, 3 rank] A of the linear at work: x A^T, and in the backward the gradient of it; not booked without adapters */
    struct dropout drop;        /* of what goes into the adapters' A; p 0 (always, but while a micro-batch of training is at work): none */
    struct tensor lora_drop;    /* [T, widest input of a target] A: that input, or its gradient; booked with arch.lora.dropout */
    struct tensor dense;        /* A: the largest 4-bit weight, as numbers */
    struct tensor scales;       /* f32 its blocks' scales; booked with arch.nf4_double */
    struct tensor ids, pos, src, target; /* i32, device copies of the batch */
    float *host;                /* [N_max] */
    const struct batch *batch;  /* of the last forward */
    int64_t T_max, N_max;
};

struct model_size { /* what buffers must hold */
    int64_t T, N, positions; /* tokens and response positions of a micro-batch; positions of the rope table */
    bool train;              /* gradients and backward buffers */
    int64_t recompute;       /* of this many layers, the first ones, only the inputs are kept. At most L - 1 count: when the
                              * backward begins, the last layer's values are still there */
    bool keep_logits;        /* with train: the backward finds the head's logits kept, and does not compute them again */
};

/* Parameter table and layers from arch; no memory for tensors yet. dtype: DT_F32 or DT_BF16. */
int model_init(struct model *m, const struct backend *be, const struct arch *a, enum dtype dtype);
/* Book weights (and gradients, and the shard of the master's lower halves where dtype is not DT_F32). */
int model_plan_weights(struct model *m, struct plan *p, bool train);
/* Book activations and scratch for batches up to `size`. */
int model_plan_buffers(struct model *m, struct plan *p, const struct model_size *size);
/* After plan_grant: set the views of params, upload the rope table where one is booked. */
int model_ready(struct model *m);
/* Book what linear layers need, where they need something: lora_x for up to T rows (linear_fwd takes more rows in pieces), dense. */
int model_plan_linear(struct model *m, struct plan *p, int64_t T);
/* Book, and after the grant fill, the rope table (model_plan_buffers, model_ready and decode.c do it). */
int model_plan_rope(struct model *m, struct plan *p, int64_t positions);
int model_upload_rope(const struct model *m);
/* After plan_release, which clears the views in here. Not the plan's memory. */
void model_release(struct model *m);

/* weights.c ------------------------------------------------------------------------------------------------------ */
/* Elements [at, at + n) of the exact weights, as float32: the master where there is one (through shard.fetch where it is a shard), else the
 * weights. */
int model_get(const struct model *m, int64_t at, int64_t n, float *out);
/* The same elements = in[n]: the weights, rounded to nearest even, and the master's lower halves where there are any (what the shard holds of them; a tie
 * that rounds down loses its last bit, split.h). */
int model_put(struct model *m, int64_t at, int64_t n, const float *in);
/* Fill weights and master from DIR's safetensors (F32, F16, BF16); where DIR holds an adapter, the base from the directory that it names, then lora_load. Missing tensor, wrong shape, NaN or Inf, or a value that dtype cannot hold: ERR_INPUT
 * with expected and found.
 * Extra tensors: one warning on stderr (rotary inv_freq buffers and a tied lm_head equal to the embedding: silently). */
int model_load(struct model *m, const char *dir);
/* init "random": normal(0, initializer_range) for matrices and embedding, 0 for biases, 1 for norms; pure function of seed. Not the adapters. */
int model_random(struct model *m, uint64_t seed);
/* The dtype of most elements in DIR's files (F32, F16 or BF16); without files ST_F32, which loses nothing. */
enum st_dtype model_dir_dtype(const char *dir, const struct arch *a);
/* 1: every matrix in DIR's files is BF16; 0, or ERR_INPUT. */
int model_dir_half(const char *dir);
/* Round every trained exact weight to what `dtype` can hold, as model_save will (F32: nothing changes). Of a sharded master: what the shard holds,
 * and these elements of the weights. */
int model_round(struct model *m, enum st_dtype dtype);
/* Write the exact weights as a Hugging Face directory `dir` (created whole under a temporary name, then renamed; an existing one is replaced): model.safetensors, or shards of at
 * most shard_bytes with an index; config.json from source_dir with its dtype set; tokenizer and template files copied. With adapters: these alone, in PEFT's format
 * (adapter_model.safetensors, adapter_config.json with source_dir as the base), and the same files copied. */
int model_save(struct model *m, const char *dir, const char *source_dir, enum st_dtype dtype, int64_t shard_bytes);

/* lora.c ---------------------------------------------------------------------------------------------------------- */
/* A uniform in +-1/sqrt(in), B zero, as peft draws them: the model is its base. A pure function of seed. */
int lora_init(struct model *m, uint64_t seed);
/* The adapters' weights and master from DIR/adapter_model.safetensors, whose adapter_config.json must agree with arch.lora. ERR_INPUT. */
int lora_load(struct model *m, const char *dir);
/* adapter_config.json as json_t (owned by the caller; NULL: out of memory), for a base in directory `base`. */
json_t *lora_config(const struct lora *l, const char *base);
/* The base's weights += lora_scale() B A; from then on m is a model without adapters. DT_F32, not in training. */
int lora_merge(struct model *m);

/* linear.c: the callers of op_gemm on the weights of layers; a packed copy of a weight is made and kept here ---------------- */
/* y[T,N] = x[T,K] w^T (+ b) (+ the adapters). Rows of x and y may be strided. */
int linear_fwd(const struct model *m, const struct linear *l, struct tensor *y, const struct tensor *x);
/* dx[T,K] = dy w (+ the adapters); m->lora_dx is kept for linear_bwd_weight of the same linear, which comes before another one's */
int linear_bwd_input(const struct model *m, const struct linear *l, struct tensor *dx, const struct tensor *dy);
/* dw += dy^T x, db += sum_T dy; with adapters not these but dA, dB +=. After linear_bwd_input of the same dy. */
int linear_bwd_weight(const struct model *m, const struct linear *l, const struct tensor *dy, const struct tensor *x);
/* The gradient view of parameter i, which is trained. */
struct tensor model_grad(const struct model *m, int32_t i);
/* The same in *hold, or NULL where it is not trained. */
struct tensor *model_grad_of(const struct model *m, int32_t i, struct tensor *hold);
bool model_trains(const struct model *m, int32_t i);

/* forward.c, backward.c -------------------------------------------------------------------------------------------- */
/* Hidden states of a micro-batch; keeps what the backward needs, as planned. */
int model_forward(struct model *m, const struct batch *b);
/* logp[S] (host, double): sums over each sequence's response tokens. After model_forward. Synchronises. backward: model_backward
 * follows. */
int model_logp(struct model *m, const struct batch *b, double *logp, bool backward);
/* A callback when the gradients of parameters [first, first + n), which stand in one piece from model_grad(first) on, are final for this micro-batch: the head and final
 * norm, the layers from the last to the first, the embedding; with adapters those of the layers from the last to the first. With grad_windows a layer's may be written again after the next call. May be NULL. */
typedef int model_ready_fn(void *payload, int32_t first, int32_t n);
/* grads += sum over sequences of coef[s] d logp[s] / d weights. coef[S] host. Once after model_logp, with backward, of the same batch. */
int model_backward(struct model *m, const struct batch *b, const double *coef, model_ready_fn *ready, void *payload);
#endif
