/* A whole decoder step on the CPU in one call: embedding, layers, head with arg-max.
 *
 * Why C: at batch 1 a step of a small model is some 500 torch operators whose dispatch costs more
 * than their work. Here a step is one call, its phases separated by barriers of a small pool.
 *
 * Weights are read where they lie, in the packed layout that `linear.py` writes:
 * [out / block][in / pair][block][pair], pair = 2 for bf16 and 1 for fp32. The KV cache keeps the
 * block size of `kv.KvLayout`, but inside a block keys are transposed and values paired:
 *   keys   [kv_heads][head_dim / pair][16][pair]
 *   values [kv_heads][16 / pair][head_dim][pair]
 * so that scores and mixtures are the same kernel as a matrix product, without shuffles.
 *
 * int8 and int4 weights are decoded to bf16, a tile of columns at a time, and multiplied as such: a
 * tile stays in a near cache, so that memory is read as codes alone and prompts cost what bf16 costs.
 *
 * A row's bits do not depend on its neighbours: every output element has one accumulator that runs
 * over the inner dimension in order, whatever the number of rows, threads or chunks. Keep it so.
 *
 * forward_kernels.h is compiled once per instruction set and element type; the set is chosen at
 * run time, so one file serves every CPU.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define X86 1
#include <immintrin.h>
#endif

#define ABI 2
#define TOKENS 16 /* of a KV block */
#define LANES 16  /* floats of a vector */
#define TILE 64   /* columns of a tile */
#define TILE_QUERIES 12
#define GROUP 32 /* inner elements that share an int4 scale */
#define MAX_THREADS 256
#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

enum kind { FP32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };
enum status { OK = 0, NAN_LOGITS = 1, BAD_STEP = -1, BAD_TOKEN = -2, BAD_POSITION = -3,
              BAD_SLOT = -4, SCRATCH_SHORT = -5, BAD_MODEL = -6 };
enum mode { STORE, ADD, GATE, LOGITS, BEST };

/* The structures below are mirrored field by field in bindings.py; change ABI with them. */
typedef struct {
  const void *data;
  const float *bias;
  const void *scales; /* of INT8 and INT4, see decode */
  int32_t out, in, block, kind;
} Matrix;
typedef struct {
  Matrix qkv, out, gate_up, down;
  const float *attention_norm, *mlp_norm, *q_norm, *k_norm;
} Layer;
typedef struct {
  int32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, positions, kind;
  float eps;
  int64_t kv_rows, kv_layer_rows; /* blocks in the arena; distance of a block's layers */
  void *kv;
  const float *cosine, *sine; /* [positions][head_dim]; the first half of sine is negated */
  const float *norm;
  Matrix embedding, head;
  const Layer *layer;
} Model;
typedef struct { int32_t row, count, start, table; } Segment;
typedef struct {
  int32_t rows, segments, table_length, first, last, samples;
  const int32_t *tokens;
  const Segment *segment;
  const int32_t *tables; /* slots of the segments' blocks, one run per segment */
  const int32_t *sample; /* rows whose logits are wanted */
  void *scratch;
  int64_t scratch_bytes;
  float *logits; /* [samples][vocab], or NULL: only the arg-max */
  int32_t *best; /* [samples], where logits is NULL */
} Step;

/* ---- threads ------------------------------------------------------------------------------- */

typedef struct Pool Pool;
typedef void (*Work)(void *job, int id, int count);
struct Pool {
  int count;
  pthread_mutex_t lock; /* one caller at a time */
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  atomic_uint round; /* grows by one per run */
  atomic_int done, arrived, phase, ticket;
  Work work;
  void *job;
};
typedef struct { Pool *pool; int id; } Member;

INLINE void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

#define SPINS 20000 /* a phase's imbalance; past it the core is taken by somebody else: yield */
#define IDLE_SPINS 4000

static void barrier(Pool *pool) {
  if (pool->count == 1) {
    atomic_store_explicit(&pool->ticket, 0, memory_order_relaxed);
    return;
  }
  int phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 == pool->count) {
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->ticket, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->phase, phase + 1, memory_order_release);
    return;
  }
  for (int spins = 0; atomic_load_explicit(&pool->phase, memory_order_acquire) == phase; spins++) {
    if (spins < SPINS) relax(); else sched_yield();
  }
}

static void *member(void *argument) {
  Member *self = argument;
  Pool *pool = self->pool;
  unsigned seen = 0;
  for (;;) {
    for (int spins = 0; spins < IDLE_SPINS; spins++) {
      if (atomic_load_explicit(&pool->round, memory_order_acquire) != seen) break;
      relax();
    }
    if (atomic_load_explicit(&pool->round, memory_order_acquire) == seen) {
      pthread_mutex_lock(&pool->mutex);
      while (atomic_load_explicit(&pool->round, memory_order_acquire) == seen)
        pthread_cond_wait(&pool->wake, &pool->mutex);
      pthread_mutex_unlock(&pool->mutex);
    }
    seen++;
    pool->work(pool->job, self->id, pool->count);
    atomic_fetch_add_explicit(&pool->done, 1, memory_order_release);
  }
  return NULL;
}

static void pool_run(Pool *pool, Work work, void *job) {
  pthread_mutex_lock(&pool->lock);
  pool->work = work;
  pool->job = job;
  atomic_store_explicit(&pool->ticket, 0, memory_order_relaxed);
  if (pool->count > 1) {
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add_explicit(&pool->round, 1, memory_order_release);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
  }
  work(job, 0, pool->count);
  for (int spins = 0; pool->count > 1 &&
       atomic_load_explicit(&pool->done, memory_order_acquire) < pool->count - 1; spins++) {
    if (spins < SPINS) relax(); else sched_yield();
  }
  pthread_mutex_unlock(&pool->lock);
}

/* Lives as long as the process; NULL if a thread could not be started. */
EXPORT Pool *tt_pool(int32_t threads) {
  if (threads < 1 || threads > MAX_THREADS) return NULL;
  Pool *pool = calloc(1, sizeof *pool);
  if (pool == NULL) return NULL;
  pthread_mutex_init(&pool->lock, NULL);
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->wake, NULL);
  pool->count = threads;
  for (int id = 1; id < threads; id++) {
    Member *self = malloc(sizeof *self);
    pthread_t thread;
    if (self == NULL) return NULL;
    *self = (Member){pool, id};
    if (pthread_create(&thread, NULL, member, self)) return NULL;
    pthread_detach(thread);
  }
  return pool;
}

/* ---- scratch ------------------------------------------------------------------------------- */

typedef struct { int32_t segment, first; } QueryTile;
typedef struct { float value[LANES]; int32_t index[LANES]; int32_t nan[LANES]; } Best;

typedef struct {
  const Model *model;
  const Step *step;
  Pool *pool;
  float *x;           /* [rows][hidden], the residual stream */
  void *hidden;       /* [rows][hidden]: inputs of qkv, gate-up and the head */
  float *qkv;         /* [rows][qkv columns] */
  void *queries;      /* [rows][heads · head_dim] */
  void *mixed;        /* the same */
  void *middle;       /* [rows][intermediate] */
  Best *best;         /* [threads][samples] */
  QueryTile *tiles;
  char *decoded;      /* per thread: two tiles of columns in bf16, where weights are quantised */
  char *own;          /* per thread: scores, probabilities, mixture, queries of a tile */
  int64_t own_bytes, decoded_bytes, longest;
  int32_t tile_count, tile_rows, tile_queries, nan;
} Job;

typedef struct {
  const Matrix *matrix;
  const void *x;
  float *y;
  int64_t rows;
  char *decoded;
  int64_t decoded_bytes;
} LinearJob;

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static int32_t rows_per_tile(const Model *m) {
  int32_t group = m->heads / m->kv_heads;
  return group >= TILE_QUERIES ? 1 : TILE_QUERIES / group;
}

static int64_t own_bytes(const Model *m, int64_t keys) {
  int64_t queries = (int64_t)rows_per_tile(m) * (m->heads / m->kv_heads);
  int64_t padded = (keys + TILE - 1) / TILE * TILE;
  return aligned(queries * padded * 4) * 2 + aligned(queries * m->head_dim * 4) * 2 + 64;
}

static int quantised(const Matrix *m) { return m->kind == INT8 || m->kind == INT4; }

/* Of two tiles of the widest matrix's columns; 0 where nothing is decoded. */
static int64_t decoded_bytes(const Matrix *m, int64_t in) {
  return quantised(m) ? aligned(2 * TILE * in * 2) : 0;
}

/* Lay the buffers out from `base`; with NULL only the size counts. */
static int64_t lay_out(Job *job, const Model *m, int64_t rows, int64_t samples, int64_t segments,
                       int64_t keys, int threads, char *base) {
  int64_t item = m->kind == BF16 ? 2 : 4, at = 0;
  int64_t columns = (int64_t)(m->heads + 2 * m->kv_heads) * m->head_dim;
  int64_t heads = (int64_t)m->heads * m->head_dim;
#define TAKE(field, bytes) job->field = (void *)(base + at); at += aligned(bytes)
  TAKE(x, rows * m->hidden * 4);
  TAKE(hidden, (rows > samples ? rows : samples) * m->hidden * item);
  TAKE(qkv, rows * columns * 4);
  TAKE(queries, rows * heads * item);
  TAKE(mixed, rows * heads * item);
  TAKE(middle, rows * m->intermediate * item);
  TAKE(best, samples * threads * (int64_t)sizeof(Best));
  TAKE(tiles, (rows + segments) * (int64_t)sizeof(QueryTile));
  job->own_bytes = own_bytes(m, keys);
  TAKE(own, job->own_bytes * threads);
  int64_t widest = m->hidden > m->intermediate ? m->hidden : m->intermediate;
  job->decoded_bytes = decoded_bytes(&m->layer->qkv, widest > heads ? widest : heads);
  TAKE(decoded, job->decoded_bytes * threads);
#undef TAKE
  return at + 64;
}

EXPORT int64_t tt_scratch_bytes(const Model *m, int32_t rows, int32_t samples, int32_t segments,
                                int32_t keys, int32_t threads) {
  Job job;
  return lay_out(&job, m, rows, samples, segments, keys, threads, NULL);
}

/* ---- kernels, once per instruction set and element type -------------------------------------- */

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

/* The bytes of 0 … 127 as bf16. */
static _Alignas(64) struct { uint8_t low[128], high[128]; } magnitudes;

__attribute__((constructor)) static void fill_magnitudes(void) {
  for (int i = 0; i < 128; i++) {
    float value = (float)i;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    magnitudes.low[i] = (uint8_t)(bits >> 16);
    magnitudes.high[i] = (uint8_t)(bits >> 24);
  }
}

#define JOIN2(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN2(a, b, c)
#define NAME(x) JOIN(x, SET, KIND)

#define SET portable
#define ROWS 4
#define VECTORS 1
#include "forward_both.h"
#undef SET
#undef ROWS
#undef VECTORS

#ifdef X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define SET avx2
#define ROWS 4
#define VECTORS 1
#include "forward_both.h"
#undef SET
#undef ROWS
#undef VECTORS
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")
#define SET avx512
#define ROWS 6
#define VECTORS 4
#include "forward_both.h"
#undef SET

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,fma,prefer-vector-width=512")
#define SET avx512bf16
#define DOT_BF16 1
#include "forward_both.h"
#undef DOT_BF16
#undef SET
#undef ROWS
#undef VECTORS
#pragma GCC pop_options
#endif

/* ---- the border ----------------------------------------------------------------------------- */

typedef struct { const char *name; Work fp32, bf16, linear_fp32, linear_bf16; } Variant;

#define ENTRY(set) \
  {#set, run_##set##_fp32, run_##set##_bf16, run_linear_##set##_fp32, run_linear_##set##_bf16}

static const Variant *variants(int *count) {
  static const Variant all[] = {
#ifdef X86
      ENTRY(avx512bf16),
      ENTRY(avx512),
      ENTRY(avx2),
#endif
      ENTRY(portable),
  };
  *count = (int)(sizeof all / sizeof all[0]);
  return all;
}

static int has(const char *name) {
#ifdef X86
  __builtin_cpu_init();
  int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!strcmp(name, "avx512bf16"))
    return wide && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
  if (!strcmp(name, "avx512")) return wide;
  if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !strcmp(name, "portable");
}

static _Atomic(const Variant *) chosen;

EXPORT int32_t tt_abi(void) { return ABI; }

/* Choose an instruction set by name, or the best with ""; NULL if this CPU lacks it. */
EXPORT const char *tt_choose(const char *name) {
  int count;
  const Variant *all = variants(&count);
  for (int i = 0; i < count; i++) {
    if (has(all[i].name) && (!*name || !strcmp(name, all[i].name))) {
      atomic_store(&chosen, &all[i]);
      return all[i].name;
    }
  }
  return NULL;
}

static int good_matrix(const Matrix *w, int64_t out, int64_t in, int kind) {
  return w->data != NULL && w->out == out && w->in == in && w->kind == kind && in % 2 == 0 &&
         out % LANES == 0 && w->block >= LANES && w->block % LANES == 0 && out % w->block == 0;
}

/* A layer's matrix: of the model's kind, or codes where that is bf16. */
static int good_weight(const Matrix *w, int64_t out, int64_t in, int kind, int codes) {
  Matrix dense = *w;
  if (w->kind != codes) return 0;
  if (quantised(w)) {
    if (!w->scales || kind != BF16 || in % (w->kind == INT4 ? GROUP : 4)) return 0;
    dense.kind = BF16;
  }
  return good_matrix(&dense, out, in, kind);
}

/* OK, or BAD_MODEL where a shape or a pointer is not one that the kernels can read. */
EXPORT int32_t tt_check_model(const Model *m) {
  int64_t d = m->hidden, heads = (int64_t)m->heads * m->head_dim, ff = m->intermediate;
  int64_t columns = (int64_t)(m->heads + 2 * m->kv_heads) * m->head_dim;
  if (m->layers < 1 || d < LANES || d % LANES || m->head_dim < LANES || m->head_dim % LANES ||
      m->kv_heads < 1 || m->heads % m->kv_heads || ff < LANES || ff % LANES || m->positions < 1 ||
      m->vocab < 1 || (m->kind != FP32 && m->kind != BF16) || !m->kv || !m->cosine || !m->sine ||
      !m->norm || !m->layer || m->kv_layer_rows < 1 ||
      m->kv_rows <= (m->layers - 1) * m->kv_layer_rows)
    return BAD_MODEL;
  const Matrix *e = &m->embedding;
  if (!e->data || e->out != m->vocab || e->in != d || e->kind != m->kind ||
      (e->block && !good_matrix(e, m->vocab, d, m->kind)))
    return BAD_MODEL;
  if (m->head.data && !good_matrix(&m->head, m->vocab, d, m->kind)) return BAD_MODEL;
  for (int i = 0; i < m->layers; i++) {
    const Layer *l = &m->layer[i];
    int kind = m->kind, codes = m->layer->qkv.kind;
    if (!good_weight(&l->qkv, columns, d, kind, codes) ||
        !good_weight(&l->out, d, heads, kind, codes) ||
        !good_weight(&l->gate_up, 2 * ff, d, kind, codes) ||
        !good_weight(&l->down, d, ff, kind, codes) ||
        !l->attention_norm || !l->mlp_norm || !l->q_norm != !l->k_norm)
      return BAD_MODEL;
  }
  return OK;
}

static int32_t check_step(const Model *m, const Step *s, int64_t *longest) {
  if (s->rows < 1 || s->segments < 1 || s->samples < 0 || s->first < 0 || s->last < s->first ||
      s->last > m->layers || !s->tokens || !s->segment || !s->tables || !s->scratch ||
      (s->samples && (!s->sample || !m->head.data || (!s->logits && !s->best))))
    return BAD_STEP;
  for (int i = 0; i < s->rows; i++)
    if (s->tokens[i] < 0 || s->tokens[i] >= m->vocab) return BAD_TOKEN;
  for (int i = 0; i < s->samples; i++)
    if (s->sample[i] < 0 || s->sample[i] >= s->rows) return BAD_STEP;
  int64_t row = 0;
  *longest = 0;
  for (int i = 0; i < s->segments; i++) {
    const Segment *g = &s->segment[i];
    int64_t end = (int64_t)g->start + g->count, blocks = (end + TOKENS - 1) / TOKENS;
    if (g->row != row || g->count < 1 || g->start < 0) return BAD_STEP;
    if (end > m->positions) return BAD_POSITION;
    if (g->table < 0 || g->table + blocks > s->table_length) return BAD_SLOT;
    for (int64_t b = 0; b < blocks; b++) {
      int64_t slot = s->tables[g->table + b];
      if (slot < 0 || slot + (m->layers - 1) * m->kv_layer_rows >= m->kv_rows) return BAD_SLOT;
    }
    if (end > *longest) *longest = end;
    row += g->count;
  }
  return row == s->rows ? OK : BAD_STEP;
}

/* Run layers first … last - 1 over the step's rows, then the head if there are samples.
 *
 * The residual stream stays in the scratch memory, so that a step may be made of several calls
 * (for layers that are still on their way). NAN_LOGITS is returned from the arg-max alone. */
EXPORT int32_t tt_step(Pool *pool, const Model *m, const Step *s) {
  Job job = {.model = m, .step = s, .pool = pool};
  int32_t bad = check_step(m, s, &job.longest);
  if (bad) return bad;
  if (atomic_load(&chosen) == NULL && tt_choose("") == NULL) return BAD_MODEL;
  char *base = (char *)(((uintptr_t)s->scratch + 63) / 64 * 64);
  if (lay_out(&job, m, s->rows, s->samples, s->segments, job.longest, pool->count, base) >
      s->scratch_bytes)
    return SCRATCH_SHORT;
  job.tile_rows = rows_per_tile(m);
  job.tile_queries = job.tile_rows * (m->heads / m->kv_heads);
  for (int i = 0; i < s->segments; i++)
    for (int first = 0; first < s->segment[i].count; first += job.tile_rows)
      job.tiles[job.tile_count++] = (QueryTile){i, first};
  const Variant *v = atomic_load(&chosen);
  pool_run(pool, m->kind == BF16 ? v->bf16 : v->fp32, &job);
  return job.nan ? NAN_LOGITS : OK;
}

/* y = x · Wᵀ + b for a packed W; x is [rows][in] in W's type (bf16 for codes), y [rows][out] fp32. */
EXPORT int32_t tt_linear(Pool *pool, const Matrix *m, const void *x, float *y, int64_t rows) {
  int kind = quantised(m) ? BF16 : m->kind;
  if (!good_weight(m, m->out, m->in, kind, m->kind) || !x || !y || rows < 1) return BAD_MODEL;
  if (atomic_load(&chosen) == NULL && tt_choose("") == NULL) return BAD_MODEL;
  const Variant *v = atomic_load(&chosen);
  LinearJob job = {m, x, y, rows, NULL, decoded_bytes(m, m->in)};
  if (job.decoded_bytes) {
    job.decoded = aligned_alloc(64, (size_t)(job.decoded_bytes * pool->count));
    if (job.decoded == NULL) return SCRATCH_SHORT;
  }
  pool_run(pool, kind == BF16 ? v->linear_bf16 : v->linear_fp32, &job);
  free(job.decoded);
  return OK;
}
