/* Causal attention of H heads, forward and backward, for processors with AVX-512.

   64 queries are treated at a time, so that their scores stay in the cache. Nothing of size T x T is kept for
   the backward pass, which computes the weights again (Dao et al. 2022, arXiv 2205.14135). Sums are float32.

   Matrices are read in units of 32 bits: one number of float32 (E = 1) or two of bfloat16 (E = 2). The
   processor multiplies two pairs of bfloat16 and adds both products. So a right matrix has pairs of its rows
   side by side, and a left matrix is read pair by pair.

   Letters: B sequences, T tokens, H heads, D numbers of a head (32 or 64), C = H*D. N is T rounded up to
   whole blocks of queries. W is the length of a row of scores. */
#include "vectors.h"

#ifdef __AVX512F__

enum { QUERIES = 64 };                         /* in a block */
typedef uint32_t unit __attribute__((may_alias));

#define AT(x, i) ((const char *)(x) + (i) * (4 / E))        /* address of number i */

/* c (4, 16*Z) = a @ b or, with `add`, c + a @ b.
   a: K units of each of 4 rows; the rows are `a_row` apart, their units `a_step`.
   b: K rows of units, `b_row` apart */
INLINE void matmul4(const unit *a, int64_t a_row, int64_t a_step, const unit *b, int64_t b_row, int64_t K,
                    float *c, int64_t c_row, const int Z, const int add, const int E) {
    f32 s[4][4] = {{{0}}};
    UNROLL for (int r = 0; r < 4; r++)
        UNROLL for (int z = 0; z < Z; z++) s[r][z] = add ? *(f32 *)(c + r * c_row + 16 * z) : (f32){0};
    for (int64_t k = 0; k < K; k++, a += a_step, b += b_row) {
        f32 x[4] = {{0}};
        UNROLL for (int z = 0; z < Z; z++) x[z] = *(const f32 *)(b + 16 * z);
        UNROLL for (int r = 0; r < 4; r++) {
            const f32 y = (f32)((u32){0} + a[r * a_row]);
            UNROLL for (int z = 0; z < Z; z++) {
#ifdef __AVX512BF16__
                if (E == 2) s[r][z] = (f32)_mm512_dpbf16_ps((__m512)s[r][z], (__m512bh)y, (__m512bh)x[z]);
#endif
                if (E == 1) s[r][z] += y * x[z];
            }
        }
    }
    UNROLL for (int r = 0; r < 4; r++)
        UNROLL for (int z = 0; z < Z; z++) *(f32 *)(c + r * c_row + 16 * z) = s[r][z];
}

/* to (N, D) = n rows of D numbers of x, `step` apart; then zeros */
INLINE void copy_rows(unit *to, const void *x, int64_t step, int64_t n, int64_t N, const int D, const int E) {
    for (int64_t t = 0; t < n; t++) memcpy(to + t * D / E, AT(x, t * step), 4 * D / E);
    memset(to + n * D / E, 0, 4 * D / E * (N - n));
}

/* the same with pairs of rows side by side: to[t/E][d] */
INLINE void pair_rows(unit *to, const void *x, int64_t step, int64_t n, int64_t N, const int D, const int E) {
    if (E == 1) {
        copy_rows(to, x, step, n, N, D, E);
        return;
    }
    for (int64_t t = 0; t < N; t += 2) {
        for (int d = 0; d < D; d += 16) {
            const u32 even = t < n ? (u32)load16(x, t * step + d, 1) >> 16 : (u32){0};
            const u32 odd = t + 1 < n ? (u32)load16(x, (t + 1) * step + d, 1) : (u32){0};
            *(u32 *)(to + t / 2 * D + d) = even | odd;
        }
    }
}

/* its transpose with pairs of rows side by side, 64 columns at a time: to[t/64][d/E][t%64] */
INLINE void pair_columns(unit *to, const void *x, int64_t step, int64_t n, int64_t N, const int D,
                         const int E) {
    for (int64_t t = 0; t < N; t += 16) {
        unit part[16][D / E];
        const int64_t left = n - t < 0 ? 0 : n - t > 16 ? 16 : n - t;
        copy_rows(part[0], left ? AT(x, t * step) : x, step, left, 16, D, E);
        unit *column = to + t / 64 * 64 * D / E + t % 64;
        for (int d = 0; d < D / E; d++, column += 64) {
            UNROLL for (int i = 0; i < 16; i++) column[i] = part[i][d];
        }
    }
}

/* s (64, W) = products of n queries and the keys 0 to a+63; of the last 64 keys, those that a query sees */
INLINE void matmul_qk(float *s, const unit *q, const unit *k, int64_t a, int64_t n, int64_t W, const int D,
                      const int E) {
    for (int64_t j = 0; j < a; j += 64, k += 64 * D / E)
        for (int64_t r = 0; r < n; r += 4)
            matmul4(q + r * D / E, D / E, 1, k, 64, D / E, s + r * W + j, W, 4, 0, E);
    for (int64_t r = 0; r < n; r += 4) {
        const unit *x = q + r * D / E;
        float *to = s + r * W + a;
        if (r < 16) matmul4(x, D / E, 1, k, 64, D / E, to, W, 1, 0, E);
        else if (r < 32) matmul4(x, D / E, 1, k, 64, D / E, to, W, 2, 0, E);
        else if (r < 48) matmul4(x, D / E, 1, k, 64, D / E, to, W, 3, 0, E);
        else matmul4(x, D / E, 1, k, 64, D / E, to, W, 4, 0, E);
    }
}

/* o (64, D) = the first a+64 columns of n rows of p, times v (N, D) in pairs of rows */
INLINE void matmul_pv(float *o, const unit *p, const unit *v, int64_t a, int64_t n, int64_t W, const int D,
                      const int E) {
    for (int64_t r = 0; r < n; r += 4)         /* of the last 64 columns, those that the rows see */
        matmul4(p + r * W / E + a / E, W / E, 1, v + a / E * D, D, (r + 4) / E, o + r * D, D, D / 16, 0, E);
    for (int64_t j = 0; j < a; j += 64)
        for (int64_t r = 0; r < n; r += 4)
            matmul4(p + r * W / E + j / E, W / E, 1, v + j / E * D, D, 64 / E, o + r * D, D, D / 16, 1, E);
}

/* the first `seen` scores of a row, times `scale`, become weights; zeros follow, to a multiple of 16 */
INLINE void softmax_row(float *t, int64_t seen, float scale) {
    const int64_t end = (seen + 15) / 16 * 16;
    for (int64_t j = seen; j < end; j++) t[j] = -INFINITY;
    f32 most = *(f32 *)t;
    for (int64_t j = 16; j < end; j += 16) most = pick(*(f32 *)(t + j) > most, *(f32 *)(t + j), most);
    float top = most[0];
    for (int i = 1; i < 16; i++) top = most[i] > top ? most[i] : top;
    f32 all = {0};                             /* what is not seen adds e^-87 to at least 1: nothing */
    for (int64_t j = 0; j < end; j += 16) {
        const f32 e = exp16((*(f32 *)(t + j) - top) * scale);
        *(f32 *)(t + j) = e;
        all += e;
    }
    const float share = 1 / sum16(all);
    for (int64_t j = 0; j < end; j += 16) *(f32 *)(t + j) *= share;
    for (int64_t j = seen; j < end; j++) t[j] = 0;
}

/* s (64, W) = attention weights of the queries a to a+63, of which n are there; 0 beyond what they see */
INLINE void attention_weights(float *s, const unit *q, const unit *k, int64_t a, int64_t n, int64_t W,
                              const int D, const int E, float scale) {
    matmul_qk(s, q, k, a, n, W, D, E);
    for (int64_t r = 0; r < n; r++) {
        const int64_t end = (a + r + 16) / 16 * 16;
        softmax_row(s + r * W, a + r + 1, scale);
        memset(s + r * W + end, 0, 4 * (a + QUERIES - end));
    }
    for (int64_t r = n; r < QUERIES; r++) memset(s + r * W, 0, 4 * (a + QUERIES));
}

/* s (64, width) in units of two columns, as a left matrix: [r][j/E]. In float32 that is s itself */
INLINE const unit *pair_keys(void *room, const float *s, int64_t width, int64_t W, const int E) {
    if (E == 1) return (const unit *)s;
    for (int r = 0; r < QUERIES; r++)
        for (int64_t j = 0; j < width; j += 16) store16(room, r * W + j, *(const f32 *)(s + r * W + j), 1);
    return room;
}

/* its transpose in units of two rows: [r/E][j] */
INLINE const unit *pair_queries(unit *room, const float *s, int64_t width, int64_t W, const int E) {
    if (E == 1) return (const unit *)s;
    for (int r = 0; r < QUERIES; r += 2) {
        for (int64_t j = 0; j < width; j += 16) {
            const u32 even = to_bf16(*(const f32 *)(s + r * W + j));
            const u32 odd = to_bf16(*(const f32 *)(s + (r + 1) * W + j));
            *(u32 *)(room + r / 2 * W + j) = even | odd << 16;
        }
    }
    return room;
}

/* n rows of x (n, D) to rows that are `step` apart */
INLINE void store_rows(void *to, int64_t step, const float *x, int64_t n, const int D, const int E) {
    for (int64_t t = 0; t < n; t++)
        for (int d = 0; d < D; d += 16)
            store16((char *)AT(to, t * step), d, *(const f32 *)(x + t * D + d), E - 1);
}

/* u (64, W), the gradient of the weights s, becomes that of the scores: s * (u - sum(s*u)) * scale */
INLINE void softmax_backward(float *u, const float *s, int64_t a, int64_t n, int64_t W, float scale) {
    for (int64_t r = 0; r < n; r++, u += W, s += W) {
        const int64_t end = (a + r + 16) / 16 * 16;
        f32 all = {0};
        for (int64_t j = 0; j < end; j += 16) all += *(f32 *)(s + j) * *(f32 *)(u + j);
        const float mean = sum16(all);
        for (int64_t j = 0; j < end; j += 16)
            *(f32 *)(u + j) = *(f32 *)(s + j) * (*(f32 *)(u + j) - mean) * scale;
        memset(u + end, 0, 4 * (a + QUERIES - end));
    }
    for (int64_t r = n; r < QUERIES; r++, u += W) memset(u, 0, 4 * (a + QUERIES));
}

/* memory of one thread, cut into matrices that begin at multiples of 64 bytes */
INLINE char *get_memory(int64_t units) {
    void *p = NULL;
    if (posix_memalign(&p, 64, 4 * units + 4096)) abort();
    return p;
}
INLINE void *take(char **at, int64_t units) {
    void *p = *at;
    *at += (4 * units + 63) / 64 * 64;
    return p;
}

/* W: rows that are a power of two apart would fall into the same few sets of the cache */
INLINE int64_t row_length(int64_t N) { return N + 16; }

/* qkv (B, T, 3*C) -> y (B, T, C) */
INLINE void forward(const void *qkv, void *y, int64_t B, int64_t T, int64_t H, const int D, const int E) {
    const int64_t C = H * D;
    const int64_t N = (T + QUERIES - 1) / QUERIES * QUERIES;
    const int64_t W = row_length(N);
    const float scale = 1 / sqrtf(D);
    #pragma omp parallel
    {
        char *memory = get_memory(2 * N * D / E + QUERIES * (W + D + W / E + D / E));
        char *at = memory;
        unit *k = take(&at, N * D / E);                /* (N/64, D/E, 64) keys, in columns */
        unit *v = take(&at, N * D / E);                /* (N/E, D) values */
        unit *q = take(&at, QUERIES * D / E);          /* (64, D/E) queries of a block */
        unit *room = take(&at, QUERIES * W / E);       /* (64, W/E) weights in bfloat16 */
        float *s = take(&at, QUERIES * W);             /* (64, W) scores, then weights */
        float *o = take(&at, QUERIES * D);             /* (64, D) result of a block */
        #pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < B * H; i++) {
            const void *head = AT(qkv, i / H * T * 3 * C + i % H * D);
            pair_columns(k, AT(head, C), 3 * C, T, N, D, E);
            pair_rows(v, AT(head, 2 * C), 3 * C, T, N, D, E);
            for (int64_t a = 0; a < T; a += QUERIES) {
                const int64_t n = T - a < QUERIES ? T - a : QUERIES;
                copy_rows(q, AT(head, a * 3 * C), 3 * C, n, QUERIES, D, E);
                attention_weights(s, q, k, a, n, W, D, E, scale);
                matmul_pv(o, pair_keys(room, s, a + QUERIES, W, E), v, a, n, W, D, E);
                store_rows((char *)AT(y, (i / H * T + a) * C + i % H * D), C, o, n, D, E);
            }
        }
        free(memory);
    }
}

/* the gradient of the result, g (B, T, C) -> that of qkv, d (B, T, 3*C):
   with P the weights, dV = P'g, dP = gV', dS = P * (dP - rowsum(dP * P)), dQ = dS K, dK = dS'Q */
INLINE void backward(const void *qkv, const void *g, void *d, int64_t B, int64_t T, int64_t H, const int D,
                     const int E) {
    const int64_t C = H * D;
    const int64_t N = (T + QUERIES - 1) / QUERIES * QUERIES;
    const int64_t W = row_length(N);
    const float scale = 1 / sqrtf(D);
    #pragma omp parallel
    {
        char *memory = get_memory(3 * N * D / E + 2 * N * D + QUERIES * (2 * W + D + 3 * W / E + 4 * D / E));
        char *at = memory;
        unit *k_columns = take(&at, N * D / E);        /* (N/64, D/E, 64) */
        unit *v_columns = take(&at, N * D / E);        /* (N/64, D/E, 64) */
        unit *k_rows = take(&at, N * D / E);           /* (N/E, D) */
        unit *q = take(&at, QUERIES * D / E);          /* (64, D/E) queries of a block */
        unit *q_rows = take(&at, QUERIES * D / E);     /* (64/E, D) */
        unit *gs = take(&at, QUERIES * D / E);         /* (64, D/E) their gradient */
        unit *g_rows = take(&at, QUERIES * D / E);     /* (64/E, D) */
        unit *ds_room = take(&at, QUERIES * W / E);    /* (64, W/E) */
        unit *p_room = take(&at, QUERIES * W / E);     /* (64/E, W) */
        unit *u_room = take(&at, QUERIES * W / E);     /* (64/E, W) */
        float *dk = take(&at, N * D);                  /* (N, D) */
        float *dv = take(&at, N * D);                  /* (N, D) */
        float *s = take(&at, QUERIES * W);             /* (64, W) P */
        float *u = take(&at, QUERIES * W);             /* (64, W) dP, then dS */
        float *o = take(&at, QUERIES * D);             /* (64, D) dQ */
        #pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < B * H; i++) {
            const void *head = AT(qkv, i / H * T * 3 * C + i % H * D);
            const void *g_head = AT(g, i / H * T * C + i % H * D);
            char *d_head = (char *)AT(d, i / H * T * 3 * C + i % H * D);
            pair_columns(k_columns, AT(head, C), 3 * C, T, N, D, E);
            pair_columns(v_columns, AT(head, 2 * C), 3 * C, T, N, D, E);
            pair_rows(k_rows, AT(head, C), 3 * C, T, N, D, E);
            memset(dk, 0, 4 * N * D);
            memset(dv, 0, 4 * N * D);
            for (int64_t a = 0; a < T; a += QUERIES) {
                const int64_t n = T - a < QUERIES ? T - a : QUERIES;
                const int64_t width = a + QUERIES;
                copy_rows(q, AT(head, a * 3 * C), 3 * C, n, QUERIES, D, E);
                pair_rows(q_rows, AT(head, a * 3 * C), 3 * C, n, QUERIES, D, E);
                copy_rows(gs, AT(g_head, a * C), C, n, QUERIES, D, E);
                pair_rows(g_rows, AT(g_head, a * C), C, n, QUERIES, D, E);
                attention_weights(s, q, k_columns, a, n, W, D, E, scale);
                matmul_qk(u, gs, v_columns, a, n, W, D, E);
                softmax_backward(u, s, a, n, W, scale);
                matmul_pv(o, pair_keys(ds_room, u, width, W, E), k_rows, a, n, W, D, E);
                store_rows((char *)AT(d_head, a * 3 * C), 3 * C, o, n, D, E);
                const unit *p = pair_queries(p_room, s, width, W, E);
                const unit *ds = pair_queries(u_room, u, width, W, E);
                for (int64_t j = 0; j < width; j += 4) {
                    const int64_t r = j > a ? (j - a) / E : 0;         /* the first query that sees key j */
                    const int64_t K = QUERIES / E - r;
                    matmul4(p + r * W + j, 1, W, g_rows + r * D, D, K, dv + j * D, D, D / 16, 1, E);
                    matmul4(ds + r * W + j, 1, W, q_rows + r * D, D, K, dk + j * D, D, D / 16, 1, E);
                }
            }
            store_rows((char *)AT(d_head, C), 3 * C, dk, T, D, E);
            store_rows((char *)AT(d_head, 2 * C), 3 * C, dv, T, D, E);
        }
        free(memory);
    }
}

/* what Python calls: D is a constant in each, so that the compiler unrolls its loops */
#define FUNCTIONS(type, E)                                                                                  \
    void attention_##type(const void *qkv, void *y, int64_t B, int64_t T, int64_t H, int64_t D) {           \
        if (D == 64) forward(qkv, y, B, T, H, 64, E);                                                       \
        else forward(qkv, y, B, T, H, 32, E);                                                               \
    }                                                                                                       \
    void attention_backward_##type(const void *qkv, const void *g, void *d, int64_t B, int64_t T,           \
                                   int64_t H, int64_t D) {                                                  \
        if (D == 64) backward(qkv, g, d, B, T, H, 64, E);                                                   \
        else backward(qkv, g, d, B, T, H, 32, E);                                                           \
    }
FUNCTIONS(float32, 1)
#ifdef __AVX512BF16__
FUNCTIONS(bfloat16, 2)
#endif

#endif
