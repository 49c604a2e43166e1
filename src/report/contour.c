/* SPDX-License-Identifier: MIT */
#include "contour.h"
#include "chart.h"
#include "svg.h"
#include "../io/file.h"
#include "../io/json.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double centre(double max, int64_t i, int64_t n)
{
    return max * ((double)i + 0.5) / (double)n;
}

static double loss_at(const struct contour_opts *o, double pi_w, double pi_l)
{
    const struct loss_pair p = { log(pi_w), log(pi_l), log(o->ref_w), log(o->ref_l), 1, 1 };
    struct loss_grad g;
    if (pi_w + pi_l > 1) return NAN;
    o->loss->eval(&g, &p, &o->loss_opts, 0);
    return g.loss;
}

static int put_csv(struct buf *b, const struct contour_opts *o, const double *z)
{
    TRY(buf_adds(b, "pi_w,pi_l,loss\n"));
    for (int64_t j = 0; j < o->points; j++)
        for (int64_t i = 0; i < o->points; i++) {
            if (isnan(z[j * o->points + i])) continue;
            TRY(json_dump_real(b, centre(o->max_w, i, o->points)));
            TRY(buf_adds(b, ","));
            TRY(json_dump_real(b, centre(o->max_l, j, o->points)));
            TRY(buf_adds(b, ","));
            TRY(json_dump_real(b, z[j * o->points + i]));
            TRY(buf_adds(b, "\n"));
        }
    return 0;
}

static int put_picture(struct buf *b, const struct contour_opts *o, const double *z)
{
    char title[512], about[800], formula[400];
    int64_t low = 0;
    for (int64_t i = 0; i < o->points * o->points; i++)
        if (!(z[low] <= z[i])) low = i;
    loss_describe(formula, sizeof formula, o->loss, &o->loss_opts);
    const char *options = strrchr(formula, '[');
    snprintf(title, sizeof title, "%s %s", o->loss->name, options ? options : "");
    snprintf(about, sizeof about,
             "Filled contours of the loss %s over pi(w) and pi(l), with ref(w) = %g and ref(l) = "
             "%g. It is lowest at "
             "pi(w) = %.3g, pi(l) = %.3g, where it is %.4g; at the reference it is %.4g.",
             formula, o->ref_w, o->ref_l, centre(o->max_w, low % o->points, o->points),
             centre(o->max_l, low / o->points, o->points), z[low], loss_at(o, o->ref_w, o->ref_l));
    const struct heat h = { .id = "contour",
                            .title = title,
                            .x_label = "pi(w)",
                            .y_label = "pi(l)",
                            .about = about,
                            .z = z,
                            .nx = o->points,
                            .ny = o->points,
                            .x1 = o->max_w,
                            .y1 = o->max_l };
    return chart_heat(b, &h);
}

static int write_named(const char *stem, const char *ending, const struct buf *b)
{
    char *path = NULL;
    TRY(mem_asprintf(&path, "%s.%s", stem, ending));
    const int rc = file_write_all(path, b->data, b->len);
    free(path);
    return rc;
}

int contour_run(const struct contour_opts *o)
{
    struct buf csv = { 0 }, picture = { 0 }, file = { 0 };
    double *z = NULL;
    int rc;
    TRY_OUT(MEM_NEW(&z, o->points * o->points));
    for (int64_t j = 0; j < o->points; j++)
        for (int64_t i = 0; i < o->points; i++)
            z[j * o->points + i] =
                loss_at(o, centre(o->max_w, i, o->points), centre(o->max_l, j, o->points));
    TRY_OUT(put_csv(&csv, o, z));
    if (!o->out) {
        if (fwrite(csv.data, 1, csv.len, stdout) != csv.len)
            TRY_OUT(err_set(ERR_IO, "cannot write to the standard output"));
        goto out;
    }
    TRY_OUT(put_picture(&picture, o, z));
    TRY_OUT(svg_file(&file, &picture));
    TRY_OUT(write_named(o->out, "csv", &csv));
    TRY_OUT(write_named(o->out, "svg", &file));
out:
    buf_release(&csv);
    buf_release(&picture);
    buf_release(&file);
    free(z);
    return rc;
}
