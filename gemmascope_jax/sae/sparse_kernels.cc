// Products with a sparse code, and Adam's update of the weights in one pass, for
// XLA's CPU backend (see kernels.py).
//
// A code has V lines of K slots: the numbers (indices) of latents that count, how
// many there are (counts), and a value for each. Line b belongs to row b of the
// batch; a row with more latents than slots goes on in lines after the B-th, which
// follow each other (rows says whose each is; B for a line that nobody uses).
// Everything here reads only what is used. Every output row is computed by one thread in a fixed
// order, so results do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using FloatsOut = ffi::Result<ffi::Buffer<ffi::F32>>;
using IntsOut = ffi::Result<ffi::Buffer<ffi::S32>>;

namespace {

constexpr float kNever = -1e30f;  // as kernels.NEVER
constexpr int64_t kPanel = 512;  // columns at once, so that what is read often
                                 // stays in the cache

// Calls work(first, last) for parts of [0, n), on the pool and on this thread.
// The caller takes parts itself and waits only for parts that others have begun,
// so it ends even if every thread of the pool waits in such a call.
void Parallel(ffi::ThreadPool pool, int64_t n, int64_t part,
              const std::function<void(int64_t, int64_t)>& work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
  };
  if (n <= part) {
    if (n > 0) work(0, n);
    return;
  }
  const int64_t parts = (n + part - 1) / part;
  auto shared = std::make_shared<Shared>();
  // A helper that starts after all parts are taken touches `shared` only.
  const auto* borrowed = &work;
  auto take = [shared, borrowed, n, part, parts]() {
    for (int64_t i = shared->next++; i < parts; i = shared->next++) {
      (*borrowed)(i * part, std::min(n, (i + 1) * part));
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (++shared->done == parts) shared->all_done.notify_all();
    }
  };
  const int64_t helpers = std::min(parts, pool.num_threads()) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(take));
  take();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == parts; });
}

// The code's entries ordered by latent, then by line.
struct ByLatent {
  std::vector<int64_t> start;  // [M + 1]
  std::vector<int32_t> row;
  std::vector<float> value;
};

ByLatent Transposed(const float* values, const int32_t* indices,
                    const int32_t* counts, const int32_t* row_of,
                    int64_t lines, int64_t slots, int64_t width) {
  ByLatent out;
  out.start.assign(width + 1, 0);
  for (int64_t b = 0; b < lines; ++b)
    for (int64_t k = 0; k < counts[b]; ++k)
      ++out.start[indices[b * slots + k] + 1];
  for (int64_t m = 0; m < width; ++m) out.start[m + 1] += out.start[m];
  out.row.resize(out.start[width]);
  out.value.resize(out.start[width]);
  std::vector<int64_t> next(out.start.begin(), out.start.end() - 1);
  for (int64_t b = 0; b < lines; ++b)
    for (int64_t k = 0; k < counts[b]; ++k) {
      const int64_t at = next[indices[b * slots + k]]++;
      out.row[at] = row_of[b];
      out.value[at] = values[b * slots + k];
    }
  return out;
}

// out[0..n) = sum of value[i] * matrix[number[i]][0..n), in order of i.
void Sum(float* __restrict out, const float* value, const int32_t* number,
         int64_t count, const float* matrix, int64_t stride, int64_t n) {
  std::memset(out, 0, n * sizeof(float));
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const float a = value[i], b = value[i + 1];
    const float c = value[i + 2], d = value[i + 3];
    const float* __restrict p = matrix + number[i] * stride;
    const float* __restrict q = matrix + number[i + 1] * stride;
    const float* __restrict r = matrix + number[i + 2] * stride;
    const float* __restrict s = matrix + number[i + 3] * stride;
    for (int64_t j = 0; j < n; ++j)
      out[j] += (a * p[j] + b * q[j]) + (c * r[j] + d * s[j]);
  }
  for (; i < count; ++i) {
    const float a = value[i];
    const float* __restrict p = matrix + number[i] * stride;
    for (int64_t j = 0; j < n; ++j) out[j] += a * p[j];
  }
}

constexpr int64_t kLanes = 16;

float Dot(const float* __restrict a, const float* __restrict b, int64_t n) {
  float sums[kLanes] = {0};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) sums[l] += a[j + l] * b[j + l];
  for (; j < n; ++j) sums[j % kLanes] += a[j] * b[j];
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) sums[l] += sums[l + half];
  return sums[0];
}

// linear [B, M], offset [M], bound [1 or B, 1 or M] -> values, indices [V, K],
// counts, rows [V], needed [1]: the latents of a row whose linear + offset is
// above the bound, in order, and how many lines they need. More than V: some are
// missing.
ffi::Error Choose(ffi::ThreadPool pool, Floats linear, Floats offset, Floats bound,
                  FloatsOut values, IntsOut indices, IntsOut counts, IntsOut rows_out,
                  IntsOut needed) {
  const int64_t rows = linear.dimensions()[0], width = linear.dimensions()[1];
  const int64_t lines = values->dimensions()[0], slots = values->dimensions()[1];
  const bool per_row = bound.dimensions()[0] != 1;
  const bool per_latent = bound.dimensions()[1] != 1;
  const float* x = linear.typed_data();
  const float* shift = offset.typed_data();
  const float* limit = bound.typed_data();
  float* value = values->typed_data();
  int32_t* index = indices->typed_data();
  int32_t* count = counts->typed_data();
  int32_t* row_of = rows_out->typed_data();
  constexpr int64_t kBlock = 64;
  // Calls found(n, m) for the n-th latent of row b above the bound; their number.
  const auto scan = [=](int64_t b, const auto& found) {
    const float* row = x + b * width;
    const float* bounds = limit + (per_row ? b * (per_latent ? width : 1) : 0);
    int64_t n = 0;
    for (int64_t m = 0; m < width; m += kBlock) {
      const int64_t end = std::min(width, m + kBlock);
      int any = 0;
      if (per_latent) {
        for (int64_t i = m; i < end; ++i) any |= row[i] + shift[i] > bounds[i];
      } else {
        for (int64_t i = m; i < end; ++i) any |= row[i] + shift[i] > bounds[0];
      }
      if (!any) continue;
      for (int64_t i = m; i < end; ++i)
        if (row[i] + shift[i] > bounds[per_latent ? i : 0]) found(n++, i);
    }
    return n;
  };
  std::vector<int64_t> total(rows);
  Parallel(pool, rows, 32, [&, value, index, x](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      total[b] = scan(b, [=](int64_t n, int64_t m) {
        if (n >= slots) return;
        value[b * slots + n] = x[b * width + m];
        index[b * slots + n] = static_cast<int32_t>(m);
      });
  });
  std::vector<int64_t> after(rows);  // a row's first line after its own
  int64_t used = rows;
  for (int64_t b = 0; b < rows; ++b) {
    after[b] = used;
    row_of[b] = static_cast<int32_t>(b);
    count[b] = static_cast<int32_t>(std::min(total[b], slots));
    for (int64_t left = total[b] - slots; left > 0; left -= slots, ++used) {
      if (used >= lines) continue;
      row_of[used] = static_cast<int32_t>(b);
      count[used] = static_cast<int32_t>(std::min(left, slots));
    }
  }
  needed->typed_data()[0] = static_cast<int32_t>(used);
  for (int64_t line = used; line < lines; ++line) {
    row_of[line] = static_cast<int32_t>(rows);
    count[line] = 0;
  }
  Parallel(pool, rows, 32, [&, value, index, x](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      if (total[b] <= slots) continue;
      scan(b, [=, &after](int64_t n, int64_t m) {
        const int64_t line = after[b] + n / slots - 1;
        if (n < slots || line >= lines) return;
        value[line * slots + n % slots] = x[b * width + m];
        index[line * slots + n % slots] = static_cast<int32_t>(m);
      });
    }
  });
  for (int64_t line = 0; line < lines; ++line)
    for (int64_t k = count[line]; k < slots; ++k) {
      value[line * slots + k] = kNever;
      index[line * slots + k] = 0;
    }
  return ffi::Error::Success();
}

// out[b] = sum over the entries of row b of value * matrix[index]
ffi::Error Combine(ffi::ThreadPool pool, Floats values, Floats matrix,
                   Ints indices, Ints counts, Ints rows_in, FloatsOut out) {
  const int64_t lines = values.dimensions()[0], slots = values.dimensions()[1];
  const int64_t rows = out->dimensions()[0], n = matrix.dimensions()[1];
  const float* v = values.typed_data();
  const float* w = matrix.typed_data();
  const int32_t* index = indices.typed_data();
  const int32_t* count = counts.typed_data();
  const int32_t* row_of = rows_in.typed_data();
  float* y = out->typed_data();
  Parallel(pool, rows, 32, [=](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      for (int64_t j = 0; j < n; j += kPanel)
        Sum(y + b * n + j, v + b * slots, index + b * slots, count[b], w + j, n,
            std::min(kPanel, n - j));
  });
  // Lines of one row stand in its order, and a column belongs to one thread.
  Parallel(pool, (n + kPanel - 1) / kPanel, 1, [=](int64_t first, int64_t last) {
    std::vector<float> sum(kPanel);
    for (int64_t line = rows; line < lines && count[line]; ++line)
      for (int64_t j = first * kPanel; j < std::min(n, last * kPanel); j += kPanel) {
        const int64_t columns = std::min(kPanel, n - j);
        Sum(sum.data(), v + line * slots, index + line * slots, count[line], w + j,
            n, columns);
        float* to = y + row_of[line] * n + j;
        for (int64_t i = 0; i < columns; ++i) to[i] += sum[i];
      }
  });
  return ffi::Error::Success();
}

// out[v, k] = rows[row of v] . matrix[indices[v, k]]
ffi::Error Dots(ffi::ThreadPool pool, Floats vectors, Floats matrix, Ints indices,
                Ints counts, Ints rows_in, FloatsOut out) {
  const int64_t lines = indices.dimensions()[0], slots = indices.dimensions()[1];
  const int64_t n = vectors.dimensions()[1];
  const float* x = vectors.typed_data();
  const float* w = matrix.typed_data();
  const int32_t* index = indices.typed_data();
  const int32_t* count = counts.typed_data();
  const int32_t* row_of = rows_in.typed_data();
  float* y = out->typed_data();
  Parallel(pool, lines, 32, [=](int64_t first, int64_t last) {
    for (int64_t line = first; line < last; ++line) {
      for (int64_t k = 0; k < count[line]; ++k)
        y[line * slots + k] =
            Dot(x + row_of[line] * n,
                w + static_cast<int64_t>(index[line * slots + k]) * n, n);
      for (int64_t k = count[line]; k < slots; ++k) y[line * slots + k] = 0;
    }
  });
  return ffi::Error::Success();
}

// out[m] = sum over the entries of latent m of value * rows[row of the entry]
ffi::Error Outer(ffi::ThreadPool pool, Floats values, Floats vectors, Ints indices,
                 Ints counts, Ints rows_in, FloatsOut out) {
  const int64_t n = vectors.dimensions()[1], width = out->dimensions()[0];
  const float* x = vectors.typed_data();
  float* y = out->typed_data();
  const ByLatent code = Transposed(
      values.typed_data(), indices.typed_data(), counts.typed_data(),
      rows_in.typed_data(), values.dimensions()[0], values.dimensions()[1], width);
  constexpr int64_t kLatents = 256;
  const int64_t blocks = (width + kLatents - 1) / kLatents;
  const int64_t panels = (n + kPanel - 1) / kPanel;
  Parallel(pool, panels * blocks, 1, [&, x, y](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t j = i / blocks * kPanel;
      const int64_t m0 = i % blocks * kLatents;
      const int64_t m1 = std::min(width, m0 + kLatents);
      for (int64_t m = m0; m < m1; ++m) {
        const int64_t at = code.start[m];
        Sum(y + m * n + j, code.value.data() + at, code.row.data() + at,
            code.start[m + 1] - at, x + j, n, std::min(kPanel, n - j));
      }
    }
  });
  return ffi::Error::Success();
}

// out[m] = sum over the entries of latent m of their values, in order of rows
ffi::Error Total(Floats values, Ints indices, Ints counts, FloatsOut out) {
  const int64_t rows = values.dimensions()[0], slots = values.dimensions()[1];
  const int64_t width = out->dimensions()[0];
  const float* v = values.typed_data();
  const int32_t* index = indices.typed_data();
  const int32_t* count = counts.typed_data();
  std::vector<double> sums(width, 0.0);
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t k = 0; k < count[b]; ++k)
      sums[index[b * slots + k]] += v[b * slots + k];
  std::copy(sums.begin(), sums.end(), out->typed_data());
  return ffi::Error::Success();
}

// One Adam step on each row of w [M, E]. `numbers` holds rate, b1, b2, eps,
// 1 - b1^t, 1 - b2^t, and whether rows are kept at unit length: then the
// gradient's part along the row is removed first. Without a first moment (b1 =
// 0) mu is empty. squares [M] is the gradient's squared length before that.
ffi::Error AdamRows(ffi::ThreadPool pool, Floats w_in, Floats gradient, Floats nu_in,
                    Floats mu_in, Floats numbers, FloatsOut w_out, FloatsOut nu_out,
                    FloatsOut mu_out, FloatsOut squares) {
  const int64_t rows = w_in.dimensions()[0], n = w_in.dimensions()[1];
  const bool momentum = mu_in.element_count() > 0;
  const float* number = numbers.typed_data();
  const float rate = number[0], b1 = number[1], b2 = number[2], eps = number[3];
  const float c1 = 1 / number[4], c2 = 1 / number[5];
  const bool unit = number[6] != 0;
  const float *w0 = w_in.typed_data(), *g0 = gradient.typed_data();
  const float *nu0 = nu_in.typed_data(), *mu0 = mu_in.typed_data();
  float *w1 = w_out->typed_data(), *nu1 = nu_out->typed_data();
  float *mu1 = mu_out->typed_data(), *square = squares->typed_data();
  Parallel(pool, rows, 64, [=](int64_t first, int64_t last) {
    std::vector<float> moved(n);
    float* __restrict out = moved.data();
    for (int64_t m = first; m < last; ++m) {
      const float* __restrict w = w0 + m * n;
      const float* __restrict g = g0 + m * n;
      float* nu = nu1 + m * n;  // may be the input's memory
      const float* nu_before = nu0 + m * n;
      square[m] = Dot(g, g, n);
      const float along = unit ? Dot(g, w, n) : 0;
      if (momentum) {
        float* mu = mu1 + m * n;
        const float* mu_before = mu0 + m * n;
        for (int64_t j = 0; j < n; ++j) {
          const float d = g[j] - along * w[j];
          const float v = b2 * nu_before[j] + (1 - b2) * d * d;
          const float u = b1 * mu_before[j] + (1 - b1) * d;
          nu[j] = v;
          mu[j] = u;
          out[j] = w[j] - rate * (c1 * u) / (std::sqrt(c2 * v) + eps);
        }
      } else {
        for (int64_t j = 0; j < n; ++j) {
          const float d = g[j] - along * w[j];
          const float v = b2 * nu_before[j] + (1 - b2) * d * d;
          nu[j] = v;
          out[j] = w[j] - rate * d / (std::sqrt(c2 * v) + eps);
        }
      }
      float scale = 1;
      if (unit)
        scale = 1 / std::max(std::sqrt(Dot(out, out, n)),
                             std::numeric_limits<float>::min());
      float* y = w1 + m * n;
      for (int64_t j = 0; j < n; ++j) y[j] = scale * out[j];
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(AdamRowsHandler, AdamRows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ChooseHandler, Choose,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Ints>()
                                  .Ret<Ints>()
                                  .Ret<Ints>()
                                  .Ret<Ints>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(CombineHandler, Combine,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(DotsHandler, Dots,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(OuterHandler, Outer,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(TotalHandler, Total,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Ret<Floats>());
