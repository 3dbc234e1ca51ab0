// Products with a sparse code, for XLA's CPU backend (see kernels.py).
//
// A code is, for each of B rows, the numbers (indices) of the few latents that
// count, how many there are (counts), and a value for each. Everything here
// reads only those. Every output row is computed by one thread in a fixed
// order, so results do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
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

// The code's entries ordered by latent, then by row.
struct ByLatent {
  std::vector<int64_t> start;  // [M + 1]
  std::vector<int32_t> row;
  std::vector<float> value;
};

ByLatent Transposed(const float* values, const int32_t* indices,
                    const int32_t* counts, int64_t rows, int64_t slots,
                    int64_t width) {
  ByLatent out;
  out.start.assign(width + 1, 0);
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t k = 0; k < counts[b]; ++k)
      ++out.start[indices[b * slots + k] + 1];
  for (int64_t m = 0; m < width; ++m) out.start[m + 1] += out.start[m];
  out.row.resize(out.start[width]);
  out.value.resize(out.start[width]);
  std::vector<int64_t> next(out.start.begin(), out.start.end() - 1);
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t k = 0; k < counts[b]; ++k) {
      const int64_t at = next[indices[b * slots + k]]++;
      out.row[at] = static_cast<int32_t>(b);
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

// linear [B, M], bound [1, M] or [B, 1] -> values, indices [B, K], counts [B]:
// the latents of a row above the bound, in order. A count above K says that the
// rest did not fit.
ffi::Error Choose(ffi::ThreadPool pool, Floats linear, Floats bound,
                  FloatsOut values, IntsOut indices, IntsOut counts) {
  const int64_t rows = linear.dimensions()[0], width = linear.dimensions()[1];
  const int64_t slots = values->dimensions()[1];
  const bool per_row = bound.dimensions()[0] != 1;
  const bool per_latent = bound.dimensions()[1] != 1;
  const float* x = linear.typed_data();
  const float* limit = bound.typed_data();
  float* value = values->typed_data();
  int32_t* index = indices->typed_data();
  int32_t* count = counts->typed_data();
  constexpr int64_t kBlock = 64;
  Parallel(pool, rows, 32, [=](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const float* row = x + b * width;
      const float* bounds = limit + (per_row ? b * (per_latent ? width : 1) : 0);
      int64_t n = 0;
      for (int64_t m = 0; m < width; m += kBlock) {
        const int64_t end = std::min(width, m + kBlock);
        int any = 0;
        if (per_latent) {
          for (int64_t i = m; i < end; ++i) any |= row[i] > bounds[i];
        } else {
          for (int64_t i = m; i < end; ++i) any |= row[i] > bounds[0];
        }
        if (!any) continue;
        for (int64_t i = m; i < end; ++i) {
          if (!(row[i] > bounds[per_latent ? i : 0])) continue;
          if (n < slots) {
            value[b * slots + n] = row[i];
            index[b * slots + n] = static_cast<int32_t>(i);
          }
          ++n;
        }
      }
      count[b] = static_cast<int32_t>(n);
      for (int64_t k = std::min(n, slots); k < slots; ++k) {
        value[b * slots + k] = kNever;
        index[b * slots + k] = 0;
      }
    }
  });
  return ffi::Error::Success();
}

// out[b] = sum over k of values[b, k] * matrix[indices[b, k]]
ffi::Error Combine(ffi::ThreadPool pool, Floats values, Floats matrix,
                   Ints indices, Ints counts, FloatsOut out) {
  const int64_t rows = values.dimensions()[0], slots = values.dimensions()[1];
  const int64_t n = matrix.dimensions()[1];
  const float* v = values.typed_data();
  const float* w = matrix.typed_data();
  const int32_t* index = indices.typed_data();
  const int32_t* count = counts.typed_data();
  float* y = out->typed_data();
  Parallel(pool, rows, 32, [=](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      for (int64_t j = 0; j < n; j += kPanel)
        Sum(y + b * n + j, v + b * slots, index + b * slots, count[b], w + j, n,
            std::min(kPanel, n - j));
  });
  return ffi::Error::Success();
}

// out[b, k] = rows[b] . matrix[indices[b, k]]
ffi::Error Dots(ffi::ThreadPool pool, Floats rows_in, Floats matrix, Ints indices,
                Ints counts, FloatsOut out) {
  const int64_t rows = rows_in.dimensions()[0], n = rows_in.dimensions()[1];
  const int64_t slots = indices.dimensions()[1];
  const float* x = rows_in.typed_data();
  const float* w = matrix.typed_data();
  const int32_t* index = indices.typed_data();
  const int32_t* count = counts.typed_data();
  float* y = out->typed_data();
  Parallel(pool, rows, 32, [=](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      for (int64_t k = 0; k < count[b]; ++k)
        y[b * slots + k] =
            Dot(x + b * n, w + static_cast<int64_t>(index[b * slots + k]) * n, n);
      for (int64_t k = count[b]; k < slots; ++k) y[b * slots + k] = 0;
    }
  });
  return ffi::Error::Success();
}

// out[m] = sum over the entries (b, k) of latent m of values[b, k] * rows[b]
ffi::Error Outer(ffi::ThreadPool pool, Floats values, Floats rows_in, Ints indices,
                 Ints counts, FloatsOut out) {
  const int64_t rows = values.dimensions()[0], slots = values.dimensions()[1];
  const int64_t n = rows_in.dimensions()[1], width = out->dimensions()[0];
  const float* x = rows_in.typed_data();
  float* y = out->typed_data();
  const ByLatent code =
      Transposed(values.typed_data(), indices.typed_data(), counts.typed_data(),
                 rows, slots, width);
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

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ChooseHandler, Choose,
    ffi::Ffi::Bind()
        .Ctx<ffi::ThreadPool>()
        .Arg<Floats>()
        .Arg<Floats>()
        .Ret<Floats>()
        .Ret<Ints>()
        .Ret<Ints>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(CombineHandler, Combine,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
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
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(OuterHandler, Outer,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(TotalHandler, Total,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Ret<Floats>());
