/* SPDX-License-Identifier: MIT */
#include "planning.h"
#include "../base/cores.h"
#include "checkpoint.h"
#include "machine.h"
#include "work.h"
#include <stdio.h>
#include <string.h>

/* Share of the speed that is taken for granted: of this machine's measured product, of a device's published peak. */
static const double CPU_SHARE = 0.6, DEVICE_SHARE = 0.4;

struct planning {
    const struct config *cfg;
    const struct device *device; /* NULL: this machine */
    struct dist ranks;           /* nobody is there: for the shares alone */
    int32_t at_once;             /* of them compute at a time */
    struct setup su;
    struct inputs in;
    struct sizing size;
    bool fits;
    double flops; /* of a product, FLOP/s */
    double share; /* of it that the run is taken to reach */
    struct work work[RUN_STAGES];
    int64_t params;
    int64_t checkpoint, models; /* bytes on disk: one checkpoint; sft/ and model/ */
    int32_t n_models;
};

int planning_brief(struct buf *b, const struct setup *su, const struct sizing *s)
{
    const bool device = su->be.about != NULL;
    const int64_t total = device ? forecast_device(&s->peak) : forecast_total(&s->peak),
                  host = device ? forecast_total(&s->peak) - total : total,
                  free_now = machine_available();
    char size[32], limit[32];
    int shown = 0;
    TRY(buf_addf(b, "memory: %s at the peak%s, limit %s\n ", bytes_human(size, total),
                 device ? " on the device" : "", bytes_human(limit, s->limit)));
    for (int i = 0; i < FORECAST_PARTS; i++)
        if (s->peak.part[i] > 0)
            TRY(buf_addf(b, "%s %s %s", shown++ ? "," : "", forecast_name(i),
                         bytes_human(size, s->peak.part[i])));
    TRY(buf_addf(b, "\n  micro-batches of %lld tokens, %lld of %lld layers recomputed, logits %s",
                 (long long)s->micro_tokens, (long long)s->recompute, (long long)su->arch.L,
                 s->keep_logits ? "kept" : "recomputed"));
    const int64_t held = s->peak.part[FORECAST_DATA] + s->peak.part[FORECAST_PROGRAM];
    if (host - held > free_now)
        TRY(buf_addf(b,
                     "\nwarning: only %s of memory are free now; the system may end the run when "
                     "others keep the rest",
                     bytes_human(size, free_now)));
    return 0;
}

int planning_compare(struct status *st, const struct backend *be, const struct forecast *planned)
{
    int64_t limit, used, total = forecast_device(planned);
    char a[32], b[32];
    TRY(be->mem->memory(be->cx, &limit, &used));
    if (!limit) {
        used = machine_anonymous();
        total = forecast_total(planned);
    }
    if (used > 0)
        status_say(st, "memory: %s in use %safter the first step, planned %s (%+.1f %%)",
                   bytes_human(a, used), limit ? "on the device " : "", bytes_human(b, total),
                   100 * ((double)used / (double)total - 1));
    return 0;
}

static int disk(struct planning *p)
{
    const struct config *c = p->cfg;
    const enum st_dtype dtype = setup_save_dtype(&p->su);
    int64_t rows = 0;
    struct model m;
    TRY(model_init(&m, &p->su.be, &p->su.arch, setup_dtype(c)));
    for (int i = 0; i < p->in.n_stages; i++)
        rows =
            MAX(rows, p->in.stage[i].data->n + (p->in.stage[i].eval ? p->in.stage[i].eval->n : 0));
    p->checkpoint = checkpoint_bytes(m.n_trained, rows);
    model_release(&m);
    p->n_models = c->sft.present + 1;
    const int64_t written = p->su.arch.lora.rank > 0 ? lora_parameters(&p->su.arch) : p->params;
    p->models = written * st_dtype_size(dtype);
    return 0;
}

/* Ranks of this machine share its memory and cores; of devices each has one. */
static void seat(struct planning *p, const struct planning_opts *o)
{
    uint8_t core[CORES_MAX / 8];
    p->ranks = (struct dist){ .size = o->ranks, .node_ranks = 1 };
    p->at_once = o->ranks;
    if (o->device || o->ranks == 1) return;
    const int32_t cores = cores_allowed(core);
    p->ranks.node_ranks = o->ranks;
    p->ranks.cores = MAX(cores / o->ranks, 1);
    p->at_once = MIN(o->ranks, cores);
}

static int open_planning(struct planning *p, const struct config *c, const struct planning_opts *o)
{
    p->cfg = c;
    seat(p, o);
    if (o->device && !(p->device = device_find(o->device)))
        return err_set(ERR_INPUT, "--device: \"%.40s\" is not one of %s", o->device,
                       device_names());
    TRY(setup_open(&p->su, c, NULL));
    TRY(setup_cache(&p->su, false));
    TRY(inputs_load(&p->in, &p->su, true));
    p->su.dist = &p->ranks; /* after what talks to others */
    TRY(setup_backend(&p->su, true));
    p->params = arch_parameters(&p->su.arch);
    for (int i = 0; i < p->in.n_stages; i++) {
        const struct run_stage *r = &p->in.stage[i];
        const bool sft = r->kind == STAGE_SFT;
        p->work[i] =
            work_stage(r->arch, sft ? &c->sft : &c->preference, r->data,
                       r->train ? !sft && !c->reference.path && inputs_reads_reference(c) : true);
        if (!r->train) p->work[i].example = p->work[i].step = p->work[i].stage = 0;
    }
    return disk(p);
}

static int size_planning(struct planning *p)
{
    const struct config *c = p->cfg;
    const struct sizing_want want = { c->memory.micro_batch_tokens,
                                      c->memory.gradient_checkpointing, c->memory.keep_logits };
    struct sizing_run run;
    TRY(inputs_run(&run, &p->in, &p->su.be));
    if (p->device) {
        run.memory = p->device->memory;
        run.elsewhere = true;
        run.small_batch = sizing_small_batch(p->device);
        p->flops = p->device->flops;
        p->share = DEVICE_SHARE;
    } else {
        TRY(machine_flops(&p->su.be, setup_dtype(c), &p->flops));
        p->share = CPU_SHARE;
    }
    const int rc = sizing_choose(&p->size, &p->su, &run, &want);
    p->fits = rc == 0;
    return rc;
}

/* FLOP/s of all ranks. */
static double rate_of(const struct planning *p)
{
    return p->flops * p->share * p->at_once;
}

/* --- in words ----------------------------------------------------------------------------------------------------- */

static int say_memory(struct buf *b, const struct planning *p)
{
    const struct sizing *s = &p->size;
    const int64_t total = forecast_total(&s->peak);
    char size[32];
    TRY(buf_addf(b, "memory at the peak (%s)\n",
                 s->peak.part[PLAN_GRADIENTS] == 0         ? "reference.path's pass"
                 : p->in.stage[s->stage].kind == STAGE_SFT ? "sft"
                                                           : "preference"));
    for (int i = 0; i < FORECAST_PARTS; i++)
        if (s->peak.part[i] > 0)
            TRY(buf_addf(b, "  %-22s %10s  %5.1f %%\n", forecast_name(i),
                         bytes_human(size, s->peak.part[i]),
                         100 * (double)s->peak.part[i] / (double)total));
    TRY(buf_addf(b, "  %-22s %10s\n", "total", bytes_human(size, total)));
    if (p->device)
        TRY(buf_addf(b, "  %-22s %10s\n", "of it on the device",
                     bytes_human(size, forecast_device(&s->peak))));
    return buf_addf(b, "  %-22s %10s  %s\n", "limit", bytes_human(size, s->limit),
                    p->device        ? "the device's memory less 3 %"
                    : s->limit_given ? "memory.limit"
                    : p->ranks.size > 1
                        ? "the ranks' share of this machine's memory less 3 % for the system"
                        : "this machine's memory less 3 % for the system");
}

static int say_sizes(struct buf *b, const struct planning *p)
{
    const struct sizing *s = &p->size;
    const bool chosen = p->cfg->memory.micro_batch_tokens == CONFIG_AUTO,
               open = p->cfg->memory.keep_logits == CONFIG_AUTO;
    TRY(buf_addf(b,
                 "sizes\n  micro_batch_tokens     %10lld  %s; the largest has %lld tokens, %lld of "
                 "responses\n",
                 (long long)s->micro_tokens, chosen ? "chosen" : "given", (long long)s->size.T,
                 (long long)s->size.N));
    TRY(buf_addf(b, "  gradient_checkpointing %10lld  %s; of %lld layers\n",
                 (long long)s->recompute,
                 p->cfg->memory.gradient_checkpointing == CONFIG_AUTO ? "chosen" : "given",
                 (long long)p->su.arch.L));
    return buf_addf(b, "  keep_logits            %10s  %s\n", s->keep_logits ? "true" : "false",
                    open ? "chosen" : "given");
}

static int say_work(struct buf *b, const struct planning *p)
{
    const double rate = rate_of(p);
    double hours = 0;
    TRY(buf_addf(b, "arithmetic that cannot be saved; hours at %.0f %% of %.4g TFLOP/s%s (%s)\n",
                 100 * p->share, p->flops / 1e12, p->ranks.size > 1 ? " a rank" : "",
                 p->device ? "published peak, the share is an assumption"
                           : "measured in a product, the share is an assumption"));
    for (int i = 0; i < p->in.n_stages; i++) {
        const struct run_stage *r = &p->in.stage[i];
        const struct work *w = &p->work[i];
        const char *name = !r->train              ? "reference.path"
                           : r->kind == STAGE_SFT ? "sft"
                                                  : "preference";
        if (w->stage > 0) {
            TRY(buf_addf(b, "  %-22s %.4g TFLOP a %s, %.4g a step", name, w->example / 1e12,
                         r->kind == STAGE_SFT ? "row" : "pair", w->step / 1e12));
            if (p->in.assumed[r->kind])
                TRY(buf_adds(b, "; the data are not there: no total\n"));
            else
                TRY(buf_addf(b, ", %.4g in all (%lld %s): %.3g h\n", w->stage / 1e12,
                             (long long)w->examples, r->kind == STAGE_SFT ? "rows" : "pairs",
                             w->stage / rate / 3600));
        }
        if (w->reference > 0 && !p->in.assumed[r->kind])
            TRY(buf_addf(b, "  %-22s %.4g TFLOP: %.3g h, less what the cache has\n",
                         r->train ? "reference" : name, w->reference / 1e12,
                         w->reference / rate / 3600));
        if (!p->in.assumed[r->kind]) hours += (w->stage + w->reference) / rate / 3600;
    }
    return hours > 0 ? buf_addf(b, "  %-22s %.3g h\n", "total", hours) : 0;
}

static int say_disk(struct buf *b, const struct planning *p)
{
    const struct config *c = p->cfg;
    const bool saves = c->checkpoint.every > 0 || c->checkpoint.every_minutes > 0;
    const int64_t all =
        (saves ? p->checkpoint * (c->checkpoint.keep + 1) : 0) + (p->n_models + 1) * p->models;
    const int64_t free_now = disk_free(c->output);
    char one[32], size[32];
    TRY(buf_adds(b, "disk\n"));
    if (saves)
        TRY(buf_addf(b, "  %-22s %10s  %s each, %lld kept and one being written\n", "checkpoints",
                     bytes_human(size, p->checkpoint * (c->checkpoint.keep + 1)),
                     bytes_human(one, p->checkpoint), (long long)c->checkpoint.keep));
    TRY(buf_addf(b, "  %-22s %10s  each; one more while an older one is replaced\n",
                 p->n_models > 1 ? "sft/ and model/" : "model/", bytes_human(size, p->models)));
    TRY(buf_addf(b, "  %-22s %10s", "total", bytes_human(size, all)));
    return free_now < 0 ? buf_adds(b, "\n")
                        : buf_addf(b, "  %s are free\n", bytes_human(size, free_now));
}

static int say(struct buf *b, const struct planning *p)
{
    const struct arch *a = &p->su.arch;
    TRY(buf_addf(b, "model\n  %s: %.4g M parameters (%.4g M in layers), %lld layers of %lld, %s\n",
                 a->model_type, (double)p->params / 1e6,
                 (double)(p->params - (a->tied ? 1 : 2) * a->C * a->V) / 1e6, (long long)a->L,
                 (long long)a->C, p->cfg->model.dtype == DTYPE_BFLOAT16 ? "bfloat16" : "float32"));
    if (p->device && p->ranks.size == 1) TRY(buf_addf(b, "  on one %s\n", p->device->title));
    if (p->ranks.size > 1)
        TRY(buf_addf(b, "  on %d ranks%s%s; the memory is that of the first\n", p->ranks.size,
                     p->device ? ", each with one " : " of this machine",
                     p->device ? p->device->title : ""));
    if (a->lora.rank > 0)
        TRY(buf_addf(b, "  adapters of rank %lld: %.4g M parameters, which alone are trained\n",
                     (long long)a->lora.rank, (double)lora_parameters(a) / 1e6));
    for (int k = 0; k < 2; k++)
        if (p->in.assumed[k])
            TRY(buf_addf(
                b, "  %s: the data are not there, so every row is taken to be of data.max_length\n",
                k == STAGE_SFT ? "sft" : "preference"));
    TRY(say_memory(b, p));
    TRY(say_sizes(b, p));
    TRY(say_work(b, p));
    return say_disk(b, p);
}

/* --- for programs --------------------------------------------------------------------------------------------------- */

static int json_out(struct buf *b, const struct planning *p)
{
    const struct sizing *s = &p->size;
    const struct config *c = p->cfg;
    json_t *root = json_object(), *memory = json_object(), *stages = json_array();
    int rc = 0;
    for (int i = 0; i < FORECAST_PARTS; i++)
        TRY_OUT(metrics_int(memory, forecast_name(i), s->peak.part[i]));
    TRY_OUT(metrics_int(root, "memory_bytes_total", forecast_total(&s->peak)));
    TRY_OUT(metrics_int(root, "memory_bytes_limit", s->limit));
    if (p->device) TRY_OUT(metrics_int(root, "memory_bytes_device", forecast_device(&s->peak)));
    TRY_OUT(metrics_int(root, "ranks", p->ranks.size));
    TRY_OUT(metrics_int(root, "parameters", p->params));
    if (p->su.arch.lora.rank > 0)
        TRY_OUT(metrics_int(root, "adapter_parameters", lora_parameters(&p->su.arch)));
    TRY_OUT(metrics_int(root, "layers", p->su.arch.L));
    TRY_OUT(metrics_int(root, "micro_batch_tokens", s->micro_tokens));
    TRY_OUT(metrics_int(root, "gradient_checkpointing", s->recompute));
    TRY_OUT(metrics_int(root, "keep_logits", s->keep_logits));
    TRY_OUT(metrics_real(root, "flops_per_second", p->flops));
    TRY_OUT(metrics_real(root, "utilisation_assumed", p->share));
    TRY_OUT(metrics_int(root, "checkpoint_bytes", p->checkpoint));
    TRY_OUT(metrics_int(root, "checkpoints_kept", c->checkpoint.keep));
    TRY_OUT(metrics_int(root, "model_bytes", p->models));
    for (int i = 0; i < p->in.n_stages; i++) {
        const struct run_stage *r = &p->in.stage[i];
        json_t *o = json_object();
        json_array_append_new(stages, o);
        TRY_OUT(metrics_text(o, "stage",
                             !r->train              ? "reference"
                             : r->kind == STAGE_SFT ? "sft"
                                                    : "preference"));
        TRY_OUT(metrics_int(o, "lengths_known", !p->in.assumed[r->kind]));
        TRY_OUT(metrics_int(o, "examples", p->work[i].examples));
        TRY_OUT(metrics_real(o, "flops_per_example", p->work[i].example));
        TRY_OUT(metrics_real(o, "flops_per_step", p->work[i].step));
        TRY_OUT(metrics_real(o, "flops", p->work[i].stage));
        TRY_OUT(metrics_real(o, "flops_reference", p->work[i].reference));
        TRY_OUT(metrics_real(o, "hours",
                             (p->work[i].stage + p->work[i].reference) / rate_of(p) / 3600));
    }
    if (json_object_set_new(root, "fits", json_boolean(p->fits)) ||
        json_object_set(root, "memory_bytes", memory) || json_object_set(root, "stages", stages))
        TRY_OUT(err_set(ERR_OOM, "out of memory for the plan"));
    TRY_OUT(json_dump(b, root, 2));
out:
    json_decref(root);
    json_decref(memory);
    json_decref(stages);
    return rc;
}

int planning_run(const struct config *c, const struct planning_opts *o)
{
    struct planning p = { 0 };
    struct buf b = { 0 }, why = { 0 };
    int rc;
    TRY_OUT(open_planning(&p, c, o));
    rc = size_planning(&p);
    if (rc < 0 && p.size.micro_tokens == 0) goto out;
    if (rc < 0) buf_adds(&why, err_msg());
    TRY_OUT(o->json ? json_out(&b, &p) : say(&b, &p));
    printf("%s%s", b.data, o->json ? "\n" : "");
    if (fflush(stdout) != 0) TRY_OUT(err_set(ERR_IO, "cannot write to the standard output"));
    if (!p.fits) rc = err_set(ERR_INPUT, "%s", why.data ? why.data : "it does not fit");
out:
    buf_release(&b);
    buf_release(&why);
    inputs_release(&p.in);
    setup_close(&p.su);
    return rc;
}
