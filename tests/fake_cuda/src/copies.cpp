// Copies and fills: checked when they are called, done when the stream reaches them.
#include <cstring>

#include "memory.h"
#include "streams.h"

namespace {

struct Target {
    std::shared_ptr<Stream> stream;
    CUresult error;
};

// `lock` is held. Work goes to streams of the current context.
Target target(void* handle) {
    auto stream = find_stream(handle);
    return {stream, stream && stream->context == current() ? SUCCESS : INVALID_HANDLE};
}

bool pageable(const void* address) { return !find_block(address, 1); }

// Host memory that is not pinned is read or written before the call returns.
CUresult copy(void* handle, void* to, const void* from, size_t size, bool to_device, bool from_device) {
    std::unique_lock<std::mutex> guard(lock);
    auto [stream, error] = target(handle);
    if (error) return error;
    if (!size) return SUCCESS;
    if ((to_device || !pageable(to)) && !find_block(to, size)) return INVALID_VALUE;
    if ((from_device || !pageable(from)) && !find_block(from, size)) return INVALID_VALUE;
    const bool from_pageable = pageable(from), to_pageable = pageable(to);
    std::shared_ptr<std::vector<char>> staged;
    if (from_pageable && !stream->capture && !settings.null_mode) {
        const char* bytes = static_cast<const char*>(from);
        staged = std::make_shared<std::vector<char>>(bytes, bytes + size);
    }
    Work work{[=] {
        if (!to_pageable) require_alive(reinterpret_cast<CUdeviceptr>(to), size, "copy to");
        if (!from_pageable) require_alive(reinterpret_cast<CUdeviceptr>(from), size, "copy from");
        std::memmove(to, staged ? staged->data() : from, size);
    }, {}, false, nullptr};
    error = enqueue(guard, stream, std::move(work));
    if (!error && to_pageable && !stream->capture) drain(guard, {stream, stream->enqueued});
    return error;
}

CUresult fill(void* handle, CUdeviceptr to, unsigned value, size_t unit, size_t count) {
    std::unique_lock<std::mutex> guard(lock);
    auto [stream, error] = target(handle);
    if (error) return error;
    if (!count) return SUCCESS;
    if (!find_block(static_cast<uintptr_t>(to), unit * count)) return INVALID_VALUE;
    return enqueue(guard, stream, {[=] {
        require_alive(to, unit * count, "fill");
        for (size_t i = 0; i < count; ++i) std::memcpy(reinterpret_cast<char*>(to) + i * unit, &value, unit);
    }, {}, false, nullptr});
}

void* device(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

CUresult finish(CUresult error, void* stream) {
    if (error) return error;
    std::unique_lock<std::mutex> guard(lock);
    auto queue = find_stream(stream);
    drain(guard, {queue, queue->enqueued});
    return SUCCESS;
}

}  // namespace

API CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t size, void* stream) {
    ENTER_CONTEXT("cuMemcpyAsync");
    return copy(stream, device(to), device(from), size, false, false);
}

API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t size, void* stream) {
    ENTER_CONTEXT("cuMemcpyHtoDAsync");
    return copy(stream, device(to), from, size, true, false);
}

API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t size, void* stream) {
    ENTER_CONTEXT("cuMemcpyDtoHAsync");
    return copy(stream, to, device(from), size, false, true);
}

API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, void* stream) {
    ENTER_CONTEXT("cuMemcpyDtoDAsync");
    return copy(stream, device(to), device(from), size, true, true);
}

API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t size) {
    ENTER_CONTEXT("cuMemcpyHtoD");
    if (CUresult error = unsafe_call()) return error;
    return finish(copy(nullptr, device(to), from, size, true, false), nullptr);
}

API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t size) {
    ENTER_CONTEXT("cuMemcpyDtoH");
    if (CUresult error = unsafe_call()) return error;
    return finish(copy(nullptr, to, device(from), size, false, true), nullptr);
}

API CUresult cuMemcpy2DAsync_v2(const Copy2D* shape, void* handle) {
    ENTER_CONTEXT("cuMemcpy2DAsync");
    const Copy2D c = *shape;
    if (!c.width || !c.height) return SUCCESS;
    char* to = static_cast<char*>(c.dst_type == 1 ? c.dst_host : device(c.dst_device)) + c.dst_y * c.dst_pitch + c.dst_x;
    const char* from =
        static_cast<const char*>(c.src_type == 1 ? c.src_host : device(c.src_device)) + c.src_y * c.src_pitch + c.src_x;
    if (c.width > c.dst_pitch || c.width > c.src_pitch) return INVALID_VALUE;
    std::unique_lock<std::mutex> guard(lock);
    auto [stream, error] = target(handle);
    if (error) return error;
    if (c.dst_type != 1 && !find_block(to, (c.height - 1) * c.dst_pitch + c.width)) return INVALID_VALUE;
    if (c.src_type != 1 && !find_block(from, (c.height - 1) * c.src_pitch + c.width)) return INVALID_VALUE;
    return enqueue(guard, stream, {[=] {
        for (size_t y = 0; y < c.height; ++y) std::memcpy(to + y * c.dst_pitch, from + y * c.src_pitch, c.width);
    }, {}, false, nullptr});
}

API CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, void* stream) {
    ENTER_CONTEXT("cuMemsetD8Async");
    return fill(stream, to, value, 1, count);
}

API CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, void* stream) {
    ENTER_CONTEXT("cuMemsetD32Async");
    return fill(stream, to, value, 4, count);
}
