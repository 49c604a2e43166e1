/* SPDX-License-Identifier: MIT
 * cores.h - which cores this process may use. */
#ifndef BDPO_CORES_H
#define BDPO_CORES_H
#include "base.h"

enum { CORES_MAX = 8192 };

/* Bit i of `bits`: core i; returns how many. OpenMP's binding of threads to places (OMP_PROC_BIND, OMP_PLACES), which leaves the first thread
 * one of them, does not count. 1 and no bits where the system does not say. */
int32_t cores_allowed(uint8_t bits[CORES_MAX / 8]);
#endif
