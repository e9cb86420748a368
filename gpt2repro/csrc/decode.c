/* Decoding with GPT-2 on a CPU: one token for each of B rows of text, all layers in one call.

Explained function by function in nbs/22_decode.ipynb, which also holds the same step in PyTorch.
B rows of text, C channels, H heads of D numbers, S slots of the KV cache, N×K a weight matrix (N outputs).
Activations are float32. Python allocates every buffer, so nothing here can run out of memory.
   The exported functions take whole numbers as int64_t, as `call_c` passes them. */
#include "vectors.h"

/* [types] What Python passes: addresses of tensors and their sizes */
enum { FLOAT32, BFLOAT16, INT8 };  /* how weights are stored; the first two also: the KV cache */

typedef struct {
    const void *w;       /* (N,K), of the kind that the call names */
    const float *bias;   /* (N), or NULL */
    const float *scale;  /* (N), or NULL; with int8 */
    int64_t N;
    int64_t K;
} matrix;

typedef struct {
    const float *gain;  /* (C) */
    const float *bias;  /* (C) */
    double eps;
} norm;

typedef struct {
    norm ln_1;
    matrix c_attn;
    matrix attn_proj;
    norm ln_2;
    matrix c_fc;
    matrix mlp_proj;
    int64_t exact_gelu;
} layer;

typedef struct {
    float *normed;    /* (B,C) */
    float *wide;      /* (B,N), for the widest of a layer's products */
    float *scores;    /* (B,H,S+16) */
    uint16_t *x_bf16; /* (B,N), activations in bfloat16; used with BFLOAT16 weights alone */
} workspace;

/* [read] Reading weights and the cache: the numbers of any kind as float32 */
enum { DOT_BFLOAT16 = 3 };  /* bfloat16 that the processor multiplies itself, by pairs */
#ifdef __AVX512BF16__
enum { BFLOAT16_HERE = DOT_BFLOAT16 };
#else
enum { BFLOAT16_HERE = BFLOAT16 };
#endif

INLINE int64_t size_of(int kind) {
    if (kind == FLOAT32) return 4;
    return kind == INT8 ? 1 : 2;
}

INLINE float from_bf16(uint16_t bits) {
    const union { uint32_t bits; float value; } z = { (uint32_t)bits << 16 };
    return z.value;
}

INLINE uint16_t to_bf16_1(float x) {  /* to the nearest, ties to even */
    const union { float value; uint32_t bits; } z = { x };
    if (x != x) return 0x7fc0;
    return (z.bits + 0x7fff + (z.bits >> 16 & 1)) >> 16;
}

INLINE float read_1(const void *w, int64_t i, int kind) {
    if (kind == FLOAT32) return ((const float *)w)[i];
    if (kind == INT8) return ((const int8_t *)w)[i];
    return from_bf16(((const uint16_t *)w)[i]);
}

typedef float f32_anywhere __attribute__((vector_size(64), aligned(1), may_alias));

/* 16 float32 or 32 bfloat16, at any address */
INLINE f32 read_64_bytes(const char *p) { return *(const f32_anywhere *)p; }

INLINE f32 read_16(const void *w, int64_t i, int kind) {
    if (kind != INT8) return load16(w, i, kind == BFLOAT16);
    const int8_t *p = (const int8_t *)w + i;
#ifdef __AVX512F__
    return (f32)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#else
    const i16 wider = __builtin_convertvector(*(const i8 *)p, i16);
    return __builtin_convertvector(__builtin_convertvector(wider, i32), f32);
#endif
}

/* Threads gain more than their waiting for each other costs from a million products on */
INLINE int pays_in_threads(int64_t products) { return products >= 1<<20; }

INLINE void write_1(void *x, int64_t i, int kind, float value) {
    if (kind == FLOAT32) ((float *)x)[i] = value;
    else ((uint16_t *)x)[i] = to_bf16_1(value);
}

/* [quantize] float32 weights as int8 with a scale per row, to the bit as `quantize` in Python.
   A row with a number that is not finite gets a scale that is not a number, so that it shows */
INLINE void quantize_row(
    const float *row,  /* (K) */
    int8_t *to,        /* (K) */
    float *scale,      /* (1) */
    int64_t K
) {
    const f32 zero = {0};
    f32 top = zero;
    f32 broken = zero;
    int64_t k = 0;
    for (; k+16 <= K; k += 16) {
        const f32 a = *(const f32 *)(row+k);
        const f32 size = pick(a < zero, zero-a, a);
        top = pick(size > top, size, top);
        broken += zero*a;
    }
    float most = 1e-12f;
    float not_finite = sum16(broken);
    for (; k < K; k++) {
        most = fabsf(row[k]) > most ? fabsf(row[k]) : most;
        not_finite += 0*row[k];
    }
    for (int i = 0; i < 16; i++) most = top[i] > most ? top[i] : most;
    const float s = most/127;
    *scale = s+not_finite;
    if (not_finite != 0) memset(to, 0, K);
    else for (k = 0; k < K; k++) to[k] = (int8_t)rintf(row[k]/s);
}

void quantize_int8(
    const float *w,  /* (N,K) */
    int8_t *out,     /* (N,K) */
    float *scale,    /* (N) */
    int64_t N, int64_t K
) {
    #pragma omp parallel for schedule(static) if(pays_in_threads(N*K))
    for (int64_t n = 0; n < N; n++) quantize_row(w + n*K, out + n*K, scale + n, K);
}

/* [dot] The plain dot product, for what does not fill a tile: w · x, n numbers */
NOINLINE float dot_tail(const char *w, const char *x, int64_t n, int kind_w, int kind_x) {
    float s = 0;
    for (int64_t i = 0; i < n; i++) s += read_1(w, i, kind_w)*read_1(x, i, kind_x);
    return s;
}

INLINE float dot(const char *w, const float *x, int64_t n, int kind) {
    f32 a = {0};
    f32 b = {0};
    int64_t i = 0;
    for (; i+32 <= n; i += 32) {
        a += read_16(w, i, kind) * *(const f32 *)(x+i);
        b += read_16(w, i+16, kind) * *(const f32 *)(x+i+16);
    }
    return sum16(a+b) + dot_tail(w + i*size_of(kind), (const char *)(x+i), n-i, kind, FLOAT32);
}

/* [sums] The sums of 16 vectors as one vector: halves are added, 16 vectors to 8, 8 to 4, 4 to 2, 2 to 1 */
INLINE f32 horizontal_sums(f32 a[16]) {
#ifdef __clang__
    f32 s;
    for (int i = 0; i < 16; i++) s[i] = sum16(a[i]);
    return s;
#else
    #define HALVE(n, ...) { \
        const i32 i = {__VA_ARGS__}; \
        UNROLL for (int j = 0; j < n; j++) \
            a[j] = __builtin_shuffle(a[2*j], a[2*j+1], i) + __builtin_shuffle(a[2*j], a[2*j+1], i+n); \
    }
    HALVE(8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
    HALVE(4, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
    HALVE(2, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29)
    HALVE(1, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
    #undef HALVE
    return a[0];
#endif
}

/* [tile] Four rows of w, `stride` rows from each other, times T rows of x (at most four).
   They have K numbers, of which n are multiplied. Place 4r+b of the result is row r of w times row b of x.
   At each turn P lines of memory are asked for, from `next` on: the weights that come after these */
INLINE f32 dot_tile(
    const char *w,     /* (4 rows, `stride` apart, K), from the first number on */
    const char *x,     /* (T,K): float32, or bfloat16 with DOT_BFLOAT16 */
    const char *next,  /* address to prefetch from */
    int64_t n, int64_t K, int64_t stride, int kind, int T, int P
) {
    const int dot_bf16 = kind == DOT_BFLOAT16;
    const int64_t step = dot_bf16 ? 32 : 16;  /* numbers that a vector holds */
    const int64_t size_x = dot_bf16 ? 2 : 4;
    const int64_t whole = n/step*step;
    f32 a[16];
    UNROLL for (int i = 0; i < 16; i++) a[i] = (f32){0};
    #pragma GCC unroll 2
    for (int64_t k = 0; k < whole; k += step) {
        UNROLL for (int p = 0; p < P; p++) __builtin_prefetch(next + (k/step*P+p)*64, 0, 2);
        f32 v[4];
        UNROLL for (int b = 0; b < T; b++) v[b] = read_64_bytes(x + (b*K+k)*size_x);
        UNROLL for (int r = 0; r < 4; r++) {
            const char *row = w + r*stride*K*size_of(kind);
#ifdef __AVX512BF16__
            if (dot_bf16) {
                const __m512bh m = (__m512bh)read_64_bytes(row+2*k);
                UNROLL for (int b = 0; b < T; b++)
                    a[4*r+b] = (f32)_mm512_dpbf16_ps((__m512)a[4*r+b], m, (__m512bh)v[b]);
                continue;
            }
#endif
            const f32 m = read_16(row, k, kind);
            UNROLL for (int b = 0; b < T; b++) a[4*r+b] += m*v[b];
        }
    }
    f32 s = horizontal_sums(a);
    if (whole == n) return s;
    for (int r = 0; r < 4; r++) for (int b = 0; b < T; b++) {
        const char *row = w + (r*stride*K+whole)*size_of(kind);
        s[4*r+b] += dot_tail(row, x + (b*K+whole)*size_x, n-whole, kind, dot_bf16 ? BFLOAT16 : FLOAT32);
    }
    return s;
}

/* [epilogue] What happens to the sums of a tile before they are written, for R rows of w and T of x */
enum { SET, ADD, GELU, EXACT_GELU };

NOINLINE void epilogue(
    const matrix *m, f32 s,
    float *y,  /* (T,N) */
    int64_t n, int64_t stride, int R, int T, int then
) {
    float a[16];
    f32 bias = {0};
    f32 scale = (f32){0}+1.f;
    if (m->scale) UNROLL for (int i = 0; i < 16; i++) scale[i] = m->scale[n + (i/4 < R ? i/4*stride : 0)];
    if (m->bias) UNROLL for (int i = 0; i < 16; i++) bias[i] = m->bias[n + (i/4 < R ? i/4*stride : 0)];
    s = s*scale+bias;
    if (then == GELU) s = gelu16(s);
    *(f32 *)a = s;
    for (int b = 0; b < T; b++) for (int r = 0; r < R; r++) {
        float *to = y + b*m->N + n + r*stride;
        float z = a[4*r+b];
        if (then == EXACT_GELU) z = .5f*z*(1+erff(.70710678f*z));
        *to = then == ADD ? *to+z : z;
    }
}

/* [matmul] y = x @ w.T * scale + bias, by all threads.
   A row of x gets the same sums, to the bit, however many rows and threads there are: each sum is made by
   `dot_tile`, also for the last rows of w, of which three or fewer go alone. Rows are read in chunks, which
   stay in the first cache for all rows of x */
enum { CHUNK = 768, MAX_ROWS = 256 };

INLINE void matmul_kind(
    const matrix *m,
    const float *x,   /* (B,K) */
    uint16_t *x_bf16,  /* (B,K), workspace */
    float *y,         /* (B,N) */
    int B, int kind, int then
) {
    const int64_t N = m->N;
    const int64_t K = m->K;
    const int dot_bf16 = kind == DOT_BFLOAT16;
    const int64_t size_x = dot_bf16 ? 2 : 4;
    const int tiles = (B+3)/4;
    const int64_t turns = B == 1 ? 32 : 16;      /* tiles of weights that a thread takes at once */
    const char *w = m->w;
    const char *in = dot_bf16 ? (const char *)x_bf16 : (const char *)x;
    if (dot_bf16) {
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < B*K; i++) x_bf16[i] = to_bf16_1(x[i]);
    }
    #pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < N; first += 4*turns) {
        const int64_t rows = first+4*turns > N ? N-first : 4*turns;
        const int apart = B == 1 && rows == 4*turns;  /* a single row of x: a thread reads in four places */
        const int64_t fours = rows/4;
        for (int64_t turn = 0; turn < fours+rows%4; turn++) {
            const int alone = turn >= fours;
            const int64_t n = first + (apart ? turn : alone ? 3*fours+turn : 4*turn);
            const int64_t stride = apart ? turns : !alone;
            f32 s[MAX_ROWS/4];
            for (int t = 0; t < tiles; t++) s[t] = (f32){0};
            for (int64_t k = 0; k < K; k += CHUNK) {
                const int64_t some = k+CHUNK < K ? CHUNK : K-k;
                const char *row = w + (n*K+k)*size_of(kind);
                for (int t = 0; t < tiles; t++) {
                    const char *xs = in + (4*t*K+k)*size_x;
                    const char *next = w + (4*(n/4+1)*K + 4*k + t*4*some/tiles)*size_of(kind);
                    const int left = B-4*t;
                    #define TILE(T, P) s[t] += dot_tile(row, xs, next, some, K, stride, kind, T, P)
                    if (B == 1) TILE(1, 0);
                    else if (left == 1) TILE(1, 4);
                    else if (left == 2) TILE(2, 4);
                    else if (left == 3) TILE(3, 4);
                    else if (tiles == 1) TILE(4, 4);
                    else if (tiles == 2) TILE(4, 2);
                    else TILE(4, 1);
                    #undef TILE
                }
            }
            for (int t = 0; t < tiles; t++)
                epilogue(m, s[t], y + 4*t*N, n, stride, alone ? 1 : 4, B-4*t < 4 ? B-4*t : 4, then);
        }
    }
}

static void matmul(
    const matrix *m,
    const float *x,   /* (B,K) */
    uint16_t *x_bf16,  /* (B,K), workspace */
    float *y,         /* (B,N) */
    int64_t B, int64_t kind, int then
) {
    for (int64_t b = 0; b < B; b += MAX_ROWS) {
        const float *xs = x + b*m->K;
        float *ys = y + b*m->N;
        const int rows = B-b < MAX_ROWS ? B-b : MAX_ROWS;
        if (kind == FLOAT32) matmul_kind(m, xs, x_bf16, ys, rows, FLOAT32, then);
        else if (kind == BFLOAT16) matmul_kind(m, xs, x_bf16, ys, rows, BFLOAT16_HERE, then);
        else matmul_kind(m, xs, x_bf16, ys, rows, INT8, then);
    }
}

/* [norm] y = LayerNorm(x) */
NOINLINE void layer_norm(
    const norm *ln,
    const float *x,  /* (B,C) */
    float *y,        /* (B,C) */
    int64_t B, int64_t C
) {
    #pragma omp for schedule(static)
    for (int64_t b = 0; b < B; b++) {
        const float *row = x + b*C;
        float mean = 0;
        float var = 0;
        #pragma omp simd reduction(+:mean)
        for (int64_t i = 0; i < C; i++) mean += row[i];
        mean /= C;
        #pragma omp simd reduction(+:var)
        for (int64_t i = 0; i < C; i++) var += (row[i]-mean)*(row[i]-mean);
        const float scale = 1/sqrtf(var/C + (float)ln->eps);
        for (int64_t i = 0; i < C; i++) y[b*C+i] = (row[i]-mean)*scale*ln->gain[i] + ln->bias[i];
    }
}

/* [attention] One head of one row of text: a query against the keys in slots 0…pos, a mean of values */
INLINE void matmul_qk(
    const float *q,  /* (D) */
    const char *k,   /* (S,D) */
    float *scores,   /* (S+16) */
    int64_t pos, int64_t D, int kind
) {
    int64_t t = 0;
    for (; t+16 <= pos+1 && D%16 == 0; t += 16) {
        f32 a[16];
        UNROLL for (int i = 0; i < 16; i++) a[i] = (f32){0};
        for (int64_t d = 0; d < D; d += 16)
            UNROLL for (int i = 0; i < 16; i++) a[i] += *(const f32 *)(q+d)*read_16(k, (t+i)*D+d, kind);
        *(f32 *)(scores+t) = horizontal_sums(a);
    }
    for (; t <= pos; t++) scores[t] = dot(k + t*D*size_of(kind), q, D, kind);
}

INLINE float softmax_row(
    float *scores,  /* (S+16): the first pos+1 become e to their power, whose sum is returned */
    int64_t pos, int64_t D
) {
    float most = -INFINITY;
    float total = 0;
    for (int64_t t = 0; t <= pos; t++) most = scores[t] > most ? scores[t] : most;
    for (int64_t t = 0; t <= pos; t += 16)
        *(f32 *)(scores+t) = exp16((*(f32 *)(scores+t)-most)/sqrtf(D));
    for (int64_t t = 0; t <= pos; t++) total += scores[t];
    return total;
}

INLINE void matmul_pv(
    const float *p,  /* (S+16), not yet divided by `total` */
    const char *v,   /* (S,D) */
    float *y,        /* (D) */
    float total, int64_t pos, int64_t D, int kind
) {
    int64_t d = 0;
    for (; d+64 <= D; d += 64) {
        f32 a[4];
        UNROLL for (int i = 0; i < 4; i++) a[i] = (f32){0};
        for (int64_t t = 0; t <= pos; t++)
            UNROLL for (int i = 0; i < 4; i++) a[i] += p[t]*read_16(v, t*D+d+16*i, kind);
        UNROLL for (int i = 0; i < 4; i++) *(f32 *)(y+d+16*i) = a[i]/total;
    }
    for (; d < D; d++) {
        float a = 0;
        for (int64_t t = 0; t <= pos; t++) a += p[t]*read_1(v, t*D+d, kind);
        y[d] = a/total;
    }
}

INLINE void attend(
    const float *qkv,  /* q (D) at 0, the new token's k (D) at C and v (D) at 2C */
    char *k,           /* (S,D), the cache of this head; slot `pos` is written */
    char *v,           /* (S,D) */
    float *scores,     /* (S+16), workspace */
    float *y,          /* (D) */
    int64_t pos, int64_t C, int64_t D, int kind
) {
    for (int64_t d = 0; d < D; d++) {
        write_1(k, pos*D+d, kind, qkv[C+d]);
        write_1(v, pos*D+d, kind, qkv[2*C+d]);
    }
    matmul_qk(qkv, k, scores, pos, D, kind);
    const float total = softmax_row(scores, pos, D);
    matmul_pv(scores, v, y, total, pos, D, kind);
}

/* [step] All layers for one more token in each row */
void decode_step(
    const layer *layers,  /* (L) */
    float *x,             /* (B,C), embedded tokens; becomes the hidden states after all layers */
    char **k,             /* (L) addresses of keys (B,H,S,D) */
    char **v,             /* (L) addresses of values (B,H,S,D) */
    const int64_t *pos,   /* (B), position of each row's token, which is its slot in the cache */
    const workspace *ws,
    int64_t L, int64_t B, int64_t H, int64_t D, int64_t S, int64_t kind, int64_t kind_kv
) {
    const int64_t C = H*D;
    #pragma omp parallel if(pays_in_threads(12*C*C*B))
    for (int64_t i = 0; i < L; i++) {
        const layer *l = layers+i;
        layer_norm(&l->ln_1, x, ws->normed, B, C);
        matmul(&l->c_attn, ws->normed, ws->x_bf16, ws->wide, B, kind, SET);  /* (B,3C) */
        #pragma omp for schedule(static)
        for (int64_t j = 0; j < B*H; j++) {
            const int64_t b = j/H;
            const float *qkv = ws->wide + 3*b*C + j%H*D;
            char *kj = k[i] + j*S*D*size_of(kind_kv);
            char *vj = v[i] + j*S*D*size_of(kind_kv);
            float *scores = ws->scores + j*(S+16);
            if (kind_kv == FLOAT32) attend(qkv, kj, vj, scores, ws->normed + j*D, pos[b], C, D, FLOAT32);
            else attend(qkv, kj, vj, scores, ws->normed + j*D, pos[b], C, D, BFLOAT16);
        }
        matmul(&l->attn_proj, ws->normed, ws->x_bf16, x, B, kind, ADD);
        layer_norm(&l->ln_2, x, ws->normed, B, C);
        matmul(&l->c_fc, ws->normed, ws->x_bf16, ws->wide, B, kind, l->exact_gelu ? EXACT_GELU : GELU);
        matmul(&l->mlp_proj, ws->wide, ws->x_bf16, x, B, kind, ADD);
    }
}

/* [head] Logits of hidden states: the last LayerNorm, and the token table used backwards */
void lm_head(
    const norm *ln_f,
    const matrix *wte,
    const float *x,  /* (B,C) */
    float *y,        /* (B,N): the logits */
    const workspace *ws,
    int64_t B, int64_t kind
) {
    #pragma omp parallel if(pays_in_threads(wte->N*wte->K*B))
    {
        layer_norm(ln_f, x, ws->normed, B, wte->K);
        matmul(wte, ws->normed, ws->x_bf16, y, B, kind, SET);
    }
}

/* [linear] One product by itself, as reading a prompt wants it */
void linear(
    const matrix *m,
    const float *x,   /* (B,K) */
    float *y,         /* (B,N) */
    uint16_t *x_bf16,  /* (B,K), workspace */
    int64_t B, int64_t kind, int64_t then
) {
    #pragma omp parallel if(pays_in_threads(m->N*m->K*B))
    matmul(m, x, x_bf16, y, B, kind, then);
}
