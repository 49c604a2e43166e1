/* SPDX-License-Identifier: MIT
 * scan.h - a strict walk over JSON text, without values: where an error is, where a value stands. For json.c only. */
#ifndef BDPO_SCAN_H
#define BDPO_SCAN_H
#include "json.h"

enum { JSON_DEPTH_MAX = 2000 }; /* below jansson's own limit */

/* Check text[0..len) (NUL-terminated, no NUL inside) by RFC 8259, and that jansson can hold every number and string.
 * any: a lone string, number or literal is a document too. NULL, or what is wrong (static, or in why[120]), with *at. */
const char *scan_check(const char *text, bool any, size_t *at, char why[120]);
/* Byte offset of the value at a JSON Pointer, of its key for a member, in text that scan_check passed; -1: not there. */
int64_t scan_find(const char *text, const char *pointer);
#endif
