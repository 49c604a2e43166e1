/* SPDX-License-Identifier: MIT
 * isa.h - the CPU backend's instruction sets, those that this processor lacks included. */
#ifndef BDPO_TEST_ISA_H
#define BDPO_TEST_ISA_H
#include "../src/cpu/cpu.h"

/* cpu_force_isa; the tables of AVX-512 and AMX are emulated (isa_emu) where the processor lacks them, but not under a sanitizer. False: it can be had neither way. */
enum { ISAS = 5 };
extern const char *const isa_names[ISAS];
bool test_isa(struct ctx *cx, const char *name);
bool test_isa_emulated(const struct ctx *cx);
#endif
