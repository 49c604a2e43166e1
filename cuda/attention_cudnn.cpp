/* SPDX-License-Identifier: MIT
 * attention_cudnn.cpp - sdpa.h by cuDNN's scaled dot product attention, through its header-only C++ frontend (1.x, cuDNN 9.6 or newer).
 * The library itself is looked for when it is asked for. A graph, with the first plan that the library's heuristics offer, is built for
 * each shape and kept. No exception leaves this file. */
#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include "library.h"
#include "sdpa.h"
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cudnn_frontend.h>
#include <map>
#include <memory>
#include <tuple>

namespace fe = cudnn_frontend;
namespace cudnn_frontend {
void *cudnn_dlhandle;
}

namespace {
enum uid : int64_t { Q = 1, K, V, O, STATS, DOUT, DQ, DK, DV, Q_LEN, KV_LEN, Q_AT, O_AT, DOUT_AT, DQ_AT, LSE_AT, KV_AT };
enum { GRAPHS = 64, VERSION_LEAST = 90600 };

using shape = std::tuple<bool, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int64_t, int64_t, int64_t, int64_t, float>;
using graph_ptr = std::shared_ptr<fe::graph::Graph>;
using tensor_ptr = std::shared_ptr<fe::graph::Tensor_attributes>;

shape shape_of(const struct sdpa &s, bool backward)
{
    return { backward, s.n, s.H, s.K, s.D, s.q_most, s.kv_most, s.ldq, s.ldo, s.lddout, s.lddq, s.scale };
}

/* i32 [n], or i64 [n + 1] */
tensor_ptr numbers(fe::graph::Graph &g, int64_t id, int64_t n, fe::DataType_t type)
{
    return g.tensor(fe::graph::Tensor_attributes().set_uid(id).set_dim({ n, 1, 1, 1 }).set_stride({ 1, 1, 1, 1 }).set_data_type(type));
}

/* [n, heads, most, D] with rows ld apart, whose sequences begin at `at` */
void lay_out(fe::graph::Tensor_attributes &t, int64_t id, const struct sdpa &s, int64_t heads, int64_t most, int64_t ld, const tensor_ptr &at)
{
    t.set_uid(id).set_dim({ s.n, heads, most, s.D }).set_stride({ most * ld, s.D, ld, 1 }).set_ragged_offset(at);
    t.set_data_type(fe::DataType_t::BFLOAT16);
}

tensor_ptr rows(fe::graph::Graph &g, int64_t id, const struct sdpa &s, int64_t heads, int64_t most, int64_t ld, const tensor_ptr &at)
{
    fe::graph::Tensor_attributes t;
    lay_out(t, id, s, heads, most, ld, at);
    return g.tensor(t);
}

/* log-sum-exps [n, H, most, 1], stored [row, H] */
void lay_out_stats(fe::graph::Tensor_attributes &t, const struct sdpa &s, const tensor_ptr &at)
{
    t.set_uid(STATS).set_dim({ s.n, s.H, s.q_most, 1 }).set_stride({ (int64_t)s.H * s.q_most, 1, s.H, 1 }).set_ragged_offset(at);
    t.set_data_type(fe::DataType_t::FLOAT);
}

struct parts { /* of both directions */
    tensor_ptr q_len, kv_len, q_at, o_at, lse_at, kv_at, q, k, v;
};

parts add_parts(fe::graph::Graph &g, const struct sdpa &s)
{
    parts p;
    g.set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    p.q_len = numbers(g, Q_LEN, s.n, fe::DataType_t::INT32);
    p.kv_len = numbers(g, KV_LEN, s.n, fe::DataType_t::INT32);
    p.q_at = numbers(g, Q_AT, s.n + 1, fe::DataType_t::INT64);
    p.o_at = numbers(g, O_AT, s.n + 1, fe::DataType_t::INT64);
    p.lse_at = numbers(g, LSE_AT, s.n + 1, fe::DataType_t::INT64);
    p.kv_at = numbers(g, KV_AT, s.n + 1, fe::DataType_t::INT64);
    const int64_t ld = (int64_t)s.K * s.D;
    p.q = rows(g, Q, s, s.H, s.q_most, s.ldq, p.q_at);
    p.k = rows(g, K, s, s.K, s.kv_most, ld, p.kv_at);
    p.v = rows(g, V, s, s.K, s.kv_most, ld, p.kv_at);
    return p;
}

void add_forward(fe::graph::Graph &g, const struct sdpa &s)
{
    const parts p = add_parts(g, s);
    auto options = fe::graph::SDPA_attributes()
                       .set_generate_stats(true)
                       .set_attn_scale(s.scale)
                       .set_causal_mask_bottom_right(true)
                       .set_padding_mask(true)
                       .set_seq_len_q(p.q_len)
                       .set_seq_len_kv(p.kv_len);
    auto out = g.sdpa(p.q, p.k, p.v, options);
    out[0]->set_output(true);
    lay_out(*out[0], O, s, s.H, s.q_most, s.ldo, p.o_at);
    out[1]->set_output(true);
    lay_out_stats(*out[1], s, p.lse_at);
}

void add_backward(fe::graph::Graph &g, const struct sdpa &s)
{
    const parts p = add_parts(g, s);
    const tensor_ptr dout_at = numbers(g, DOUT_AT, s.n + 1, fe::DataType_t::INT64), dq_at = numbers(g, DQ_AT, s.n + 1, fe::DataType_t::INT64);
    const tensor_ptr o = rows(g, O, s, s.H, s.q_most, s.ldo, p.o_at), dout = rows(g, DOUT, s, s.H, s.q_most, s.lddout, dout_at);
    fe::graph::Tensor_attributes stats;
    lay_out_stats(stats, s, p.lse_at);
    auto options = fe::graph::SDPA_backward_attributes()
                       .set_attn_scale(s.scale)
                       .set_causal_mask_bottom_right(true)
                       .set_padding_mask(true)
                       .set_seq_len_q(p.q_len)
                       .set_seq_len_kv(p.kv_len)
                       .set_deterministic_algorithm(true);
    auto out = g.sdpa_backward(p.q, p.k, p.v, o, dout, g.tensor(stats), options);
    const int64_t ld = (int64_t)s.K * s.D;
    for (auto &t : out)
        t->set_output(true);
    lay_out(*out[0], DQ, s, s.H, s.q_most, s.lddq, dq_at);
    lay_out(*out[1], DK, s, s.K, s.kv_most, ld, p.kv_at);
    lay_out(*out[2], DV, s, s.K, s.kv_most, ld, p.kv_at);
}

int failed(fe::error_object e, const char *what)
{
    return err_set(ERR_DEVICE, "cuDNN cannot %s attention of this shape: %s; set model.attention to \"builtin\"", what, e.get_message().c_str());
}
} // namespace

struct sdpa_library {
    void *library;
    cudnnHandle_t handle;
    std::map<shape, graph_ptr> graphs;
};

static int build(struct ctx *cx, graph_ptr &graph, const struct sdpa &s, bool backward)
{
    auto &graphs = cx->sdpa->graphs;
    const auto found = graphs.find(shape_of(s, backward));
    if (found != graphs.end()) {
        graph = found->second;
        return 0;
    }
    graph = std::make_shared<fe::graph::Graph>();
    backward ? add_backward(*graph, s) : add_forward(*graph, s);
    const auto e = graph->build(cx->sdpa->handle, { fe::HeurMode_t::A });
    if (e.is_bad()) return failed(e, "plan");
    if (graphs.size() >= GRAPHS) graphs.clear();
    graphs[shape_of(s, backward)] = graph;
    return 0;
}

static int open(struct ctx *cx)
{
    char path[1024];
    const char *const names[] = { "libcudnn.so.9", NULL };
    void *library;
    TRY(library_open(&library, path, sizeof path, names, "nvidia-cudnn-cu13"));
    cx->sdpa = new sdpa_library{ library, nullptr, {} };
    fe::cudnn_dlhandle = library;
    const size_t version = fe::detail::get_backend_version();
    if (version < VERSION_LEAST)
        return err_set(ERR_INPUT, "%s is cuDNN %zu.%zu.%zu; 9.6.0 or newer is needed", path, version / 10000, version / 100 % 100, version % 100);
    if (fe::detail::create_handle(&cx->sdpa->handle) != CUDNN_STATUS_SUCCESS || fe::detail::set_stream(cx->sdpa->handle, cx->stream) != CUDNN_STATUS_SUCCESS)
        return err_set(ERR_INPUT, "cuDNN (%s) does not start on this device", path);
    return 0;
}

#define NO_EXCEPTION(call)                                                    \
    try {                                                                     \
        return call;                                                          \
    } catch (const std::exception &e) {                                       \
        return err_set(ERR_DEVICE, "cuDNN's frontend failed: %s", e.what()); \
    }

int sdpa_open(struct ctx *cx)
{
    int rc = ERR_INPUT;
    try {
        rc = open(cx);
    } catch (const std::exception &e) {
        rc = err_set(ERR_INPUT, "cuDNN's frontend failed: %s", e.what());
    }
    if (rc < 0) sdpa_close(cx);
    return rc;
}

void sdpa_close(struct ctx *cx)
{
    if (!cx->sdpa) return;
    cx->sdpa->graphs.clear();
    if (cx->sdpa->handle) (void)fe::detail::destroy_handle(cx->sdpa->handle);
    library_close(cx->sdpa->library);
    delete cx->sdpa;
    cx->sdpa = nullptr;
}

static int plan(struct ctx *cx, const struct sdpa *s, bool backward, int64_t *bytes)
{
    graph_ptr graph;
    TRY(build(cx, graph, *s, backward));
    *bytes = graph->get_workspace_size();
    return *bytes < 0 ? err_set(ERR_DEVICE, "cuDNN does not say what workspace it needs") : 0;
}

int sdpa_plan(struct ctx *cx, const struct sdpa *s, bool backward, int64_t *bytes)
{
    NO_EXCEPTION(plan(cx, s, backward, bytes))
}

static void *plain(const void *p)
{
    return const_cast<void *>(p);
}

static int execute(struct ctx *cx, const struct sdpa *s, bool backward, void *workspace)
{
    graph_ptr graph;
    TRY(build(cx, graph, *s, backward));
    std::unordered_map<int64_t, void *> pack = {
        { Q, plain(s->q) },           { K, plain(s->k) },         { V, plain(s->v) },         { O, s->o },
        { STATS, s->lse },            { Q_LEN, plain(s->q_len) }, { KV_LEN, plain(s->kv_len) }, { Q_AT, plain(s->q_at) },
        { O_AT, plain(s->o_at) },     { LSE_AT, plain(s->lse_at) }, { KV_AT, plain(s->kv_at) },
    };
    if (backward) {
        pack[DOUT] = plain(s->dout);
        pack[DOUT_AT] = plain(s->dout_at);
        pack[DQ] = s->dq;
        pack[DQ_AT] = plain(s->dq_at);
        pack[DK] = s->dk;
        pack[DV] = s->dv;
    }
    const auto e = graph->execute(cx->sdpa->handle, pack, workspace);
    return e.is_bad() ? failed(e, "run") : 0;
}

int sdpa_run(struct ctx *cx, const struct sdpa *s, bool backward, void *workspace)
{
    NO_EXCEPTION(execute(cx, s, backward, workspace))
}
