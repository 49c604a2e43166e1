/* SPDX-License-Identifier: MIT
 * sha256.h - content fingerprints of configs, data, tokenizers and checkpoints (FIPS 180-4). */
#ifndef BDPO_SHA256_H
#define BDPO_SHA256_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

struct sha256 {
    uint32_t h[8];
    uint64_t bytes;
    uint8_t block[64];
    bool instructions; /* use the processor's own (SHA-NI); false: portable C. The digest is the same */
};
void sha256_init(struct sha256 *s); /* `instructions` is set where the processor has them */
void sha256_add(struct sha256 *s, const void *data, size_t len);
void sha256_end(struct sha256 *s, uint8_t digest[32]);
/* The digest as 64 hex digits and a NUL. */
void sha256_hex(struct sha256 *s, char hex[65]);

#ifdef __cplusplus
}
#endif
#endif
