/* Vectors as wide as the machine's registers, and the functions that need no more than one of them.
 *
 * GCC's and Clang's vector extensions, so that one source serves AVX-512, AVX2, SSE and NEON.
 */

#ifndef AKIDB_VECTORS_H
#define AKIDB_VECTORS_H

#include <stdint.h>

/* TILE_ROWS x 2 sums, two vectors of the right-hand matrix and a broadcast number fill the registers. */
#if defined(__AVX512F__)
enum { LANES = 16, TILE_ROWS = 12 };
#elif defined(__AVX2__)
enum { LANES = 8, TILE_ROWS = 6 };
#elif defined(__aarch64__)
enum { LANES = 4, TILE_ROWS = 12 };
#else
enum { LANES = 4, TILE_ROWS = 6 };
#endif
enum { PANEL = 2 * LANES };

#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));
typedef float unaligned_vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

ALWAYS_INLINE vector load(const float *from) { return *(const unaligned_vector *)from; }
ALWAYS_INLINE void store(float *to, vector value) { *(unaligned_vector *)to = value; }
ALWAYS_INLINE vector all(float value) { return value - (vector){0}; }
ALWAYS_INLINE vector choose(bits which, vector yes, vector no) {
    return (vector)((which & (bits)yes) | (~which & (bits)no));
}
ALWAYS_INLINE vector larger(vector a, vector b) { return choose(a > b, a, b); }
ALWAYS_INLINE vector smaller(vector a, vector b) { return choose(a < b, a, b); }

typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
ALWAYS_INLINE bits load_bytes(const uint8_t *from) { return __builtin_convertvector(*(const bytes *)from, bits); }
ALWAYS_INLINE vector numbers_of(bits integers) { return __builtin_convertvector(integers, vector); }

ALWAYS_INLINE float sum_of(vector values) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += values[lane];
    return sum;
}

ALWAYS_INLINE float largest_of(vector values) {
    float largest = values[0];
    for (int lane = 1; lane < LANES; lane++) largest = values[lane] > largest ? values[lane] : largest;
    return largest;
}

/* 2^x for x <= 0, largest relative error 2.4e-7: adding 1.5 * 2^23 splits x into a whole and a fractional part. */
ALWAYS_INLINE vector power_of_two(vector x) {
    x = larger(x, all(-126.0f));
    vector shifted = x + 12582912.0f, f = x - (shifted - 12582912.0f);
    vector value = ((((1.327647129e-3f * f + 9.675541893e-3f) * f + 5.550713092e-2f) * f + 2.402212024e-1f) * f +
                    6.931469440e-1f) * f + 1.000000119f;
    return (vector)((bits)value + ((bits)shifted << 23));
}

/* x / (1 + e^-x): the power is taken of a number that is not positive. */
ALWAYS_INLINE vector silu(vector x) {
    vector power = power_of_two(-1.44269504f * larger(x, -x));
    return x * choose(x < 0, power, all(1.0f)) / (1.0f + power);
}

/* x times the normal distribution function, 1/2 + x P(x^2) / Q(x^2): the coefficients of models/_functions.py. */
ALWAYS_INLINE vector gelu(vector x) {
    vector bounded = smaller(larger(x, all(-5.0f)), all(5.0f)), s = bounded * bounded;
    vector p = (3.665972935013086e-3f * s + 2.2539999056557534e-2f) * s + 0.39895287066313745f;
    vector q = (((5.765341265e-8f * s - 9.043862670841574e-6f) * s + 9.99169790508681e-4f) * s +
                2.1301202698423147e-2f) * s;
    q = (q + 0.2232529300462722f) * s + 1.0f;
    return x * (bounded * p / q + 0.5f);
}

#endif
