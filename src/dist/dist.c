/* SPDX-License-Identifier: MIT */
#include "dist.h"
#include "comm.h"
#include "../base/cores.h"
#include "../base/mem.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { VOTES = 8, MESSAGE = 8192, SUM_BYTES = 1 << 22 };

/* --- launch ------------------------------------------------------------------------------------------------------ */

/* Value of a variable that a launcher sets: digits only, at most 9 of them; -1 where it is absent
 * or anything else. */
static int64_t env_count(const char *name)
{
    const char *s = getenv(name);
    int64_t n = 0;
    if (!s || !*s || strlen(s) > 9) return -1;
    for (; *s; s++) {
        if (*s < '0' || *s > '9') return -1;
        n = n * 10 + (*s - '0');
    }
    return n;
}

struct launch {
    int64_t size, rank;
    const char *launcher, *variable; /* NULL: none */
};

static struct launch find_launch(void)
{
    /* SLURM_NTASKS is also set in a batch script, where nothing was launched yet: there the step is
     * absent or not a small number */
    static const struct {
        const char *size, *rank, *step, *launcher;
    } launchers[] = {
        { "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", NULL, "mpirun (Open MPI)" },
        { "PMI_SIZE", "PMI_RANK", NULL, "mpirun (MPICH or another PMI)" },
        { "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", NULL, "mpirun (MVAPICH2)" },
        { "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_ID", "srun" },
        { "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID", "srun" },
    };
    for (size_t i = 0; i < COUNT_OF(launchers); i++) {
        const int64_t size = env_count(launchers[i].size), rank = env_count(launchers[i].rank);
        if (launchers[i].step && (env_count(launchers[i].step) < 0 || rank < 0)) continue;
        if (size >= 0)
            return (struct launch){ MAX(size, (int64_t)1), MAX(rank, (int64_t)0),
                                    launchers[i].launcher, launchers[i].size };
    }
    return (struct launch){ 1, 0, NULL, NULL };
}

/* What ranks tell each other to share the cores of a machine. */
struct seat {
    char boot[DIST_MACHINE];
    uint8_t core[CORES_MAX / 8];
};

void dist_machine(char out[DIST_MACHINE])
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    memset(out, 0, DIST_MACHINE);
    if (!f) return;
    if (!fgets(out, DIST_MACHINE, f)) out[0] = 0;
    fclose(f);
}

static void take_seat(struct seat *s)
{
    memset(s, 0, sizeof *s);
    dist_machine(s->boot);
    cores_allowed(s->core);
}

/* A core that k ranks may use counts 1/k for each. */
static int share_cores(struct dist *d)
{
    struct seat mine, *all = NULL;
    double share = 0;
    int rc;
    take_seat(&mine);
    TRY_OUT(MEM_NEW(&all, d->size));
    TRY_OUT(comm_allgather(d->comm, &mine, all, sizeof mine));
    d->node_ranks = d->node_rank = 0;
    for (int32_t r = 0; r < d->size; r++) {
        const bool here = memcmp(all[r].boot, mine.boot, sizeof mine.boot) == 0;
        d->node_ranks += here;
        d->node_rank += here && r < d->rank;
    }
    for (int i = 0; i < CORES_MAX; i++) {
        const uint8_t bit = (uint8_t)(1u << i % 8);
        int users = 0;
        if (!(mine.core[i / 8] & bit)) continue;
        for (int32_t r = 0; r < d->size; r++)
            users +=
                memcmp(all[r].boot, mine.boot, sizeof mine.boot) == 0 && all[r].core[i / 8] & bit;
        share += 1.0 / users;
    }
    d->cores = (int32_t)MAX(share + 1e-6, 1.0);
out:
    free(all);
    return rc;
}

int dist_open(struct dist *d)
{
    const struct launch l = find_launch();
    int rc;
    memset(d, 0, sizeof *d);
    d->size = d->node_ranks = 1;
    if (l.size == 1) return 0;
    rc = comm_open(&d->comm, &d->rank, &d->size);
    if (rc == 0 && d->size != l.size) {
        char library[128];
        comm_library(library, sizeof library);
        rc = err_set(ERR_INPUT,
                     "%s started %lld ranks (%s), but this program's MPI library (%s) sees %d: use "
                     "that library's own mpirun, or srun with the --mpi that it understands",
                     l.launcher, (long long)l.size, l.variable, library, d->size);
    } else if (rc == ERR_INPUT)
        rc = err_note(rc, "%s started %lld ranks (%s)", l.launcher, (long long)l.size, l.variable);
    if (rc < 0) { /* the launcher's ranks are the only ones that are known apart */
        comm_close(d->comm);
        d->comm = NULL;
        d->rank = (int32_t)l.rank;
        d->size = 1;
        if (rc == ERR_OOM) d->speaker = d->rank; /* what the others need not meet */
    } else /* if it fails, on this rank alone: closing would wait for the others, who wait for it */
        rc = share_cores(d);
    if (d->rank > 0) err_quiet();
    return rc;
}

void dist_close(struct dist *d)
{
    if (d->comm) comm_close(d->comm);
    memset(d, 0, sizeof *d);
}

void dist_abort(struct dist *d, int exit_code)
{
    comm_abort(d ? d->comm : NULL, exit_code);
}

static struct listener {
    double wait;
    watch_fn *fn;
    void *payload;
} listener;

/* The first rank to end takes the others with it: rank 0, which tells the world, goes first. */
static void let_first_speak(void *unused, const char *reason, bool ends)
{
    const double wait = listener.wait;
    const struct timespec t = { (time_t)wait, (long)((wait - (double)(time_t)wait) * 1e9) };
    (void)unused;
    if (ends) nanosleep(&t, NULL);
    if (listener.fn) listener.fn(listener.payload, reason, ends);
}

int dist_watch(struct dist *d, double seconds, watch_fn *fn, void *payload)
{
    const bool first = dist_rank(d) == 0;
    char who[64] = "bdpo-train: error: ";
    if (dist_size(d) > 1) {
        snprintf(who, sizeof who, "bdpo-train: error: rank %d of %d: ", d->rank, d->size);
        watch_term(first ? 0.2 : 0.6); /* Open MPI sends SIGKILL after a second */
    }
    listener = (struct listener){ first ? 0 : MIN(seconds / 4, 2.0), fn, payload };
    return watch_start(seconds, err_exit_code(ERR_COMM), who, let_first_speak, NULL);
}

/* --- agreement and small collectives ------------------------------------------------------------------------------ */

double dist_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void dist_count(struct dist *d)
{
    if (!d) return;
    d->seconds = 0;
    d->bytes = 0;
}

double dist_enter(const char *what, int patience)
{
    watch_call(what, patience);
    return dist_clock();
}

void dist_leave(struct dist *d, double since)
{
    d->seconds += dist_clock() - since;
    watch_call(NULL, 1);
}

struct vote {
    int64_t rc, x[VOTES];
};

/* The message of rank `from`, taken over by all. */
static int share_error(struct dist *d, int32_t from, int code)
{
    char *text = NULL;
    int rc;
    TRY_OUT(MEM_NEW(&text, MESSAGE));
    snprintf(text, MESSAGE, "%s", d->rank == from ? err_msg() : "");
    TRY_OUT(comm_bcast(d->comm, text, MESSAGE, from));
    d->speaker = from;
    d->agreed = true;
    rc = err_set(code, "%s", text);
out:
    free(text);
    return rc;
}

static int vote(struct dist *d, int rc, int64_t *x, int32_t n, const char *what, int patience)
{
    struct vote mine = { .rc = MIN(rc, 0) }, *all = NULL;
    int32_t bad = -1;
    double since;
    BUG_IF(n > VOTES);
    if (dist_size(d) == 1 || (rc < 0 && d->agreed)) return MIN(rc, 0);
    for (int32_t i = 0; i < n; i++)
        mine.x[i] = x[i];
    TRY(MEM_NEW(&all, d->size));
    since = dist_enter(what, patience);
    const int got = comm_allgather(d->comm, &mine, all, sizeof mine);
    d->bytes += (int64_t)sizeof mine * (d->size - 1);
    for (int32_t r = d->size; got == 0 && r-- > 0;) {
        if (all[r].rc < 0) bad = r;
        for (int32_t i = 0; i < n; i++)
            x[i] = MAX(x[i], all[r].x[i]);
    }
    const int code = bad < 0 ? got : (int)all[bad].rc;
    free(all);
    const int end = bad < 0 ? code : share_error(d, bad, code);
    dist_leave(d, since);
    return end;
}

int dist_vote(struct dist *d, int rc, int64_t *x, int32_t n)
{
    return vote(d, rc, x, n, "agreement", 1);
}

int dist_agree(struct dist *d, int rc)
{
    return vote(d, rc, NULL, 0, "agreement", 1);
}

int dist_agree_written(struct dist *d, int rc)
{
    return vote(d, rc, NULL, 0, "agreement after writing", WATCH_DISK);
}

bool dist_alone(const struct dist *d)
{
    return dist_size(d) > 1 && !d->agreed;
}

void dist_recover(struct dist *d)
{
    if (d) d->agreed = false;
}

int dist_sum(struct dist *d, double *x, int64_t n)
{
    const int32_t size = dist_size(d);
    const int64_t most = MAX((int64_t)SUM_BYTES / 8 / size, (int64_t)1);
    double *all = NULL, since;
    int rc;
    if (size == 1) return 0;
    TRY(MEM_NEW(&all, MIN(most, n) * size));
    since = dist_enter("sum", 1);
    for (int64_t at = 0; at < n; at += most) {
        const int64_t k = MIN(most, n - at);
        TRY_OUT(comm_allgather(d->comm, x + at, all, k * 8));
        d->bytes += k * 8 * (size - 1);
        for (int64_t i = 0; i < k; i++) {
            double sum = 0;
            for (int32_t r = 0; r < size; r++)
                sum += all[r * k + i];
            x[at + i] = sum;
        }
    }
    rc = 0;
out:
    dist_leave(d, since);
    free(all);
    return rc;
}

int dist_bcast(struct dist *d, void *data, int64_t bytes)
{
    double since;
    if (dist_size(d) == 1) return 0;
    since = dist_enter("broadcast", 1);
    const int rc = comm_bcast(d->comm, data, bytes, 0);
    if (d->rank == 0) d->bytes += bytes * (d->size - 1);
    dist_leave(d, since);
    return rc;
}

int dist_gather(struct dist *d, const void *mine, void *all, int64_t bytes)
{
    double since;
    if (dist_size(d) == 1) {
        memcpy(all, mine, (size_t)bytes);
        return 0;
    }
    since = dist_enter("gather", 1);
    const int rc = comm_allgather(d->comm, mine, all, bytes);
    d->bytes += bytes * (d->size - 1);
    dist_leave(d, since);
    return rc;
}
