/* SPDX-License-Identifier: MIT */
#include "dist.h"
#include <stdlib.h>
#include <string.h>

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

int dist_open(struct dist *d)
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
    d->rank = 0;
    d->size = 1;
    for (size_t i = 0; i < COUNT_OF(launchers); i++) {
        const int64_t size = env_count(launchers[i].size);
        if (launchers[i].step &&
            (env_count(launchers[i].step) < 0 || env_count(launchers[i].rank) < 0))
            continue;
        if (size < 0) continue;
        if (size > 1)
            return err_set(
                ERR_INPUT,
                "%s started %lld ranks (%s), but this version trains on one rank: start bdpo-train "
                "alone, or with one rank",
                launchers[i].launcher, (long long)size, launchers[i].size);
        break;
    }
    return 0;
}

void dist_close(struct dist *d)
{
    d->rank = 0;
    d->size = 0;
}
