// Two kernels in the form that the emulator produces, for tests of the driver layer alone: no CUDA C, no emulator.
#include <cstring>

namespace {

// values[i] = values[i] * factor + offset
void scale(float* values, int count, float factor, double offset) {
    for (int i = 0; i < count; ++i) values[i] = values[i] * factor + static_cast<float>(offset);
}

// out[i] = a launch's sizes: grid x, y, z, block x, y, z, shared
void sizes(const unsigned grid[3], const unsigned block[3], unsigned shared, int* out) {
    for (int i = 0; i < 3; ++i) out[i] = static_cast<int>(grid[i]), out[3 + i] = static_cast<int>(block[i]);
    out[6] = static_cast<int>(shared);
}

template <class T> T argument(void** params, int index) {
    T value;
    std::memcpy(&value, params[index], sizeof value);
    return value;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API int emu_parameters(const char* kernel, unsigned* bytes, int) {
    if (std::strcmp(kernel, "scale") == 0) {
        const unsigned all[] = {8, 4, 4, 8};
        std::memcpy(bytes, all, sizeof all);
        return 4;
    }
    if (std::strcmp(kernel, "sizes") != 0) return -1;
    bytes[0] = 8;
    return 1;
}

API int emu_launch(const char* kernel, const unsigned grid[3], const unsigned block[3], unsigned shared, void** params) {
    if (std::strcmp(kernel, "scale") == 0)
        scale(argument<float*>(params, 0), argument<int>(params, 1), argument<float>(params, 2), argument<double>(params, 3));
    else
        sizes(grid, block, shared, argument<int*>(params, 0));
    return 0;
}
