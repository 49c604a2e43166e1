/* SPDX-License-Identifier: MIT
 * comm_load.c - the twin of comm_mpi.c in a program that is to run under whatever MPI a machine has, or none. With the ranks it opens the
 * library of their launcher, and beside the program comm_mpi.c as it was compiled for that library's binary interface. */
#include "comm.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* libmpi.so.40: Open MPI 4 and 5. libmpi.so.12: MPICH 3.1 and later, Intel MPI, MVAPICH; Debian's MPICH has another name. */
static const struct {
    const char *library, *module;
} interfaces[] = {
    { "libmpi.so.40", "bdpo-openmpi.so" },
    { "libmpi.so.12", "bdpo-mpich.so" },
    { "libmpich.so.12", "bdpo-mpich.so" },
};

static struct {
    __typeof__(comm_library) *library;
    __typeof__(comm_open) *open;
    __typeof__(comm_close) *close;
    __typeof__(comm_abort) *abort;
    __typeof__(comm_allgather) *allgather;
    __typeof__(comm_bcast) *bcast;
    __typeof__(comm_send) *send;
    __typeof__(comm_recv) *recv;
    __typeof__(comm_wait) *wait;
    __typeof__(comm_poke) *poke;
    __typeof__(comm_list_release) *list_release;
} mpi; /* empty until comm_open */

static int entries(void *module)
{
    const struct {
        void *slot;
        const char *name;
    } all[] = {
        { &mpi.library, "comm_library" },
        { &mpi.open, "comm_open" },
        { &mpi.close, "comm_close" },
        { &mpi.abort, "comm_abort" },
        { &mpi.allgather, "comm_allgather" },
        { &mpi.bcast, "comm_bcast" },
        { &mpi.send, "comm_send" },
        { &mpi.recv, "comm_recv" },
        { &mpi.wait, "comm_wait" },
        { &mpi.poke, "comm_poke" },
        { &mpi.list_release, "comm_list_release" },
    };
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        void *p = dlsym(module, all[i].name);
        if (!p) return err_set(ERR_INPUT, "%s", dlerror());
        memcpy(all[i].slot, &p, sizeof p);
    }
    return 0;
}

/* What is opened stays: an MPI library does not survive being closed. RTLD_GLOBAL: its plug-ins name no library for what they take from it. */
static int load(void)
{
    /* MPICH's kind of launcher */
    const size_t first = getenv("PMI_RANK") ? 1 : 0, n = COUNT_OF(interfaces);
    for (size_t i = 0; i < n; i++) {
        const char *library = interfaces[(first + i) % n].library;
        if (!dlopen(library, RTLD_NOW | RTLD_GLOBAL)) continue;
        void *module = dlopen(interfaces[(first + i) % n].module, RTLD_NOW | RTLD_LOCAL);
        if (module) return entries(module);
        return err_set(ERR_INPUT, "%s was found, but not what is to go with it: %s", library,
                       dlerror());
    }
    return err_set(ERR_INPUT, "neither Open MPI's libmpi.so.40 nor MPICH's libmpi.so.12 was found: "
                              "start the ranks with the bdpo-mpirun beside this program, or put "
                              "the folder of the launcher's library into LD_LIBRARY_PATH");
}

void comm_library(char *out, size_t size)
{
    if (mpi.library)
        mpi.library(out, size);
    else
        snprintf(out, size, "Open MPI or MPICH, the launcher's own");
}

int comm_open(struct comm **c, int32_t *rank, int32_t *size)
{
    *c = NULL;
    *rank = 0;
    *size = 1;
    TRY(load());
    return mpi.open(c, rank, size);
}

void comm_close(struct comm *c)
{
    if (c) mpi.close(c);
}

void comm_abort(struct comm *c, int exit_code)
{
    if (c) mpi.abort(c, exit_code);
    _Exit(exit_code);
}

int comm_allgather(struct comm *c, const void *mine, void *all, int64_t bytes)
{
    return mpi.allgather(c, mine, all, bytes);
}

int comm_bcast(struct comm *c, void *data, int64_t bytes, int32_t root)
{
    return mpi.bcast(c, data, bytes, root);
}

int comm_send(struct comm *c, struct comm_list *l, const void *data, int64_t bytes, int32_t to,
              int32_t tag)
{
    return mpi.send(c, l, data, bytes, to, tag);
}

int comm_recv(struct comm *c, struct comm_list *l, void *data, int64_t bytes, int32_t from,
              int32_t tag)
{
    return mpi.recv(c, l, data, bytes, from, tag);
}

int comm_wait(struct comm *c, struct comm_list *l)
{
    return mpi.wait(c, l);
}

int comm_poke(struct comm *c, struct comm_list *l)
{
    return mpi.poke(c, l);
}

void comm_list_release(struct comm_list *l)
{
    if (l->item) mpi.list_release(l);
}
