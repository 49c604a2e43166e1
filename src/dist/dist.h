/* SPDX-License-Identifier: MIT
 * dist.h - ranks. This build runs on one; a launch on several is refused with the reason. */
#ifndef BDPO_DIST_H
#define BDPO_DIST_H
#include "../base/base.h"

struct dist {
    int32_t rank, size;
};
/* Rank and size of this process. Started by mpirun or srun with more than one rank: ERR_INPUT. */
int dist_open(struct dist *d);
void dist_close(struct dist *d);
#endif
