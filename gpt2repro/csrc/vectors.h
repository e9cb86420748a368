/* Vectors of 16 numbers: loading, storing, choosing, summing, the exponential and GELU.
   GCC and clang compile these types for any processor: one register with AVX-512, several without. */
#ifndef GPT2REPRO_VECTORS_H
#define GPT2REPRO_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

/* vectors never pass between files: all that takes them is INLINE */
#pragma GCC diagnostic ignored "-Wpsabi"

#define INLINE static inline __attribute__((always_inline, unused))
#define NOINLINE static __attribute__((noinline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef float f32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i32 __attribute__((vector_size(64)));
typedef uint32_t u32 __attribute__((vector_size(64)));
typedef int16_t i16 __attribute__((vector_size(32)));
typedef uint16_t u16 __attribute__((vector_size(32), aligned(2), may_alias));
typedef int8_t i8 __attribute__((vector_size(16), aligned(1), may_alias));

/* a where the mask is -1, b where it is 0 */
INLINE f32 pick(i32 mask, f32 a, f32 b) {
    return (f32)(((i32)a & mask) | ((i32)b & ~mask));
}

/* x, brought between `least` and `most`; NaN stays NaN */
INLINE f32 clamp16(f32 x, float least, float most) {
    x = pick(x < least, (f32){0} + least, x);
    return pick(x > most, (f32){0} + most, x);
}

/* e to the power of each number, which is brought within -87 and 88, to 2 units in the last place:
   2^n times a polynomial for what is left, at most ln(2)/2 */
INLINE f32 exp16(f32 x) {
    x = clamp16(x, -87.f, 88.f);
    const f32 n = (x * 1.44269504f + 12582912.f) - 12582912.f;           /* to the nearest whole number */
    const f32 r = (x - n * .693359375f) + n * 2.12194440e-4f;
    const f32 p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r
                    + 4.1665795894e-2f) * r + 1.6666665459e-1f) * r + .5f;
    const i32 power = (__builtin_convertvector(n, i32) + 127) << 23;     /* the bits of 2^n */
    return (p * r * r + r + 1.f) * (f32)power;
}

/* GELU in its tanh form: x times the logistic function of 2*sqrt(2/pi)*(x + 0.044715*x^3) */
INLINE f32 gelu16(f32 x) {
    return x / (1.f + exp16(-1.5957691216f * (x + .044715f * x * x * x)));
}

/* the sum of the 16 numbers, by halves */
INLINE float sum16(f32 t) {
    float a[16];
    *(f32 *)a = t;
    UNROLL for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; i++) a[i] += a[i + w];
    return a[0];
}

/* 16 numbers of x from place i on, which are float32 or, with `half`, bfloat16 */
INLINE f32 load16(const void *x, int64_t i, int half) {
    if (!half) return *(const f32 *)((const float *)x + i);
    return (f32)(__builtin_convertvector(*(const u16 *)((const uint16_t *)x + i), u32) << 16);
}

/* the nearest bfloat16 of each number, ties to even, in the lower half of 32 bits */
INLINE u32 to_bf16(f32 y) {
    const u32 u = (u32)y;
    const u32 near = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    const u32 nan = (u32)(y != y);
    return (near & ~nan) | (0x7fc0 & nan);
}

/* and back to places i to i+15 of x */
INLINE void store16(void *x, int64_t i, f32 y, int half) {
    if (!half) *(f32 *)((float *)x + i) = y;
    else *(u16 *)((uint16_t *)x + i) = __builtin_convertvector(to_bf16(y), u16);
}

#endif
