#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Do the tests on the emulated device see faults in kernels? Each mutant is a kernel file with one fault: a barrier left out, an index off by one, a wrong
reduction. It is built, linked with the other objects of build/release in place of its original, and must fail its test. A sample by default,
all with --all (minutes). The objects must be there (make build-tests)."""
import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "scripts"))
from compare_rows import Report  # pylint: disable=wrong-import-position

ROOT = os.path.join(HERE, "..")
ATT, LOGP, OPS = "t_cuda_attention", "t_cuda_logp", "t_cuda_ops"
MMA, PLAIN, LISTS = (ATT, "test_cuda_attention__mma_*"), (ATT, "test_cuda_attention__plain"), (ATT, "test_cuda_attention__lists")

# file, what is replaced (once in the file, or the n-th of several), by what, the test and its argument
MUTANTS = [
    # attention_fwd.cu
    ("attention_fwd.cu", "        __syncthreads(); /* tile t is there", "        /* tile t is there", MMA),
    ("attention_fwd.cu", "        ptx_copy_wait<0>();\n", "", MMA),
    ("attention_fwd.cu", "att_load_keys<D>(sk + (t + 1) % 2 * TILE", "att_load_keys<D>(sk + t % 2 * TILE", MMA),
    ("attention_fwd.cu", "(t + 1) * ATT_KEYS);\n            att_load_keys<D>(sv", "t * ATT_KEYS);\n            att_load_keys<D>(sv", MMA),
    ("attention_fwd.cu", "first + KEYS - 1 > s.prefix_len", "first + KEYS - 2 > s.prefix_len", MMA),
    ("attention_fwd.cu", "            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));\n", "", MMA),
    ("attention_fwd.cu", "            sum += __shfl_xor_sync(ALL_LANES, sum, 1);\n", "", MMA),
    ("attention_fwd.cu", "r.sum[m][i] * back + sum", "r.sum[m][i] + sum", MMA),
    ("attention_fwd.cu", "                o[m][n][2 * i + 1] *= back;\n", "", MMA),
    ("attention_fwd.cu", "r.top[m][i] * a.scale + logf(sum)", "r.top[m][i] + logf(sum)", MMA),
    ("attention_fwd.cu", "sk + t % 2 * TILE + k * D", "sk + t % 2 * TILE", MMA),
    # attention_mma.cuh and attention.cuh
    ("attention_mma.cuh", "> seen) c[m]", "> seen + 1) c[m]", MMA),
    ("attention_mma.cuh", "row + 16 * m + 8 * i);\n#pragma unroll\n            for (int n = 0; n < NT", "row + 16 * m);\n#pragma unroll\n            for (int n = 0; n < NT", MMA),
    ("attention_mma.cuh", "((h ^ (lane_row & 7)) << 3)", "((h ^ (lane_row & 3)) << 3)", MMA),
    ("attention_mma.cuh", "(lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1", "(lane & 15), lane >> 4", MMA),
    ("attention_mma.cuh", "p[m][2 * k + i / 2]", "p[m][2 * k + i % 2]", MMA),
    ("attention_mma.cuh", "        if (at + r >= rows) continue;\n", "        if (at + r > rows) continue;\n", MMA),
    ("attention_mma.cuh", "    __syncwarp();\n", "", MMA),
    ("attention_mma.cuh", "const bool there = at + r < rows;", "const bool there = true;", MMA),
    ("attention_mma.cuh", "head = g * a.G + p - token * a.G;", "head = g * a.G;", MMA),
    ("attention.cuh", "s.own + (j - s.prefix_len)", "s.own + j", MMA),
    ("attention.cuh", "w->own ? s.len : s.prefix_len;", "s.len;", MMA),
    ("attention.cuh", "w->first + n <= 0) continue;", "w->first < 0) continue;", MMA),
    ("attention.cuh", "if (++w->own == 2)", "if (++w->own == 1)", MMA),
    # attention_bwd.cu
    ("attention_bwd.cu", "        __syncthreads(); /* tile t is there", "        /* tile t is there", MMA),
    ("attention_bwd.cu", "        __syncthreads(); /* tile w is there", "        /* tile w is there", MMA),
    ("attention_bwd.cu", "        ptx_copy_wait<0>();\n        __syncthreads(); /* tile w", "        __syncthreads(); /* tile w", MMA),
    ("attention_bwd.cu", "sum = warp_sum(sum);", "sum += __shfl_xor_sync(ALL_LANES, sum, 16);", MMA),
    ("attention_bwd.cu", "if (more) dkv_row_put(rows[other], r);", "if (more) dkv_row_put(rows[stage], r);", MMA),
    ("attention_bwd.cu", "p[0][n][i] * (ds[0][n][i] - rows.delta", "p[0][n][i] * (ds[0][n][i] + rows.delta", MMA),
    ("attention_bwd.cu", "(dp[0][n][i] - delta[i / 2])", "(dp[0][n][i] - delta[i % 2])", MMA),
    ("attention_bwd.cu", "if (key < 0 || key > seen)", "if (key < 0 || key >= seen)", MMA),
    ("attention_bwd.cu", "key + 8 < 0 || key + 8 > seen", "key + 8 > seen", MMA),
    ("attention_bwd.cu", "w.first + ATT_KEYS > w.len ||", "w.first + ATT_KEYS > w.len + 1 ||", MMA),
    ("attention_bwd.cu", "sk, dk[0], a.scale,", "sk, dk[0], 1,", MMA),
    ("attention_bwd.cu", "struct dkv_row r = { INFINITY, 0 };", "struct dkv_row r = { 0, 0 };", MMA),
    ("attention_bwd.cu", "        if (r >= n) continue;\n", "        if (r > n) continue;\n", MMA),
    ("attention_bwd.cu", "att_product_add<D>(dk, ds, sq + r * D);", "att_product_add<D>(dk, ds, sq);", MMA),
    # attention_plain.cu
    ("attention_plain.cu", "        __syncthreads();\n        if (tid < N) plain_softmax", "        if (tid < N) plain_softmax", PLAIN),
    ("attention_plain.cu", "row[N] = row[N] * row[2 * N] + sum;", "row[N] = row[N] + sum;", PLAIN),
    ("attention_plain.cu", "for (int32_t i = 0; i < D; i++)\n        sum", "for (int32_t i = 0; i < D - 1; i++)\n        sum", PLAIN),
    ("attention_plain.cu", "            plain_ds(t, a, w, 0);\n            __syncthreads();\n", "            plain_ds(t, a, w, 0);\n", PLAIN),
    ("attention_plain.cu", "            __syncthreads();\n            plain_bwd_rows", "            plain_bwd_rows", PLAIN),
    ("attention_plain.cu", "if (key >= begin && key < w.len &&", "if (key > begin && key < w.len &&", PLAIN),
    ("attention_plain.cu", "plain_add(dk, t.ds + key, N + 1, t.q, a.D)", "plain_add(dk, t.ds + key, N, t.q, a.D)", PLAIN),
    # attention.cu
    ("attention.cu", "memcmp(list->data, segs->seg, (size_t)segs->n * sizeof *segs->seg) == 0", "true", LISTS),
    ("attention.cu", "list->n != segs->n || list->G != G", "list->n != segs->n", LISTS),
    ("attention.cu", "if (list->tile.rows != tile.rows || list->tile.keys != tile.keys) return false;", "", LISTS),
    ("attention.cu", "div_up(s->prefix_len + last + 1, tile.keys)", "div_up(s->prefix_len + last, tile.keys)", MMA),
    # logp.cu
    ("logp.cu", "    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;\n    __syncthreads();\n",
     "    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;\n", (OPS, "logp")),
    ("logp.cu", "    for (int i = 1; i < THREADS / 32; i++)\n        all = fmaxf", "    for (int i = 2; i < THREADS / 32; i++)\n        all = fmaxf", (LOGP, "*")),
    ("logp.cu", " * exp((double)before - (double)top)", "", (LOGP, "*")),
    ("logp.cu", "    rest += (sum - (s - y)) + (x - y);\n", "    (void)y;\n", (LOGP, "*")),
    ("logp.cu", "if (column(i) + k == hit) r.hit[n]", "if (column(i) + k + 1 == hit) r.hit[n]", (OPS, "logp")),
    ("logp.cu", "    __syncthreads(); /* all is read before any is written */\n", "", (OPS, "logp")),
    ("logp.cu", "column(i) + k == hit ? expm1f(z[i].v[k] - l)", "column(i) + k == hit ? expf(z[i].v[k] - l) - 1", (LOGP, "*")),
    ("logp.cu", "v0 ? 1 : 0));\n", "0));\n", (OPS, "logp")),
    ("logp.cu", "z.v[k] = column(i) + k == hit ?", "z.v[k] = column(i) + k == hit + 1 ?", (LOGP, "*")),
    ("logp.cu", "scale = c * expf(top[tile * N + n] - l)", "scale = c * expf(top[n] - l)", (LOGP, "*")),
    ("logp.cu", "if (k >= left) z[i].v[k] = -INFINITY;", "if (k > left) z[i].v[k] = -INFINITY;", (OPS, "logp")),
]
SAMPLE = 9  # every ninth


def users(name):
    """The .cu files that a mutant of `name` changes."""
    if name.endswith(".cu"):
        return [name]
    files = [f for f in os.listdir(os.path.join(ROOT, "cuda")) if f.endswith(".cu")]
    uses = {"attention_mma.cuh": ("attention_mma.cuh",), "attention.cuh": ("attention.cuh", "attention_mma.cuh")}[name]
    return sorted(f for f in files if any(f'"{u}"' in open(os.path.join(ROOT, "cuda", f)).read() for u in uses))


def build(work, make, mutant):
    """The mutant's test program, or what is wrong with it as text."""
    name, old, new, (test, _) = mutant
    shutil.copytree(os.path.join(ROOT, "cuda"), os.path.join(work, "cuda"))
    os.symlink(os.path.abspath(os.path.join(ROOT, "src")), os.path.join(work, "src"))
    path = os.path.join(work, "cuda", name)
    text = open(path).read()
    if text.count(old) < 1:
        return None, f"{name} has no {old!r}"
    with open(path, "w") as f:
        f.write(text.replace(old, new, 1))
    objects = {o: o for o in make["objects"]}
    for cu in users(name):
        out = os.path.join(work, cu + ".o")
        res = subprocess.run([*make["compile"], "-Wno-unused", "-x", "c++", "-c", "-o", out, os.path.join(work, "cuda", cu)], cwd=ROOT, capture_output=True, text=True, check=False)
        if res.returncode:
            return None, res.stderr
        objects[next(o for o in objects if o.endswith(f"/cuda/{cu}.o"))] = out
    program = os.path.join(work, test)
    res = subprocess.run(["env", *make["link"], "-o", program, f"{make['out']}/test/{test}.o", *make["tests"], *objects.values(), *make["libraries"]], cwd=ROOT, capture_output=True,
                         text=True, check=False)
    return (program, "") if res.returncode == 0 else (None, res.stderr)


def survives(work, make, mutant):
    """"" where the test fails as it should, else what happened."""
    program, why = build(work, make, mutant)
    if not program:
        return why
    try:
        res = subprocess.run([program, mutant[3][1]], cwd=ROOT, capture_output=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return ""  # a kernel that does not end is seen too
    return "" if res.returncode else "the test passes"


def how_to_build():
    """What the Makefile compiles and links with."""
    text = subprocess.run(["make", "-s", "print-emu"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {k: v if k == "out" else v.split() for k, v in (line.split(": ", 1) for line in text.splitlines())}


def check(r, make, mutant):
    work = tempfile.mkdtemp(prefix="bdpo-mutant-")
    try:
        why = survives(work, make, mutant)
    finally:
        shutil.rmtree(work)
    r.check(not why, f"{mutant[0]}: {mutant[1].strip()!r} -> {mutant[2].strip()!r}", why)


def main():
    r = Report()
    make = how_to_build()
    if not all(os.path.exists(os.path.join(ROOT, o)) for o in make["objects"]):
        print("skip: the objects of the emulated backend are not built (make build-tests)")
        r.skipped += 1
    else:
        mutants = MUTANTS if "--all" in sys.argv else MUTANTS[::SAMPLE]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda m: check(r, make, m), mutants))
    return r.last()


if __name__ == "__main__":
    sys.exit(main())
