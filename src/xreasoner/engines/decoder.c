/* Tokens through the layers of a Qwen2-VL or Qwen2.5-VL language model, in float32 on a CPU.

   The work is cut into units (a prompt, or some rows' next tokens) that know nothing of each other; each is taken
   through all layers by one thread, so no thread waits for another before the end. native.py compiles and calls this;
   shapes: N tokens, E hidden, H heads of width D, K groups of keys, F inner, V vocabulary, C columns of the cache. */

#include <omp.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, TALL = 8 };
#elif defined(__AVX2__)
enum { LANES = 8, TALL = 4 };
#else
enum { LANES = 4, TALL = 8 };
#endif
enum { PANEL = 2 * LANES, BLOCK = 64 };

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

#define LOAD(p) (*(const loose *)(p))
#define STORE(p, v) (*(loose *)(p) = (v))
#define ALWAYS static inline __attribute__((always_inline))

typedef struct {
  int64_t layers, hidden, heads, groups, width, inner, vocab;
  int64_t row, columns; /* floats from one row of a layer's keys, or values, to the next; columns allocated */
  float eps, scaling;
} Shape;

/* Weights are packed (see pack); a bias may be missing. keys [R, K, D, C], so that one product with a query reads
   along the columns; values [R, K, C, D]. */
typedef struct {
  const float *norm_in, *norm_out, *q, *k, *v, *o, *gate, *up, *down, *q_bias, *k_bias, *v_bias;
  float *keys, *values;
} Layer;

int64_t lanes(void) { return LANES; }

/* Floats that a weight [out, in] takes when it is packed. */
int64_t packed_size(int64_t out, int64_t in) { return (out + PANEL - 1) / PANEL * PANEL * in; }

/* A weight [out, in] as panels of PANEL outputs: [out / PANEL, in, PANEL], filled up with zeros. */
void pack(const float *weight, int64_t out, int64_t in, float *packed) {
  for (int64_t panel = 0; panel < out; panel += PANEL)
    for (int64_t k = 0; k < in; k++)
      for (int64_t j = 0; j < PANEL; j++) *packed++ = panel + j < out ? weight[(panel + j) * in + k] : 0;
}

/* One tile of a product: `rows` rows of x, one panel. */
ALWAYS void tile(const int rows, int64_t in, const float *x, const float *panel, float *into) {
  vec left[TALL], right[TALL];
  for (int i = 0; i < rows; i++) left[i] = right[i] = (vec){0};
  for (int64_t k = 0; k < in; k++, panel += PANEL) {
    const vec a = LOAD(panel), b = LOAD(panel + LANES);
    for (int i = 0; i < rows; i++) {
      left[i] += x[i * in + k] * a;
      right[i] += x[i * in + k] * b;
    }
  }
  for (int i = 0; i < rows; i++) STORE(into + i * PANEL, left[i]), STORE(into + i * PANEL + LANES, right[i]);
}

/* y [M, out] = x [M, in] times the packed weight, plus the bias; added to what is in y where `add` says so. */
static void product(int64_t m, int64_t out, int64_t in, const float *x, const float *packed, const float *bias,
                    int add, float *y) {
  float found[TALL * PANEL];
  for (int64_t panel = 0; panel < out; panel += PANEL, packed += PANEL * in) {
    const int64_t wide = out - panel < PANEL ? out - panel : PANEL;
    for (int64_t i = 0; i < m;) {
      const float *from = x + i * in;
      int64_t rows = m - i;
      if (rows >= TALL) tile(rows = TALL, in, from, packed, found);
      else if (rows >= 4) tile(rows = 4, in, from, packed, found);
      else if (rows >= 2) tile(rows = 2, in, from, packed, found);
      else tile(1, in, from, packed, found);
      for (int64_t r = 0; r < rows; r++, i++) {
        float *to = y + i * out + panel;
        for (int64_t j = 0; j < wide; j++)
          to[j] = found[r * PANEL + j] + (bias ? bias[panel + j] : 0) + (add ? to[j] : 0);
      }
    }
  }
}

ALWAYS float total(vec v) {
  float sum = 0;
  for (int j = 0; j < LANES; j++) sum += v[j];
  return sum;
}

static void norm(int64_t m, int64_t hidden, const float *x, const float *weight, float eps, float *y) {
  for (int64_t i = 0; i < m; i++, x += hidden, y += hidden) {
    vec squares = {0};
    for (int64_t j = 0; j < hidden; j += LANES) squares += LOAD(x + j) * LOAD(x + j);
    const float scale = 1 / __builtin_sqrtf(total(squares) / hidden + eps);
    for (int64_t j = 0; j < hidden; j += LANES) STORE(y + j, LOAD(x + j) * scale * LOAD(weight + j));
  }
}

/* The larger of each pair; b where one of the two is not a number. */
ALWAYS vec larger(vec a, vec b) {
  const ints which = a > b;
  return (vec)(((ints)a & which) | ((ints)b & ~which));
}

/* e to the x, to float32's precision (Cephes' expf), for x of at most 88; below -87 it is that of -87. What is not a
   number stays so: with the operands of `larger` the other way round it would become e to the -87, unnoticed. */
ALWAYS vec exponential(vec x) {
  x = larger((vec){0} - 87.0f, x);
  const vec shifted = x * 1.44269504088896341f + 12582912.0f; /* rounds to a whole number */
  const vec whole = shifted - 12582912.0f;
  const vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const ints power = (__builtin_convertvector(whole, ints) + 127) << 23;
  return p * (vec)power;
}

/* gate becomes silu(gate) * up. */
static void gated(int64_t n, float *gate, const float *up) {
  for (int64_t j = 0; j < n; j += LANES) {
    const vec x = LOAD(gate + j);
    STORE(gate + j, x / (1.0f + exponential((vec){0} - larger(x, (vec){0} - 80.0f))) * LOAD(up + j));
  }
}

/* The heads of one token, turned to its position. Both halves of a rotation [D] are alike; the second is read. */
static void turn(int64_t heads, int64_t width, float *x, const float *cosine, const float *sine) {
  const int64_t half = width / 2;
  for (int64_t h = 0; h < heads; h++, x += width)
    for (int64_t j = 0; j < half; j++) {
      const float a = x[j], b = x[j + half], c = cosine[j + half], s = sine[j + half];
      x[j] = a * c - b * s;
      x[j + half] = b * c + a * s;
    }
}

/* Scores of `wide` vectors of columns. */
ALWAYS void chunk(const int wide, int64_t width, int64_t columns, const float *query, const float *keys, float *to) {
  vec sum[8];
  for (int w = 0; w < wide; w++) sum[w] = (vec){0};
  for (int64_t d = 0; d < width; d++, keys += columns)
    for (int w = 0; w < wide; w++) sum[w] += query[d] * LOAD(keys + w * LANES);
  for (int w = 0; w < wide; w++) STORE(to + w * LANES, sum[w]);
}

/* One head's attention over the first n columns: query [D], keys [D, C], values [C, D]; the result goes to mixed [D]. */
static void attend(const Shape *s, const float *query, const float *keys, const float *values, int64_t n, float *scores,
                   float *mixed) {
  const int64_t width = s->width, columns = s->columns;
  int64_t c = 0;
  for (; c + 7 * LANES < n; c += 8 * LANES) chunk(8, width, columns, query, keys + c, scores + c);
  for (; c + 3 * LANES < n; c += 4 * LANES) chunk(4, width, columns, query, keys + c, scores + c);
  for (; c < n; c += LANES) chunk(1, width, columns, query, keys + c, scores + c);
  for (int64_t j = n; j < c; j++) scores[j] = -1e30f;
  vec highest = LOAD(scores), sum = {0};
  for (int64_t j = LANES; j < c; j += LANES) highest = larger(highest, LOAD(scores + j));
  float top = highest[0];
  for (int j = 1; j < LANES; j++) top = top > highest[j] ? top : highest[j];
  for (int64_t j = 0; j < c; j += LANES) STORE(scores + j, exponential((LOAD(scores + j) - top) * s->scaling));
  for (int64_t j = n; j < c; j++) scores[j] = 0;
  for (int64_t j = 0; j < c; j += LANES) sum += LOAD(scores + j);
  const float share = 1 / total(sum);
  for (int64_t d = 0; d < width; d += LANES) {
    vec part[4] = {{0}, {0}, {0}, {0}};
    const float *value = values + d, *weight = scores;
    int64_t left = n;
    for (; left >= 4; left -= 4, weight += 4, value += 4 * width)
      for (int w = 0; w < 4; w++) part[w] += weight[w] * LOAD(value + w * width);
    for (; left; left--, weight++, value += width) part[0] += *weight * LOAD(value);
    STORE(mixed + d, (part[0] + part[1] + part[2] + part[3]) * share);
  }
}

/* Keys and values of one token, written at its column. */
static void keep(const Shape *s, const Layer *layer, int64_t row, int64_t column, const float *key,
                 const float *value) {
  float *keys = layer->keys + row * s->row, *values = layer->values + row * s->row;
  for (int64_t g = 0; g < s->groups; g++)
    for (int64_t d = 0; d < s->width; d++) {
      keys[(g * s->width + d) * s->columns + column] = key[g * s->width + d];
      values[(g * s->columns + column) * s->width + d] = value[g * s->width + d];
    }
}

/* The first n columns of one row, copied into another, in one layer. */
static void copy(const Shape *s, const Layer *layer, int64_t n, int64_t from, int64_t to) {
  for (int64_t j = 0; j < s->groups * s->width; j++)
    memcpy(layer->keys + to * s->row + j * s->columns, layer->keys + from * s->row + j * s->columns, n * sizeof(float));
  for (int64_t g = 0; g < s->groups; g++) {
    const int64_t at = g * s->columns * s->width;
    memcpy(layer->values + to * s->row + at, layer->values + from * s->row + at, n * s->width * sizeof(float));
  }
}

/* Floats of working memory for one thread. */
int64_t scratch_size(const Shape *s) {
  return BLOCK * (s->hidden + (2 * s->heads + 2 * s->groups) * s->width + 2 * s->inner) + s->columns + 8 * LANES;
}

/* One layer for at most BLOCK tokens of a unit; of the first `idle` keys and values alone are wanted. */
static void block(const Shape *s, const Layer *layer, int64_t n, int64_t idle, float *hidden, const int64_t *row,
                  const int64_t *column, const float *cosine, const float *sine, float *scratch) {
  const int64_t width = s->width, q_width = s->heads * width, k_width = s->groups * width;
  float *x = scratch, *q = x + BLOCK * s->hidden, *k = q + BLOCK * q_width, *v = k + BLOCK * k_width;
  float *mixed = v + BLOCK * k_width, *gate = mixed + BLOCK * q_width, *up = gate + BLOCK * s->inner;
  float *scores = up + BLOCK * s->inner;
  norm(n, s->hidden, hidden, layer->norm_in, s->eps, x);
  product(n, k_width, s->hidden, x, layer->k, layer->k_bias, 0, k);
  product(n, k_width, s->hidden, x, layer->v, layer->v_bias, 0, v);
  for (int64_t i = 0; i < n; i++) {
    turn(s->groups, width, k + i * k_width, cosine + i * width, sine + i * width);
    keep(s, layer, row[i], column[i], k + i * k_width, v + i * k_width);
  }
  n -= idle, hidden += idle * s->hidden, row += idle, column += idle, cosine += idle * width, sine += idle * width;
  product(n, q_width, s->hidden, x + idle * s->hidden, layer->q, layer->q_bias, 0, q);
  for (int64_t i = 0; i < n; i++) {
    turn(s->heads, width, q + i * q_width, cosine + i * width, sine + i * width);
    for (int64_t h = 0; h < s->heads; h++) {
      const int64_t group = row[i] * s->row + h / (s->heads / s->groups) * width * s->columns;
      const int64_t head = i * q_width + h * width;
      attend(s, q + head, layer->keys + group, layer->values + group, column[i] + 1, scores, mixed + head);
    }
  }
  product(n, s->hidden, q_width, mixed, layer->o, 0, 1, hidden);
  norm(n, s->hidden, hidden, layer->norm_out, s->eps, x);
  product(n, s->inner, s->hidden, x, layer->gate, 0, 0, gate);
  product(n, s->inner, s->hidden, x, layer->up, 0, 0, up);
  gated(n * s->inner, gate, up);
  product(n, s->hidden, s->inner, gate, layer->down, 0, 1, hidden);
}

/* Token i has its hidden state [E], row and column, and is turned by cosine and sine [D]; it sees the columns of its
   row up to its own. Unit u is the tokens [units[u], units[u + 1]).

   With `prompts`, a unit is one row's prompt: its first `prefix` columns are those of row 0, logits are those of its
   last token, and its columns are copied into the rows copies[copied[u]:copied[u + 1]]. Without, logits are those of
   every token. */
void forward(const Shape *s, const Layer *layers, const float *norm_weight, const float *head, int64_t count,
             const int64_t *units, float *hidden, const int64_t *row, const int64_t *column, const float *cosine,
             const float *sine, int64_t prompts, int64_t prefix, const int64_t *copied, const int64_t *copies,
             float *logits, float *scratch, int64_t threads) {
  const int64_t size = scratch_size(s);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t u = 0; u < count; u++) {
    const int64_t begin = units[u], end = units[u + 1];
    float *own = scratch + omp_get_thread_num() * size;
    for (const Layer *layer = layers; layer < layers + s->layers; layer++) {
      if (prefix) copy(s, layer, prefix, 0, row[begin]);
      const int64_t wanted = prompts && layer == layers + s->layers - 1 ? end - 1 : begin;
      for (int64_t at = begin; at < end; at += BLOCK) {
        const int64_t n = end - at < BLOCK ? end - at : BLOCK, before = wanted - at;
        block(s, layer, n, before < 0 ? 0 : before < n ? before : n, hidden + at * s->hidden, row + at, column + at,
              cosine + at * s->width, sine + at * s->width, own);
      }
      for (int64_t k = prompts ? copied[u] : 0; k < (prompts ? copied[u + 1] : 0); k++)
        copy(s, layer, column[end - 1] + 1, row[begin], copies[k]);
    }
    for (int64_t at = prompts ? end - 1 : begin; at < end; at += BLOCK) {
      const int64_t n = end - at < BLOCK ? end - at : BLOCK;
      norm(n, s->hidden, hidden + at * s->hidden, norm_weight, s->eps, own);
      product(n, s->vocab, s->hidden, own, head, 0, 0, logits + (prompts ? u : at) * s->vocab);
    }
  }
}
