/* The kernels for one instruction set (SET) and element type (T, KIND, PAIR); see forward.c.
 *
 * ROWS rows times VECTORS vectors of 16 are the register tile. GCC's generic vectors are lowered
 * to whatever the set has; only the bf16 dot product needs an intrinsic.
 */

INLINE v16 NAME(load)(const float *p) { v16 v; memcpy(&v, p, sizeof v); return v; }
INLINE void NAME(store)(float *p, v16 v) { memcpy(p, &v, sizeof v); }
INLINE v16 NAME(all)(float x) { return (v16){} + x; }

/* Lanes of a where the mask is all ones, else of b. */
INLINE v16 NAME(pick)(i16 mask, v16 a, v16 b) { return (v16)((mask & (i16)a) | (~mask & (i16)b)); }

/* Round to nearest even; NaN stays NaN. */
INLINE uint16_t NAME(narrow1)(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return x != x ? 0x7fc0 : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

INLINE void NAME(narrow)(T *p, v16 v) {
#if PAIR == 1
  NAME(store)(p, v);
#else
#ifdef DOT_BF16
  __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
  u16 u = (u16)v, nan = (u16)(v != v);
  u = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  u = (u & ~nan) | (nan & 0x7fc0);
  h16 h = __builtin_convertvector(u, h16);
#endif
  memcpy(p, &h, 32);
#endif
}

INLINE T NAME(element)(float x) {
#if PAIR == 1
  return x;
#else
  return NAME(narrow1)(x);
#endif
}

INLINE float NAME(widen1)(T x) {
#if PAIR == 1
  return x;
#else
  uint32_t u = (uint32_t)x << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
#endif
}

INLINE float NAME(sum)(v16 v) {
  float s[LANES];
  NAME(store)(s, v);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) s[i] += s[i + half];
  return s[0];
}

/* e to the x within 2 ulp for |x| up to 87, clamped beyond; NaN gives NaN. */
INLINE v16 NAME(exponential)(v16 x) {
  x = NAME(pick)(x > 87.0f, NAME(all)(87.0f), x);
  x = NAME(pick)(x < -87.0f, NAME(all)(-87.0f), x);
  v16 shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  v16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
  v16 p = NAME(all)(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  i16 power = ((i16)shifted - 0x4b400000 + 127) << 23;
  return p * (v16)power;
}

/* ---- the one product kernel ------------------------------------------------------------------ */

/* tile[r][v] (+)= sum over k of x[r][k] · w[v][k]; `steps` is the inner length in pairs.
 *
 * w[v] points to 16 columns, `w_stride` elements further per step. `ahead` are bytes that will be
 * needed next, of which `fetch` lines are asked for per step. */
INLINE void NAME(tile)(const int rows, const int vectors, const int fetch, const T *x,
                       int64_t x_stride, const T *const *w, int64_t w_stride, int64_t steps,
                       float *tile, int64_t tile_stride, int more, const char *ahead) {
  v16 sum[ROWS][VECTORS];
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < vectors; v++)
      sum[r][v] = more ? NAME(load)(tile + r * tile_stride + v * LANES) : (v16){};
  const T *at[VECTORS];
  for (int v = 0; v < vectors; v++) at[v] = w[v];
#pragma GCC unroll 2
  for (int64_t k = 0; k < steps; k++) {
    for (int f = 0; f < fetch; f++) __builtin_prefetch(ahead + f * 64, 0, 2);
    ahead += fetch * 64;
#if PAIR == 1
    v16 b[VECTORS];
    for (int v = 0; v < vectors; v++) b[v] = NAME(load)(at[v]);
    for (int r = 0; r < rows; r++) {
      v16 a = NAME(all)(x[r * x_stride + k]);
      for (int v = 0; v < vectors; v++) sum[r][v] += a * b[v];
    }
#elif defined(DOT_BF16)
    __m512bh b[VECTORS];
    for (int v = 0; v < vectors; v++) b[v] = (__m512bh)_mm512_loadu_si512(at[v]);
    for (int r = 0; r < rows; r++) {
      int32_t two;
      memcpy(&two, x + r * x_stride + k * 2, 4);
      __m512bh a = (__m512bh)_mm512_set1_epi32(two);
      for (int v = 0; v < vectors; v++)
        sum[r][v] = (v16)_mm512_dpbf16_ps((__m512)sum[r][v], b[v], a);
    }
#else
    v16 low[VECTORS], high[VECTORS];
    for (int v = 0; v < vectors; v++) {
      u16 b;
      memcpy(&b, at[v], sizeof b);
      low[v] = (v16)(b << 16);
      high[v] = (v16)(b & 0xffff0000u);
    }
    for (int r = 0; r < rows; r++) {
      v16 a = NAME(all)(NAME(widen1)(x[r * x_stride + k * 2]));
      v16 c = NAME(all)(NAME(widen1)(x[r * x_stride + k * 2 + 1]));
      for (int v = 0; v < vectors; v++) {
        sum[r][v] += a * low[v];
        sum[r][v] += c * high[v];
      }
    }
#endif
    for (int v = 0; v < vectors; v++) at[v] += w_stride;
  }
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < vectors; v++) NAME(store)(tile + r * tile_stride + v * LANES, sum[r][v]);
}

#define ARGUMENTS x, x_stride, w, w_stride, steps, tile, tile_stride, more, ahead

#define CASE(r, v) \
  case r * 8 + v: NAME(tile)(r, v, 0, ARGUMENTS); break;

/* The same for sizes known at run time, without prefetch. */
static void NAME(small)(int rows, int vectors, const T *x, int64_t x_stride, const T *const *w,
                        int64_t w_stride, int64_t steps, float *tile, int64_t tile_stride,
                        int more) {
  const char *ahead = NULL;
  switch (rows * 8 + vectors) {
    CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1)
#if VECTORS == 4
    CASE(5, 1) CASE(6, 1)
    CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2) CASE(6, 2)
    CASE(1, 3) CASE(2, 3) CASE(3, 3) CASE(4, 3) CASE(5, 3) CASE(6, 3)
    CASE(1, 4) CASE(2, 4) CASE(3, 4) CASE(4, 4) CASE(5, 4) CASE(6, 4)
#endif
  }
}
#undef CASE

/* Compiled for the set and type that serving is measured on; elsewhere the hardware's own prefetch
 * does, and a third of the compile time is saved. */
#if defined(DOT_BF16) && PAIR == 2
#define WIDE 1
#define CASE(r, f) \
  case r * 8 + f: NAME(tile)(r, 4, f, ARGUMENTS); break;
#define CASES(f) CASE(1, f) CASE(2, f) CASE(3, f) CASE(4, f) CASE(5, f) CASE(6, f)

/* Full width, with prefetch. */
static void NAME(wide)(int rows, int fetch, const T *x, int64_t x_stride, const T *const *w,
                       int64_t w_stride, int64_t steps, float *tile, int64_t tile_stride,
                       const char *ahead) {
  const int more = 0;
  switch (rows * 8 + fetch) { CASES(1) CASES(2) CASES(4) }
}
#undef CASES
#undef CASE
#endif
#undef ARGUMENTS

/* tile[r][columns] = x[r] · w for up to 4 vectors of columns inside one packed block. */
static void NAME(block_tile)(int rows, int vectors, int fetch, const T *x, int64_t x_stride,
                             const T *w, int64_t block, int64_t steps, float *tile,
                             const char *ahead) {
  (void)fetch, (void)ahead;
  const T *at[4];
  for (int v = 0; v < vectors; v++) at[v] = w + v * LANES * PAIR;
#ifdef WIDE
  if (vectors == 4 && fetch) {
    NAME(wide)(rows, fetch, x, x_stride, at, block * PAIR, steps, tile, TILE, ahead);
    return;
  }
#endif
  for (int v = 0; v < vectors; v += VECTORS) {
    int some = vectors - v < VECTORS ? vectors - v : VECTORS;
    NAME(small)(rows, some, x, x_stride, at + v, block * PAIR, steps, tile + v * LANES, TILE, 0);
  }
}

INLINE const T *NAME(column)(const Matrix *m, int64_t column) {
  int64_t block = column / m->block, within = column % m->block;
  return (const T *)m->data + block * m->block * m->in + within * PAIR;
}

#if PAIR == 2
/* Of 16 columns' values, those of the first or last 8, each twice: as codes of a step lie. */
INLINE v16 NAME(twice)(v16 v, int last) {
  i16 first = {0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7};
  return (v16)__builtin_shuffle((i16)v, first + (last ? 8 : 0));
}

INLINE void NAME(narrow2)(T *p, v16 low, v16 high) {
#ifdef DOT_BF16
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
#else
  NAME(narrow)(p, low);
  NAME(narrow)(p + LANES, high);
#endif
}

/* GCC takes generic vectors of bytes apart, hence the intrinsic where there is one. */
INLINE i16 NAME(bytes)(const void *p) {
#if VECTORS == 4
  return (i16)_mm512_cvtepu8_epi32(_mm_loadu_si128(p));
#else
  u8x16 bytes;
  memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, i16);
#endif
}

/* 64 codes, a sign and 7 bits each, to two steps of 16 columns; exact, scales come with the sum.
 *
 * Byte 16 · quarter + 8 · step + i is element 8 · quarter + i of a step, so that a look-up of the
 * low and the high bytes of bf16 numbers can be zipped together. */
INLINE void NAME(decode_int8)(const char *codes, T *first, T *second) {
#ifdef DOT_BF16
  __m512i code = _mm512_loadu_si512(codes), sign = _mm512_set1_epi8((char)0x80);
  __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(magnitudes.low), code,
                                         _mm512_load_si512(magnitudes.low + 64));
  __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(magnitudes.high), code,
                                          _mm512_load_si512(magnitudes.high + 64));
  high = _mm512_ternarylogic_epi64(high, code, sign, 0xf8); /* high | code & sign */
  _mm512_storeu_si512(first, _mm512_unpacklo_epi8(low, high));
  _mm512_storeu_si512(second, _mm512_unpackhi_epi8(low, high));
#else
  for (int step = 0; step < 2; step++) {
    for (int half = 0; half < 2; half++) {
      char bytes[16];
      memcpy(bytes, codes + 32 * half + 8 * step, 8);
      memcpy(bytes + 8, codes + 32 * half + 8 * step + 16, 8);
      i16 code = NAME(bytes)(bytes), negative = -(code >> 7);
      code = ((code & 127) ^ negative) - negative;
      NAME(narrow)((step ? second : first) + half * LANES, __builtin_convertvector(code, v16));
    }
  }
#endif
}

/* Up to 16 steps of 16 columns from codes 0 … 15, `stride` elements apart: lower halves of bytes are the first 8 columns, upper ones the last. */
INLINE void NAME(decode_int4)(const uint8_t *codes, int64_t block, int64_t count, v16 scale,
                              v16 zero, T *to, int64_t stride) {
  v16 low = NAME(twice)(scale, 0), high = NAME(twice)(scale, 1);
  v16 low_zero = NAME(twice)(zero, 0), high_zero = NAME(twice)(zero, 1);
  for (int64_t k = 0; k < count; k++) {
    i16 both = NAME(bytes)(codes + k * block);
    NAME(narrow2)(to + k * stride, __builtin_convertvector(both & 15, v16) * low + low_zero,
                  __builtin_convertvector(both >> 4, v16) * high + high_zero);
  }
}

/* Write columns of a quantised matrix as [in / 2][16 · vectors][2] in bf16.
 *
 * INT8: [out / block][in / 4][block / 16][64 codes]; scales bf16 [out], of the sums.
 * INT4: [out / block][in / 2][block / 16][16 bytes]; scales bf16 [in / 32][out][scale, offset], a
 * weight is (code - 8) · scale + offset. */
#define AHEAD 4 /* groups */
static void NAME(decode)(const Matrix *m, int64_t column, int vectors, T *to) {
  int64_t steps = m->in / 2, block = m->block, within = column % block;
  int64_t bytes = m->kind == INT8 ? block * 2 : block; /* of a step */
  const char *data = (const char *)m->data + column / block * steps * bytes;
  int64_t stride = vectors * LANES * 2, lines = bytes * GROUP / 128;
  for (int64_t k = 0; k < steps; k += GROUP / 2) {
    int64_t count = steps - k < GROUP / 2 ? steps - k : GROUP / 2;
    /* Codes go faster than the CPU's own prefetch; what lies behind the tile is the next one. */
    for (int64_t i = 0; i < lines; i++)
      __builtin_prefetch(data + k * bytes + (i + AHEAD * lines) * 64, 0, 2);
    for (int v = 0; v < vectors; v++) {
      T *out = to + k * stride + v * LANES * 2;
      if (m->kind == INT8) {
        const char *at = data + k * bytes + (within + v * LANES) * 4;
        for (int64_t i = 0; i < count; i += 2)
          NAME(decode_int8)(at + i * bytes, out + i * stride, out + (i + 1) * stride);
      } else {
        u16 pair;
        const T *scales = (const T *)m->scales + (k / (GROUP / 2) * m->out + column + v * LANES) * 2;
        memcpy(&pair, scales, sizeof pair);
        v16 scale = (v16)(pair << 16), zero = (v16)(pair & 0xffff0000u) - 8.0f * scale;
        NAME(decode_int4)((const uint8_t *)data + k * bytes + within + v * LANES, block, count, scale,
                          zero, out, stride);
      }
    }
  }
}

/* What the sums of 16 columns are multiplied by. */
INLINE v16 NAME(sum_scale)(const Matrix *m, int64_t column) {
  if (m->kind != INT8) return NAME(all)(1.0f);
  h16 half;
  memcpy(&half, (const T *)m->scales + column, sizeof half);
  return (v16)(__builtin_convertvector(half, u16) << 16);
}
#else
INLINE v16 NAME(sum_scale)(const Matrix *m, int64_t column) {
  (void)m, (void)column;
  return NAME(all)(1.0f);
}
#endif

#define NEAR_BYTES (300 << 10) /* of a column block: two of them fit into a second-level cache */

typedef struct {
  const Matrix *matrix;
  enum mode mode;
  const T *x;
  int64_t x_stride, rows;
  float *y;
  int64_t y_stride;
  T *middle;
  Best *best;
  const Matrix *after; /* what this thread reads next, or NULL */
  T *decoded;          /* two tiles, for codes */
} NAME(Product);

INLINE void NAME(epilogue)(const NAME(Product) *p, int64_t row, int rows, int64_t column,
                           int vectors, const float *tile, const float *second) {
  const Matrix *m = p->matrix;
  for (int r = 0; r < rows; r++) {
    for (int v = 0; v < vectors; v++) {
      int64_t at = column + v * LANES;
      v16 value = NAME(load)(tile + r * TILE + v * LANES) * NAME(sum_scale)(m, at);
      if (m->bias && p->mode != GATE) value += NAME(load)(m->bias + at);
      float *y = p->y + (row + r) * p->y_stride + at;
      switch (p->mode) {
        case STORE:
        case LOGITS: NAME(store)(y, value); break;
        case ADD: NAME(store)(y, NAME(load)(y) + value); break;
        case GATE: {
          v16 up = NAME(load)(second + r * TILE + v * LANES) * NAME(sum_scale)(m, at + m->out / 2);
          v16 gated = value / (1.0f + NAME(exponential)(-value)) * up;
          NAME(narrow)(p->middle + (row + r) * p->y_stride + at, gated);
          break;
        }
        case BEST: {
          Best *b = p->best + row + r;
          v16 best = NAME(load)(b->value);
          i16 index, nan, better = value > best;
          memcpy(&index, b->index, sizeof index);
          memcpy(&nan, b->nan, sizeof nan);
          i16 here = (i16){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (int32_t)at;
          best = NAME(pick)(better, value, best);
          index = (better & here) | (~better & index);
          nan |= value != value;
          NAME(store)(b->value, best);
          memcpy(b->index, &index, sizeof index);
          memcpy(b->nan, &nan, sizeof nan);
          break;
        }
      }
    }
  }
}

/* Columns of this thread: vectors [first, last) of the product's output. */
static void NAME(product)(const NAME(Product) *p, int64_t first, int64_t last, const char *after) {
  const Matrix *m = p->matrix;
  int64_t steps = m->in / PAIR, half = m->out / 2;
  int passes = (int)((p->rows + ROWS - 1) / ROWS);
  int fetch = passes >= 4 ? 1 : passes >= 2 ? 2 : 4;
  int64_t share = steps * fetch * 64;
  int codes = quantised(m), most = 4;
  if (codes) {
    after = NULL; /* the next codes are read once, in order, which the CPU foresees */
    while (most > 1 && (int64_t)m->in * most * LANES * (int64_t)sizeof(T) > NEAR_BYTES) most--;
  }
  if ((int64_t)m->in * TILE * (int64_t)sizeof(T) > NEAR_BYTES) fetch = 0;
  float tile[ROWS * TILE], second[ROWS * TILE];
  for (int64_t at = first; at < last;) {
    int64_t column = at * LANES, room = (m->block - column % m->block) / LANES;
    if (p->mode == GATE) {
      int64_t other = (m->block - (column + half) % m->block) / LANES;
      room = other < room ? other : room;
    }
    int vectors = (int)(last - at < room ? last - at : room);
    if (vectors > most) vectors = most;
    int64_t block = codes ? vectors * LANES : m->block;
    const T *w = p->decoded, *up = p->mode == GATE ? p->decoded + TILE * m->in : NULL;
    if (codes) {
#if PAIR == 2
      NAME(decode)(m, column, vectors, p->decoded);
      if (up) NAME(decode)(m, column + half, vectors, p->decoded + TILE * m->in);
#endif
    } else {
      w = NAME(column)(m, column);
      if (up) up = NAME(column)(m, column + half);
    }
    const char *next = codes ? NULL
                       : at + vectors < last ? (const char *)NAME(column)(m, column + vectors * LANES)
                                           : after;
    for (int pass = 0; pass < passes; pass++) {
      int64_t row = p->rows * pass / passes;
      int rows = (int)(p->rows * (pass + 1) / passes - row);
      int asked = next && pass * fetch < 4 ? fetch : 0;
      const T *x = p->x + row * p->x_stride;
      const char *ahead = next ? next + pass * share : NULL;
      if (up) {
        NAME(block_tile)(rows, vectors, asked, x, p->x_stride, w, block, steps, tile,
                         (const char *)up + pass * share);
        NAME(block_tile)(rows, vectors, asked, x, p->x_stride, up, block, steps, second, ahead);
      } else {
        NAME(block_tile)(rows, vectors, asked, x, p->x_stride, w, block, steps, tile, ahead);
      }
      NAME(epilogue)(p, row, rows, column, vectors, tile, second);
    }
    at += vectors;
  }
}

/* ---- phases of a layer ------------------------------------------------------------------------ */

INLINE int64_t NAME(part)(int64_t count, int id, int threads) { return count * id / threads; }

static void NAME(embed)(const Job *job, int64_t first, int64_t last) {
  const Model *m = job->model;
  const Matrix *e = &m->embedding;
  for (int64_t row = first; row < last; row++) {
    int64_t token = job->step->tokens[row];
    float *x = job->x + row * m->hidden;
    if (e->block) {
      const T *w = NAME(column)(e, token);
      for (int64_t k = 0; k < m->hidden; k++)
        x[k] = NAME(widen1)(w[k / PAIR * e->block * PAIR + k % PAIR]);
    } else {
      const T *w = (const T *)e->data + token * m->hidden;
      for (int64_t k = 0; k < m->hidden; k++) x[k] = NAME(widen1)(w[k]);
    }
  }
}

static void NAME(norm)(const Model *m, const float *x, const float *weight, T *out) {
  v16 squares = {};
  for (int64_t k = 0; k < m->hidden; k += LANES) {
    v16 v = NAME(load)(x + k);
    squares += v * v;
  }
  float scale = 1.0f / sqrtf(NAME(sum)(squares) / (float)m->hidden + m->eps);
  for (int64_t k = 0; k < m->hidden; k += LANES)
    NAME(narrow)(out + k, NAME(load)(x + k) * scale * NAME(load)(weight + k));
}

static void NAME(norm_rows)(const Job *job, const float *weight, int64_t first, int64_t last) {
  int64_t d = job->model->hidden;
  for (int64_t row = first; row < last; row++)
    NAME(norm)(job->model, job->x + row * d, weight, (T *)job->hidden + row * d);
}

/* One head of queries or keys: normalised (Qwen3), rotated. */
INLINE void NAME(rotate)(const Model *m, float *head, const float *weight, int64_t position,
                         float *out) {
  int64_t d = m->head_dim, half = d / 2;
  const float *cosine = m->cosine + position * d, *sine = m->sine + position * d;
  if (weight) {
    v16 squares = {};
    for (int64_t k = 0; k < d; k += LANES) {
      v16 v = NAME(load)(head + k);
      squares += v * v;
    }
    float scale = 1.0f / sqrtf(NAME(sum)(squares) / (float)d + m->eps);
    for (int64_t k = 0; k < d; k++) head[k] = head[k] * scale * weight[k];
  }
  for (int64_t k = 0; k < half; k++) {
    out[k] = head[k] * cosine[k] + head[k + half] * sine[k];
    out[k + half] = head[k + half] * cosine[k + half] + head[k] * sine[k + half];
  }
}

INLINE T *NAME(kv_block)(const Model *m, int layer, int64_t slot) {
  int64_t elements = 2 * TOKENS * (int64_t)m->kv_heads * m->head_dim;
  return (T *)m->kv + (slot + layer * m->kv_layer_rows) * elements;
}

/* Rotate the queries and put keys and values of rows [first, last) into their blocks. */
static void NAME(write_rows)(const Job *job, int layer, int64_t first, int64_t last) {
  const Model *m = job->model;
  const Step *s = job->step;
  const Layer *l = &m->layer[layer];
  int64_t d = m->head_dim, columns = (m->heads + 2 * m->kv_heads) * d, part = m->heads * d;
  float turned[d];
  int g = 0;
  for (int64_t row = first; row < last; row++) {
    while (s->segment[g].row + s->segment[g].count <= row) g++;
    int64_t position = s->segment[g].start + row - s->segment[g].row, t = position % TOKENS;
    T *block = NAME(kv_block)(m, layer, s->tables[s->segment[g].table + position / TOKENS]);
    float *line = job->qkv + row * columns;
    for (int h = 0; h < m->heads; h++) {
      NAME(rotate)(m, line + h * d, l->q_norm, position, turned);
      T *out = (T *)job->queries + row * part + h * d;
      for (int64_t k = 0; k < d; k += LANES) NAME(narrow)(out + k, NAME(load)(turned + k));
    }
    for (int h = 0; h < m->kv_heads; h++) {
      NAME(rotate)(m, line + part + h * d, l->k_norm, position, turned);
      T *keys = block + h * TOKENS * d;
      for (int64_t k = 0; k < d; k++)
        keys[(k / PAIR * TOKENS + t) * PAIR + k % PAIR] = NAME(element)(turned[k]);
      const float *v = line + part + (m->kv_heads + h) * d;
      T *values = block + (m->kv_heads + h) * TOKENS * d;
      for (int64_t k = 0; k < d; k++)
        values[(t / PAIR * d + k) * PAIR + t % PAIR] = NAME(element)(v[k]);
    }
  }
}

/* Turn a row's scores into bf16 or fp32 weights, zero from `keys` to `padded`; return their sum. */
static float NAME(soften)(float *scores, T *weights, int64_t keys, int64_t padded, float scale) {
  int64_t whole = keys / LANES * LANES;
  v16 most = NAME(all)(-INFINITY), total = {};
  int64_t end = keys > whole ? whole + LANES : whole;
  for (int64_t k = keys; k < end; k++) scores[k] = -INFINITY;
  for (int64_t k = 0; k < end; k += LANES) {
    v16 v = NAME(load)(scores + k);
    most = NAME(pick)(v > most, v, most);
  }
  float lanes[LANES], top = -INFINITY;
  NAME(store)(lanes, most);
  for (int i = 0; i < LANES; i++) top = lanes[i] > top ? lanes[i] : top;
  for (int64_t k = 0; k < end; k += LANES) {
    v16 v = NAME(load)(scores + k);
    v16 p = NAME(exponential)((v - top) * scale);
    p = NAME(pick)(v == -INFINITY, (v16){}, p);
    total += p;
    NAME(narrow)(weights + k, p);
  }
  memset(weights + end, 0, (size_t)(padded - end) * sizeof(T));
  return NAME(sum)(total);
}

/* Ask for the keys (half 0) or values (half 1) of some blocks of one head.
 *
 * A block's piece is too short for the hardware to notice a stream before it ends. */
static void NAME(fetch_blocks)(const Model *m, int layer, const int32_t *table, int64_t first,
                               int64_t last, int half, int head) {
  int64_t bytes = TOKENS * (int64_t)m->head_dim * (int64_t)sizeof(T);
  for (int64_t b = first; b < last; b++) {
    const char *p = (const char *)NAME(kv_block)(m, layer, table[b]) +
                    (half * m->kv_heads + head) * bytes;
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at, 0, 2);
  }
}

#define AHEAD 4 /* blocks */

/* Attention of one tile: some rows of a segment, the query heads of one key head. */
static void NAME(attend)(const Job *job, int layer, const QueryTile *tile, int head, char *own) {
  const Model *m = job->model;
  const Segment *g = &job->step->segment[tile->segment];
  const int32_t *table = job->step->tables + g->table;
  int64_t d = m->head_dim, part = m->heads * d, group = m->heads / m->kv_heads;
  int64_t rows = g->count - tile->first < job->tile_rows ? g->count - tile->first : job->tile_rows;
  int64_t row = g->row + tile->first, start = g->start + tile->first, keys = start + rows;
  int64_t queries = rows * group, blocks = (keys + TOKENS - 1) / TOKENS;
  int64_t width = (job->longest + TILE - 1) / TILE * TILE;
  float *scores = (float *)own;
  T *weights = (T *)(own + aligned(job->tile_queries * width * 4));
  float *out = (float *)(own + 2 * aligned(job->tile_queries * width * 4));
  T *q = (T *)((char *)out + aligned(job->tile_queries * d * 4));
  for (int64_t r = 0; r < rows; r++)
    memcpy(q + r * group * d, (T *)job->queries + (row + r) * part + head * group * d,
           (size_t)(group * d) * sizeof(T));
#define UP_TO(n) ((n) < blocks ? (n) : blocks)
  for (int64_t b = 0; b < blocks; b += VECTORS) {
    NAME(fetch_blocks)(m, layer, table, UP_TO(b + VECTORS), UP_TO(b + 2 * VECTORS), 0, head);
    const T *w[VECTORS] = {NULL};
    int some = blocks - b < VECTORS ? (int)(blocks - b) : VECTORS;
    for (int v = 0; v < some; v++)
      w[v] = NAME(kv_block)(m, layer, table[b + v]) + head * TOKENS * d;
    for (int64_t n = 0; n < queries; n += ROWS) {
      int few = queries - n < ROWS ? (int)(queries - n) : ROWS;
      NAME(small)(few, some, q + n * d, d, w, TOKENS * PAIR, d / PAIR,
                  scores + n * width + b * TOKENS, width, 0);
    }
  }
  NAME(fetch_blocks)(m, layer, table, 0, UP_TO(AHEAD), 1, head);
  float total[queries], scale = 1.0f / sqrtf((float)d);
  for (int64_t n = 0; n < queries; n++)
    total[n] = NAME(soften)(scores + n * width, weights + n * width, start + n / group + 1,
                            blocks * TOKENS, scale);
  memset(out, 0, (size_t)(queries * d) * sizeof *out);
  if (head + 1 < m->kv_heads) {
    NAME(fetch_blocks)(m, layer, table, 0, UP_TO(VECTORS), 0, head + 1);
  }
  for (int64_t b = 0; b < blocks; b++) {
    NAME(fetch_blocks)(m, layer, table, UP_TO(b + AHEAD), UP_TO(b + AHEAD + 1), 1, head);
    const T *values = NAME(kv_block)(m, layer, table[b]) + (m->kv_heads + head) * TOKENS * d;
    int64_t used = keys - b * TOKENS < TOKENS ? keys - b * TOKENS : TOKENS;
    for (int64_t c = 0; c < d; c += VECTORS * LANES) {
      const T *w[VECTORS] = {NULL};
      int some = d - c < VECTORS * LANES ? (int)((d - c) / LANES) : VECTORS;
      for (int v = 0; v < some; v++) w[v] = values + (c + v * LANES) * PAIR;
      for (int64_t n = 0; n < queries; n += ROWS) {
        int few = queries - n < ROWS ? (int)(queries - n) : ROWS;
        NAME(small)(few, some, weights + n * width + b * TOKENS, width, w, d * PAIR,
                    (used + PAIR - 1) / PAIR, out + n * d + c, d, 1);
      }
    }
  }
#undef UP_TO
  for (int64_t n = 0; n < queries; n++) {
    T *to = (T *)job->mixed + (row + n / group) * part + (head * group + n % group) * d;
    float over = 1.0f / total[n];
    for (int64_t k = 0; k < d; k += LANES) NAME(narrow)(to + k, NAME(load)(out + n * d + k) * over);
  }
}

/* Vectors of columns that are shared out; gate and up go together. */
INLINE int64_t NAME(vectors)(const Matrix *m, const Layer *l) {
  return m->out / LANES / (m == &l->gate_up ? 2 : 1);
}

static void NAME(multiply)(const Job *job, const Layer *l, NAME(Product) p, int id, int threads) {
  p.decoded = (T *)(job->decoded + id * job->decoded_bytes);
  int64_t vectors = NAME(vectors)(p.matrix, l);
  const char *after = NULL;
  if (p.after && !quantised(p.after)) {
    int64_t first = NAME(part)(NAME(vectors)(p.after, l), id, threads);
    after = (const char *)NAME(column)(p.after, first * LANES);
  }
  NAME(product)(&p, NAME(part)(vectors, id, threads), NAME(part)(vectors, id + 1, threads), after);
}

static void NAME(run_layer)(Job *job, int index, int id, int threads) {
  const Model *m = job->model;
  const Layer *l = &m->layer[index];
  int64_t rows = job->step->rows, d = m->hidden, part = (int64_t)m->heads * m->head_dim;
  int64_t first = NAME(part)(rows, id, threads), last = NAME(part)(rows, id + 1, threads);
  NAME(norm_rows)(job, l->attention_norm, first, last);
  barrier(job->pool);
  NAME(multiply)(job, l, (NAME(Product)){&l->qkv, STORE, job->hidden, d, rows, job->qkv, l->qkv.out,
                                      NULL, NULL, &l->out}, id, threads);
  barrier(job->pool);
  NAME(write_rows)(job, index, first, last);
  barrier(job->pool);
  /* Whole tiles where there are enough for all: neighbouring heads lie side by side. */
  int32_t together = job->tile_count >= 4 * threads ? m->kv_heads : 1;
  for (;;) {
    int task = atomic_fetch_add_explicit(&job->pool->ticket, 1, memory_order_relaxed) * together;
    if (task >= job->tile_count * m->kv_heads) break;
    for (int32_t piece = task; piece < task + together; piece++)
      NAME(attend)(job, index, &job->tiles[piece / m->kv_heads], piece % m->kv_heads,
                   job->own + id * job->own_bytes);
  }
  barrier(job->pool);
  NAME(multiply)(job, l, (NAME(Product)){&l->out, ADD, job->mixed, part, rows, job->x, d, NULL, NULL,
                                      &l->gate_up}, id, threads);
  barrier(job->pool);
  NAME(norm_rows)(job, l->mlp_norm, first, last);
  barrier(job->pool);
  NAME(multiply)(job, l, (NAME(Product)){&l->gate_up, GATE, job->hidden, d, rows, NULL,
                                      m->intermediate, job->middle, NULL, &l->down}, id, threads);
  barrier(job->pool);
  const Matrix *next = index + 1 < job->step->last ? &m->layer[index + 1].qkv
                       : job->step->samples        ? &m->head
                                                   : NULL;
  NAME(multiply)(job, l, (NAME(Product)){&l->down, ADD, job->middle, m->intermediate, rows, job->x, d,
                                      NULL, NULL, next}, id, threads);
  barrier(job->pool);
}

static void NAME(run_head)(Job *job, int id, int threads) {
  const Model *m = job->model;
  const Step *s = job->step;
  int64_t d = m->hidden, count = s->samples;
  for (int64_t n = NAME(part)(count, id, threads); n < NAME(part)(count, id + 1, threads); n++)
    NAME(norm)(m, job->x + s->sample[n] * d, m->norm, (T *)job->hidden + n * d);
  Best *mine = job->best + id * count;
  for (int64_t n = 0; n < count; n++) {
    NAME(store)(mine[n].value, NAME(all)(-INFINITY));
    memset(mine[n].index, 0, sizeof mine[n].index + sizeof mine[n].nan);
  }
  barrier(job->pool);
  NAME(multiply)(job, m->layer, (NAME(Product)){&m->head, s->logits ? LOGITS : BEST, job->hidden, d, count,
                                      s->logits, m->vocab, NULL, mine, NULL}, id, threads);
  barrier(job->pool);
  if (s->logits || id) return;
  for (int64_t n = 0; n < count; n++) {
    float most = -INFINITY;
    int32_t index = 0;
    for (int t = 0; t < threads; t++) {
      const Best *b = job->best + t * count + n;
      for (int i = 0; i < LANES; i++) {
        job->nan |= b->nan[i];
        if (b->value[i] > most || (b->value[i] == most && b->index[i] < index)) {
          most = b->value[i];
          index = b->index[i];
        }
      }
    }
    s->best[n] = index;
  }
}

static void NAME(run)(void *argument, int id, int threads) {
  Job *job = argument;
  const Step *s = job->step;
  if (s->first == 0) {
    NAME(embed)(job, NAME(part)(s->rows, id, threads), NAME(part)(s->rows, id + 1, threads));
    barrier(job->pool);
  }
  for (int layer = s->first; layer < s->last; layer++) NAME(run_layer)(job, layer, id, threads);
  if (s->samples) NAME(run_head)(job, id, threads);
}

/* One product by itself: y = x · Wᵀ + b, y in fp32. */
static void NAME(run_linear)(void *argument, int id, int threads) {
  const LinearJob *job = argument;
  const Matrix *m = job->matrix;
  int64_t vectors = m->out / LANES;
  NAME(Product) p = {m,    STORE, job->x, m->in, job->rows, job->y, m->out, NULL, NULL, NULL,
                     (T *)(job->decoded + id * job->decoded_bytes)};
  NAME(product)(&p, NAME(part)(vectors, id, threads), NAME(part)(vectors, id + 1, threads), NULL);
}
#undef WIDE
#undef AHEAD
#undef NEAR_BYTES
