/* SPDX-License-Identifier: MIT
 * comm_mpi.c - comm.h over MPI. */
#include "comm.h"
#include "../base/mem.h"
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* MPI counts are int */
enum { PIECE = 1 << 30 };

struct comm {
    MPI_Comm world; /* a copy, so that nobody else's messages are in it */
    MPI_Status
        *status; /* [cap] room for what MPI says of messages that are done; nobody reads it */
    int64_t cap;
};

static int failed(const char *what, int code)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int len = 0;
    MPI_Error_string(code, text, &len);
    return err_set(ERR_COMM, "%s: %s", what, text);
}

#define MPI_TRY(what, call)                                   \
    do {                                                      \
        const int code_ = (call);                             \
        if (code_ != MPI_SUCCESS) return failed(what, code_); \
    } while (0)

void comm_library(char *out, size_t size)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int len = 0;
    MPI_Get_library_version(text, &len);
    const size_t line = strcspn(text, "\n"), comma = strcspn(text, ",");
    /* MPICH has tabs before its number and a line for each thing after it */
    snprintf(out, size, "%.*s", (int)MIN(line, comma), text);
    for (char *p = out; *p; p++)
        if (*p == '\t') *p = ' ';
}

int comm_open(struct comm **c, int32_t *rank, int32_t *size)
{
    int got, r, n;
    TRY(MEM_NEW(c, 1));
    /* only the main thread speaks to MPI; the watchdog does not */
    const int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &got);
    if (code != MPI_SUCCESS || got < MPI_THREAD_FUNNELED) {
        free(*c);
        *c = NULL;
        return err_set(ERR_COMM, "MPI_Init_thread failed (error %d, thread level %d)", code, got);
    }
    MPI_TRY("MPI_Comm_dup", MPI_Comm_dup(MPI_COMM_WORLD, &(*c)->world));
    MPI_TRY("MPI_Comm_set_errhandler", MPI_Comm_set_errhandler((*c)->world, MPI_ERRORS_RETURN));
    MPI_TRY("MPI_Comm_rank", MPI_Comm_rank((*c)->world, &r));
    MPI_TRY("MPI_Comm_size", MPI_Comm_size((*c)->world, &n));
    *rank = r;
    *size = n;
    return 0;
}

void comm_close(struct comm *c)
{
    if (!c) return;
    MPI_Comm_free(&c->world);
    MPI_Finalize();
    free(c->status);
    free(c);
}

void comm_abort(struct comm *c, int exit_code)
{
    if (c) MPI_Abort(c->world, exit_code);
    _Exit(exit_code);
}

int comm_allgather(struct comm *c, const void *mine, void *all, int64_t bytes)
{
    BUG_IF(bytes > PIECE);
    MPI_TRY("MPI_Allgather",
            MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, c->world));
    return 0;
}

int comm_bcast(struct comm *c, void *data, int64_t bytes, int32_t root)
{
    for (int64_t at = 0; at < bytes; at += PIECE)
        MPI_TRY("MPI_Bcast", MPI_Bcast((char *)data + at, (int)MIN((int64_t)PIECE, bytes - at),
                                       MPI_BYTE, root, c->world));
    return 0;
}

static int next(struct comm_list *l, MPI_Request **r)
{
    TRY(MEM_GROW((MPI_Request **)&l->item, &l->cap, l->n + 1));
    *r = (MPI_Request *)l->item + l->n++;
    **r = MPI_REQUEST_NULL;
    return 0;
}

int comm_send(struct comm *c, struct comm_list *l, const void *data, int64_t bytes, int32_t to,
              int32_t tag)
{
    MPI_Request *r;
    BUG_IF(bytes > PIECE);
    TRY(next(l, &r));
    MPI_TRY("MPI_Isend", MPI_Isend(data, (int)bytes, MPI_BYTE, to, tag, c->world, r));
    return 0;
}

int comm_recv(struct comm *c, struct comm_list *l, void *data, int64_t bytes, int32_t from,
              int32_t tag)
{
    MPI_Request *r;
    BUG_IF(bytes > PIECE);
    TRY(next(l, &r));
    MPI_TRY("MPI_Irecv", MPI_Irecv(data, (int)bytes, MPI_BYTE, from, tag, c->world, r));
    return 0;
}

int comm_wait(struct comm *c, struct comm_list *l)
{
    const int n = (int)l->n;
    l->n = 0;
    if (n == 0) return 0;
    TRY(MEM_GROW(&c->status, &c->cap, n));
    MPI_TRY("MPI_Waitall", MPI_Waitall(n, l->item, c->status));
    return 0;
}

int comm_poke(struct comm *c, struct comm_list *l)
{
    int done;
    if (l->n == 0) return 0;
    TRY(MEM_GROW(&c->status, &c->cap, l->n));
    MPI_TRY("MPI_Testall", MPI_Testall((int)l->n, l->item, &done, c->status));
    return 0;
}

void comm_list_release(struct comm_list *l)
{
    free(l->item);
    memset(l, 0, sizeof *l);
}
