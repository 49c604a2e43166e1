/* SPDX-License-Identifier: MIT */
#include "sha256.h"
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <stdatomic.h>
#endif

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotr(uint32_t x, int n)
{
    return (x >> n) | (x << (32 - n));
}

/* One round; the caller renames the 8 words from round to round instead of moving them. */
static inline void round_of(uint32_t a, uint32_t b, uint32_t c, uint32_t *d, uint32_t e, uint32_t f,
                            uint32_t g, uint32_t *h, uint32_t kw)
{
    const uint32_t t1 = *h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + (g ^ (e & (f ^ g))) + kw;
    const uint32_t t2 = (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) | (c & (a | b)));
    *d += t1;
    *h = t1 + t2;
}

static void compress_one(uint32_t s[8], const uint8_t *p)
{
    uint32_t w[64];
    uint32_t a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
               (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        const uint32_t x = w[i - 15], y = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (rotr(x, 7) ^ rotr(x, 18) ^ (x >> 3)) +
               (rotr(y, 17) ^ rotr(y, 19) ^ (y >> 10));
    }
    for (int i = 0; i < 64; i += 8) {
        round_of(a, b, c, &d, e, f, g, &h, K[i] + w[i]);
        round_of(h, a, b, &c, d, e, f, &g, K[i + 1] + w[i + 1]);
        round_of(g, h, a, &b, c, d, e, &f, K[i + 2] + w[i + 2]);
        round_of(f, g, h, &a, b, c, d, &e, K[i + 3] + w[i + 3]);
        round_of(e, f, g, &h, a, b, c, &d, K[i + 4] + w[i + 4]);
        round_of(d, e, f, &g, h, a, b, &c, K[i + 5] + w[i + 5]);
        round_of(c, d, e, &f, g, h, a, &b, K[i + 6] + w[i + 6]);
        round_of(b, c, d, &e, f, g, h, &a, K[i + 7] + w[i + 7]);
    }
    s[0] += a;
    s[1] += b;
    s[2] += c;
    s[3] += d;
    s[4] += e;
    s[5] += f;
    s[6] += g;
    s[7] += h;
}

#if defined(__x86_64__)
/* cpuid leaves the guest on a virtual machine, so it is asked once. */
static bool has_instructions(void)
{
    static _Atomic int known; /* 0: not asked yet, 1: no, 2: yes */
    int k = atomic_load_explicit(&known, memory_order_relaxed);
    if (k == 0) {
        unsigned a = 0, b = 0, c = 0, d = 0;
        const bool sse = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_SSSE3) && (c & bit_SSE4_1);
        const bool sha = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
        k = sse && sha ? 2 : 1;
        atomic_store_explicit(&known, k, memory_order_relaxed);
    }
    return k == 2;
}

/* Two instructions make four rounds; each extends the schedule by four words on the way. The state lies as the instructions want it: ABEF
 * and CDGH. */
__attribute__((target("sha,ssse3,sse4.1"))) static void
compress_fast(uint32_t s[8], const uint8_t *p, size_t blocks)
{
    const __m128i swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    const __m128i dcba = _mm_loadu_si128((const __m128i *)(const void *)s),
                  hgfe = _mm_loadu_si128((const __m128i *)(const void *)(s + 4));
    const __m128i cdab = _mm_shuffle_epi32(dcba, 0xB1), efgh = _mm_shuffle_epi32(hgfe, 0x1B);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
    for (; blocks; blocks--, p += 64) {
        const __m128i abef0 = abef, cdgh0 = cdgh;
        __m128i w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(p + 16 * i)),
                                    swap);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            const __m128i k = _mm_add_epi32(
                w[i % 4], _mm_loadu_si128((const __m128i *)(const void *)(K + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, k);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(k, 0x0E));
            /* w[i % 4] becomes words 4 (i + 4) ... of the schedule; the last four groups have no use for it */
            const __m128i w1 = w[(i + 1) % 4], w2 = w[(i + 2) % 4], w3 = w[(i + 3) % 4];
            const __m128i sum =
                _mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w1), _mm_alignr_epi8(w3, w2, 4));
            w[i % 4] = _mm_sha256msg2_epu32(sum, w3);
        }
        abef = _mm_add_epi32(abef, abef0);
        cdgh = _mm_add_epi32(cdgh, cdgh0);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)(void *)s, _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)(void *)(s + 4), _mm_alignr_epi8(dchg, feba, 8));
}
#else
static bool has_instructions(void)
{
    return false;
}

static void compress_fast(uint32_t s[8], const uint8_t *p, size_t blocks)
{
    for (; blocks; blocks--, p += 64)
        compress_one(s, p);
}
#endif

static void compress(struct sha256 *s, const uint8_t *p, size_t blocks)
{
    if (s->instructions) {
        compress_fast(s->h, p, blocks);
        return;
    }
    for (; blocks; blocks--, p += 64)
        compress_one(s->h, p);
}

void sha256_init(struct sha256 *s)
{
    static const uint32_t start[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                       0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
    memset(s, 0, sizeof *s);
    memcpy(s->h, start, sizeof start);
    s->instructions = has_instructions();
}

void sha256_add(struct sha256 *s, const void *data, size_t len)
{
    const uint8_t *p = data;
    size_t have = s->bytes % 64;
    if (len == 0) return; /* data may be NULL then */
    s->bytes += len;
    if (have) {
        const size_t n = MIN(64 - have, len);
        memcpy(s->block + have, p, n);
        p += n;
        len -= n;
        if (have + n < 64) return;
        compress(s, s->block, 1);
    }
    compress(s, p, len / 64);
    p += len / 64 * 64;
    len %= 64;
    if (len) memcpy(s->block, p, len);
}

void sha256_end(struct sha256 *s, uint8_t digest[32])
{
    const uint64_t bits = s->bytes * 8;
    uint8_t tail[72] = { 0x80 };
    const size_t have = s->bytes % 64, pad = (have < 56 ? 56 : 120) - have;
    for (int i = 0; i < 8; i++)
        tail[pad + (size_t)i] = (uint8_t)(bits >> (56 - 8 * i));
    sha256_add(s, tail, pad + 8);
    for (int i = 0; i < 32; i++)
        digest[i] = (uint8_t)(s->h[i / 4] >> (24 - 8 * (i % 4)));
}

void sha256_hex(struct sha256 *s, char hex[65])
{
    uint8_t d[32];
    sha256_end(s, d);
    for (int i = 0; i < 32; i++) {
        hex[2 * i] = "0123456789abcdef"[d[i] >> 4];
        hex[2 * i + 1] = "0123456789abcdef"[d[i] & 15];
    }
    hex[64] = 0;
}
