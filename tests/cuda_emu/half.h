// The parts of CUDA's cuda_fp16.h that our kernels use. Rounding is to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

namespace emu {
inline uint16_t half_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;                         // NaN, as on a GPU
    if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00u);      // 65520 and more round to infinity
    if (size < 0x38800000u) {                                      // subnormal: added to 0.5, its units are the last place
        float shifted;
        std::memcpy(&shifted, &size, 4);
        shifted += 0.5f;
        uint32_t units;
        std::memcpy(&units, &shifted, 4);
        return uint16_t(sign | (units - 0x3f000000u));
    }
    return uint16_t(sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13));
}

inline float float_of(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 0x3ffu;
    uint32_t bits;
    if (exponent == 0) {
        const float size = float(fraction) * 0x1p-24f;
        std::memcpy(&bits, &size, 4);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
}

struct __half {
    uint16_t bits;
    __half() = default;
    __half(float value) : bits(emu::half_of(value)) {}
    operator float() const { return emu::float_of(bits); }
};
struct __attribute__((aligned(4))) __half2 {
    __half x, y;
};
using half = __half;
using half2 = __half2;

inline float __half2float(__half a) { return float(a); }
inline __half __float2half(float a) { return __half(a); }
inline __half __float2half_rn(float a) { return __half(a); }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline __half __low2half(__half2 a) { return a.x; }
inline __half __high2half(__half2 a) { return a.y; }
inline float __low2float(__half2 a) { return float(a.x); }
inline float __high2float(__half2 a) { return float(a.y); }
inline unsigned short __half_as_ushort(__half a) { return a.bits; }
inline __half __ushort_as_half(unsigned short bits) {
    __half a;
    a.bits = bits;
    return a;
}
// A float has more than twice the digits, so one operation in float, rounded again, is correctly rounded.
inline __half __hadd(__half a, __half b) { return __half(float(a) + float(b)); }
inline __half __hsub(__half a, __half b) { return __half(float(a) - float(b)); }
inline __half __hmul(__half a, __half b) { return __half(float(a) * float(b)); }
inline __half __hdiv(__half a, __half b) { return __half(float(a) / float(b)); }
inline bool __hgt(__half a, __half b) { return float(a) > float(b); }
inline bool __hge(__half a, __half b) { return float(a) >= float(b); }
inline bool __hlt(__half a, __half b) { return float(a) < float(b); }
inline bool __hle(__half a, __half b) { return float(a) <= float(b); }
inline bool __heq(__half a, __half b) { return float(a) == float(b); }
