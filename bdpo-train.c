/* SPDX-License-Identifier: MIT
 * bdpo-train.c - the commands, and the one place that prints errors and exits. */
#include "src/dist/comm.h"
#include "src/report/contour.h"
#include "src/report/page.h"
#include "src/report/toy.h"
#include "src/train/evaluate.h"
#include "src/train/generate.h"
#include "src/train/merge.h"
#include "src/train/job.h"
#include "src/train/lint.h"
#include "src/train/machine.h"
#include "src/train/planning.h"
#include "src/train/sweep.h"
#include "src/train/tokenize.h"
#include "src/train/usage.h"
#include "src/base/signals.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { SETS_MAX = 256, STOPS_MAX = 32 };
struct args { /* what a command line may hold; each command names the flags it takes */
    const char *config, *model, *prompt, *prompts, *out, *per_pair, *system, *chat_template,
        *string_prompts, *dtype, *quantization, *device, *ranks, *backend, *file, *csv;
    const char *max_tokens, *temperature, *top_k, *top_p, *seed, *batch, *threads;
    const char *loss, *beta, *lambda, *alpha, *smoothing, *ref_w, *ref_l, *max_w, *max_l, *points;
    const char *rates, *steps, *seeds, *compare;
    const char *sets[SETS_MAX], *stops[STOPS_MAX], *dirs[PAGE_RUNS_MAX];
    int32_t n_sets, n_stops, n_dirs;
    bool dry_run, allow_change, json, cut_prompts;
};
struct flag {
    const char *name;
    size_t offset; /* of the const char * in struct args, or of the bool */
    bool takes_value;
};
#define FLAG(name, field)                        \
    {                                            \
        name, offsetof(struct args, field), true \
    }
#define SWITCH(name, field)                       \
    {                                             \
        name, offsetof(struct args, field), false \
    }
static const struct flag FLAGS[] = {
    FLAG("--config", config),
    FLAG("--model", model),
    FLAG("--prompt", prompt),
    FLAG("--prompts", prompts),
    FLAG("--out", out),
    FLAG("--per-pair", per_pair),
    FLAG("--compare", compare),
    FLAG("--csv", csv),
    FLAG("--system", system),
    FLAG("--chat-template", chat_template),
    FLAG("--string-prompts", string_prompts),
    FLAG("--dtype", dtype),
    FLAG("--quantization", quantization),
    FLAG("--device", device),
    FLAG("--ranks", ranks),
    FLAG("--backend", backend),
    FLAG("--max-tokens", max_tokens),
    FLAG("--temperature", temperature),
    FLAG("--top-k", top_k),
    FLAG("--top-p", top_p),
    FLAG("--seed", seed),
    FLAG("--batch", batch),
    FLAG("--threads", threads),
    FLAG("--loss", loss),
    FLAG("--beta", beta),
    FLAG("--lambda", lambda),
    FLAG("--alpha", alpha),
    FLAG("--label-smoothing", smoothing),
    FLAG("--ref-w", ref_w),
    FLAG("--ref-l", ref_l),
    FLAG("--max-w", max_w),
    FLAG("--max-l", max_l),
    FLAG("--points", points),
    FLAG("--rates", rates),
    FLAG("--steps", steps),
    FLAG("--seeds", seeds),
    SWITCH("--dry-run", dry_run),
    SWITCH("--json", json),
    SWITCH("--cut-prompts", cut_prompts),
    SWITCH("--allow-change", allow_change),
};

/* Is `name` one of the space-separated flags in `allowed`? */
static bool listed(const char *allowed, const char *name)
{
    const size_t n = strlen(name);
    for (const char *p = allowed; (p = strstr(p, name)); p += n)
        if ((p == allowed || p[-1] == ' ') && (p[n] == ' ' || p[n] == 0)) return true;
    return false;
}

static int parse_flag(struct args *a, const char *allowed, char **argv, int argc, int *i)
{
    char name[32];
    const char *arg = argv[*i], *equals = strchr(arg, '='), *value = NULL;
    const size_t n = equals ? (size_t)(equals - arg) : strlen(arg);
    const char *names[COUNT_OF(FLAGS) + 2];
    size_t n_names = 0;
    snprintf(name, sizeof name, "%.*s", (int)MIN(n, sizeof name - 1), arg);
    const struct {
        const char *name, *value, **list;
        int32_t *n, most;
    } lists[] = { { "--set", "key=value", a->sets, &a->n_sets, SETS_MAX },
                  { "--stop", "a text", a->stops, &a->n_stops, STOPS_MAX } };
    for (size_t k = 0; k < COUNT_OF(lists); k++) {
        if (!listed(allowed, lists[k].name)) continue;
        names[n_names++] = lists[k].name;
        if (strcmp(name, lists[k].name) != 0) continue;
        value = equals ? equals + 1 : *i + 1 < argc ? argv[++*i] : NULL;
        if (!value || !*value) return err_set(ERR_INPUT, "%s needs %s", name, lists[k].value);
        if (*lists[k].n == lists[k].most)
            return err_set(ERR_INPUT, "%s: at most %d", name, lists[k].most);
        lists[k].list[(*lists[k].n)++] = value;
        return 0;
    }
    for (size_t k = 0; k < COUNT_OF(FLAGS); k++) {
        if (!listed(allowed, FLAGS[k].name)) continue;
        names[n_names++] = FLAGS[k].name;
        if (strcmp(name, FLAGS[k].name) != 0) continue;
        if (!FLAGS[k].takes_value) {
            if (equals) return err_set(ERR_INPUT, "%s takes no value", name);
            *(bool *)((char *)a + FLAGS[k].offset) = true;
            return 0;
        }
        value = equals ? equals + 1 : *i + 1 < argc ? argv[++*i] : NULL;
        if (!value) return err_set(ERR_INPUT, "%s needs a value", name);
        const char **slot = (const char **)(void *)((char *)a + FLAGS[k].offset);
        if (*slot) return err_set(ERR_INPUT, "%s is given twice", name);
        *slot = value;
        return 0;
    }
    const char *near = json_nearest(name, names, n_names);
    if (near) return err_set(ERR_INPUT, "%s: unknown option here; did you mean %s?", name, near);
    return err_set(ERR_INPUT, "%s: unknown option here; see bdpo-train --help", name);
}

static int parse_args(struct args *a, const char *allowed, char **argv, int argc, int first)
{
    memset(a, 0, sizeof *a);
    for (int i = first; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) == 0) {
            TRY(parse_flag(a, allowed, argv, argc, &i));
        } else if (listed(allowed, "DIRS")) {
            if (a->n_dirs == PAGE_RUNS_MAX)
                return err_set(ERR_INPUT, "at most %d runs", PAGE_RUNS_MAX);
            a->dirs[a->n_dirs++] = argv[i];
        } else if (listed(allowed, "FILE") && !a->file) {
            a->file = argv[i];
        } else {
            return err_set(ERR_INPUT, "%s: unexpected argument; see bdpo-train --help", argv[i]);
        }
    }
    return 0;
}

/* A number from the command line: the text must be a JSON number in [lo, hi]. */
static int number(const char *name, const char *text, double lo, double hi, bool whole, double *out)
{
    struct json_doc d = { 0 };
    if (!text) return 0;
    int rc = json_doc_parse_any(&d, name, 1, text, strlen(text));
    if (rc < 0 || !json_is_number(d.root) || (whole && !json_is_integer(d.root)))
        rc = err_set(ERR_INPUT, "%s: \"%.40s\" is not %s", name, text,
                     whole ? "a whole number" : "a number");
    else
        *out = json_number_value(d.root);
    if (rc == 0 && !(*out >= lo && *out <= hi))
        rc = err_set(ERR_INPUT, "%s: %s is outside [%g, %g]", name, text, lo, hi);
    json_doc_release(&d);
    return rc;
}

/* of the commands that several ranks run together; other commands stay alone */
static struct dist ranks;
/* seconds that a rank may take to read its config; then it says itself how many it may stand still */
enum { HANG_TIMEOUT = 600 };

static int load_config(struct args *a, struct config **c, const char *allowed, char **argv,
                       int argc, int first)
{
    TRY(parse_args(a, allowed, argv, argc, first));
    if (!a->config)
        return first == 1 ? err_set(ERR_INPUT, "--config run.json is needed; see bdpo-train --help")
                          : err_set(ERR_INPUT, "%s: --config run.json is needed", argv[1]);
    return config_load(c, a->config, a->sets, a->n_sets);
}

static int command_train(int argc, char **argv)
{
    struct args a;
    struct config *c = NULL;
    int rc;
    signals_install(); /* before anything that takes time */
    TRY(dist_open(&ranks));
    if (ranks.size > 1) TRY_OUT(dist_watch(&ranks, HANG_TIMEOUT, NULL, NULL));
    TRY_OUT(dist_agree(
        &ranks, load_config(&a, &c, "--config --set --dry-run --allow-change", argv, argc, 1)));
    watch_stop(); /* from here on with the config's own seconds */
    const struct job_opts o = { .allow_change = a.allow_change };
    if (a.dry_run)
        rc = dist_agree(&ranks, ranks.rank == 0 ? job_dry_run(c) : 0);
    else
        rc = job_run(c, &ranks, &o);
out:
    watch_stop();
    config_free(c);
    return rc;
}

static int command_plan(int argc, char **argv)
{
    struct args a;
    struct config *c = NULL;
    double n_ranks = 1;
    TRY(load_config(&a, &c, "--config --set --device --ranks --json", argv, argc, 2));
    int rc = number("--ranks", a.ranks, 1, 65536, true, &n_ranks);
    const struct planning_opts o = { .device = a.device,
                                     .ranks = (int32_t)n_ranks,
                                     .json = a.json };
    if (rc == 0) rc = planning_run(c, &o);
    config_free(c);
    return rc;
}

static int command_evaluate(int argc, char **argv)
{
    struct args a;
    struct config *c = NULL;
    int rc;
    TRY(dist_open(&ranks));
    TRY_OUT(dist_agree(
        &ranks, load_config(&a, &c, "--config --set --model --compare --per-pair", argv, argc, 2)));
    rc = evaluate_run(c, &ranks, a.model, a.compare, a.per_pair);
out:
    config_free(c);
    return rc;
}

static int command_lint(int argc, char **argv)
{
    struct args a;
    struct config *c = NULL;
    TRY(load_config(&a, &c, "--config --set --out", argv, argc, 2));
    const int rc = lint_run(c, a.out);
    config_free(c);
    return rc;
}

/* BACKEND_* of --backend; not given: auto */
static int backend_named(int *out, const char *name)
{
    static const char *const names[] = { "auto", "cpu", "cuda" };
    _Static_assert(BACKEND_AUTO == 0 && BACKEND_CPU == 1 && BACKEND_CUDA == 2, "places in names");
    for (*out = 0; *out < (int)COUNT_OF(names); ++*out)
        if (strcmp(name ? name : "auto", names[*out]) == 0) return 0;
    return err_set(ERR_INPUT, "--backend: \"%.40s\" is not auto, cpu or cuda", name);
}

static int command_generate(int argc, char **argv)
{
    struct args a;
    double max_tokens = 256, temperature = 0, top_k = 0, top_p = 1, seed = 42, batch = 16,
           threads = 0;
    int backend = BACKEND_AUTO;
    TRY(parse_args(&a,
                   "--model --prompt --prompts --out --max-tokens --temperature --top-k --top-p "
                   "--seed --batch --threads --system "
                   "--chat-template --string-prompts --dtype --backend --stop --cut-prompts",
                   argv, argc, 2));
    if (!a.model) return err_set(ERR_INPUT, "generate: --model DIR is needed");
    if (!a.prompt == !a.prompts)
        return err_set(ERR_INPUT, "generate: give one of --prompt TEXT and --prompts FILE");
    TRY(number("--max-tokens", a.max_tokens, 1, 1e6, true, &max_tokens));
    TRY(number("--temperature", a.temperature, 0, 100, false, &temperature));
    TRY(number("--top-k", a.top_k, 0, 1e9, true, &top_k));
    TRY(number("--top-p", a.top_p, 1e-9, 1, false, &top_p));
    TRY(number("--seed", a.seed, 0, 0x1p53, true, &seed));
    TRY(number("--batch", a.batch, 1, 65536, true, &batch));
    TRY(number("--threads", a.threads, 0, 4096, true, &threads));
    if (a.string_prompts && strcmp(a.string_prompts, "raw") != 0 &&
        strcmp(a.string_prompts, "user") != 0)
        return err_set(ERR_INPUT, "--string-prompts: \"%.40s\" is not raw or user",
                       a.string_prompts);
    if (a.dtype && strcmp(a.dtype, "float32") != 0 && strcmp(a.dtype, "bfloat16") != 0)
        return err_set(ERR_INPUT, "--dtype: \"%.40s\" is not float32 or bfloat16", a.dtype);
    TRY(backend_named(&backend, a.backend));
    const struct generate_opts o = {
        .model = a.model,
        .prompt = a.prompt,
        .prompts = a.prompts,
        .out = a.out,
        .system = a.system,
        .chat_template = a.chat_template,
        .prompts_user = a.string_prompts && strcmp(a.string_prompts, "user") == 0,
        .stops = a.stops,
        .n_stops = a.n_stops,
        .cut_prompts = a.cut_prompts,
        .bf16 = a.dtype && strcmp(a.dtype, "bfloat16") == 0,
        .max_tokens = (int64_t)max_tokens,
        .batch = (int64_t)batch,
        .top_k = (int64_t)top_k,
        .temperature = temperature,
        .top_p = top_p,
        .seed = (uint64_t)seed,
        .threads = (int32_t)threads,
        .backend = backend,
    };
    return generate_run(&o);
}

static int command_tokenize(int argc, char **argv)
{
    struct args a;
    TRY(parse_args(&a, "--model --chat-template FILE", argv, argc, 2));
    if (!a.model || !a.file)
        return err_set(ERR_INPUT, "tokenize: --model DIR and a FILE.jsonl are needed");
    return tokenize_run(a.model, a.file, a.chat_template);
}

static int command_losses(int argc, char **argv)
{
    if (argc > 2) return err_set(ERR_INPUT, "%s: losses takes no arguments", argv[2]);
    for (size_t i = 0; i < loss_count; i++) {
        const struct loss_def *d = &loss_table[i];
        const struct {
            unsigned bit;
            double value;
        } option[] = { { LOSS_BETA, d->defaults.beta },
                       { LOSS_LAMBDA, d->defaults.lambda },
                       { LOSS_ALPHA, d->defaults.alpha },
                       { LOSS_SMOOTHING, d->defaults.label_smoothing } };
        printf("%-10s %s\n           options:", d->name, d->formula);
        for (size_t k = 0; k < COUNT_OF(option); k++)
            if (d->options & option[k].bit)
                printf(" %s (%g)", loss_option_name(option[k].bit), option[k].value);
        printf("%s\n           source: %s\n", d->flags & LOSS_REF ? "" : "; no reference",
               d->source);
    }
    return 0;
}

/* The loss that --loss names and its options; one that the loss does not have is an error. */
static int loss_flags(const struct args *a, const struct loss_def **loss, struct loss_opts *o)
{
    const char *names[64];
    BUG_IF(loss_count > COUNT_OF(names));
    if (!a->loss) return err_set(ERR_INPUT, "--loss NAME is needed; see bdpo-train losses");
    *loss = loss_find(a->loss);
    if (!*loss) {
        for (size_t i = 0; i < loss_count; i++)
            names[i] = loss_table[i].name;
        const char *near = json_nearest(a->loss, names, loss_count);
        return err_set(ERR_INPUT, "--loss: \"%.40s\" is not a loss; %s%s%s", a->loss,
                       near ? "did you mean \"" : "see bdpo-train losses", near ? near : "",
                       near ? "\"?" : "");
    }
    *o = (*loss)->defaults;
    const struct {
        unsigned bit;
        const char *flag, *text;
        double lo, hi, *value;
    } option[] = { { LOSS_BETA, "--beta", a->beta, 1e-9, 1e6, &o->beta },
                   { LOSS_LAMBDA, "--lambda", a->lambda, 0, (*loss)->lambda_max, &o->lambda },
                   { LOSS_ALPHA, "--alpha", a->alpha, 0, 1e6, &o->alpha },
                   { LOSS_SMOOTHING, "--label-smoothing", a->smoothing, 0, 0.5,
                     &o->label_smoothing } };
    for (size_t i = 0; i < COUNT_OF(option); i++) {
        if (option[i].text && !((*loss)->options & option[i].bit))
            return err_set(ERR_INPUT, "%s: the loss %s has no such option", option[i].flag,
                           (*loss)->name);
        TRY(number(option[i].flag, option[i].text, option[i].lo, option[i].hi, false,
                   option[i].value));
    }
    return 0;
}

static int command_contour(int argc, char **argv)
{
    struct args a;
    struct contour_opts o = { .ref_w = 0.4, .ref_l = 0.1, .max_w = 1, .max_l = 1 };
    double points = 100;
    TRY(parse_args(&a,
                   "--loss --beta --lambda --alpha --label-smoothing --ref-w --ref-l --max-w "
                   "--max-l --points --out",
                   argv, argc, 2));
    TRY(loss_flags(&a, &o.loss, &o.loss_opts));
    TRY(number("--ref-w", a.ref_w, 1e-9, 1, false, &o.ref_w));
    TRY(number("--ref-l", a.ref_l, 1e-9, 1, false, &o.ref_l));
    TRY(number("--max-w", a.max_w, 1e-9, 1, false, &o.max_w));
    TRY(number("--max-l", a.max_l, 1e-9, 1, false, &o.max_l));
    TRY(number("--points", a.points, 2, 1000, true, &points));
    if (o.ref_w + o.ref_l > 1)
        return err_set(ERR_INPUT, "--ref-w, --ref-l: %g + %g is above 1", o.ref_w, o.ref_l);
    o.points = (int64_t)points;
    o.out = a.out;
    return contour_run(&o);
}

/* "0.01,0.001": numbers with commas between. */
static int rate_list(struct toy_opts *o, const char *text)
{
    o->n_rates = 0;
    for (const char *p = text; p;) {
        const char *comma = strchr(p, ',');
        char one[40];
        if (o->n_rates == TOY_RATES_MAX)
            return err_set(ERR_INPUT, "--rates: at most %d", TOY_RATES_MAX);
        snprintf(one, sizeof one, "%.*s", comma ? (int)MIN(comma - p, 39) : 39, p);
        TRY(number("--rates", one, 1e-12, 1e3, false, &o->rate[o->n_rates++]));
        p = comma ? comma + 1 : NULL;
    }
    return 0;
}

static int command_toy(int argc, char **argv)
{
    struct args a;
    struct toy_opts o = { 0 };
    double steps = 1000, seeds = 100, seed = 1;
    TRY(parse_args(&a, "--out --rates --steps --seeds --seed", argv, argc, 2));
    TRY(rate_list(&o, a.rates ? a.rates : "0.01,0.001,0.1"));
    TRY(number("--steps", a.steps, 1, 1e6, true, &steps));
    TRY(number("--seeds", a.seeds, 1, 1e6, true, &seeds));
    TRY(number("--seed", a.seed, 0, 0x1p53, true, &seed));
    o.steps = (int64_t)steps;
    o.seeds = (int64_t)seeds;
    o.seed = (uint64_t)seed;
    o.out = a.out;
    return toy_run(&o);
}

static int command_merge(int argc, char **argv)
{
    static const char *const names[] = { [QUANTIZATION_NONE] = "none",
                                         [QUANTIZATION_NF4] = "nf4",
                                         [QUANTIZATION_NF4_DOUBLE] = "nf4_double" };
    struct args a;
    double threads = 0;
    TRY(parse_args(&a, "--out --quantization --threads DIRS", argv, argc, 2));
    int32_t quantization = a.quantization ? -1 : QUANTIZATION_NONE;
    if (a.n_dirs != 1) return err_set(ERR_INPUT, "merge: one RUN_DIR is needed");
    if (!a.out) return err_set(ERR_INPUT, "merge: --out DIR is needed");
    TRY(number("--threads", a.threads, 0, 4096, true, &threads));
    for (size_t i = 0; a.quantization && i < COUNT_OF(names); i++)
        if (strcmp(a.quantization, names[i]) == 0) quantization = (int32_t)i;
    if (quantization < 0)
        return err_set(ERR_INPUT, "--quantization: \"%.40s\" is not none, nf4 or nf4_double",
                       a.quantization);
    return merge_run(a.dirs[0], a.out, quantization, (int32_t)threads);
}

static int command_report(int argc, char **argv)
{
    struct args a;
    char *out = NULL;
    TRY(parse_args(&a, "--out DIRS", argv, argc, 2));
    if (a.n_dirs == 0) return err_set(ERR_INPUT, "report: at least one RUN_DIR is needed");
    if (a.out || a.n_dirs > 1)
        TRY(mem_strdup(&out, a.out ? a.out : "report.html"));
    else
        TRY(path_join(&out, a.dirs[0], "report.html"));
    const int rc = page_write(a.dirs, a.n_dirs, out);
    if (rc == 0) fprintf(stderr, "wrote %s\n", out);
    free(out);
    return rc;
}

static int command_sweep(int argc, char **argv)
{
    struct args a;
    struct sweep s;
    TRY(parse_args(&a, "--csv FILE", argv, argc, 2));
    if (!a.file) return err_set(ERR_INPUT, "sweep: a GRID.json is needed");
    int rc = sweep_read(&s, a.file);
    if (rc == 0) rc = a.csv ? sweep_table(&s, a.csv) : sweep_expand(&s);
    sweep_release(&s);
    return rc;
}

static bool asks_help(const char *arg)
{
    return strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0;
}

static int run(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = { { "evaluate", command_evaluate }, { "plan", command_plan },
                     { "generate", command_generate }, { "tokenize", command_tokenize },
                     { "lint", command_lint },         { "losses", command_losses },
                     { "contour", command_contour },   { "toy", command_toy },
                     { "report", command_report },     { "sweep", command_sweep },
                     { "merge", command_merge } };
    const char *names[COUNT_OF(commands)];
    size_t n = 0;
    if (argc < 2) return err_set(ERR_INPUT, "no command\n%s", USAGE);
    if (asks_help(argv[1]) || strcmp(argv[1], "help") == 0)
        return usage_print(argc > 2 ? argv[2] : NULL);
    if (strcmp(argv[1], "--version") == 0) {
        char mpi[128];
        comm_library(mpi, sizeof mpi);
        printf("bdpo-train %s, MPI: %s\n", BDPO_VERSION, mpi);
        return 0;
    }
    for (size_t i = 0; i < COUNT_OF(commands); i++) {
        names[n++] = commands[i].name;
        if (strcmp(argv[1], commands[i].name) != 0) continue;
        return asks_help(argv[argc - 1]) ? usage_print(argv[1]) : commands[i].run(argc, argv);
    }
    if (strncmp(argv[1], "-", 1) == 0) return command_train(argc, argv);
    const char *near = json_nearest(argv[1], names, n);
    if (near) return err_set(ERR_INPUT, "%s: unknown command; did you mean \"%s\"?", argv[1], near);
    return err_set(ERR_INPUT, "%s: unknown command; see bdpo-train --help", argv[1]);
}

/* GNU OpenMP's waiting threads spin for long by default, which makes a shared core several times slower. It reads its settings before
 * main, so they are set here for a second start of the same program; a user's own settings win. */
static void spin_briefly(char **argv)
{
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    /* the first start has bound itself to one core, and the second would see no other */
    if (getenv("OMP_PROC_BIND") || getenv("OMP_PLACES") || getenv("GOMP_CPU_AFFINITY")) return;
    if (setenv("GOMP_SPINCOUNT", "2000", 1) == 0)
        execv("/proc/self/exe", argv); /* where it fails, the default will do */
}

/* Of several ranks the lowest that failed speaks. One that failed alone, while others wait for it, ends all. */
static void print_error(int rc)
{
    struct buf b = { 0 };
    const bool alone = dist_alone(&ranks);
    if (ranks.rank != ranks.speaker && !alone) return;
    /* messages that carry a place bring their own "error:" */
    buf_addf(&b, strstr(err_msg(), "error: ") ? "%s" : "bdpo-train: error: %s", err_msg());
    err_print(b.data ? b.data : err_msg());
    buf_release(&b);
    if (alone) dist_abort(&ranks, err_exit_code(rc));
}

int main(int argc, char **argv)
{
    spin_briefly(argv);
    machine_heap();
    prctl(PR_SET_NAME, "bdpo-train"); /* what ps and pkill see; the second start made it "exe" */
    int rc = run(argc, argv);
    if (rc >= 0 && (fflush(stdout) != 0 || ferror(stdout)))
        rc = err_set(ERR_IO, "cannot write to the standard output");
    if (rc < 0) print_error(rc);
    dist_close(&ranks);
    return err_exit_code(rc);
}
