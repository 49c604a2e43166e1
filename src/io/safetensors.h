/* SPDX-License-Identifier: MIT
 * safetensors.h - tensors by name in .safetensors files, single or sharded by an index. */
#ifndef BDPO_SAFETENSORS_H
#define BDPO_SAFETENSORS_H
#include "file.h"

enum st_dtype { ST_F32, ST_F16, ST_BF16, ST_F64, ST_I64, ST_I32, ST_U8, ST_OTHER };
struct st_tensor {
    char *name;
    enum st_dtype dtype;
    int32_t rank; /* at most 8 */
    int64_t dim[8], count;
    int64_t begin, end; /* absolute byte range in the file */
    int32_t file;       /* index into st_set.files */
};
struct st_set { /* all tensors of a model directory or of one file; valid when zeroed; sorted by name */
    struct st_tensor *tensors;
    int64_t n;
    char **files; /* paths */
    int *fds;
    int32_t n_files;
};
const char *st_dtype_name(enum st_dtype t); /* "F32" ...; static */
int64_t st_dtype_size(enum st_dtype t);     /* bytes; 0 for ST_OTHER */

/* DIR/model.safetensors, else the shards of DIR/model.safetensors.index.json. Every rule of the format is checked before use
 * (header <= 100,000,000 bytes and within the file, offsets contiguous from 0, no overlap or hole, end = EOF, shape x dtype =
 * range by checked multiplication, no duplicate names) and of the index (plain base names only, regular files, every tensor
 * in the shard that the index says). ERR_INPUT naming file and tensor. */
int st_open_dir(struct st_set *s, const char *dir);
int st_open_file(struct st_set *s, const char *path);
void st_close(struct st_set *s);
const struct st_tensor *st_find(const struct st_set *s, const char *name); /* NULL if absent */
/* Elements [first, first + n) of a F32, F16, BF16 or F64 tensor as float32 (pread: a file that shrank is an error, not a crash). */
int st_read_f32(const struct st_set *s, const struct st_tensor *t, int64_t first, int64_t n, float *out);
/* Raw bytes [first, first + n) of the tensor's data. */
int st_read_raw(const struct st_set *s, const struct st_tensor *t, int64_t first, int64_t n, void *out);

/* Writing: declare all tensors, then give their data in the declared order, in any number of pieces. A file with several
 * dtypes should declare the wide ones first: readers that map the file want aligned data. */
struct st_decl {
    const char *name; /* borrowed until st_writer_close */
    enum st_dtype dtype;
    int32_t rank;
    int64_t dim[8];
};
struct st_writer;
/* `metadata`: pairs of strings, NULL-terminated list key, value, key, value, NULL (may be NULL). Header padded to 8 bytes. */
int st_writer_open(struct st_writer **out, const char *path, const struct st_decl *decls, int64_t n, const char *const *metadata);
/* Append n float32 elements to the current tensor, converted to its dtype (F32, F16, BF16; round to nearest even). */
int st_writer_put_f32(struct st_writer *w, const float *data, int64_t n);
int st_writer_put_raw(struct st_writer *w, const void *data, int64_t bytes);
/* Check that all data came, commit (fsync, rename). Frees w in any case. */
int st_writer_close(struct st_writer *w);
void st_writer_abandon(struct st_writer *w);
/* Bytes written and crc32 (zlib's) of the whole file so far (valid before close). */
int64_t st_writer_bytes(const struct st_writer *w);
uint32_t st_writer_crc(const struct st_writer *w);

/* Conversions, round to nearest even; NaN stays NaN. */
uint16_t f32_to_bf16(float x);
float bf16_to_f32(uint16_t x);
uint16_t f32_to_f16(float x);
float f16_to_f32(uint16_t x);
/* n elements of F32, F16, BF16 or F64 at `in` (no alignment needed) to float32. */
void st_to_f32(float *out, const void *in, int64_t n, enum st_dtype dtype);
/* n float32 elements to F32, F16 or BF16 (out aligned to the element). */
void st_from_f32(void *out, const float *in, int64_t n, enum st_dtype dtype);
#endif
