/* What the kernels of all models have in common, as _kernels.py sees it. */

#ifndef AKIDB_KERNELS_H
#define AKIDB_KERNELS_H

#include <stdint.h>

/* A matrix of `depth` rows and some multiple of akidb_panel() columns, stored panel by panel, see products.h: as numbers,
 * or as codes of 4 or 8 bits, of which each stands for code * scale + shift. Codes of 4 bits are stored in pairs: the byte of a
 * column has that of an even row in its lower half, that of the next row in its upper one. */
struct akidb_matrix {
    const float *numbers;        /* [panels][depth][panel], or NULL */
    const uint8_t *codes;        /* [panels][depth * bits / 8][panel] */
    const float *scales, *shifts; /* [panels][depth / group][panel] */
    int64_t bits, group;
};

struct akidb_linear {
    struct akidb_matrix weight;
    const float *bias; /* NULL where the model has none */
};

enum akidb_pooling { AKIDB_MEAN, AKIDB_CLS, AKIDB_LAST };
enum akidb_outcome { AKIDB_DONE, AKIDB_NO_MEMORY, AKIDB_UNUSABLE };

/* Columns per panel of a panel matrix. */
int akidb_panel(void);

/* Store a row-major [outputs][inputs] matrix, times `scale` and transposed, as a panel matrix. */
void akidb_pack(const float *weight, int64_t outputs, int64_t inputs, float scale, float *panels);

/* Store the integers of MLX's quantized [outputs][inputs] matrix, whose rows are streams of `bits` bits each, as codes of
 * a panel matrix: of 4 bits if they have 4, else of 8. */
void akidb_pack_codes(const uint32_t *weight, int64_t outputs, int64_t inputs, int64_t bits, uint8_t *codes);

#endif
