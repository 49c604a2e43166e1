/* SPDX-License-Identifier: MIT
 * comm_none.c - the twin of comm_mpi.c in a build without MPI: there is one rank, and nobody to talk to. */
#include "comm.h"
#include <stdio.h>
#include <stdlib.h>

void comm_library(char *out, size_t size)
{
    snprintf(out, size, "none");
}

int comm_open(struct comm **c, int32_t *rank, int32_t *size)
{
    *c = NULL;
    *rank = 0;
    *size = 1;
    return err_set(ERR_INPUT, "this program was built without MPI: install an MPI library with its "
                              "compiler (Debian: libopenmpi-dev) and run make again");
}

void comm_close(struct comm *c)
{
    BUG_IF(c);
}

void comm_abort(struct comm *c, int exit_code)
{
    BUG_IF(c);
    exit(exit_code);
}

/* No caller has a communicator to pass. */
static int unreachable(const struct comm *c)
{
    (void)c;
    bug(__FILE__, __LINE__, "a message without MPI");
}

int comm_allgather(struct comm *c, const void *mine, void *all, int64_t bytes)
{
    (void)mine, (void)all, (void)bytes;
    return unreachable(c);
}

int comm_bcast(struct comm *c, void *data, int64_t bytes, int32_t root)
{
    (void)data, (void)bytes, (void)root;
    return unreachable(c);
}

int comm_send(struct comm *c, struct comm_list *l, const void *data, int64_t bytes, int32_t to,
              int32_t tag)
{
    (void)l, (void)data, (void)bytes, (void)to, (void)tag;
    return unreachable(c);
}

int comm_recv(struct comm *c, struct comm_list *l, void *data, int64_t bytes, int32_t from,
              int32_t tag)
{
    (void)l, (void)data, (void)bytes, (void)from, (void)tag;
    return unreachable(c);
}

int comm_wait(struct comm *c, struct comm_list *l)
{
    (void)l;
    return unreachable(c);
}

int comm_poke(struct comm *c, struct comm_list *l)
{
    (void)l;
    return unreachable(c);
}

void comm_list_release(struct comm_list *l)
{
    BUG_IF(l->n);
}
