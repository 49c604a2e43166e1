/* SPDX-License-Identifier: MIT */
#include "chart.h"
#include "svg.h"
#include "toy.h"
#include "../base/stats.h"
#include "../io/file.h"
#include "../io/json.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RESAMPLES = 1000 };

struct tally { /* of one loss at one rate: a value a seed, means over its prompts. [seeds], owned */
    double *chosen_up, *rejected_down, *other_up; /* share of the prompts */
    double *pi_w, *pi_l, *pi_other; /* final probabilities; pi_other of both together */
};

static void tally_release(struct tally *y)
{
    free(y->chosen_up);
    free(y->rejected_down);
    free(y->other_up);
    free(y->pi_w);
    free(y->pi_l);
    free(y->pi_other);
    memset(y, 0, sizeof *y);
}

static int tally_init(struct tally *y, int64_t seeds)
{
    memset(y, 0, sizeof *y);
    double **all[] = { &y->chosen_up, &y->rejected_down, &y->other_up,
                       &y->pi_w,      &y->pi_l,          &y->pi_other };
    for (size_t i = 0; i < COUNT_OF(all); i++)
        if (MEM_NEW(all[i], seeds) < 0) {
            tally_release(y);
            return ERR_OOM;
        }
    return 0;
}

static void tally_add(struct tally *y, int64_t at, const struct toy *t)
{
    for (int x = 0; x < TOY_PROMPTS; x++) {
        const double *pi = t->log_pi[x], *ref = t->log_ref[x];
        const int64_t *r = t->role[x];
        y->chosen_up[at] += (double)(pi[r[0]] > ref[r[0]]) / TOY_PROMPTS;
        y->rejected_down[at] += (double)(pi[r[1]] < ref[r[1]]) / TOY_PROMPTS;
        y->other_up[at] += (double)(pi[r[2]] > ref[r[2]] || pi[r[3]] > ref[r[3]]) / TOY_PROMPTS;
        y->pi_w[at] += exp(pi[r[0]]) / TOY_PROMPTS;
        y->pi_l[at] += exp(pi[r[1]]) / TOY_PROMPTS;
        y->pi_other[at] += (exp(pi[r[2]]) + exp(pi[r[3]])) / TOY_PROMPTS;
    }
}

/* "0.8125 [0.72, 0.88]" */
static void show(const struct interval *i, double unit, int digits, char out[48])
{
    snprintf(out, 48, "%.*f [%.*f, %.*f]", digits, unit * i->value, digits, unit * i->lo, digits,
             unit * i->hi);
}

/* Prompts of one seed share a network, so a seed counts as one observation: the intervals are wide rather than narrow. */
static int put_row(struct buf *table, struct buf *csv, const struct toy_opts *o,
                   const struct loss_def *d, double rate, const struct tally *y)
{
    const double *share[] = { y->chosen_up, y->rejected_down, y->other_up };
    const double *mean[] = { y->pi_w, y->pi_l, y->pi_other };
    char cell[48];
    TRY(buf_addf(table, "%-10s %-8g", d->name, rate));
    TRY(buf_addf(csv, "%s,%.17g,%lld,%lld", d->name, rate, (long long)o->steps,
                 (long long)o->seeds));
    for (size_t i = 0; i < COUNT_OF(share); i++) {
        const struct interval w = stats_wilson(stats_mean(share[i], o->seeds), (double)o->seeds);
        show(&w, 100, 1, cell);
        TRY(buf_addf(table, " %20s", cell));
        TRY(buf_addf(csv, ",%.10g,%.10g,%.10g", w.value, w.lo, w.hi));
    }
    for (size_t i = 0; i < COUNT_OF(mean); i++) {
        struct interval b;
        TRY(stats_bootstrap(&b, mean[i], o->seeds, o->seed, RESAMPLES));
        show(&b, 1, 3, cell);
        TRY(buf_addf(table, " %22s", cell));
        TRY(buf_addf(csv, ",%.10g,%.10g,%.10g", b.value, b.lo, b.hi));
    }
    TRY(buf_adds(table, "\n"));
    return buf_adds(csv, "\n");
}

static int put_final(struct buf *b, const struct loss_def *d, double rate, uint64_t seed,
                     const struct toy *t)
{
    for (int x = 0; x < TOY_PROMPTS; x++) {
        TRY(buf_addf(b, "%s,%.17g,%llu,%d,%lld,%lld", d->name, rate, (unsigned long long)seed, x,
                     (long long)t->role[x][0], (long long)t->role[x][1]));
        for (int y = 0; y < TOY_RESPONSES; y++)
            TRY(buf_addf(b, ",%.10g", exp(t->log_ref[x][y])));
        for (int y = 0; y < TOY_RESPONSES; y++)
            TRY(buf_addf(b, ",%.10g", exp(t->log_pi[x][y])));
        TRY(buf_adds(b, "\n"));
    }
    return 0;
}

static int run_seeds(const struct toy_opts *o, const struct backend *be, const struct loss_def *d,
                     double rate, struct tally *y, struct buf *final)
{
    for (int64_t s = 0; s < o->seeds; s++) {
        struct toy t;
        toy_init(&t, be, o->seed + (uint64_t)s);
        for (int64_t k = 0; k < o->steps; k++)
            TRY(toy_step(&t, d, &d->defaults, rate, NULL));
        tally_add(y, s, &t);
        TRY(put_final(final, d, rate, o->seed + (uint64_t)s, &t));
    }
    return 0;
}

static int put_table(const struct toy_opts *o, const struct backend *be, struct buf *table,
                     struct buf *csv, struct buf *final)
{
    TRY(buf_addf(
        table,
        "%lld seeds, %lld steps of AdamW, losses with their default options; 95 %% intervals\n"
        "%-10s %-8s %20s %20s %20s %22s %22s %22s\n",
        (long long)o->seeds, (long long)o->steps, "loss", "rate", "chosen up, %",
        "rejected down, %", "an other one up, %", "pi(chosen)", "pi(rejected)", "pi(others)"));
    TRY(buf_adds(csv, "loss,learning_rate,steps,seeds,chosen_up,chosen_up_lo,chosen_up_hi,rejected_"
                      "down,rejected_down_lo,"
                      "rejected_down_hi,other_up,other_up_lo,other_up_hi,pi_chosen,pi_chosen_lo,pi_"
                      "chosen_hi,pi_rejected,"
                      "pi_rejected_lo,pi_rejected_hi,pi_others,pi_others_lo,pi_others_hi\n"));
    TRY(buf_adds(final, "loss,learning_rate,seed,prompt,chosen,rejected,ref_0,ref_1,ref_2,ref_3,pi_"
                        "0,pi_1,pi_2,pi_3\n"));
    for (size_t i = 0; i < loss_count; i++)
        for (int32_t r = 0; r < o->n_rates; r++) {
            struct tally y;
            TRY(tally_init(&y, o->seeds));
            int rc = run_seeds(o, be, &loss_table[i], o->rate[r], &y, final);
            if (rc == 0) rc = put_row(table, csv, o, &loss_table[i], o->rate[r], &y);
            tally_release(&y);
            TRY(rc);
        }
    return 0;
}

/* One run of one loss, step by step: `steps` gets the CSV, track[prompt][role][step] the probabilities. */
static int trace(const struct toy_opts *o, const struct backend *be, const struct loss_def *d,
                 struct buf *steps, double *track)
{
    struct toy t;
    const int64_t n = o->steps + 1;
    toy_init(&t, be, o->seed);
    for (int64_t k = 0; k < n; k++) {
        double loss = NAN;
        struct toy now = t;
        if (k < o->steps) TRY(toy_step(&t, d, &d->defaults, o->rate[0], &loss));
        for (int x = 0; x < TOY_PROMPTS; x++) {
            TRY(buf_addf(steps, "%s,%lld,%d,%lld,%lld", d->name, (long long)k, x,
                         (long long)now.role[x][0], (long long)now.role[x][1]));
            for (int y = 0; y < TOY_RESPONSES; y++) {
                TRY(buf_addf(steps, ",%.10g", exp(now.log_pi[x][y])));
                track[(x * TOY_RESPONSES + y) * n + k] = exp(now.log_pi[x][now.role[x][y]]);
            }
            TRY(buf_adds(steps, "\n"));
        }
    }
    return 0;
}

static int put_panel(struct buf *b, const struct toy_opts *o, const struct loss_def *d, int x,
                     const double *axis, const double *track)
{
    static const char *const roles[] = { "chosen", "rejected", "not in a pair, first",
                                         "not in a pair, second" };
    static const int color[] = { 0, 1, 4, 5 };
    const int64_t n = o->steps + 1;
    struct series s[TOY_RESPONSES];
    char id[64], title[64], about[400];
    for (int y = 0; y < TOY_RESPONSES; y++)
        s[y] = (struct series){ roles[y], axis, track + (x * TOY_RESPONSES + y) * n, n, color[y] };
    snprintf(id, sizeof id, "toy-%s-%d", d->name, x);
    snprintf(title, sizeof title, "%s, prompt %d", d->name, x + 1);
    snprintf(about, sizeof about,
             "Probability of the four responses over %lld steps: chosen %.3f to %.3f, rejected "
             "%.3f to %.3f, the other two %.3f to "
             "%.3f and %.3f to %.3f.",
             (long long)o->steps, s[0].y[0], s[0].y[n - 1], s[1].y[0], s[1].y[n - 1], s[2].y[0],
             s[2].y[n - 1], s[3].y[0], s[3].y[n - 1]);
    const struct chart c = { .id = id,
                             .title = title,
                             .x_label = "step",
                             .y_label = "probability",
                             .about = about,
                             .series = s,
                             .n = TOY_RESPONSES,
                             .width = 480,
                             .height = 300,
                             .legend = true };
    return chart_lines(b, &c);
}

static int write_picture(const struct toy_opts *o, const struct loss_def *d, const double *axis,
                         const double *track)
{
    struct buf panel[TOY_PROMPTS] = { { 0 } }, grid = { 0 }, file = { 0 };
    char title[128], *path = NULL;
    int rc = 0;
    for (int x = 0; x < TOY_PROMPTS; x++)
        TRY_OUT(put_panel(&panel[x], o, d, x, axis, track));
    snprintf(title, sizeof title, "Toy case: %s, seed %llu, learning rate %g", d->name,
             (unsigned long long)o->seed, o->rate[0]);
    TRY_OUT(svg_grid(&grid, title, panel, TOY_PROMPTS, 2, 480, 340));
    TRY_OUT(svg_file(&file, &grid));
    TRY_OUT(mem_asprintf(&path, "%s-%s.svg", o->out, d->name));
    TRY_OUT(file_write_all(path, file.data, file.len));
out:
    for (int x = 0; x < TOY_PROMPTS; x++)
        buf_release(&panel[x]);
    buf_release(&grid);
    buf_release(&file);
    free(path);
    return rc;
}

static int put_traces(const struct toy_opts *o, const struct backend *be, struct buf *steps)
{
    const int64_t n = o->steps + 1;
    double *track = NULL, *axis = NULL;
    int rc;
    TRY_OUT(MEM_NEW(&track, TOY_PROMPTS * TOY_RESPONSES * n));
    TRY_OUT(MEM_NEW(&axis, n));
    for (int64_t k = 0; k < n; k++)
        axis[k] = (double)k;
    TRY_OUT(buf_adds(steps, "loss,step,prompt,chosen,rejected,pi_0,pi_1,pi_2,pi_3\n"));
    for (size_t i = 0; i < loss_count; i++) {
        TRY_OUT(trace(o, be, &loss_table[i], steps, track));
        TRY_OUT(write_picture(o, &loss_table[i], axis, track));
    }
out:
    free(track);
    free(axis);
    return rc;
}

static int write_csv(const char *stem, const char *name, const struct buf *b)
{
    char *path = NULL;
    TRY(mem_asprintf(&path, "%s-%s.csv", stem, name));
    const int rc = file_write_all(path, b->data, b->len);
    free(path);
    return rc;
}

int toy_run(const struct toy_opts *o)
{
    struct backend be = { 0 };
    struct buf table = { 0 }, csv = { 0 }, final = { 0 }, steps = { 0 };
    int rc = cpu_open(&be, 1);
    if (rc < 0) return rc;
    if (o->out) { /* before the work: a place that cannot be written shows at once */
        TRY_OUT(put_traces(o, &be, &steps));
        TRY_OUT(write_csv(o->out, "steps", &steps));
    }
    TRY_OUT(put_table(o, &be, &table, &csv, &final));
    if (fputs(table.data, stdout) < 0)
        TRY_OUT(err_set(ERR_IO, "cannot write to the standard output"));
    if (o->out) {
        TRY_OUT(write_csv(o->out, "table", &csv));
        TRY_OUT(write_csv(o->out, "final", &final));
    }
out:
    buf_release(&table);
    buf_release(&csv);
    buf_release(&final);
    buf_release(&steps);
    backend_close(&be);
    return rc;
}
