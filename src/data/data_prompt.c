/* SPDX-License-Identifier: MIT */
#include "data_rows.h"

int data_encode_prompt(struct ids *out, int32_t *end, const json_t *row, const struct data_opts *o,
                       const struct tokenizer *tok, const struct chat_template *tmpl,
                       const char *file, int64_t line)
{
    const struct row_rules rules = { DATA_SFT, o, tok, tmpl };
    const struct place p = { NULL, file, line };
    struct row r = { 0 };
    int rc = 0;
    TRY_OUT(form_read_prompt(&r.form, row, o->string_prompts_user, &p));
    TRY_OUT(row_encode_prompt(&r, &rules, &p));
    if (r.prompt.n == 0)
        TRY_OUT(place_err(&p, "", "the prompt has no token; a model needs one to start from"));
    if (o->max_prompt_length > 0)
        prompt_keep_last(&r.prompt, o->max_prompt_length, tokenizer_bos(tok));
    TRY_OUT(ids_append(out, r.prompt.id, r.prompt.n));
    *end = r.end;
out:
    row_release(&r);
    return rc;
}
