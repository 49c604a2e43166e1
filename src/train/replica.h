/* SPDX-License-Identifier: MIT
 * replica.h - are the weights of all ranks the same? */
#ifndef BDPO_REPLICA_H
#define BDPO_REPLICA_H
#include "../dist/dist.h"
#include "../model/model.h"

/* All ranks: compare the SHA-256 of every parameter. ERR_REPLICA on all ranks, naming the first tensor that differs and the ranks that differ
 * from the value that most have (of two: from rank 0's). Reads all weights once; 32 bytes a parameter are exchanged. */
int replica_check(struct dist *d, const struct model *m);
#endif
