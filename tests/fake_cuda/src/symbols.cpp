// cuGetProcAddress: the functions by name and by the CUDA version that introduced their present signature.
#include <dlfcn.h>

#include <cstring>

#include "core.h"

API CUresult cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, int* status);
API CUresult cuGetProcAddress(const char* name, void** function, int version, uint64_t flags);

namespace {

struct Symbol {
    const char* name;      // requested name
    int version;           // first version
    const char* exported;  // exported name
};

const Symbol SYMBOLS[] = {
    {"cuCtxCreate", 3020, "cuCtxCreate_v2"},
    {"cuCtxGetCurrent", 4000, "cuCtxGetCurrent"},
    {"cuCtxGetDevice", 2000, "cuCtxGetDevice"},
    {"cuCtxGetStreamPriorityRange", 5050, "cuCtxGetStreamPriorityRange"},
    {"cuCtxPopCurrent", 4000, "cuCtxPopCurrent_v2"},
    {"cuCtxPushCurrent", 4000, "cuCtxPushCurrent_v2"},
    {"cuCtxSetCurrent", 4000, "cuCtxSetCurrent"},
    {"cuCtxSynchronize", 2000, "cuCtxSynchronize"},
    {"cuDeviceGet", 2000, "cuDeviceGet"},
    {"cuDeviceGetAttribute", 2000, "cuDeviceGetAttribute"},
    {"cuDeviceGetCount", 2000, "cuDeviceGetCount"},
    {"cuDeviceGetName", 2000, "cuDeviceGetName"},
    {"cuDeviceGetUuid", 11040, "cuDeviceGetUuid_v2"},
    {"cuDevicePrimaryCtxGetState", 7000, "cuDevicePrimaryCtxGetState"},
    {"cuDevicePrimaryCtxRelease", 11000, "cuDevicePrimaryCtxRelease_v2"},
    {"cuDevicePrimaryCtxRetain", 7000, "cuDevicePrimaryCtxRetain"},
    {"cuDeviceTotalMem", 3020, "cuDeviceTotalMem_v2"},
    {"cuDriverGetVersion", 2020, "cuDriverGetVersion"},
    {"cuEventCreate", 2000, "cuEventCreate"},
    {"cuEventDestroy", 4000, "cuEventDestroy_v2"},
    {"cuEventElapsedTime", 2000, "cuEventElapsedTime"},
    {"cuEventElapsedTime", 12080, "cuEventElapsedTime_v2"},
    {"cuEventQuery", 2000, "cuEventQuery"},
    {"cuEventRecord", 2000, "cuEventRecord"},
    {"cuEventRecordWithFlags", 11010, "cuEventRecordWithFlags"},
    {"cuEventSynchronize", 2000, "cuEventSynchronize"},
    {"cuGetExportTable", 3000, "cuGetExportTable"},
    {"cuGetErrorName", 6000, "cuGetErrorName"},
    {"cuGetErrorString", 6000, "cuGetErrorString"},
    {"cuGetProcAddress", 11030, "cuGetProcAddress"},
    {"cuGetProcAddress", 12000, "cuGetProcAddress_v2"},
    {"cuGraphDestroy", 10000, "cuGraphDestroy"},
    {"cuGraphExecDestroy", 10000, "cuGraphExecDestroy"},
    {"cuGraphGetNodes", 10000, "cuGraphGetNodes"},
    {"cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags"},
    {"cuGraphInstantiateWithFlags", 11040, "cuGraphInstantiateWithFlags"},
    {"cuGraphLaunch", 10000, "cuGraphLaunch"},
    {"cuGraphUpload", 11010, "cuGraphUpload"},
    {"cuInit", 2000, "cuInit"},
    {"cuLaunchHostFunc", 10000, "cuLaunchHostFunc"},
    {"cuLaunchKernel", 4000, "cuLaunchKernel"},
    {"cuMemAlloc", 3020, "cuMemAlloc_v2"},
    {"cuMemFree", 3020, "cuMemFree_v2"},
    {"cuMemFreeHost", 2000, "cuMemFreeHost"},
    {"cuMemGetInfo", 3020, "cuMemGetInfo_v2"},
    {"cuMemHostAlloc", 2020, "cuMemHostAlloc"},
    {"cuMemHostGetDevicePointer", 3020, "cuMemHostGetDevicePointer_v2"},
    {"cuMemcpy2DAsync", 3020, "cuMemcpy2DAsync_v2"},
    {"cuMemcpyAsync", 4000, "cuMemcpyAsync"},
    {"cuMemcpyDtoDAsync", 3020, "cuMemcpyDtoDAsync_v2"},
    {"cuMemcpyDtoH", 3020, "cuMemcpyDtoH_v2"},
    {"cuMemcpyDtoHAsync", 3020, "cuMemcpyDtoHAsync_v2"},
    {"cuMemcpyHtoD", 3020, "cuMemcpyHtoD_v2"},
    {"cuMemcpyHtoDAsync", 3020, "cuMemcpyHtoDAsync_v2"},
    {"cuMemsetD32Async", 3020, "cuMemsetD32Async"},
    {"cuMemsetD8Async", 3020, "cuMemsetD8Async"},
    {"cuModuleGetFunction", 2000, "cuModuleGetFunction"},
    {"cuModuleLoadData", 2000, "cuModuleLoadData"},
    {"cuModuleLoadDataEx", 2010, "cuModuleLoadDataEx"},
    {"cuModuleUnload", 2000, "cuModuleUnload"},
    {"cuPointerGetAttribute", 4000, "cuPointerGetAttribute"},
    {"cuStreamBeginCapture", 10010, "cuStreamBeginCapture_v2"},
    {"cuStreamCreate", 2000, "cuStreamCreate"},
    {"cuStreamCreateWithPriority", 5050, "cuStreamCreateWithPriority"},
    {"cuStreamDestroy", 4000, "cuStreamDestroy_v2"},
    {"cuStreamEndCapture", 10000, "cuStreamEndCapture"},
    {"cuStreamGetCaptureInfo", 11030, "cuStreamGetCaptureInfo_v2"},
    {"cuStreamGetCaptureInfo", 12030, "cuStreamGetCaptureInfo_v3"},
    {"cuStreamUpdateCaptureDependencies", 11030, "cuStreamUpdateCaptureDependencies"},
    {"cuStreamUpdateCaptureDependencies", 12030, "cuStreamUpdateCaptureDependencies_v2"},
    {"cuGraphAddChildGraphNode", 10000, "cuGraphAddChildGraphNode"},
    {"cuStreamGetFlags", 5050, "cuStreamGetFlags"},
    {"cuStreamGetPriority", 5050, "cuStreamGetPriority"},
    {"cuStreamIsCapturing", 10000, "cuStreamIsCapturing"},
    {"cuStreamQuery", 2000, "cuStreamQuery"},
    {"cuStreamSynchronize", 2000, "cuStreamSynchronize"},
    {"cuStreamWaitEvent", 3020, "cuStreamWaitEvent"},
    {"cuThreadExchangeStreamCaptureMode", 10010, "cuThreadExchangeStreamCaptureMode"},
};

void* own_library() {
    static void* handle = [] {
        Dl_info info;
        dladdr(reinterpret_cast<void*>(&cuGetProcAddress_v2), &info);
        return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }();
    return handle;
}

}  // namespace

API CUresult cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t, int* status) {
    const Symbol* best = nullptr;
    bool known = false;
    const int newest = version < settings.driver_version ? version : settings.driver_version;
    for (const Symbol& symbol : SYMBOLS) {
        if (std::strcmp(symbol.name, name) != 0) continue;
        known = true;
        if (symbol.version <= newest && (!best || symbol.version > best->version)) best = &symbol;
    }
    *function = best ? dlsym(own_library(), best->exported) : nullptr;
    if (best && !*function) die("%s is listed and not exported", best->exported);
    if (status) *status = best ? 0 : known ? 2 : 1;  // found, needs another version, not found
    return best ? SUCCESS : NOT_FOUND;
}

API CUresult cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
