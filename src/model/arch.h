/* SPDX-License-Identifier: MIT
 * arch.h - architecture from a Hugging Face config.json. */
#ifndef BDPO_ARCH_H
#define BDPO_ARCH_H
#include "../io/json.h"

/* The linear layers that adapters may stand beside, by Hugging Face's names, as bits of a set. */
enum lora_target { LORA_Q = 1, LORA_K = 2, LORA_V = 4, LORA_O = 8, LORA_GATE = 16, LORA_UP = 32, LORA_DOWN = 64, LORA_TARGETS = 7, LORA_ALL = 127 };
struct lora { /* y = x w^T + lora_scale() (x A^T) B^T beside each target, A [rank, in], B [out, rank]; w is not trained. rank 0: none, all is trained */
    int64_t rank;
    double alpha;
    bool rslora;      /* scale alpha / sqrt(rank), else alpha / rank */
    uint32_t targets; /* enum lora_target */
    double dropout;   /* of what goes into A, in training: the share of it that is 0; not a part of what a saved adapter computes */
};

struct arch {
    char model_type[16];             /* "qwen2", "qwen3", "llama" */
    int64_t C, F, H, K, D, V, L;     /* hidden, ffn, query heads, kv heads, head size, vocabulary, layers */
    bool qkv_bias, o_bias, qk_norm, mlp_bias, tied;
    double rms_eps, init_range;
    int64_t max_positions;
    double rope_theta;
    bool rope_llama3;                /* else plain */
    double rope_factor, rope_low, rope_high;
    int64_t rope_original;
    char dtype[12];                  /* "float32", "bfloat16", "float16", or "" where config.json has none */
    bool nf4;                        /* the weights of linear layers are held in 4 bits (ops/nf4.h); of a config, never of a directory */
    bool nf4_double;                 /* and their scales in 8 bits; with nf4 */
    struct lora lora;                /* of a directory with an adapter, else none; or as the config says */
};

/* DIR/config.json; where DIR holds an adapter (arch_adapter), that of its base, and lora. Anything that changes the maths and is not supported is refused by
 * name (ERR_INPUT, file:line:col). */
int arch_load(struct arch *a, const char *dir);
/* transformers' class of this model_type, "Qwen2ForCausalLM"; static. */
const char *arch_class(const struct arch *a);
int64_t arch_parameters(const struct arch *a); /* elements, tied head once; without adapters */
/* lora.c: does DIR hold an adapter in PEFT's format (adapter_config.json)? */
bool arch_adapter(const char *dir);
/* The directory of the base model that DIR/adapter_config.json names; the caller frees. */
int arch_adapter_base(char **base, const char *dir);
/* DIR/adapter_config.json. What peft would compute and this program does not is refused by name (ERR_INPUT, file:line:col). */
int lora_read_config(struct lora *l, const char *dir);
/* Is DIR's adapter one of `want`? ERR_INPUT with both: another rank has other shapes, and another scale would be another model without a word. */
int lora_check(const struct lora *want, const char *dir);
double lora_scale(const struct lora *l);
/* "q_proj" of one bit. */
const char *lora_target_name(uint32_t bit);
/* Can its linear layers be held in 4 bits? ERR_INPUT: their widths are no multiples of a block. */
int arch_check_nf4(const struct arch *a);
int64_t lora_parameters(const struct arch *a); /* elements of all adapters */
/* table [positions, 2, D/2] f32: cos, then sin of pos * inv_freq (in float32, as transformers does), llama3 scaling applied. */
void arch_rope_table(const struct arch *a, float *table, int64_t positions);
#endif
