/* The loss of a row of logits, and its gradient in their place. */

/* -log softmax(z)[target] of a row, of which softmax(z) - [target] remains. What is not a number makes a loss that is
 * none. Sums of a few thousand are taken in single precision, those in double. */
static double row_entropy(float *z, int64_t target, int64_t vocab, int gradient) {
  const int64_t whole = vocab / LANES * LANES;
  vector most = all(-INFINITY);
  for (int64_t i = 0; i < whole; i += LANES) most = larger(most, load(z + i));
  float top = greatest(most);
  for (int64_t i = whole; i < vocab; i++) top = z[i] > top ? z[i] : top;
  const float given = z[target];
  double total = 0;
  for (int64_t from = 0; from < whole; from += 256 * LANES) {
    const int64_t stop = smallest(whole, from + 256 * LANES);
    vector part = {};
    for (int64_t i = from; i < stop; i += LANES) {
      const vector x = exponential(load(z + i) - top);
      part += x;
      if (gradient) store(z + i, x);
    }
    total += sum(part);
  }
  for (int64_t i = whole; i < vocab; i++) {
    const float x = exponential(all(z[i] - top))[0];
    total += x;
    if (gradient) z[i] = x;
  }
  const double log_total = top + log(total);
  const double loss = log_total - given;
  if (gradient) {
    const float share = (float)(1.0 / total);
    for (int64_t i = 0; i < whole; i += LANES) store(z + i, load(z + i) * share);
    for (int64_t i = whole; i < vocab; i++) z[i] *= share;
    z[target] -= 1;
  }
  return loss;
}

/* Return the summed loss of `rows` rows of logits, `stride` apart; with `gradient`, what was z is softmax(z) minus 1 at
 * the target. */
double entropy(float *logits, int64_t stride, const int64_t *targets, int64_t rows, int64_t vocab, int32_t gradient,
               double *losses, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++)
    losses[row] = row_entropy(logits + row * stride, targets[row], vocab, gradient);
  double total = 0;
  for (int64_t row = 0; row < rows; row++) total += losses[row];
  return total;
}
