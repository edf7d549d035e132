/* Attention of whole sequences to themselves, and its gradient, where every token sees one unbroken span of them.
 *
 * As Dao et al. 2022 (arXiv:2205.14135), nothing of size [time, time] is kept: the gradient makes the weights anew from the
 * logarithms of their sums. A block of queries meets all keys of its spans at once; what no query of it sees is passed over.
 * Nor is it kept which weights are dropped: a hash of their place says so, to the gradient as before.
 */

enum {
  STRIP = 6,                 /* rows of a tile */
  PANEL_VECTORS = 4,         /* its columns */
  PANEL = PANEL_VECTORS * LANES,
  QUERIES = 8 * STRIP,       /* rows of a block */
};

typedef struct {
  int64_t batch, time, heads, kv_heads, width;
  const float *qkv;            /* [batch, time, heads + 2 kv_heads, width] */
  const int32_t *first, *last; /* [batch or 1, time]: a token sees these columns and those between */
  int64_t spans;               /* how far the spans of the rows of a batch are apart */
  double scale, drop;          /* how often a weight is 0 */
  uint64_t seed;               /* of which weights */
} sequences;

typedef uint32_t words __attribute__((vector_size(4 * LANES)));

INLINE int64_t whole_panels(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }

static void multiply_strip(float *to, int64_t stride, const float *a, int64_t down, const float *b, int64_t depth) {
  multiply_tile(STRIP, PANEL_VECTORS, to, stride, a, down, 1, b, depth, 0, NULL);
}

static void add_strip(float *to, int64_t stride, const float *a, int64_t across, const float *b, int64_t depth) {
  multiply_tile(STRIP, PANEL_VECTORS, to, stride, a, 1, across, b, depth, 1, NULL);
}

/* Panels of PANEL rows of `from`, column by column: of K, to be multiplied by from the left. */
static void pack_across(float *to, const float *from, int64_t apart, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; row += PANEL)
    pack(to + row * width, from + row * apart, apart, 1, smallest(PANEL, rows - row), width, PANEL);
}

/* Panels of PANEL columns of `from`, row by row; `count` rows, of which those behind `rows` are 0. */
static void pack_along(float *to, const float *from, int64_t apart, int64_t rows, int64_t count, int64_t width) {
  for (int64_t column = 0; column < width; column += PANEL, to += count * PANEL) {
    pack(to, from + column, 1, apart, smallest(PANEL, width - column), rows, PANEL);
    memset(to + rows * PANEL, 0, 4 * PANEL * (count - rows));
  }
}

/* What a thread works in. */
typedef struct {
  float *keys, *values, *along, *d_keys, *d_values; /* [time in panels, width in panels] */
  float *scores, *d_scores;                         /* [QUERIES, time in panels + PANEL] */
  float *block, *packed, *d_packed;                 /* [QUERIES, width in panels] */
} desk;

static desk take(float *space, int64_t time, int64_t width) {
  const int64_t long_ = (whole_panels(time) + PANEL) * whole_panels(width);
  const int64_t scores = QUERIES * (whole_panels(time) + PANEL), block = QUERIES * whole_panels(width);
  desk d;
  float **const parts[] = {&d.keys, &d.values, &d.along, &d.d_keys, &d.d_values, &d.scores, &d.d_scores, &d.block,
                           &d.packed, &d.d_packed};
  const int64_t sizes[] = {long_, long_, long_, long_, long_, scores, scores, block, block, block};
  for (int i = 0; i < 10; i++) {
    *parts[i] = space;
    space += sizes[i];
  }
  return d;
}

int64_t sequences_space(int64_t time, int64_t width, int32_t threads) {
  const int64_t columns = whole_panels(width);
  return threads * (5 * (whole_panels(time) + PANEL) * columns + 2 * QUERIES * (whole_panels(time) + PANEL) +
                    3 * QUERIES * columns);
}

/* The columns that some query of a block sees, in whole panels. */
static void reach(const int32_t *first, const int32_t *last, int64_t rows, int64_t *begin, int64_t *end) {
  int64_t low = first[0], high = last[0];
  for (int64_t i = 1; i < rows; i++) {
    low = smallest(low, first[i]);
    high = last[i] > high ? last[i] : high;
  }
  *begin = low / PANEL * PANEL;
  *end = whole_panels(high + 1);
}

/* A block of rows of queries, packed [QUERIES, width] with zeros behind them, times all keys from `begin` to `end`. */
static void score(float *scores, int64_t stride, const float *queries, int64_t width, const float *keys, int64_t begin,
                  int64_t end) {
  for (int64_t column = begin; column < end; column += PANEL)
    for (int64_t row = 0; row < QUERIES; row += STRIP)
      multiply_strip(scores + row * stride + column - begin, stride, queries + row * width, width, keys + column * width,
                     width);
}

static void copy_rows(float *to, const float *from, int64_t apart, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; i++) memcpy(to + i * width, from + i * apart, 4 * width);
  memset(to + rows * width, 0, 4 * (QUERIES - rows) * width);
}

/* Lanes of the vector at `column` that lie from `low` to `high`. */
INLINE integers between(int64_t column, int64_t low, int64_t high) {
  const integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return (lane >= (int32_t)(low - column)) & (lane <= (int32_t)(high - column));
}

/* Which weights of a query remain, and what they are multiplied by. */
typedef struct {
  uint32_t first, second, least;
  float factor;
} chance;

/* Numbers of which any two inputs share no pattern (Steele et al. 2014, SplitMix). */
INLINE uint64_t scattered(uint64_t x) {
  x = (x + 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

INLINE chance chance_of(const sequences *s, int64_t query) {
  const uint64_t key = scattered(s->seed ^ scattered(query));
  return (chance){key, key >> 32, s->drop * 4294967296.0, 1 / (1 - s->drop)};
}

/* 0 or the factor, for the weights from `column` on: a hash of their numbers (the last steps of MurmurHash3), between
   which the query's own comes twice, so that no two queries have the same series, nor one shifted. */
INLINE vector kept(chance c, int64_t column) {
  words x = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  x = (x + (uint32_t)column) * 0x9E3779B1u ^ c.first;
  x = (x ^ x >> 16) * 0x85EBCA6Bu + c.second;
  x = (x ^ x >> 13) * 0xC2B2AE35u;
  x ^= x >> 16;
  return choose((integers)(x >= c.least), all(c.factor), (vector){});
}

/* Rows of scores, `columns` of them from `begin`, become weights that are not yet divided by their sums. */
static float weigh(float *row, int64_t begin, int64_t columns, int64_t low, int64_t high, float scale, float *total) {
  vector most = all(-INFINITY);
  const int64_t from = (low - begin) / LANES * LANES, to = high - begin + 1;
  for (int64_t j = from; j < to; j += LANES)
    most = larger(most, choose(between(begin + j, low, high), load(row + j), all(-INFINITY)));
  const float top = greatest(most) * scale;
  vector part = {};
  memset(row, 0, 4 * from);
  int64_t j = from;
  for (; j < to; j += LANES) {
    const vector x = choose(between(begin + j, low, high), exponential(load(row + j) * scale - top), (vector){});
    part += x;
    store(row + j, x);
  }
  if (j < columns) memset(row + j, 0, 4 * (columns - j));
  *total = sum(part);
  return top;
}

/* to [batch, time, heads, width], and the logarithms of the weights' sums [batch, heads, time]. */
void attend_sequences(const sequences *given, float *to, float *logs, float *space, int32_t threads) {
  const sequences s = *given;
  const int64_t apart = (s.heads + 2 * s.kv_heads) * s.width, group = s.heads / s.kv_heads;
  const int64_t wide = whole_panels(s.width), stride = whole_panels(s.time) + PANEL;
  const int64_t each = sequences_space(s.time, s.width, 1);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < s.batch * s.kv_heads; task++) {
    const desk d = take(space + omp_get_thread_num() * each, s.time, s.width);
    const int64_t row = task / s.kv_heads, kv = task % s.kv_heads;
    const float *const base = s.qkv + row * s.time * apart;
    const int32_t *const first = s.first + row * s.spans, *const last = s.last + row * s.spans;
    pack_across(d.keys, base + (s.heads + kv) * s.width, apart, s.time, s.width);
    pack_along(d.values, base + (s.heads + s.kv_heads + kv) * s.width, apart, s.time, whole_panels(s.time), s.width);
    for (int64_t head = kv * group; head < (kv + 1) * group; head++)
      for (int64_t at = 0; at < s.time; at += QUERIES) {
        const int64_t rows = smallest(QUERIES, s.time - at);
        int64_t begin, end;
        reach(first + at, last + at, rows, &begin, &end);
        const int64_t columns = end - begin;
        copy_rows(d.block, base + at * apart + head * s.width, apart, rows, s.width);
        score(d.scores, stride, d.block, s.width, d.keys, begin, end);
        float totals[QUERIES];
        for (int64_t i = 0; i < rows; i++) {
          const float top = weigh(d.scores + i * stride, begin, columns, first[at + i], last[at + i], s.scale, totals + i);
          const int64_t query = (row * s.heads + head) * s.time + at + i;
          logs[query] = top + logf(totals[i]);
          if (s.drop > 0) {
            float *const weights = d.scores + i * stride;
            const chance c = chance_of(&s, query);
            for (int64_t j = 0; j < columns; j += LANES) store(weights + j, load(weights + j) * kept(c, begin + j));
          }
        }
        for (int64_t column = 0; column < wide; column += PANEL)
          for (int64_t i = 0; i < QUERIES; i += STRIP)
            multiply_strip(d.packed + i * wide + column, wide, d.scores + i * stride, stride,
                           d.values + column * whole_panels(s.time) + begin * PANEL, columns);
        for (int64_t i = 0; i < rows; i++) {
          float *const here = to + (((row * s.time) + at + i) * s.heads + head) * s.width;
          const float share = 1 / totals[i];
          for (int64_t j = 0; j < s.width; j += LANES) store(here + j, load(d.packed + i * wide + j) * share);
        }
      }
  }
}

/* The gradient of qkv, all of which is written, from that of what was mixed, d_to [batch, time, heads, width]. */
void attend_sequences_gradient(const sequences *given, const float *to, const float *logs, const float *d_to,
                               float *d_qkv, float *space, int32_t threads) {
  const sequences s = *given;
  const int64_t apart = (s.heads + 2 * s.kv_heads) * s.width, group = s.heads / s.kv_heads;
  const int64_t wide = whole_panels(s.width), padded = whole_panels(s.time), stride = padded + PANEL;
  const int64_t each = sequences_space(s.time, s.width, 1), next = s.heads * s.width;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < s.batch * s.kv_heads; task++) {
    const desk d = take(space + omp_get_thread_num() * each, s.time, s.width);
    const int64_t row = task / s.kv_heads, kv = task % s.kv_heads;
    const float *const base = s.qkv + row * s.time * apart;
    float *const d_base = d_qkv + row * s.time * apart;
    const int32_t *const first = s.first + row * s.spans, *const last = s.last + row * s.spans;
    const int64_t k_at = (s.heads + kv) * s.width, v_at = k_at + s.kv_heads * s.width;
    pack_across(d.keys, base + k_at, apart, s.time, s.width);
    pack_across(d.values, base + v_at, apart, s.time, s.width);
    pack_along(d.along, base + k_at, apart, s.time, padded, s.width);
    memset(d.d_keys, 0, 4 * (padded + PANEL) * wide);
    memset(d.d_values, 0, 4 * (padded + PANEL) * wide);
    for (int64_t head = kv * group; head < (kv + 1) * group; head++)
      for (int64_t at = 0; at < s.time; at += QUERIES) {
        const int64_t rows = smallest(QUERIES, s.time - at);
        int64_t begin, end;
        reach(first + at, last + at, rows, &begin, &end);
        const int64_t columns = end - begin;
        const float *const queries = base + at * apart + head * s.width;
        const float *const slopes = d_to + ((row * s.time + at) * s.heads + head) * s.width;
        const float *const mixed = to + ((row * s.time + at) * s.heads + head) * s.width;
        copy_rows(d.block, queries, apart, rows, s.width);
        score(d.scores, stride, d.block, s.width, d.keys, begin, end);
        copy_rows(d.block, slopes, next, rows, s.width);
        score(d.d_scores, stride, d.block, s.width, d.values, begin, end);
        for (int64_t i = 0; i < QUERIES; i++) {
          float *const weights = d.scores + i * stride, *const d_weights = d.d_scores + i * stride;
          /* behind the columns stand zeros, which the last strip of keys meets */
          memset(weights + columns, 0, 4 * LANES);
          memset(d_weights + columns, 0, 4 * LANES);
          if (i >= rows) {
            memset(weights, 0, 4 * columns);
            memset(d_weights, 0, 4 * columns);
            continue;
          }
          vector products = {};
          for (int64_t j = 0; j < s.width; j += LANES) products += load(slopes + i * next + j) * load(mixed + i * next + j);
          const int64_t query = (row * s.heads + head) * s.time + at + i;
          const float mean = sum(products), log = logs[query], scale = s.scale;
          const chance c = chance_of(&s, query);
          for (int64_t j = 0; j < columns; j += LANES) {
            const integers seen = between(begin + j, first[at + i], last[at + i]);
            const vector p = choose(seen, exponential(load(weights + j) * scale - log), (vector){});
            const vector share = s.drop > 0 ? kept(c, begin + j) : all(1);
            store(weights + j, p * share);
            store(d_weights + j, p * (load(d_weights + j) * share - mean) * scale);
          }
        }
        pack_along(d.packed, queries, apart, rows, QUERIES, s.width);
        pack_along(d.d_packed, slopes, next, rows, QUERIES, s.width);
        for (int64_t column = 0; column < wide; column += PANEL) {
          for (int64_t i = 0; i < QUERIES; i += STRIP)
            multiply_strip(d.block + i * wide + column, wide, d.d_scores + i * stride, stride,
                           d.along + column * padded + begin * PANEL, columns);
          for (int64_t j = 0; j < columns; j += STRIP) {
            add_strip(d.d_keys + (begin + j) * wide + column, wide, d.d_scores + j, stride, d.packed + column * QUERIES,
                      QUERIES);
            add_strip(d.d_values + (begin + j) * wide + column, wide, d.scores + j, stride, d.d_packed + column * QUERIES,
                      QUERIES);
          }
        }
        for (int64_t i = 0; i < rows; i++)
          memcpy(d_base + (at + i) * apart + head * s.width, d.block + i * wide, 4 * s.width);
      }
    for (int64_t i = 0; i < s.time; i++) {
      memcpy(d_base + i * apart + k_at, d.d_keys + i * wide, 4 * s.width);
      memcpy(d_base + i * apart + v_at, d.d_values + i * wide, 4 * s.width);
    }
  }
}
