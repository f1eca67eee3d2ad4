/* Products with a panel matrix.
 *
 * A *panel matrix* of `depth` rows and n columns is stored as n / PANEL panels, each of `depth` rows of PANEL
 * numbers: the order in which a product reads it. OpenBLAS brings the right-hand matrix into such an order again at
 * every call, which for a short text takes longer than the product.
 */

#ifndef AKIDB_PRODUCTS_H
#define AKIDB_PRODUCTS_H

#include <stddef.h>

#include "vectors.h"

enum combination { SET, ADD, MULTIPLY };

/* One panel's columns of some rows. `rows` is a constant where this is used, so the sums stay in registers. */
ALWAYS_INLINE void tile(const int rows, long depth, const float *restrict a, long a_stride, const float *restrict b,
                        long b_stride, const float *bias, float *c, long c_stride, enum combination combination) {
    vector sums[TILE_ROWS][2];
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++) {
        sums[row][0] = bias ? load(bias) : (vector){0};
        sums[row][1] = bias ? load(bias + LANES) : (vector){0};
    }
    for (long k = 0; k < depth; k++) {
        vector left = load(b + k * b_stride), right = load(b + k * b_stride + LANES);
#pragma GCC unroll 16
        for (int row = 0; row < rows; row++) {
            sums[row][0] += a[row * a_stride + k] * left;
            sums[row][1] += a[row * a_stride + k] * right;
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++) {
        float *to = c + row * c_stride;
        vector left = sums[row][0], right = sums[row][1];
        store(to, combination == SET ? left : combination == ADD ? load(to) + left : load(to) * left);
        to += LANES;
        store(to, combination == SET ? right : combination == ADD ? load(to) + right : load(to) * right);
    }
}

static void any_tile(long rows, long depth, const float *a, long a_stride, const float *b, long b_stride,
                     const float *bias, float *c, long c_stride, enum combination combination) {
#define CASE(n) \
    case n: tile(n <= TILE_ROWS ? n : 1, depth, a, a_stride, b, b_stride, bias, c, c_stride, combination); break;
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) }
#undef CASE
}

/* Rows are cut into tiles of nearly the same height. */
ALWAYS_INLINE long tile_count(long rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }
ALWAYS_INLINE long part(long whole, long index, long parts) { return whole * index / parts; }

#endif
