/* SPDX-License-Identifier: MIT */
#include "page.h"
#include "chart.h"
#include "runs.h"
#include "svg.h"
#include "../io/file.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char STYLE[] =
    ":root{color-scheme:light dark}body{margin:0 auto;max-width:1280px;padding:12px 16px "
    "48px;font:16px/1.5 system-ui,sans-serif;"
    "background:#fff;color:#222}h1{font-size:1.5rem;margin:.4em 0}h2{font-size:1.2rem;margin:1.6em "
    "0 .5em}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:"
    "14px}"
    "figure{margin:0;border:1px solid "
    "#8884;border-radius:8px;padding:6px;position:relative}svg.chart{width:100%;height:auto;"
    "display:block}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}th,td{border-bottom:"
    "1px solid #8886;padding:.35em .7em;"
    "text-align:left;vertical-align:top}td.n{text-align:right;white-space:nowrap;font-variant-"
    "numeric:tabular-nums}"
    "td.key{overflow-wrap:anywhere;min-width:9em}.warn{border-left:5px solid "
    "#d55e00;background:#d55e0018;padding:.6em .9em;margin:.6em 0}"
    ".fine{border-left:5px solid #009e73;padding:.2em .9em;margin:.6em 0}.answers{display:grid;"
    "grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:8px "
    "20px;border-bottom:1px solid #8886;padding:.6em 0}"
    ".answers p{margin:.1em 0;white-space:pre-wrap;overflow-wrap:anywhere}.answers "
    ".prompt{grid-column:1/-1;color:#666}small{color:#666}"
    "pre{overflow-x:auto;font-size:.85rem}.tip{position:absolute;pointer-events:none;background:#"
    "fffd;border:1px solid #8888;"
    "border-radius:4px;padding:2px "
    "7px;font-size:12px;line-height:1.35;white-space:pre;display:none;z-index:2}"
    "@media(prefers-color-scheme:dark){body{background:#16181c;color:#e4e4e4}small,.answers "
    ".prompt{color:#aaa}.tip{background:#222d}}"
    "@media "
    "print{body{max-width:none;padding:0;font-size:11pt;background:#fff;color:#000}.charts{grid-"
    "template-columns:1fr 1fr}"
    "figure,tr,.answers{break-inside:avoid}.tip{display:none!important}.scroll,pre{overflow:"
    "visible}"
    "pre{white-space:pre-wrap}table{width:100%;font-size:8pt}th,td{padding:.2em "
    ".4em}td.n{white-space:normal}small,.answers .prompt{color:#444}}";

/* Hovering shows the values at the nearest step: places of the lines are turned back into values by the axes' data. */
static const char SCRIPT[] =
    "for(const f of document.querySelectorAll('figure')){const "
    "s=f.querySelector('svg'),p=s.querySelector('.plot');"
    "if(!p)continue;const t=f.appendChild(document.createElement('div'));t.className='tip';"
    "const ax=k=>p.dataset[k].split(' ').map(Number),X=ax('x'),Y=ax('y');"
    "const val=(a,v)=>{const r=a[0]+(v-a[2])/(a[3]-a[2])*(a[1]-a[0]);return a[4]?10**r:r};"
    "const "
    "g=[...p.querySelectorAll('.series')].map(e=>({name:e.dataset.name,pt:[...e.querySelectorAll('"
    "polyline')].flatMap(l=>"
    "l.getAttribute('points').trim().split(' ').map(q=>q.split(',').map(Number)))}));"
    "f.onpointerleave=()=>{t.style.display='none'};f.onpointermove=e=>{const "
    "m=s.getScreenCTM();if(!m)return;"
    "const x=(e.clientX-m.e)/m.a;let at=null;const L=[];for(const r of g){let b=null;"
    "for(const q of r.pt)if(!b||Math.abs(q[0]-x)<Math.abs(b[0]-x))b=q;if(b){if(at===null)at=b[0];"
    "L.push(r.name+': '+(+val(Y,b[1]).toPrecision(4)))}}if(!L.length)return;"
    "t.textContent='step '+Math.round(val(X,at))+'\\n'+L.join('\\n');t.style.display='block';const "
    "o=f.getBoundingClientRect();"
    "t.style.left=Math.min(e.clientX-o.left+14,Math.max(0,o.width-t.offsetWidth-6))+'px';t.style."
    "top=(e.clientY-o.top+12)+'px'}}";

struct plot { /* one picture of the page: a key of the metrics, of every run that has it */
    const char *id, *title, *y_label, *stage, *key, *what;
    bool log_y;
};
static const struct plot PLOTS[] = {
    { "chosen", "Chosen: log pi - log ref", "nats", "preference", NULL, "chosen", false },
    { "rejected", "Rejected: log pi - log ref", "nats", "preference", NULL, "rejected", false },
    { "eval-chosen", "Held out, chosen: log pi", "nats", "preference", "eval/logps/chosen", NULL,
      false },
    { "eval-rejected", "Held out, rejected: log pi", "nats", "preference", "eval/logps/rejected",
      NULL, false },
    { "kl", "KL to the reference (held-out prompts)", "nats", "preference", "eval/kl", NULL,
      false },
    { "nll", "NLL of the chosen response", "nats a token", "preference", "nll_loss", NULL, false },
    { "in", "log(pi(w) + pi(l))", "nats", "preference", "in_distribution", NULL, false },
    { "gate", "BDPO: gate g, the rejected one's weight", "mean", "preference", "bdpo/gate", NULL,
      false },
    { "bound", "BDPO: pairs with pi(w) > (1 - lambda) ref(w)", "share", "preference", "bdpo/bound",
      NULL, false },
    { "margin", "Reward margin", "beta x nats", "preference", "rewards/margins", NULL, false },
    { "accuracy", "Reward accuracy", "share", "preference", "rewards/accuracies", NULL, false },
    { "eval-accuracy", "Held out: reward accuracy", "share", "preference",
      "eval/rewards/accuracies", NULL, false },
    { "loss", "Preference loss", "loss", "preference", "loss", NULL, false },
    { "eval-loss", "Held out: preference loss", "loss", "preference", "eval/loss", NULL, false },
    { "norm", "Gradient norm before clipping", "norm", "preference", "grad_norm", NULL, true },
    { "rate", "Learning rate", "rate", "preference", "learning_rate", NULL, false },
    { "sft-loss", "SFT: loss", "nats a token", "sft", "loss", NULL, false },
};

static int read_track(const struct run *r, const struct plot *p, struct track *t)
{
    return p->key ? run_track(r, p->stage, p->key, NULL, t) : run_moved(r, p->what, t);
}

/* In words: where every line starts and ends. */
static int describe(struct buf *b, const struct series *s, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        int64_t first = 0, last = s[i].n - 1;
        while (first < last && !isfinite(s[i].y[first]))
            first++;
        while (last > first && !isfinite(s[i].y[last]))
            last--;
        TRY(buf_addf(b, "%s%s: ", i ? "; " : "", s[i].name));
        if (isfinite(s[i].y[first]))
            TRY(buf_addf(b, "from %.4g at step %g to %.4g at step %g", s[i].y[first], s[i].x[first],
                         s[i].y[last], s[i].x[last]));
        else
            TRY(buf_adds(b, "no finite value"));
    }
    return buf_adds(b, ".");
}

static int put_plot(struct buf *b, const struct plot *p, const struct run *runs, int32_t n_runs)
{
    struct track t[PAGE_RUNS_MAX] = { { 0 } };
    struct series s[PAGE_RUNS_MAX];
    struct buf about = { 0 };
    int32_t n = 0;
    int rc = 0;
    for (int32_t i = 0; i < n_runs; i++) {
        TRY_OUT(read_track(&runs[i], p, &t[i]));
        if (t[i].n) s[n++] = (struct series){ runs[i].name, t[i].x, t[i].y, t[i].n, i };
    }
    if (n == 0) goto out;
    TRY_OUT(describe(&about, s, n));
    const struct chart c = { .id = p->id,
                             .title = p->title,
                             .x_label = "step",
                             .y_label = p->y_label,
                             .about = about.data,
                             .series = s,
                             .n = n,
                             .width = 440,
                             .height = 290,
                             .log_y = p->log_y,
                             .legend = n_runs > 1,
                             .marks = s[0].n <= 40 };
    TRY_OUT(buf_adds(b, "<figure>"));
    TRY_OUT(chart_lines(b, &c));
    TRY_OUT(buf_adds(b, "</figure>\n"));
out:
    for (int32_t i = 0; i < n_runs; i++)
        track_release(&t[i]);
    buf_release(&about);
    return rc;
}

/* chosen log-probabilities below where they started: the failure that the page must not hide. */
static int put_warning(struct buf *b, const struct run *r)
{
    struct track t = { 0 };
    struct interval tail = { NAN, NAN, NAN };
    int rc = run_moved(r, "chosen", &t);
    if (rc == 0 && t.n) rc = track_tail(&t, &tail);
    if (rc == 0 && tail.hi < 0) {
        const double held = run_last(r, "eval/logps/chosen") - run_last(r, "eval/ref_logps/chosen");
        TRY_OUT(buf_adds(b, "<p class=\"warn\" role=\"alert\"><b>Displacement: "));
        TRY_OUT(svg_text(b, r->name));
        TRY_OUT(buf_addf(b,
                         "</b> has lowered the chosen responses: over the last tenth of training "
                         "their log-probability is %.2f nats below "
                         "where it started (95 %% interval %.2f to %.2f)",
                         -tail.value, -tail.hi, -tail.lo));
        if (isfinite(held))
            TRY_OUT(buf_addf(b, "; on held-out pairs it has moved by %+.2f nats", held));
        TRY_OUT(buf_adds(b, ".</p>\n"));
    }
out:
    track_release(&t);
    return rc;
}

static int put_interval(struct buf *b, const struct interval *i, int digits)
{
    if (!isfinite(i->value)) return buf_adds(b, "<td class=\"n\">-</td>");
    TRY(buf_addf(b, "<td class=\"n\">%.*f", digits, i->value));
    if (isfinite(i->lo))
        TRY(buf_addf(b, " <small>[%.*f, %.*f]</small>", digits, i->lo, digits, i->hi));
    return buf_adds(b, "</td>");
}

static int put_moved(struct buf *b, const struct run *r, const char *side)
{
    struct track t = { 0 };
    struct interval i = { NAN, NAN, NAN };
    int rc = run_moved(r, side, &t);
    if (rc == 0 && t.n) rc = track_tail(&t, &i);
    if (rc == 0) rc = put_interval(b, &i, 2);
    track_release(&t);
    return rc;
}

static int put_setting(struct buf *b, const struct run *r, const char *path)
{
    struct buf v = { 0 };
    int rc = run_setting(r, path, &v);
    if (rc == 0 && v.len > 1 && v.data[0] == '"')
        v.data[v.len - 1] = 0; /* a name reads better without its quotes */
    if (rc == 0) rc = svg_text(b, !v.data ? "-" : v.data[0] == '"' ? v.data + 1 : v.data);
    buf_release(&v);
    return rc;
}

static int put_summary_row(struct buf *b, const struct run *r)
{
    const double n = run_last(r, "eval/examples"), share = run_last(r, "eval/rewards/accuracies");
    const double kl = run_last(r, "eval/kl"), error = 1.96 * run_last(r, "eval/kl_stderr");
    const struct interval accuracy =
        n > 0 ? stats_wilson(share, n) : (struct interval){ share, NAN, NAN };
    const struct interval divergence = { kl, kl - error, kl + error };
    const struct interval margin = { run_last(r, "eval/rewards/margins"), NAN, NAN };
    const char *state = json_string_value(json_object_get(r->status, "state"));
    TRY(buf_adds(b, "<tr><td class=\"key\">"));
    TRY(svg_text(b, r->name));
    TRY(buf_adds(b, "</td><td>"));
    TRY(svg_text(b, state ? state : "-"));
    TRY(buf_adds(b, "</td><td>"));
    TRY(put_setting(b, r, "preference.loss"));
    TRY(buf_adds(b, "</td><td class=\"n\">"));
    TRY(put_setting(b, r, "preference.learning_rate"));
    TRY(buf_adds(b, "</td>"));
    TRY(put_moved(b, r, "chosen"));
    TRY(put_moved(b, r, "rejected"));
    TRY(put_interval(b, &accuracy, 3));
    TRY(put_interval(b, &margin, 3));
    TRY(put_interval(b, &divergence, 2));
    return buf_adds(b, "</tr>\n");
}

static int put_summary(struct buf *b, const struct run *runs, int32_t n)
{
    TRY(buf_adds(b, "<h2>Summary</h2>\n<div "
                    "class=\"scroll\"><table><thead><tr><th>run</th><th>state</th><th>loss</"
                    "th><th>learning rate</th>"
                    "<th>chosen, change of log pi</th><th>rejected, change of log "
                    "pi</th><th>held-out accuracy</th><th>held-out margin</th>"
                    "<th>KL, nats</th></tr></thead><tbody>\n"));
    for (int32_t i = 0; i < n; i++)
        TRY(put_summary_row(b, &runs[i]));
    return buf_adds(b, "</tbody></table></div>\n<p><small>Changes: mean over the last tenth of the "
                       "training steps against the reference, in nats, with a "
                       "bootstrap interval over these steps. Accuracy: Wilson's interval. KL: 1.96 "
                       "standard errors. All 95 %.</small></p>\n");
}

/* Every path of one config that not all runs share: objects are walked, other values compared as JSON. */
static int put_differences(struct buf *b, const struct run *runs, int32_t n, const json_t *at,
                           const char *path, int64_t *found)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)at, key, value)
    {
        struct buf first = { 0 }, other = { 0 };
        char *full = NULL;
        bool differs = false;
        int rc = mem_asprintf(&full, "%s%s%s", path, *path ? "." : "", key);
        if (rc == 0 && json_is_object(value)) {
            rc = put_differences(b, runs, n, value, full, found);
            free(full);
            TRY(rc);
            continue;
        }
        if (rc == 0) rc = run_setting(&runs[0], full, &first);
        for (int32_t i = 1; rc == 0 && i < n; i++) {
            buf_clear(&other);
            rc = run_setting(&runs[i], full, &other);
            differs = differs || other.len != first.len ||
                      (first.len && memcmp(other.data, first.data, first.len) != 0);
        }
        if (rc == 0 && differs) {
            ++*found;
            rc = buf_addf(b, "<tr><td class=\"key\">%s</td>", full);
            for (int32_t i = 0; rc == 0 && i < n; i++) {
                rc = buf_adds(b, "<td>");
                if (rc == 0) rc = put_setting(b, &runs[i], full);
                if (rc == 0) rc = buf_adds(b, "</td>");
            }
            if (rc == 0) rc = buf_adds(b, "</tr>\n");
        }
        buf_release(&first);
        buf_release(&other);
        free(full);
        TRY(rc);
    }
    return 0;
}

static int put_head(struct buf *b, const char *first, const struct run *runs, int32_t n)
{
    TRY(buf_addf(b, "<div class=\"scroll\"><table><thead><tr><th>%s</th>", first));
    for (int32_t i = 0; i < n; i++) {
        TRY(buf_adds(b, "<th>"));
        TRY(svg_text(b, runs[i].name));
        TRY(buf_adds(b, "</th>"));
    }
    return buf_adds(b, "</tr></thead><tbody>\n");
}

/* All keys of all configs: those of the first, then what later ones add. */
static int put_configs(struct buf *b, const struct run *runs, int32_t n)
{
    struct buf text = { 0 };
    int64_t found = 0;
    int rc = 0;
    if (n > 1) {
        json_t *all = json_object();
        for (int32_t i = n - 1; i >= 0; i--)
            json_object_update_recursive(all, runs[i].config);
        TRY(buf_adds(b, "<h2>Differences of the configs</h2>\n"));
        TRY(put_head(b, "key", runs, n));
        rc = put_differences(b, runs, n, all, "", &found);
        json_decref(all);
        TRY(rc);
        TRY(buf_adds(b, "</tbody></table></div>\n"));
    }
    for (int32_t i = 0; i < n; i++) {
        buf_clear(&text);
        TRY_OUT(json_dump(&text, runs[i].config, 2));
        TRY_OUT(buf_adds(b, "<details><summary>Config of "));
        TRY_OUT(svg_text(b, runs[i].name));
        TRY_OUT(buf_adds(b, "</summary><pre>"));
        TRY_OUT(svg_text(b, text.data));
        TRY_OUT(buf_adds(b, "</pre></details>\n"));
    }
out:
    buf_release(&text);
    return rc;
}

static int put_fingerprints(struct buf *b, const struct run *runs, int32_t n)
{
    json_t *all = json_object(), *value;
    const char *key;
    int rc = 0;
    for (int32_t i = 0; i < n; i++)
        if (runs[i].content) json_object_update(all, runs[i].content);
    if (json_object_size(all) == 0) goto out;
    TRY_OUT(buf_adds(b, "<h2>Fingerprints of data and model</h2>\n"));
    TRY_OUT(put_head(b, "content", runs, n));
    json_object_foreach(all, key, value)
    {
        TRY_OUT(buf_adds(b, "<tr><td class=\"key\">"));
        TRY_OUT(svg_text(b, key));
        TRY_OUT(buf_adds(b, "</td>"));
        for (int32_t i = 0; i < n; i++) {
            const json_t *v = json_object_get(runs[i].content, key);
            const char *hex = json_string_value(v);
            if (hex)
                TRY_OUT(buf_addf(b, "<td title=\"%.64s\"><code>%.12s</code></td>", hex, hex));
            else if (json_is_integer(v))
                TRY_OUT(buf_addf(b, "<td>%lld bytes</td>", (long long)json_integer_value(v)));
            else
                TRY_OUT(buf_adds(b, "<td>-</td>"));
        }
        TRY_OUT(buf_adds(b, "</tr>\n"));
    }
    TRY_OUT(buf_adds(b, "</tbody></table></div>\n"));
out:
    json_decref(all);
    return rc;
}

static int put_answer(struct buf *b, const json_t *row, const char *key, const char *title)
{
    const char *text = json_string_value(json_object_get(row, key));
    TRY(buf_addf(b, "<div><small>%s</small><p>", title));
    TRY(svg_text(b, text ? text : ""));
    return buf_adds(b, "</p></div>\n");
}

static int put_answers(struct buf *b, const struct run *r)
{
    const double kl = run_last(r, "eval/kl");
    size_t i;
    json_t *row;
    if (json_array_size(r->answers) == 0) return 0;
    TRY(buf_adds(b, "<h2>Answers to held-out prompts: "));
    TRY(svg_text(b, r->name));
    TRY(buf_adds(b, "</h2>\n"));
    if (isfinite(kl))
        TRY(buf_addf(b,
                     "<p>Sampled at temperature 1 with the same random numbers. E[KL] = %.2f "
                     "&plusmn; %.2f nats.</p>\n",
                     kl, run_last(r, "eval/kl_stderr")));
    json_array_foreach(r->answers, i, row)
    {
        TRY(buf_adds(b, "<div class=\"answers\"><p class=\"prompt\">"));
        TRY(svg_text(b, json_string_value(json_object_get(row, "prompt"))));
        TRY(buf_adds(b, "</p>\n"));
        TRY(put_answer(b, row, "reference", "reference"));
        TRY(put_answer(b, row, "policy", "policy"));
        TRY(buf_adds(b, "</div>\n"));
    }
    return 0;
}

static int put_page(struct buf *b, const struct run *runs, int32_t n)
{
    TRY(buf_adds(
        b,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
        "content=\"width=device-width,initial-scale=1\"><link rel=\"icon\" "
        "href=\"data:,\"><title>"));
    TRY(svg_text(b, runs[0].name));
    if (n > 1) TRY(buf_addf(b, " and %d more", n - 1));
    TRY(buf_addf(b, " - bdpo-train</title><style>%s%s</style></head><body>\n<h1>", STYLE,
                 SVG_STYLE));
    for (int32_t i = 0; i < n; i++) {
        TRY(buf_adds(b, i ? ", " : ""));
        TRY(svg_text(b, runs[i].name));
    }
    TRY(buf_adds(b, "</h1>\n"));
    for (int32_t i = 0; i < n; i++)
        TRY(put_warning(b, &runs[i]));
    TRY(put_summary(b, runs, n));
    TRY(buf_adds(b, "<h2>Training</h2>\n<div class=\"charts\">\n"));
    for (size_t i = 0; i < COUNT_OF(PLOTS); i++)
        TRY(put_plot(b, &PLOTS[i], runs, n));
    TRY(buf_adds(b, "</div>\n"));
    for (int32_t i = 0; i < n; i++)
        TRY(put_answers(b, &runs[i]));
    TRY(put_configs(b, runs, n));
    TRY(put_fingerprints(b, runs, n));
    return buf_addf(b,
                    "<p><small>bdpo-train %s. Curves with more than %d points show means of "
                    "neighbouring steps.</small></p>\n<script>%s</script>\n</body></html>\n",
                    BDPO_VERSION, CHART_POINTS, SCRIPT);
}

int page_write(const char *const *dirs, int32_t n, const char *out)
{
    struct run *runs = NULL;
    struct buf b = { 0 };
    int rc;
    BUG_IF(n < 1 || n > PAGE_RUNS_MAX);
    TRY(MEM_NEW(&runs, n));
    for (int32_t i = 0; i < n; i++)
        TRY_OUT(run_read(&runs[i], dirs[i]));
    TRY_OUT(put_page(&b, runs, n));
    TRY_OUT(file_write_all(out, b.data, b.len));
out:
    for (int32_t i = 0; i < n; i++)
        run_release(&runs[i]);
    free(runs);
    buf_release(&b);
    return rc;
}
