// The selective scan of Mamba-1, forward and backward, for CPUs.
//
// The state size is 16, so that the state of a channel is one vector of 16 floats. B is the batch, D the channels
// (d_inner), L the tokens. Everything is float32 and contiguous:
//   u, dt, y: (B, D, L)     A: (D, 16)     Bm, Cm: (B, L, 16)
//
//   h[t] = exp(dt[t] A) h[t-1] + dt[t] u[t] Bm[t]         y[t] = Cm[t] . h[t]

#include <torch/extension.h>
#include <vector>

namespace {

constexpr int N = 16;
typedef float v16 __attribute__((vector_size(64)));
typedef int i16v __attribute__((vector_size(64)));

inline v16 splat(float x) { return v16{} + x; }

inline v16 load(const float* p) {
  v16 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, v16 v) { __builtin_memcpy(p, &v, sizeof v); }

inline float sum(v16 v) {
  float s[8];
  for (int i = 0; i < 8; i++) s[i] = v[i] + v[i + 8];
  for (int i = 0; i < 4; i++) s[i] += s[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}

// e^x by 2^n e^r with |r| <= ln(2)/2. Relative error below 1e-7 on [-87, 88]; below -87 it is e^-87.
// Never compile this with -ffast-math (or -fassociative-math): it drops the rounding of n, and e^-12 comes out as
// nothing.
inline v16 exp16(v16 x) {
  x = x < -87.f ? splat(-87.f) : x;
  v16 z = x * 1.44269504f + 12582912.f;  // adding 1.5 * 2^23 rounds to an integer
  v16 n = z - 12582912.f;
  v16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
  v16 p = splat(1.9875691500E-4f);
  p = p * r + 1.3981999507E-3f;
  p = p * r + 8.3334519073E-3f;
  p = p * r + 4.1665795894E-2f;
  p = p * r + 1.6666665459E-1f;
  p = p * r + 5.0000001201E-1f;
  p = p * r * r + r + 1.f;
  i16v power = (__builtin_convertvector(n, i16v) + 127) << 23;
  return p * (v16)power;
}

torch::Tensor forward(torch::Tensor u, torch::Tensor dt, torch::Tensor A, torch::Tensor Bm, torch::Tensor Cm) {
  const int64_t B = u.size(0), D = u.size(1), L = u.size(2);
  auto y = torch::empty_like(u);
  const float *pu = u.data_ptr<float>(), *pdt = dt.data_ptr<float>(), *pA = A.data_ptr<float>();
  const float *pB = Bm.data_ptr<float>(), *pC = Cm.data_ptr<float>();
  float* py = y.data_ptr<float>();
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t b = 0; b < B; b++) {
    for (int64_t d = 0; d < D; d++) {
      const int64_t row = (b * D + d) * L;
      const v16 a = load(pA + d * N);
      v16 h = splat(0);
      for (int64_t t = 0; t < L; t++) {
        const float x = pdt[row + t];
        const int64_t col = (b * L + t) * N;
        h = exp16(a * x) * h + load(pB + col) * (x * pu[row + t]);
        py[row + t] = sum(h * load(pC + col));
      }
    }
  }
  return y;
}

// Given gy = dLoss/dy, the gradients of u, dt, A, Bm, Cm. The states are computed again rather than kept: for one
// channel at a time they fit the cache.
std::vector<torch::Tensor> backward(torch::Tensor gy, torch::Tensor u, torch::Tensor dt, torch::Tensor A,
                                    torch::Tensor Bm, torch::Tensor Cm) {
  const int64_t B = u.size(0), D = u.size(1), L = u.size(2);
  auto gu = torch::empty_like(u), gdt = torch::empty_like(dt), gA = torch::zeros({B, D, N});
  auto gB = torch::zeros_like(Bm), gC = torch::zeros_like(Cm);
  const float *pgy = gy.data_ptr<float>(), *pu = u.data_ptr<float>(), *pdt = dt.data_ptr<float>();
  const float *pA = A.data_ptr<float>(), *pB = Bm.data_ptr<float>(), *pC = Cm.data_ptr<float>();
  float *pgu = gu.data_ptr<float>(), *pgdt = gdt.data_ptr<float>(), *pgA = gA.data_ptr<float>();
  float *pgB = gB.data_ptr<float>(), *pgC = gC.data_ptr<float>();
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < B; b++) {
    std::vector<float> states((L + 1) * N), decays(L * N);  // h[t-1] at t, exp(dt A) at t
    const float *bB = pB + b * L * N, *bC = pC + b * L * N;
    float *bgB = pgB + b * L * N, *bgC = pgC + b * L * N;
    for (int64_t d = 0; d < D; d++) {
      const int64_t row = (b * D + d) * L;
      const v16 a = load(pA + d * N);
      v16 h = splat(0);
      store(&states[0], h);
      for (int64_t t = 0; t < L; t++) {
        const float x = pdt[row + t];
        const v16 decay = exp16(a * x);
        h = decay * h + load(bB + t * N) * (x * pu[row + t]);
        store(&decays[t * N], decay);
        store(&states[(t + 1) * N], h);
      }
      v16 gh = splat(0), ga = splat(0);
      for (int64_t t = L - 1; t >= 0; t--) {
        const float x = pdt[row + t], ut = pu[row + t], g = pgy[row + t];
        gh += load(bC + t * N) * g;
        store(bgC + t * N, load(bgC + t * N) + load(&states[(t + 1) * N]) * g);
        const v16 decay = load(&decays[t * N]);
        const v16 gexp = gh * load(&states[t * N]) * decay;  // of the exponent dt A
        const float s = sum(gh * load(bB + t * N));
        pgu[row + t] = s * x;
        pgdt[row + t] = s * ut + sum(gexp * a);
        ga += gexp * x;
        store(bgB + t * N, load(bgB + t * N) + gh * (x * ut));
        gh *= decay;
      }
      store(pgA + (b * D + d) * N, ga);
    }
  }
  return {gu, gdt, gA.sum(0), gB, gC};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
}
