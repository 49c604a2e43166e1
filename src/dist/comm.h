/* SPDX-License-Identifier: MIT
 * comm.h - what dist.c and zero.c need of a message-passing library, and nothing more. Link-time twins: comm_mpi.c where mpicc works,
 * comm_none.c elsewhere, comm_load.c in a bundle. Every call of a rank has its match on all others (comm_allgather, comm_bcast) or on its peer. */
#ifndef BDPO_COMM_H
#define BDPO_COMM_H
#include "../base/base.h"

struct comm;
struct comm_list { /* messages under way; valid when zeroed */
    void *item;
    int64_t n, cap;
};
/* "Open MPI v4.1.4", or "none" */
void comm_library(char *out, size_t size);
/* Join the ranks of this launch. ERR_INPUT where there is no MPI, ERR_COMM. */
int comm_open(struct comm **c, int32_t *rank, int32_t *size);
/* After an orderly end on all ranks. */
void comm_close(struct comm *c);
/* End all ranks at once, with this exit code where the launcher passes it on. */
void comm_abort(struct comm *c, int exit_code) __attribute__((noreturn));
/* all[size * bytes] = every rank's `mine`, in the order of ranks. */
int comm_allgather(struct comm *c, const void *mine, void *all, int64_t bytes);
/* data[bytes] of `root` to all. */
int comm_bcast(struct comm *c, void *data, int64_t bytes, int32_t root);
/* Start a message, at most 1 GiB; data stay untouched until comm_wait. Messages of one tag between two ranks keep their order. */
int comm_send(struct comm *c, struct comm_list *l, const void *data, int64_t bytes, int32_t to, int32_t tag);
int comm_recv(struct comm *c, struct comm_list *l, void *data, int64_t bytes, int32_t from, int32_t tag);
/* Complete all of l; it is empty then. */
int comm_wait(struct comm *c, struct comm_list *l);
/* Let messages of l move on without waiting: libraries do little outside their calls. */
int comm_poke(struct comm *c, struct comm_list *l);
void comm_list_release(struct comm_list *l);
#endif
