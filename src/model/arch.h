/* SPDX-License-Identifier: MIT
 * arch.h - architecture from a Hugging Face config.json. */
#ifndef BDPO_ARCH_H
#define BDPO_ARCH_H
#include "../io/json.h"

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
};

/* DIR/config.json. Anything that changes the maths and is not supported is refused by name (ERR_INPUT, file:line:col). */
int arch_load(struct arch *a, const char *dir);
/* transformers' class of this model_type, "Qwen2ForCausalLM"; static. */
const char *arch_class(const struct arch *a);
int64_t arch_parameters(const struct arch *a); /* elements, tied head once */
/* table [positions, 2, D/2] f32: cos, then sin of pos * inv_freq (in float32, as transformers does), llama3 scaling applied. */
void arch_rope_table(const struct arch *a, float *table, int64_t positions);
#endif
