/* SPDX-License-Identifier: MIT
 * contour.h - a loss as a function of pi(w) and pi(l): the landscapes of the paper's Figures 1 and 2. */
#ifndef BDPO_CONTOUR_H
#define BDPO_CONTOUR_H
#include "../loss/loss.h"

struct contour_opts {
    const struct loss_def *loss;
    struct loss_opts loss_opts;
    double ref_w, ref_l;   /* the reference's probabilities; above 0 */
    double max_w, max_l;   /* the axes end there; the picture stops where pi(w) + pi(l) > 1 */
    int64_t points;        /* cells along each axis; a cell is evaluated at its centre */
    const char *out;       /* OUT.csv and OUT.svg; NULL: the CSV to stdout */
};
/* CSV: a line "pi_w,pi_l,loss", then one line a cell with pi_w + pi_l <= 1; numbers read back equal. nw = nl = 1. ERR_IO, ERR_OOM. */
int contour_run(const struct contour_opts *o);
#endif
