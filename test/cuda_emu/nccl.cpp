/* SPDX-License-Identifier: MIT
 * The twin of cuda/nccl.c: NCCL's calls between processes of one machine, over sockets. Calls answer "in progress" once, as the library's
 * do when they are not to wait; messages are sent when the stream comes to them, with their sizes, which have to agree. */
#include "../../cuda/nccl.h"
#include "../../src/base/base.h"
#include "block.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { RANKS = 16, MESSAGES = 64, REMOTE_ERROR = 6, INVALID_USAGE = 5, TRIES = 10000 };
struct transfer {
    char *data;
    int64_t bytes, at; /* of the size (at < 0), then of the data */
    int64_t size;
    int peer;
    bool send;
};
struct group {
    struct comm *c;
    int n;
    transfer t[MESSAGES];
};
struct comm {
    int rank, size, fd[RANKS], state;
    bool asked; /* how its last call went */
};
static struct {
    bool open;
    cudaStream_t stream;
    group g;
} now;

static int address(sockaddr_un *a, const char *id, int rank)
{
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX; /* a name that begins with 0 is no file */
    return snprintf(a->sun_path + 1, sizeof a->sun_path - 1, "%s-%d", id, rank) + 1 + (int)offsetof(sockaddr_un, sun_path);
}

static bool whole(int fd, void *p, size_t n, bool send)
{
    char *c = static_cast<char *>(p);
    while (n) {
        const ssize_t k = send ? write(fd, c, n) : read(fd, c, n);
        if (k <= 0) return false;
        c += k;
        n -= (size_t)k;
    }
    return true;
}

/* a rank meets the lower ones at their doors, and the higher ones at its own */
static bool meet(comm *c, const char *id)
{
    sockaddr_un a;
    const int door = socket(AF_UNIX, SOCK_STREAM, 0);
    int len = address(&a, id, c->rank);
    if (bind(door, reinterpret_cast<sockaddr *>(&a), (socklen_t)len) < 0 || listen(door, RANKS) < 0) return false;
    for (int r = 0; r < c->rank; r++) {
        c->fd[r] = socket(AF_UNIX, SOCK_STREAM, 0);
        len = address(&a, id, r);
        int tries = 0;
        while (connect(c->fd[r], reinterpret_cast<sockaddr *>(&a), (socklen_t)len) < 0) {
            if (++tries > TRIES) return false;
            usleep(1000);
        }
        if (!whole(c->fd[r], &c->rank, sizeof c->rank, true)) return false;
    }
    for (int i = c->rank + 1; i < c->size; i++) {
        int who;
        const int fd = accept(door, nullptr, nullptr);
        if (fd < 0 || !whole(fd, &who, sizeof who, false)) return false;
        c->fd[who] = fd;
    }
    close(door);
    return true;
}

static int answer(comm *c, int state)
{
    c->state = state;
    c->asked = false;
    return NCCL_IN_PROGRESS;
}

static int unique_id(nccl_id *id)
{
    static int n;
    memset(id, 0, sizeof *id);
    snprintf(id->text, sizeof id->text, "bdpo-emu-%d-%d", (int)getpid(), n++);
    return NCCL_OK;
}

static int init(nccl_comm *out, int size, nccl_id id, int rank, nccl_config *config)
{
    if (size > RANKS || config->magic != 0xcafebeefu || config->size != sizeof *config || config->blocking != 0) return INVALID_USAGE;
    comm *c = static_cast<comm *>(calloc(1, sizeof *c));
    c->rank = rank;
    c->size = size;
    *out = c;
    return answer(c, meet(c, id.text) ? 0 : REMOTE_ERROR);
}

static int async_error(nccl_comm p, int *state)
{
    comm *c = static_cast<comm *>(p);
    *state = c->asked ? c->state : NCCL_IN_PROGRESS;
    c->asked = true;
    return NCCL_OK;
}

static int finalize(nccl_comm p)
{
    comm *c = static_cast<comm *>(p);
    return answer(c, c->state);
}

static int destroy(nccl_comm p)
{
    comm *c = static_cast<comm *>(p);
    for (int r = 0; r < c->size; r++)
        if (r != c->rank) close(c->fd[r]);
    free(c);
    return NCCL_OK;
}

/* Some bytes of a message, without waiting; false: the other one is gone. */
static bool move(comm *c, transfer *t)
{
    const int fd = c->fd[t->peer];
    for (;;) {
        char *p = t->at < 0 ? reinterpret_cast<char *>(&t->size) + 8 + t->at : t->data + t->at;
        const size_t left = (size_t)(t->at < 0 ? -t->at : t->bytes - t->at);
        if (left == 0) return true;
        const ssize_t k = t->send ? send(fd, p, left, MSG_DONTWAIT | MSG_NOSIGNAL) : recv(fd, p, left, MSG_DONTWAIT);
        if (k < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
        if (k <= 0) return false;
        t->at += k;
        if (t->at == 0 && t->size != t->bytes) emu_fail("NCCL: rank %d sends %lld bytes, and %lld are waited for", t->peer, (long long)t->size, (long long)t->bytes);
    }
}

/* Is it the first of its peer and direction that is not over? */
static bool is_next(const group &g, int i)
{
    for (int k = 0; k < i; k++)
        if (g.t[k].peer == g.t[i].peer && g.t[k].send == g.t[i].send && g.t[k].at < g.t[k].bytes) return false;
    return g.t[i].at < g.t[i].bytes;
}

static void run(void *arguments)
{
    group &g = *static_cast<group *>(arguments);
    for (;;) {
        pollfd wait[MESSAGES];
        int n = 0;
        for (int i = 0; i < g.n; i++) {
            if (!is_next(g, i)) continue;
            if (!move(g.c, &g.t[i])) {
                g.c->state = REMOTE_ERROR;
                return;
            }
            if (g.t[i].at < g.t[i].bytes) wait[n++] = { g.c->fd[g.t[i].peer], (short)(g.t[i].send ? POLLOUT : POLLIN), 0 };
        }
        bool all = n == 0;
        for (int i = 0; i < g.n; i++)
            all = all && g.t[i].at == g.t[i].bytes;
        if (all) return;
        if (n) poll(wait, (nfds_t)n, -1);
    }
}

static int group_start()
{
    if (now.open) return INVALID_USAGE;
    now.open = true;
    now.g.n = 0;
    return NCCL_OK;
}

static int add(void *data, size_t n, int type, int peer, nccl_comm p, cudaStream_t s, bool send)
{
    comm *c = static_cast<comm *>(p);
    if (!now.open || type != NCCL_BYTE || peer == c->rank || peer < 0 || peer >= c->size || n == 0 || now.g.n == MESSAGES) return INVALID_USAGE;
    if (now.g.n && (now.stream != s || now.g.c != c)) return INVALID_USAGE;
    now.stream = s;
    now.g.c = c;
    now.g.t[now.g.n++] = { static_cast<char *>(data), (int64_t)n, -8, (int64_t)n, peer, send };
    return NCCL_OK;
}

static int send_bytes(const void *data, size_t n, int type, int peer, nccl_comm c, cudaStream_t s)
{
    return add(const_cast<void *>(data), n, type, peer, c, s, true);
}

static int recv_bytes(void *data, size_t n, int type, int peer, nccl_comm c, cudaStream_t s)
{
    return add(data, n, type, peer, c, s, false);
}

static int group_end()
{
    if (!now.open || now.g.n == 0) return INVALID_USAGE;
    now.open = false;
    emu_host_work(run, &now.g, sizeof now.g, now.stream);
    return answer(now.g.c, now.g.c->state);
}

static const char *error_text(int error)
{
    return error == REMOTE_ERROR ? "remote process exited or there was a network error" : "invalid usage";
}

int nccl_open(struct nccl *n)
{
    *n = {};
    if (getenv("BDPO_EMU_NO_NCCL")) return err_set(ERR_INPUT, "libnccl.so.2 was not found");
    n->library = n;
    n->unique_id = unique_id;
    n->init = init;
    n->finalize = finalize;
    n->destroy = destroy;
    n->abort = destroy;
    n->async_error = async_error;
    n->group_start = group_start;
    n->group_end = group_end;
    n->send = send_bytes;
    n->recv = recv_bytes;
    n->error_text = error_text;
    return 0;
}
