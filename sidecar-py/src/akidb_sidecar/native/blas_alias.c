/* Gives OpenBLAS's functions the names that MLX calls.
 *
 * The PyPI package scipy-openblas32 prefixes every symbol with scipy_. Compiled to a shared library and made
 * global together with it before MLX is loaded, these three functions (all the level-3 BLAS that MLX imports)
 * take the place of the reference BLAS in MLX's wheel.
 */

#define LAYOUT_AND_SHAPE int order, int trans_a, int trans_b, int m, int n, int k

void scipy_cblas_sgemm(LAYOUT_AND_SHAPE, float alpha, const float *a, int lda, const float *b, int ldb,
                       float beta, float *c, int ldc);
void scipy_cblas_dgemm(LAYOUT_AND_SHAPE, double alpha, const double *a, int lda, const double *b, int ldb,
                       double beta, double *c, int ldc);
void scipy_cblas_cgemm(LAYOUT_AND_SHAPE, const void *alpha, const void *a, int lda, const void *b, int ldb,
                       const void *beta, void *c, int ldc);

void cblas_sgemm(LAYOUT_AND_SHAPE, float alpha, const float *a, int lda, const float *b, int ldb, float beta,
                 float *c, int ldc) {
    scipy_cblas_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void cblas_dgemm(LAYOUT_AND_SHAPE, double alpha, const double *a, int lda, const double *b, int ldb, double beta,
                 double *c, int ldc) {
    scipy_cblas_dgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void cblas_cgemm(LAYOUT_AND_SHAPE, const void *alpha, const void *a, int lda, const void *b, int ldb,
                 const void *beta, void *c, int ldc) {
    scipy_cblas_cgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
