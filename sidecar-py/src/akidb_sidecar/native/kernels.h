/* What the kernels of all models have in common, as _kernels.py sees it. */

#ifndef AKIDB_KERNELS_H
#define AKIDB_KERNELS_H

#include <stdint.h>

struct akidb_linear {
    const float *weight; /* panel matrix, see products.h */
    const float *bias;   /* NULL where the model has none */
};

enum akidb_pooling { AKIDB_MEAN, AKIDB_CLS, AKIDB_LAST };
enum akidb_outcome { AKIDB_DONE, AKIDB_NO_MEMORY, AKIDB_UNUSABLE };

/* Columns per panel of a panel matrix. */
int akidb_panel(void);

/* Store a row-major [outputs][inputs] matrix, times `scale` and transposed, as a panel matrix. */
void akidb_pack(const float *weight, int64_t outputs, int64_t inputs, float scale, float *panels);

#endif
