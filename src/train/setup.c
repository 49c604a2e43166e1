/* SPDX-License-Identifier: MIT */
#include "setup.h"
#include "../dist/link.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int tokenizer_file(int64_t *bytes, const char *dir)
{
    char *path = NULL;
    int fd;
    TRY(path_join(&path, dir, "tokenizer.json"));
    const int rc = file_open(&fd, bytes, path);
    if (rc == 0) close(fd);
    free(path);
    return rc;
}

int setup_arch(struct arch *a, const struct config *c, const char *dir)
{
    TRY(arch_load(a, dir));
    if (c->model.quantization == QUANTIZATION_NONE) return 0;
    a->nf4 = a->lora.rank > 0 || strcmp(dir, c->model.path) == 0;
    a->nf4_double = a->nf4 && c->model.quantization == QUANTIZATION_NF4_DOUBLE;
    return a->nf4 ? arch_check_nf4(a) : 0;
}

/* model.path is a whole model; adapters beside it are the config's. */
static int open_arch(struct setup *s)
{
    const struct config *c = s->cfg;
    if (arch_adapter(c->model.path))
        return err_set(ERR_INPUT,
                       "model.path: %s holds an adapter; set model.path to its base model and "
                       "model.lora.path to the adapter",
                       c->model.path);
    TRY(setup_arch(&s->arch, c, c->model.path));
    if (!c->model.lora.present) return 0;
    s->arch.lora = (struct lora){ .rank = c->model.lora.rank,
                                  .alpha = c->model.lora.alpha,
                                  .rslora = c->model.lora.rslora,
                                  .targets = (uint32_t)c->model.lora.targets,
                                  .dropout = c->model.lora.dropout };
    if (!c->model.lora.path) return 0;
    const int rc = lora_check(&s->arch.lora, c->model.lora.path);
    return rc < 0 ? err_note(rc, "model.lora.path") : 0;
}

int setup_open(struct setup *s, const struct config *c, struct dist *d)
{
    memset(s, 0, sizeof *s);
    s->cfg = c;
    s->kl_samples = c->eval.kl_samples;
    s->kl_reference = c->reference.path;
    s->dist = d;
    TRY(open_arch(s));
    if (c->data.max_length > s->arch.max_positions)
        return err_set(ERR_INPUT,
                       "data.max_length: %lld is more than the model's max_position_embeddings, "
                       "%lld (%s/config.json)",
                       (long long)c->data.max_length, (long long)s->arch.max_positions,
                       c->model.path);
    TRY(tokenizer_open(&s->tok, c->model.path));
    TRY(tokenizer_file(&s->tok_bytes, c->model.path));
    if (tokenizer_size(s->tok) > s->arch.V)
        fprintf(stderr,
                "%s: warning: the tokenizer has ids up to %d, the model %lld rows; a row that "
                "needs one is refused\n",
                c->model.path, tokenizer_size(s->tok) - 1, (long long)s->arch.V);
    const int rc = template_open(&s->tmpl, s->tok, c->model.path, c->data.chat_template,
                                 c->data.system_prompt, c->data.template_date);
    if (rc == ERR_INPUT && c->data.template_at)
        return err_note(rc, "%s: error", c->data.template_at);
    return rc;
}

int setup_cache_dir(char **dir, const struct config *c, const char *what)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    *dir = NULL;
    if (c->cache_dir) return mem_strdup(dir, c->cache_dir);
    if (xdg && *xdg == '/')
        return path_join(dir, xdg, "bdpo-train"); /* a relative one is to be ignored */
    if (home && *home) return path_join(dir, home, ".cache/bdpo-train");
    fprintf(stderr,
            "warning: %s cache: neither XDG_CACHE_HOME nor HOME is set; set cache_dir to keep what "
            "is computed\n",
            what);
    return 0;
}

int setup_cache(struct setup *s, bool write)
{
    s->cache_write = write;
    return s->cfg->data.cache ? setup_cache_dir(&s->cache_dir, s->cfg, "token") : 0;
}

int32_t setup_threads(const struct setup *s)
{
    if (s->cfg->threads > 0) return (int32_t)s->cfg->threads;
    return s->dist ? s->dist->cores : 0;
}

int backend_choose(struct backend *be, int wanted, int32_t threads, int32_t place)
{
    if (wanted == BACKEND_CPU) return cpu_open(be, threads);
    const int rc = cuda_open_at(be, threads, place);
    if (rc == 0) {
        fprintf(stderr, "backend: cuda: %s\n", be->about);
        return 0;
    }
    if (wanted == BACKEND_CUDA)
        return err_note(rc, "backend \"cuda\" (\"auto\" or \"cpu\" runs on the CPU)");
    if (cuda_built) fprintf(stderr, "backend: cpu; %s\n", err_msg());
    return cpu_open(be, threads);
}

/* A device for each rank of a machine, in turn; the same kind of backend on all ranks. */
static int open_ranks(struct setup *s, int wanted, int32_t threads, bool train)
{
    struct dist *d = s->dist;
    int rc = backend_choose(&s->be, wanted, threads, d->node_rank);
    int64_t without = rc == 0 && !s->be.net;
    s->be_open = rc == 0;
    TRY(dist_vote(d, rc, &without, 1));
    if (without && s->be.net) { /* auto, and a rank found no device */
        backend_close(&s->be);
        s->be_open = false;
        rc = cpu_open(&s->be, threads);
        s->be_open = rc == 0;
        if (rc == 0) fprintf(stderr, "backend: cpu; another rank has no device\n");
    }
    TRY(dist_agree(d, rc));
    return link_choose(d, &s->be, train ? (enum link_way)s->cfg->dist.transport : LINK_HOST);
}

int setup_backend(struct setup *s, bool train)
{
    const struct config *c = s->cfg;
    const int32_t threads = setup_threads(s);
    if (s->dist && s->dist->comm) {
        TRY(open_ranks(s, c->backend, threads, train));
    } else {
        TRY(backend_choose(&s->be, c->backend, threads, 0));
        s->be_open = true;
    }
    if (c->model.attention != ATTENTION_CUDNN) return 0;
    if (!s->be.about)
        return err_set(ERR_INPUT, "model.attention: \"cudnn\" needs a CUDA device, and the backend "
                                  "is the CPU; set \"auto\" or \"builtin\"");
    const int rc = cuda_use_cudnn(&s->be);
    return rc < 0 ? err_note(rc, "model.attention \"cudnn\"") : 0;
}

void setup_close(struct setup *s)
{
    if (s->be_open) backend_close(&s->be);
    free(s->cache_dir);
    template_close(s->tmpl);
    tokenizer_close(s->tok);
    memset(s, 0, sizeof *s);
}

struct data_opts setup_data_opts(const struct setup *s)
{
    const struct config *c = s->cfg;
    static const enum data_specials specials[] = { [SPECIAL_TEXT] = DATA_SPECIALS_TEXT,
                                                   [SPECIAL_ERROR] = DATA_SPECIALS_ERROR,
                                                   [SPECIAL_ALLOW] = DATA_SPECIALS_ALLOW };
    return (struct data_opts){
        .max_length = c->data.max_length,
        .max_prompt_length = c->data.max_prompt_length,
        .string_prompts_user = c->data.string_prompts == PROMPTS_USER,
        .specials = specials[c->data.special_tokens],
        .skip_bad_rows = c->data.on_bad_row == BAD_ROW_SKIP,
        .max_bad_rows = c->data.max_bad_rows,
        .max_line_bytes = c->data.max_line_bytes,
        .max_dropped = c->data.max_dropped,
        .subsample = c->data.subsample,
        .seed = c->seed,
        .vocab_size = (int32_t)s->arch.V,
        .threads = setup_threads(s),
    };
}

int setup_data(const struct setup *s, struct dataset *d, const struct strlist *files,
               enum data_kind kind)
{
    struct data_opts o = setup_data_opts(s);
    o.weights = files->weight;
    o.cache_dir = s->cache_dir;
    o.cache_write = s->cache_write;
    struct buf b = { 0 };
    TRY(dataset_load(d, files->item, files->n, kind, &o, s->tok, s->tmpl));
    const int rc = dataset_describe(d, &b);
    if (rc == 0) fprintf(stderr, "%s\n", b.data);
    buf_release(&b);
    return rc;
}

enum dtype setup_dtype(const struct config *c)
{
    return c->model.dtype == DTYPE_BFLOAT16 ? DT_BF16 : DT_F32;
}

enum st_dtype setup_save_dtype(const struct setup *s)
{
    const struct config *c = s->cfg;
    switch (c->model.save_dtype) {
    case SAVE_FLOAT32:
        return ST_F32;
    case SAVE_BFLOAT16:
        return ST_BF16;
    case SAVE_FLOAT16:
        return ST_F16;
    default:
        if (c->model.lora.present) return ST_F32; /* as peft keeps them; they are small */
        return c->model.init == MODEL_RANDOM ? ST_F32 : model_dir_dtype(c->model.path, &s->arch);
    }
}

int64_t setup_positions(const struct dataset *d)
{
    int64_t longest = 1;
    for (int64_t i = 0; i < d->n; i++)
        longest = MAX(longest, (int64_t)d->ex[i].np + MAX(d->ex[i].nw, d->ex[i].nl));
    return longest;
}
