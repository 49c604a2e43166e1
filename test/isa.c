/* SPDX-License-Identifier: MIT */
#include "isa.h"
#include <string.h>

#define EMULATED "emulated_" /* begins their names */

#if ISA_EMULATED
extern const struct rows rows_emulated_avx512, rows_emulated_avx512_bf16, rows_emulated_amx_bf16;
#endif

const char *const isa_names[ISAS] = { "base", "avx2", "avx512", "avx512_bf16", "amx_bf16" };

bool test_isa(struct ctx *cx, const char *name)
{
    if (cpu_force_isa(cx, name)) return true;
#if ISA_EMULATED
    static const struct rows *const emulated[] = { &rows_emulated_avx512,
                                                   &rows_emulated_avx512_bf16,
                                                   &rows_emulated_amx_bf16 };
    for (size_t i = 0; i < COUNT_OF(emulated); i++) {
        if (strcmp(emulated[i]->name + strlen(EMULATED), name) != 0) continue;
        if (!cpu_force_isa(cx, "avx2")) return false;
        cx->rows = emulated[i];
        return true;
    }
#endif
    return false;
}

bool test_isa_emulated(const struct ctx *cx)
{
    return strncmp(cx->rows->name, EMULATED, strlen(EMULATED)) == 0;
}
