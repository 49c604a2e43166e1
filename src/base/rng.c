/* SPDX-License-Identifier: MIT */
#include "rng.h"
#include <math.h>

static void philox4x32(uint32_t out[4], uint64_t key, uint64_t lo, uint64_t hi)
{
    uint32_t c0 = (uint32_t)lo, c1 = (uint32_t)(lo >> 32), c2 = (uint32_t)hi,
             c3 = (uint32_t)(hi >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int r = 0; r < 10; r++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0;
        c1 = (uint32_t)p1;
        c2 = n2;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t r[4];
    philox4x32(r, seed, index, stream);
    return ((uint64_t)r[1] << 32) | r[0];
}

double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
    return (double)(rng_u64(seed, stream, index) >> 11) * 0x1p-53;
}

double rng_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t r[4];
    philox4x32(r, seed, index, stream);
    const double u = ((double)((((uint64_t)r[1] << 32) | r[0]) >> 11) + 1.0) * 0x1p-53; /* (0, 1] */
    const double v = (double)((((uint64_t)r[3] << 32) | r[2]) >> 11) * 0x1p-53;
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586476925 * v);
}

void rng_permutation(int64_t *perm, int64_t n, uint64_t seed, uint64_t stream)
{
    for (int64_t i = 0; i < n; i++)
        perm[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        /* multiply-shift: the bias is below n / 2^64 */
        const uint64_t r = rng_u64(seed, stream, (uint64_t)i);
        const int64_t j = (int64_t)(((unsigned __int128)r * (uint64_t)(i + 1)) >> 64);
        const int64_t t = perm[i];
        perm[i] = perm[j];
        perm[j] = t;
    }
}
