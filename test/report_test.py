#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The report page: what stands in it, that it needs nothing from outside, and, where Chromium is there, that a browser shows it without a complaint.
Standard library only; $BDPO_TRAIN is run."""
import html.parser
import os
import re
import shutil
import subprocess
import sys
import tempfile

import tiny_job as t
from compare_rows import Report

VOID = {"meta", "link", "br"}
EVIL = '<script>alert("x")</script>&'


class Page(html.parser.HTMLParser):
    """Elements, their balance, text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.bad, self.tags, self.ids, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.tags.append((tag, a))
        if "id" in a:
            self.ids.append(a["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.bad.append(tag)

    def handle_data(self, data):
        self.text += data


def check(r, ok, what, detail=""):
    r.check(ok, what, "" if ok else detail)


def train(root, name, **preference):
    c = t.make_config(root, preference={"epochs": 8, "learning_rate": 2e-2, **preference}, sft=None, eval={"every": 4, "kl_samples": 6},
                      output=f"{root}/{name}")
    t.write_json(f"{root}/{name}.json", c)
    return t.bdpo("--config", f"{root}/{name}.json")


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def test_page(r, root):
    for loss in ("dpo", "bdpo", "orpo"):
        res = train(root, f"run-{loss}", loss=loss)
        check(r, res.code == 0 and os.path.exists(f"{root}/run-{loss}/report.html"), f"a run with {loss} ends with its report.html", str(res))
    answers = t.read_lines(f"{root}/run-bdpo/samples.jsonl")
    answers[0]["policy"] = EVIL
    t.write_lines(f"{root}/run-bdpo/samples.jsonl", answers)
    out = f"{root}/all.html"
    res = t.bdpo("report", *(f"{root}/run-{x}" for x in ("dpo", "bdpo", "orpo")), "--out", out)
    text = read(out) if res.code == 0 else ""
    p = Page(text)
    check(r, res.code == 0 and not p.bad and not p.open, "report: every element is closed", f"{res} {p.bad[:3]} {p.open[:3]}")
    check(r, len(p.ids) == len(set(p.ids)), "report: ids are unique")
    outside = re.findall(r'(?:src|href)="(?!data:)[^"]*"|url\(|@import|fetch\(', text)
    check(r, not outside and set(re.findall(r"https?://[^\"' ]*", text)) <= {"http://www.w3.org/2000/svg"}, "report: nothing from outside", str(outside))
    pictures = [a for tag, a in p.tags if tag == "svg"]
    check(r, len(pictures) >= 14 and all(a.get("role") == "img" and all(i in p.ids for i in a["aria-labelledby"].split()) for a in pictures),
          "report: every picture has a title and a description", str(len(pictures)))
    check(r, all(x in text for x in ('name="viewport"', "prefers-color-scheme:dark", "@media print", 'lang="en"')), "report: phone, dark, print, language")
    check(r, EVIL not in text and "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;" in text, "report: text from outside is escaped")
    for part in ("Differences of the configs", "preference.loss", "Fingerprints", "preference data", "E[KL] = ", "held-out accuracy", "run-orpo"):
        check(r, part in p.text, f"report: has {part}")
    lines = re.findall(r'<svg[^>]*id="kl".*?</svg>', text, re.S)
    check(r, len(lines) == 1 and lines[0].count('class="series"') == 2, "report: eval/kl of the two runs that have it")


def test_numbers(r, root):
    """The places of a line, turned back by the axes' data, are the values of metrics.jsonl."""
    train(root, "numbers", loss="bdpo")
    rows = [x for x in t.read_lines(f"{root}/numbers/metrics.jsonl") if "loss" in x]
    text = read(f"{root}/numbers/report.html")
    svg = re.findall(r'<svg[^>]*id="nll".*?</svg>', text, re.S)[0]
    axes = [[float(x) for x in re.findall(rf'data-{k}="([^"]*)"', svg)[0].split()] for k in "xy"]
    points = [[float(x) for x in p.split(",")] for p in re.findall(r'points="([^"]*)"', svg)[0].split()]
    back = [[a[0] + (v - a[2]) / (a[3] - a[2]) * (a[1] - a[0]) for a, v in zip(axes, p)] for p in points]
    size = [abs((a[1] - a[0]) / (a[3] - a[2])) * 0.06 for a in axes]  # places are written with one decimal
    check(r, len(back) == len(rows) and all(abs(b[0] - x["step"]) <= size[0] and abs(b[1] - x["nll_loss"]) <= size[1] for b, x in zip(back, rows)),
          "report: a line's places are the metrics", f"{back[:2]} {rows[:1]}")


def test_displacement(r, root):
    """A run whose chosen log-probabilities fall is called that, one whose rise is not; made by hand, so that it does not hang on a training."""
    for name, slope in (("down", -1.0), ("up", 1.0)):
        os.makedirs(f"{root}/{name}")
        t.write_json(f"{root}/{name}/config.json", {"output": name, "preference": {"loss": "dpo", "learning_rate": 1e-3}})
        t.write_lines(f"{root}/{name}/metrics.jsonl", [
            {"stage": "preference", "step": i + 1, "loss": 0.5 if i % 7 else "NaN", "logps/chosen": -50 + slope * i / 50, "ref_logps/chosen": -50.0,
             "logps/rejected": -60 - i, "ref_logps/rejected": -60.0} for i in range(1000)])
        with open(f"{root}/{name}/metrics.jsonl", "a", encoding="utf-8") as f:
            f.write('{"stage": "preference", "step": 1001, "lo')  # a run that goes on
    t.bdpo("report", f"{root}/down/", f"{root}/up", "--out", f"{root}/two.html")
    text = Page(read(f"{root}/two.html")).text
    check(r, "Displacement: down has lowered" in text and "Displacement: up" not in text, "report: displacement is named")
    check(r, "18.99 nats below" in text, "report: by how much", text[-900:])  # the mean of i/50 for i in 900..999
    check(r, re.findall(r'id="loss"', read(f"{root}/two.html")) and "nan" not in read(f"{root}/two.html").lower().replace("nano", ""), "report: gaps, not NaN")


def test_refusals(r, root):
    os.makedirs(f"{root}/empty")
    for args, part in (([], "at least one RUN_DIR"), ([f"{root}/empty"], "is not the directory of a run"), ([f"{root}/absent"], "absent"),
                       ([f"{root}/empty", "--set", "x=1"], "unknown option")):
        res = t.bdpo("report", *args)
        check(r, res.code == 2 and part in res.err and len(res.lines) == 1, f"report {args}: refused", str(res))
    check(r, os.listdir(f"{root}/empty") == [], "report: nothing is written where it is refused")


def test_in_a_browser(r, root):
    chromium = next((x for x in ("chromium", "chromium-browser", "google-chrome") if shutil.which(x)), None)
    if not chromium:
        print("skip: no Chromium (Debian: apt-get install chromium)")
        r.skipped += 1
        return
    train(root, "seen", loss="bdpo")
    page = f"{root}/seen/report.html"
    probe = page.replace("report.html", "probe.html")
    # a mouse over the first picture, as the page's own script would meet it; what it shows goes into the title
    script = ("<script>onerror=m=>document.title='error: '+m;const f=document.querySelector('figure'),o=f.getBoundingClientRect();"
              "f.dispatchEvent(new PointerEvent('pointermove',{clientX:o.left+o.width/2,clientY:o.top+o.height/2}));"
              "document.title='tip: '+f.querySelector('.tip').textContent+' wide: '+(document.documentElement.scrollWidth>innerWidth)</script>")
    with open(probe, "w", encoding="utf-8") as f:
        f.write(read(page).replace("</body>", script + "</body>"))
    for width in (500, 1280):
        done = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={root}/profile",
                               f"--window-size={width},900", "--dump-dom", f"file://{probe}"], capture_output=True, text=True, timeout=120, check=False)
        title = (re.findall(r"<title>(tip: .*?|error: .*?)</title>", done.stdout, re.S) or ["none"])[0]
        check(r, re.match(r"tip: step \d+\nseen: -?\d", title) and title.endswith("wide: false"), f"browser at {width}: hovering, no overflow", title)
        check(r, "CONSOLE" not in done.stderr, f"browser at {width}: no console message", done.stderr[-400:])


def main():
    r, root = Report(), tempfile.mkdtemp(prefix="bdpo-report-")
    try:
        t.make_root(root, train=24, held=9)
        for test in (test_page, test_numbers, test_displacement, test_refusals, test_in_a_browser):
            test(r, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
