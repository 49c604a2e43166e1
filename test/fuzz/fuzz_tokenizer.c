/* SPDX-License-Identifier: MIT
 * Bytes as tokenizer.json: opened or refused, never a crash; what is opened encodes and decodes. */
#include "../../src/io/file.h"
#include "../../src/data/tokenizer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[64], path[96];

static void clean(void)
{
    dir_remove(dir);
}

static void begin(void)
{
    snprintf(dir, sizeof dir, "/tmp/bdpo-fuzz-XXXXXX");
    BUG_IF(!mkdtemp(dir));
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    atexit(clean);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello  w\xc3\xb6rld, it's 2026!\n\n<s>\xe4\xb8\xad\xe6\x96\x87 "
                               "\xf0\x9f\x98\x80\u00e9 e\u0301</s>";
    struct tokenizer *t = NULL;
    struct ids v = { 0 };
    struct buf b = { 0 };
    if (!*dir) begin();
    FILE *f = fopen(path, "wb");
    BUG_IF(!f || fwrite(data, 1, size, f) != size || fclose(f) != 0);
    if (tokenizer_open(&t, dir) == 0) {
        for (int mode = 0; mode < 2; mode++) {
            v.n = 0;
            if (tokenizer_encode(t, text, sizeof text - 1, (enum special_mode)mode, &v) < 0)
                BUG_IF(v.n != 0);
            for (int64_t i = 0; i < v.n; i++)
                BUG_IF(v.id[i] < 0 || v.id[i] >= tokenizer_size(t));
            buf_clear(&b);
            BUG_IF(tokenizer_decode(t, v.id, v.n, mode, &b) < 0);
        }
    }
    buf_release(&b);
    ids_release(&v);
    tokenizer_close(t);
    return 0;
}
