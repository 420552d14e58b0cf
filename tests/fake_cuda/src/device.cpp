// Starting the driver, its devices and their contexts.
#include <algorithm>
#include <cstring>

#include "memory.h"
#include "streams.h"

namespace {

auto& primary = *new std::map<int, std::unique_ptr<Context>>;    // by device
auto& own_contexts = *new std::vector<std::unique_ptr<Context>>;  // of cuCtxCreate

std::unique_ptr<Context> make_context(int device, bool is_primary) {
    auto context = std::make_unique<Context>();
    context->device = device;
    context->primary = is_primary;
    for (auto* stream : {&context->legacy, &context->per_thread}) {
        *stream = std::make_shared<Stream>();
        (*stream)->context = context.get();
        (*stream)->flags = 0;
    }
    return context;
}

bool known_device(CUdevice device) { return device >= 0 && device < settings.devices; }

// CUdevice_attribute -> value, for a generic GPU.
int attribute_value(int attribute) {
    switch (attribute) {
        case 1: return 1024;                   // threads of a block
        case 2: case 3: return 1024;           // block x, y
        case 4: return 64;                     // block z
        case 5: return 2147483647;             // grid x
        case 6: case 7: return 65535;          // grid y, z
        case 8: return 48 << 10;               // shared memory of a block
        case 10: return 32;                    // warp
        case 13: return 1300000;               // clock, kHz
        case 16: return 16;                    // multiprocessors
        case 18: return settings.integrated;
        case 19: return 1;                     // maps host memory
        case 31: return 1;                     // concurrent kernels
        case 36: return 3200000;               // memory clock, kHz
        case 37: return 128;                   // memory bus, bits
        case 38: return 4 << 20;               // L2 cache
        case 39: return 2048;                  // threads of a multiprocessor
        case 40: return 2;                     // copy engines
        case 41: return 1;                     // unified addressing
        case 75: return settings.capability_major;
        case 76: return settings.capability_minor;
        case 81: return 228 << 10;             // shared memory of a multiprocessor
        case 97: return 227 << 10;             // shared memory of a block with opt-in
        case 106: return 32;                   // blocks of a multiprocessor
        default: return 0;
    }
}

const std::map<CUresult, std::pair<const char*, const char*>>& errors() {
    static const auto* all = new std::map<CUresult, std::pair<const char*, const char*>>{
        {SUCCESS, {"CUDA_SUCCESS", "no error"}},
        {INVALID_VALUE, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
        {OUT_OF_MEMORY, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
        {NOT_INITIALIZED, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
        {NO_DEVICE, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
        {INVALID_DEVICE, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
        {INVALID_IMAGE, {"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
        {INVALID_CONTEXT, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
        {209, {"CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"}},
        {222, {"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."}},
        {INVALID_HANDLE, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
        {NOT_FOUND, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
        {NOT_READY, {"CUDA_ERROR_NOT_READY", "device not ready"}},
        {700, {"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
        {701, {"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"}},
        {NOT_PERMITTED, {"CUDA_ERROR_NOT_PERMITTED", "operation not permitted"}},
        {NOT_SUPPORTED, {"CUDA_ERROR_NOT_SUPPORTED", "operation not supported"}},
        {803, {"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"}},
        {CAPTURE_UNSUPPORTED, {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
        {CAPTURE_INVALIDATED,
         {"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"}},
        {CAPTURE_MERGE, {"CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate captures"}},
        {CAPTURE_UNMATCHED, {"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream"}},
        {CAPTURE_UNJOINED, {"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"}},
        {CAPTURE_ISOLATION,
         {"CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"}},
        {CAPTURED_EVENT,
         {"CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"}},
        {CAPTURE_WRONG_THREAD,
         {"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture from another thread"}},
        {999, {"CUDA_ERROR_UNKNOWN", "unknown error"}},
    };
    return *all;
}

}  // namespace

API CUresult cuGetErrorName(CUresult error, const char** text) {
    auto entry = errors().find(error);
    *text = entry == errors().end() ? nullptr : entry->second.first;
    return *text ? SUCCESS : INVALID_VALUE;
}

API CUresult cuGetErrorString(CUresult error, const char** text) {
    auto entry = errors().find(error);
    *text = entry == errors().end() ? nullptr : entry->second.second;
    return *text ? SUCCESS : INVALID_VALUE;
}

API CUresult cuInit(unsigned) {
    ENTER_UNSTARTED("cuInit");
    if (!settings.devices) return NO_DEVICE;
    initialized = true;
    return SUCCESS;
}

API CUresult cuDriverGetVersion(int* version) {
    ENTER_UNSTARTED("cuDriverGetVersion");
    *version = settings.driver_version;
    return SUCCESS;
}

API CUresult cuDeviceGetCount(int* count) {
    ENTER("cuDeviceGetCount");
    *count = settings.devices;
    return SUCCESS;
}

API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    ENTER("cuDeviceGet");
    if (!known_device(ordinal)) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

API CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    ENTER("cuDeviceGetName");
    if (!known_device(device) || length < 1) return INVALID_DEVICE;
    std::snprintf(name, static_cast<size_t>(length), "%s", settings.name.c_str());
    return SUCCESS;
}

API CUresult cuDeviceGetUuid_v2(unsigned char uuid[16], CUdevice device) {
    ENTER("cuDeviceGetUuid");
    if (!known_device(device)) return INVALID_DEVICE;
    std::memset(uuid, device, 16);
    return SUCCESS;
}

API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    ENTER("cuDeviceTotalMem");
    if (!known_device(device)) return INVALID_DEVICE;
    *bytes = settings.memory;
    return SUCCESS;
}

API CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    ENTER("cuDeviceGetAttribute");
    if (!known_device(device)) return INVALID_DEVICE;
    *value = attribute_value(attribute);
    return SUCCESS;
}

API CUresult cuDevicePrimaryCtxRetain(Context** context, CUdevice device) {
    ENTER("cuDevicePrimaryCtxRetain");
    if (!known_device(device)) return INVALID_DEVICE;
    std::lock_guard<std::mutex> guard(lock);
    auto& entry = primary[device];
    if (!entry) entry = make_context(device, true);
    ++entry->references;
    *context = entry.get();
    return SUCCESS;
}

// The context stays; a real driver would free its contents.
API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER("cuDevicePrimaryCtxRelease");
    std::lock_guard<std::mutex> guard(lock);
    auto entry = primary.find(device);
    if (entry == primary.end() || !entry->second->references) return INVALID_CONTEXT;
    --entry->second->references;
    return SUCCESS;
}

API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
    ENTER("cuDevicePrimaryCtxGetState");
    if (!known_device(device)) return INVALID_DEVICE;
    std::lock_guard<std::mutex> guard(lock);
    auto entry = primary.find(device);
    *flags = 0;
    *active = entry != primary.end() && entry->second->references > 0;
    return SUCCESS;
}

API CUresult cuCtxCreate_v2(Context** context, unsigned, CUdevice device) {
    ENTER("cuCtxCreate");
    if (!known_device(device)) return INVALID_DEVICE;
    std::lock_guard<std::mutex> guard(lock);
    own_contexts.push_back(make_context(device, false));
    *context = own_contexts.back().get();
    thread.contexts.push_back(*context);
    return SUCCESS;
}

API CUresult cuCtxSetCurrent(Context* context) {
    ENTER("cuCtxSetCurrent");
    if (!thread.contexts.empty()) thread.contexts.pop_back();
    if (context) thread.contexts.push_back(context);
    return SUCCESS;
}

API CUresult cuCtxGetCurrent(Context** context) {
    ENTER("cuCtxGetCurrent");
    *context = current();
    return SUCCESS;
}

API CUresult cuCtxPushCurrent_v2(Context* context) {
    ENTER("cuCtxPushCurrent");
    if (!context) return INVALID_CONTEXT;
    thread.contexts.push_back(context);
    return SUCCESS;
}

API CUresult cuCtxPopCurrent_v2(Context** context) {
    ENTER_CONTEXT("cuCtxPopCurrent");
    if (context) *context = current();
    thread.contexts.pop_back();
    return SUCCESS;
}

API CUresult cuCtxGetDevice(CUdevice* device) {
    ENTER_CONTEXT("cuCtxGetDevice");
    *device = current()->device;
    return SUCCESS;
}

// NVRTC and others ask for NVIDIA's private tables, and accept a refusal.
API CUresult cuGetExportTable(const void** table, const void*) {
    ENTER_UNSTARTED("cuGetExportTable");
    *table = nullptr;
    return NOT_FOUND;
}

// -- for tests ------------------------------------------------------------------------------------------------------

size_t living_modules();

// Everything not freed, as text (empty if nothing). Checks the guards of what is left.
API const char* fake_leaks() {
    static std::string report;
    std::lock_guard<std::mutex> guard(lock);
    report.clear();
    const auto say = [](const char* what, size_t count) {
        if (count) report += (report.empty() ? "" : ", ") + std::to_string(count) + " " + what;
    };
    size_t device_blocks = 0;
    for (auto& [begin, block] : blocks) {
        check_guards(block);
        device_blocks += block.kind == Kind::device;
    }
    say("device buffers", device_blocks);
    say("pinned buffers", blocks.size() - device_blocks);
    say("streams", streams.alive.size());
    say("events", events.alive.size());
    say("graphs", graphs.alive.size());
    say("executable graphs", execs.alive.size());
    say("modules", living_modules());
    return report.c_str();
}

// At the end of a process with FAKE_CUDA_STRICT=1, leaks are an error.
__attribute__((destructor)) static void unload() {
    const char* strict = std::getenv("FAKE_CUDA_STRICT");
    if (forked || !strict || !std::atoi(strict)) return;
    const char* leaks = fake_leaks();
    if (!*leaks) return;
    std::fprintf(stderr, "fake_cuda: not freed at the end: %s\n", leaks);
    std::fflush(stderr);
    std::_Exit(97);
}
