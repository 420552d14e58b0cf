// Modules: an image represents a shared library of the emulator with the same kernels, which a launch calls.
#include <dlfcn.h>

#include <cstring>
#include <sstream>

#include "streams.h"

namespace {

using Launch = int (*)(const char* kernel, const unsigned grid[3], const unsigned block[3], unsigned shared, void** params);
using Parameters = int (*)(const char* kernel, unsigned* sizes, int capacity);
using Error = const char* (*)();

struct Library {
    Launch launch;
    Parameters parameters;
    Error error;  // may be missing
};

struct Module {
    Context* context;
    std::vector<std::string> libraries;  // searched for its functions
};

struct Function {
    std::shared_ptr<Module> module;
    std::string name;
    Library library;
    std::vector<unsigned> sizes;  // of the parameters
};

const int MAX_PARAMETERS = 64;
const int SHARED_OPTIN = 227 << 10;

Registry<Module>& modules = *new Registry<Module>;
auto& functions = *new std::map<std::pair<Module*, std::string>, std::shared_ptr<Function>>;
auto& images = *new std::vector<std::pair<std::string, std::string>>;  // contents, library
std::mutex emulator;                                      // runs one block of one kernel at a time

Library open_library(const std::string& path) {
    Library library{};
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) die("cannot load the emulated kernels: %s", dlerror());
    library.launch = reinterpret_cast<Launch>(dlsym(handle, "emu_launch"));
    library.parameters = reinterpret_cast<Parameters>(dlsym(handle, "emu_parameters"));
    library.error = reinterpret_cast<Error>(dlsym(handle, "emu_error"));
    if (!library.launch || !library.parameters) die("%s has no emu_launch and emu_parameters", path.c_str());
    return library;
}

// "FAKECUDA:/path" names its library; other images were registered, or use the libraries of FAKE_CUDA_KERNELS.
std::vector<std::string> libraries_of(const char* image) {
    const char* mark = "FAKECUDA:";
    if (std::strncmp(image, mark, std::strlen(mark)) == 0) return {image + std::strlen(mark)};
    for (auto& [contents, library] : images) {
        size_t same = 0;
        while (same < contents.size() && contents[same] == image[same]) ++same;
        if (same == contents.size()) return {library};
    }
    std::vector<std::string> paths;
    const char* kernels = std::getenv("FAKE_CUDA_KERNELS");
    std::istringstream list(kernels ? kernels : "");
    for (std::string path; std::getline(list, path, ':');)
        if (!path.empty()) paths.push_back(path);
    return paths;
}

std::shared_ptr<Function> find_function(void* handle) {
    for (auto& [key, function] : functions)
        if (function.get() == handle) return function;
    return nullptr;
}

bool fits(const unsigned grid[3], const unsigned block[3], unsigned shared, const Function& function) {
    const bool sizes = grid[0] && grid[1] && grid[2] && block[0] && block[1] && block[2];
    return sizes && grid[1] <= 65535 && grid[2] <= 65535 && block[2] <= 64 &&
           size_t(block[0]) * block[1] * block[2] <= 1024 && shared <= 48 << 10;
}

Work launch_work(const std::shared_ptr<Function>& function, const unsigned grid[3], const unsigned block[3],
                 unsigned shared, void** params) {
    std::vector<std::vector<char>> values;  // the driver copies the arguments before it returns
    for (size_t i = 0; i < function->sizes.size(); ++i) {
        const char* value = static_cast<const char*>(params[i]);
        values.emplace_back(value, value + function->sizes[i]);
    }
    std::vector<unsigned> g(grid, grid + 3), b(block, block + 3);
    return {[=]() mutable {
        std::vector<void*> pointers;
        for (auto& value : values) pointers.push_back(value.data());
        std::lock_guard<std::mutex> guard(emulator);
        if (function->library.launch(function->name.c_str(), g.data(), b.data(), shared, pointers.data()) != 0)
            die("%s failed: %s", function->name.c_str(), function->library.error ? function->library.error() : "?");
    }, {}, false, nullptr};
}

}  // namespace

size_t living_modules() { return modules.alive.size(); }

API void fake_register_image(const char* image, size_t size, const char* library) {
    std::lock_guard<std::mutex> guard(lock);
    images.emplace_back(std::string(image, size), library);
}

API CUresult cuModuleLoadData(void** handle, const void* image) {
    ENTER_CONTEXT("cuModuleLoadData");
    if (CUresult error = unsafe_call()) return error;
    std::lock_guard<std::mutex> guard(lock);
    auto module = std::make_shared<Module>();
    module->context = current();
    module->libraries = libraries_of(static_cast<const char*>(image));
    if (module->libraries.empty()) return INVALID_IMAGE;
    *handle = modules.add(module);
    return SUCCESS;
}

API CUresult cuModuleLoadDataEx(void** handle, const void* image, unsigned, int*, void**) {
    ENTER_CONTEXT("cuModuleLoadDataEx");
    return cuModuleLoadData(handle, image);
}

API CUresult cuModuleUnload(void* handle) {
    ENTER_CONTEXT("cuModuleUnload");
    if (CUresult error = unsafe_call()) return error;
    std::lock_guard<std::mutex> guard(lock);
    auto module = modules.find(handle);
    if (!module) return INVALID_HANDLE;
    auto next = functions.lower_bound({module.get(), ""});
    while (next != functions.end() && next->first.first == module.get()) next = functions.erase(next);
    modules.alive.erase(handle);
    return SUCCESS;
}

API CUresult cuModuleGetFunction(void** handle, void* module_handle, const char* name) {
    ENTER_CONTEXT("cuModuleGetFunction");
    std::lock_guard<std::mutex> guard(lock);
    auto module = modules.find(module_handle);
    if (!module) return INVALID_HANDLE;
    auto& function = functions[{module.get(), name}];
    for (size_t i = 0; !function && i < module->libraries.size(); ++i) {
        unsigned sizes[MAX_PARAMETERS];
        const Library library = open_library(module->libraries[i]);
        const int count = library.parameters(name, sizes, MAX_PARAMETERS);
        if (count < 0) continue;
        function = std::make_shared<Function>();
        function->module = module;
        function->name = name;
        function->library = library;
        function->sizes.assign(sizes, sizes + count);
    }
    if (!function) {
        functions.erase({module.get(), name});
        return NOT_FOUND;
    }
    *handle = function.get();
    return SUCCESS;
}

API CUresult cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                            unsigned block_y, unsigned block_z, unsigned shared, void* stream_handle, void** params,
                            void** extra) {
    ENTER_CONTEXT("cuLaunchKernel");
    const unsigned grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
    std::unique_lock<std::mutex> guard(lock);
    auto function = find_function(handle);
    auto stream = find_stream(stream_handle);
    if (!function || !stream || stream->context != function->module->context) return INVALID_HANDLE;
    if (extra) return NOT_SUPPORTED;
    if (!fits(grid, block, shared, *function) || (!params && !function->sizes.empty())) return INVALID_VALUE;
    if (settings.null_mode && !stream->capture) return SUCCESS;
    return enqueue(guard, stream, launch_work(function, grid, block, shared, params));
}

API CUresult cuLaunchHostFunc(void* handle, void (*function)(void*), void* data) {
    ENTER_CONTEXT("cuLaunchHostFunc");
    std::unique_lock<std::mutex> guard(lock);
    auto stream = find_stream(handle);
    if (!stream || !function) return stream ? INVALID_VALUE : INVALID_HANDLE;
    return enqueue(guard, stream, {[=] {
        thread.in_host_function = true;
        function(data);
        thread.in_host_function = false;
    }, {}, false, nullptr});
}
