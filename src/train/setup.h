/* SPDX-License-Identifier: MIT
 * setup.h - what every command opens first: ranks, architecture, tokenizer, template, backend, data. */
#ifndef BDPO_SETUP_H
#define BDPO_SETUP_H
#include "config.h"
#include "../data/batch.h"
#include "../dist/dist.h"
#include "../model/model.h"

struct setup { /* valid when zeroed */
    const struct config *cfg; /* borrowed */
    struct dist *dist;        /* borrowed; NULL: one rank */
    struct arch arch;
    struct tokenizer *tok;
    struct chat_template *tmpl;
    struct backend be;
    bool be_open;
    int64_t tok_bytes; /* of tokenizer.json */
    int64_t kl_samples;        /* eval.kl_samples where a stage is to measure it, else 0 */
    const char *kl_reference;  /* directory of its reference; borrowed; NULL: the policy as the preference stage starts */
    int64_t micro_tokens; /* memory.micro_batch_tokens, gradient_checkpointing, keep_logits, resolved by sizing_choose() */
    int64_t recompute;
    bool keep_logits;
    char *cache_dir;      /* where setup_data keeps tokens; owned; NULL: nowhere */
    bool cache_write;
    int64_t limit;        /* bytes that this rank may take, set by sizing_choose(); 0: not known */
};
/* config.json, tokenizer and template of model.path; checks max_length against the model. ERR_INPUT. */
int setup_open(struct setup *s, const struct config *c, struct dist *d);
/* The architecture of a model or adapter in `dir`, for this config: under adapters, and where it is model.path, the base is quantised as the config says. */
int setup_arch(struct arch *a, const struct config *c, const char *dir);
/* The directory of caches: the config's, else XDG's; the caller frees. NULL: none can be named, and a warning says that the `what` ("token")
 * cache is off. */
int setup_cache_dir(char **dir, const struct config *c, const char *what);
/* From now on setup_data uses the token cache, where the config wants it; `write`: it also keeps there what it has read. */
int setup_cache(struct setup *s, bool write);
/* CPU threads: the config's, else this rank's share of the cores that it may use; 0: all of these. */
int32_t setup_threads(const struct setup *s);
/* Open what `wanted`, a BACKEND_*, says ("auto": CUDA where there is a device, number `place` modulo theirs, else the CPU), and print what was
 * found. ERR_INPUT: the reason that there is no CUDA. */
int backend_choose(struct backend *be, int wanted, int32_t threads, int32_t place);
/* The one that the config asks for, the same on all ranks, and, to train, how their devices reach each other. */
int setup_backend(struct setup *s, bool train);
void setup_close(struct setup *s);
/* Read and tokenise files under the config's data options; prints one line about them on stderr. */
int setup_data(const struct setup *s, struct dataset *d, const struct strlist *files, enum data_kind kind);
/* Data options of the config for this model. */
struct data_opts setup_data_opts(const struct setup *s);
/* Of weights and activations: model.dtype. */
enum dtype setup_dtype(const struct config *c);
/* Of the files of a model (or of adapters) that this run writes: model.save_dtype. */
enum st_dtype setup_save_dtype(const struct setup *s);
/* Positions that the rope table must hold for d. */
int64_t setup_positions(const struct dataset *d);
#endif
