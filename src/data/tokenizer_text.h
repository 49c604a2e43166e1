/* SPDX-License-Identifier: MIT
 * tokenizer_text.h - UTF-8, white space and word characters as the tokenizers' rules need them, case and normalization forms. */
#ifndef BDPO_TOKENIZER_TEXT_H
#define BDPO_TOKENIZER_TEXT_H
#include "../base/mem.h"

/* One step at s[0..len), len > 0: bytes of a valid sequence and its code point, or minus the bytes of the longest ill-formed
 * start (Unicode 3.9, what becomes one U+FFFD). Overlong forms, surrogates and values above U+10FFFF are ill-formed. */
int utf8_step(const char *s, size_t len, uint32_t *cp);
/* Offset of the first ill-formed byte; len where all is valid. */
size_t utf8_check(const char *s, size_t len);
/* Code point at s, of valid text. Returns its bytes. */
int utf8_next(const char *s, uint32_t *cp);
/* Start of the code point that ends before s[at], at > 0, of valid text. */
size_t utf8_back(const char *s, size_t at);
/* Encode; returns the bytes (1 to 4). */
int utf8_put(char out[4], uint32_t cp);
/* Add bytes with U+FFFD for what is not UTF-8. */
int utf8_add_lossy(struct buf *b, const char *s, size_t len);

const char *text_unicode_version(void); /* of utf8proc */
bool cp_is_space(uint32_t cp); /* property White_Space */
bool cp_is_punctuation(uint32_t cp); /* of ASCII also the symbols */
bool cp_is_word(uint32_t cp);  /* letters, marks, numbers, connectors and joiners: \w of Unicode's regular expressions */
/* Drop white space at both ends as Python's str.strip() does (it counts U+001C to U+001F too). */
void text_strip(const char **s, size_t *len);

/* Drop White_Space at the start, the end. */
void text_trim(const char **s, size_t *len, bool left, bool right);

/* Bytes of the extended grapheme cluster that starts valid text, len > 0. */
size_t text_grapheme(const char *s, size_t len);

enum text_form { TEXT_NFC, TEXT_NFD, TEXT_NFKC, TEXT_NFKD };
/* Add the normalization form of valid text. Time is linear whatever the order of the combining marks. */
int text_normalize(struct buf *b, enum text_form form, const char *s, size_t len);
int text_lower(struct buf *b, const char *s, size_t len);         /* each character by itself, as no language has it */
int text_strip_accents(struct buf *b, const char *s, size_t len); /* without combining marks */
#endif
