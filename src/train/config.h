/* SPDX-License-Identifier: MIT
 * config.h - the whole run: one nested struct, immutable after config_load(), one table row per field (options.c). */
#ifndef BDPO_CONFIG_H
#define BDPO_CONFIG_H
#include "../base/mem.h"
#include "../loss/loss.h"

enum { CONFIG_AUTO = -1 }; /* a number that was left to "auto" */

struct strlist {
    char **item; /* owned */
    double *weight; /* [n] of data files, owned; NULL: 1 each */
    int32_t n;
};

enum schedule { SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_CONSTANT };

struct stage_config {
    bool present;           /* the section is there */
    struct strlist train;   /* overrides data.train; n = 0: not set */
    double epochs;
    int64_t max_steps;      /* 0: not set (null) */
    double learning_rate;
    int64_t batch_size;
    int32_t schedule;       /* enum schedule */
    double warmup_ratio, weight_decay, max_grad_norm;
    bool shuffle;
    double adam_beta1, adam_beta2, adam_epsilon;
};

enum { MODEL_PRETRAINED, MODEL_RANDOM };
enum { DTYPE_BFLOAT16, DTYPE_FLOAT32 };
enum { SAVE_AUTO, SAVE_FLOAT32, SAVE_BFLOAT16, SAVE_FLOAT16 };
enum { ATTENTION_AUTO, ATTENTION_BUILTIN, ATTENTION_CUDNN };
enum { MASTER_FLOAT32, MASTER_NONE };
enum { QUANTIZATION_NONE, QUANTIZATION_NF4, QUANTIZATION_NF4_DOUBLE };
enum { GRADIENTS_AUTO, GRADIENTS_LOCAL, GRADIENTS_SHARDED };
enum { SPECIAL_TEXT, SPECIAL_ERROR, SPECIAL_ALLOW };
enum { BAD_ROW_ERROR, BAD_ROW_SKIP };
enum { PROMPTS_RAW, PROMPTS_USER };
enum { EXPORT_STAGE, EXPORT_EPOCH };
enum { BACKEND_AUTO, BACKEND_CPU, BACKEND_CUDA };
enum { CHECKPOINTING_ALL = 65536 };
enum { PROGRESS_AUTO = -1, PROGRESS_OFF, PROGRESS_ON };

struct config {
    struct {
        char *path;
        int32_t init, dtype, save_dtype, attention, quantization;
        struct {
            bool present; /* the section is there: adapters are trained, and the model is not */
            int64_t rank;
            double alpha, dropout;
            char *path; /* NULL: A drawn, B zero */
            int32_t targets; /* enum lora_target */
            bool rslora;
        } lora;
    } model;
    struct {
        int32_t master, moments;
    } optimizer;
    struct {
        char *path; /* NULL: the policy at the start of the preference stage */
        bool cache;
    } reference;
    struct {
        struct strlist train, eval; /* eval.n = 0: none */
        char *chat_template; /* a name, or a JSON object's text */
        char *template_at;   /* "run.json:5:9" of an object's member that names the end token; NULL: no object. Owned */
        char *template_date; /* NULL: the template's own */
        int32_t string_prompts;
        char *system_prompt; /* NULL: none */
        int64_t max_length, max_prompt_length; /* resolved: never 0 after load */
        int32_t special_tokens, on_bad_row;
        int64_t max_bad_rows, max_line_bytes;
        double max_dropped, subsample;
        bool cache;
    } data;
    struct stage_config sft, preference;
    char *loss; /* name; preference.loss */
    struct loss_opts loss_opts; /* defaults of the loss, then what the file says */
    struct {
        int64_t micro_batch_tokens;     /* CONFIG_AUTO */
        int64_t gradient_checkpointing; /* layers computed again, CHECKPOINTING_ALL (true), CONFIG_AUTO */
        int32_t keep_logits;            /* 0, 1, CONFIG_AUTO */
        double limit;                   /* GiB; CONFIG_AUTO */
    } memory;
    struct {
        int32_t gradients;
        bool deterministic;
        int32_t transport; /* enum link_way */
    } dist;
    struct {
        int64_t every;
        double every_minutes; /* 0: not set */
        int64_t keep;
        char *resume; /* "auto", "never" or a path */
        int32_t export_at;
    } checkpoint;
    struct {
        int64_t max_skipped_steps, replica_check_every;
        double hang_timeout;
    } faults;
    struct {
        int64_t every;
        int32_t progress;
    } logging;
    struct {
        int64_t every;
        bool at_end;
        int64_t kl_samples;
    } eval;
    char *output;
    char *cache_dir; /* NULL: default */
    double max_hours; /* 0: not set */
    int32_t backend;
    int64_t threads;
    uint64_t seed;
};

/* Read FILE, then the `key=value` settings, over the defaults; validate everything. All errors of the file in one pass
 * (ERR_INPUT, one line each: file:line:col: error: key: what; how to mend). Warnings go to stderr. *out: free with config_free.
 * What this build cannot do yet is refused here by name. */
int config_load(struct config **out, const char *file, const char *const *sets, int32_t n_sets);
void config_free(struct config *c);
/* The resolved config as JSON text, itself a valid input: options that are not used are left out. Adds to b. */
int config_dump(const struct config *c, struct buf *b);
/* Fingerprint of all that changes the training: the resolved config without output, cache_dir, checkpoint, faults, logging,
 * max_hours, threads. On a resume both texts are compared by config_diff. */
int config_dump_training(const struct config *c, struct buf *b);
/* First keys whose values differ between two such texts: "preference.lambda: 0.5 was 0.7; ..." into b; returns the number of them. */
int config_diff(const char *was, const char *now, struct buf *b);
/* docs/config.md's table from the option table (Markdown). */
int config_reference(struct buf *b);
/* "--help"'s list of keys: name, default, help; adds to b. */
int config_help(struct buf *b);
#endif
