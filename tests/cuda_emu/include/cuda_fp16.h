// Stands in for CUDA's header of this name.
#pragma once
#include "../cuda_emu.h"
#include "../half.h"

inline float2 __half22float2(__half2 a) { return {float(a.x), float(a.y)}; }
inline __half2 __float22half2_rn(float2 a) { return {__half(a.x), __half(a.y)}; }
