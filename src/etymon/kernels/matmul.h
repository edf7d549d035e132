/* Large products of matrices that lie in memory either way round: C = A B, or C += A B.
 *
 * After Goto & van de Geijn 2008 (doi:10.1145/1356052.1356053): columns of B and rows of A are copied into panels in the
 * order in which they are used, a block of A stays in the second cache, a panel of B in the first, and a tile of C in
 * registers. Every element is summed in the same order whatever the threads do.
 */

#ifdef __AVX512F__
enum { TILE_ROWS = 8, TILE_VECTORS = 3 };
#else
enum { TILE_ROWS = 6, TILE_VECTORS = 1 };
#endif
enum {
  TILE_COLUMNS = TILE_VECTORS * LANES,
  DEPTH = 384,                 /* a panel of B of so many rows lies in the first cache */
  BLOCK_ROWS = 28 * TILE_ROWS, /* so many rows of A in the second */
  BLOCK_COLUMNS = 4128
};

/* Element (i, j) is at from[i * down + j * across]; one of the steps is 1. */
typedef struct {
  const float *from;
  int64_t down, across;
} matrix;

/* x[i] lane j becomes x[j] lane i. */
INLINE void transpose(vector *x) {
  const integers low8 = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}, high8 = low8 + 8;
  const integers low4 = {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27}, high4 = low4 + 4;
  const integers low2 = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29}, high2 = low2 + 2;
  const integers low1 = {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30}, high1 = low1 + 1;
#define SWAP(distance, low, high)                       \
  _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) \
    if (!(i & distance)) {                              \
      const vector a = x[i], b = x[i + distance];       \
      x[i] = __builtin_shuffle(a, b, low);              \
      x[i + distance] = __builtin_shuffle(a, b, high);  \
    }
  SWAP(8, low8, high8)
  SWAP(4, low4, high4)
  SWAP(2, low2, high2)
  SWAP(1, low1, high1)
#undef SWAP
}

/* Copy `lines` lines of `depth` elements into a panel of `width` lines that lie element by element beside each other;
 * lines that are missing become 0. Element k of line i is at from[i * apart + k * along]. */
INLINE void pack(float *to, const float *from, int64_t apart, int64_t along, int64_t lines, int64_t depth, int width) {
  if (apart == 1) {
    for (int64_t k = 0; k < depth; k++, from += along, to += width)
      if (lines >= width) {
        memcpy(to, from, 4 * width);
      } else {
        memset(to, 0, 4 * width);
        memcpy(to, from, 4 * lines);
      }
    return;
  }
  for (int64_t k = 0; k < depth; k += LANES) {
    const int64_t count = depth - k < LANES ? depth - k : LANES;
    for (int64_t i = 0; i < width; i += LANES) {
      const int64_t room = width - i < LANES ? width - i : LANES;
      vector x[LANES];
#pragma GCC unroll 16
      for (int j = 0; j < LANES; j++) {
        const float *line = from + (i + j) * apart + k;
        x[j] = i + j >= lines || j >= room ? (vector){} : count == LANES ? load(line) : load_some(line, count);
      }
      transpose(x);
      for (int64_t j = 0; j < count; j++) {
        float *here = to + (k + j) * width + i;
        if (room == LANES) store(here, x[j]);
        else store_some(here, x[j], room);
      }
    }
  }
}

/* The tile of `rows` x `vectors` at `to`: its sum with, or without, what stands there, plus a product of A, whose element
 * (i, k) is at a[i * down + k * across], and B, whose rows follow one another. */
INLINE void multiply_tile(const int rows, const int vectors, float *to, int64_t stride, const float *a, int64_t down,
                          int64_t across, const float *b, int64_t depth, int adds, const float *bias) {
  vector sums[8][4];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) sums[i][j] = (vector){};
    __builtin_prefetch(to + i * stride, 1);
    __builtin_prefetch(to + i * stride + vectors * LANES - 1, 1);
  }
  for (int64_t k = 0; k < depth; k++, a += across, b += vectors * LANES) {
    vector right[4];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) right[j] = load(b + j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
      for (int j = 0; j < vectors; j++) sums[i][j] += a[i * down] * right[j];
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) {
      float *here = to + i * stride + j * LANES;
      vector x = sums[i][j];
      if (adds) x += load(here);
      if (bias) x += load(bias + j * LANES);
      store(here, x);
    }
}

static __attribute__((noinline)) void multiply_edge(float *to, int64_t stride, int64_t rows, int64_t columns, const float *a, const float *b,
                          int64_t depth, int adds, const float *bias) {
  float tile[TILE_ROWS * TILE_COLUMNS];
  multiply_tile(TILE_ROWS, TILE_VECTORS, tile, TILE_COLUMNS, a, 1, TILE_ROWS, b, depth, 0, NULL);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++)
      to[i * stride + j] = tile[i * TILE_COLUMNS + j] + (adds ? to[i * stride + j] : 0) + (bias ? bias[j] : 0);
}

static __attribute__((noinline)) void multiply_whole(float *to, int64_t stride, const float *a, const float *b, int64_t depth, int adds,
                           const float *bias) {
  if (bias) multiply_tile(TILE_ROWS, TILE_VECTORS, to, stride, a, 1, TILE_ROWS, b, depth, adds, bias);
  else if (adds) multiply_tile(TILE_ROWS, TILE_VECTORS, to, stride, a, 1, TILE_ROWS, b, depth, 1, NULL);
  else multiply_tile(TILE_ROWS, TILE_VECTORS, to, stride, a, 1, TILE_ROWS, b, depth, 0, NULL);
}

INLINE int64_t smallest(int64_t a, int64_t b) { return a < b ? a : b; }

/* The sums over the depth of a panel of TILE_ROWS lines of A become, or are added to, those of `lines` rows. */
static void sum_lines(float *totals, const float *panel, int64_t lines, int64_t depth, int adds) {
  enum { CHAINS = 8 };
  float parts[CHAINS * TILE_ROWS] = {0};
  int64_t k = 0;
  for (; k + CHAINS <= depth; k += CHAINS, panel += CHAINS * TILE_ROWS)
    for (int i = 0; i < CHAINS * TILE_ROWS; i++) parts[i] += panel[i];
  for (int i = 0; i < (depth - k) * TILE_ROWS; i++) parts[i] += panel[i];
  for (int width = CHAINS / 2 * TILE_ROWS; width >= TILE_ROWS; width /= 2)
    for (int i = 0; i < width; i++) parts[i] += parts[i + width];
  for (int64_t i = 0; i < lines; i++) totals[i] = (adds ? totals[i] : 0) + parts[i];
}

/* to [m, n] = a [m, k] b [k, n] (+ bias [n]), or that much more where it `adds`; where `totals` [m] is not NULL, the sums
 * over k of a, which is at hand. `space` has `matmul_space(threads)` floats. */
void matmul(float *to, int64_t stride, matrix a, matrix b, const float *bias, int64_t m, int64_t n, int64_t k, int adds,
            float *totals, float *space, int32_t threads) {
  float *const right = space;
  const int64_t tiles = (m + TILE_ROWS - 1) / TILE_ROWS;
#pragma omp parallel num_threads(threads)
  {
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    float *const left = space + DEPTH * BLOCK_COLUMNS + me * DEPTH * BLOCK_ROWS;
    const int64_t begin = tiles * me / team * TILE_ROWS, end = smallest(m, tiles * (me + 1) / team * TILE_ROWS);
    for (int64_t column = 0; column < n; column += BLOCK_COLUMNS) {
      const int64_t columns = smallest(BLOCK_COLUMNS, n - column);
      const int64_t panels = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
      for (int64_t deep = 0; deep < k; deep += DEPTH) {
        const int64_t depth = smallest(DEPTH, k - deep);
        const int adding = adds || deep > 0;
        const float *const last = deep + depth == k ? bias : NULL;
        for (int64_t panel = panels * me / team; panel < panels * (me + 1) / team; panel++) {
          const int64_t at = column + panel * TILE_COLUMNS;
          pack(right + panel * TILE_COLUMNS * depth, b.from + deep * b.down + at * b.across, b.across, b.down,
               smallest(TILE_COLUMNS, n - at), depth, TILE_COLUMNS);
        }
#pragma omp barrier
        for (int64_t row = begin; row < end; row += BLOCK_ROWS) {
          const int64_t stop = smallest(row + BLOCK_ROWS, end);
          /* a few elements of every line before the next ones: lines far apart drive one another out of the cache */
          const int64_t few = a.down == 1 ? 8 : depth;
          for (int64_t part = 0; part < depth; part += few)
            for (int64_t i = row; i < stop; i += TILE_ROWS)
              pack(left + (i - row) * depth + part * TILE_ROWS, a.from + i * a.down + (deep + part) * a.across, a.down,
                   a.across, smallest(TILE_ROWS, stop - i), smallest(few, depth - part), TILE_ROWS);
          for (int64_t i = row; totals && column == 0 && i < stop; i += TILE_ROWS)
            sum_lines(totals + i, left + (i - row) * depth, smallest(TILE_ROWS, stop - i), depth, deep > 0);
          for (int64_t panel = 0; panel < panels; panel++) {
            const int64_t at = column + panel * TILE_COLUMNS;
            const float *const in = right + panel * TILE_COLUMNS * depth;
            for (int64_t i = row; i < stop; i += TILE_ROWS) {
              float *const here = to + i * stride + at;
              const int64_t rows = smallest(TILE_ROWS, stop - i), wide = smallest(TILE_COLUMNS, n - at);
              if (rows == TILE_ROWS && wide == TILE_COLUMNS)
                multiply_whole(here, stride, left + (i - row) * depth, in, depth, adding, last ? last + at : NULL);
              else
                multiply_edge(here, stride, rows, wide, left + (i - row) * depth, in, depth, adding,
                              last ? last + at : NULL);
            }
          }
        }
#pragma omp barrier
      }
    }
  }
}

int64_t matmul_space(int32_t threads) { return DEPTH * BLOCK_COLUMNS + (int64_t)threads * DEPTH * BLOCK_ROWS; }
