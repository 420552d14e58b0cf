#include "core.h"

#include <pthread.h>

#include <cstdarg>
#include <cstring>
#include <map>

// Objects that must outlive main are never destroyed.
Settings& settings = *new Settings;
thread_local Thread thread;
std::mutex lock;
std::condition_variable progress;
std::atomic<bool> initialized{false}, forked{false};

static std::string text(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value && *value ? value : otherwise;
}

static long long number(const char* name, const char* otherwise) { return std::atoll(text(name, otherwise).c_str()); }

void die(const char* format, ...) {
    va_list values;
    va_start(values, format);
    std::fprintf(stderr, "fake_cuda: ");
    std::vfprintf(stderr, format, values);
    std::fprintf(stderr, "\n");
    va_end(values);
    std::fflush(stderr);
    std::abort();
}

static std::map<std::string, Counter>& counters() {
    static auto* all = new std::map<std::string, Counter>;  // never destroyed: calls may come late
    return *all;
}

static std::mutex& counters_lock() {
    static auto* own = new std::mutex;
    return *own;
}

Counter& counter(const std::string& function) {
    std::lock_guard<std::mutex> guard(counters_lock());
    return counters()[function];
}

CUresult enter(Counter& counter, bool needs_init) {
    counter.calls.fetch_add(1, std::memory_order_relaxed);
    if (counter.fails_in.load(std::memory_order_relaxed) > 0 && counter.fails_in.fetch_sub(1) == 1) return counter.code;
    if (forked || (needs_init && !initialized)) return NOT_INITIALIZED;
    return thread.in_host_function ? NOT_PERMITTED : SUCCESS;
}

// FAKE_CUDA_FAIL="cuMemAlloc:3:2;cuInit:1:999": the third cuMemAlloc fails with code 2, ...
static void inject(const std::string& rules) {
    for (size_t start = 0; start < rules.size();) {
        size_t end = rules.find(';', start);
        if (end == std::string::npos) end = rules.size();
        char name[128];
        long nth;
        int code;
        if (std::sscanf(rules.substr(start, end - start).c_str(), "%127[^:]:%ld:%d", name, &nth, &code) == 3) {
            counter(name).code = code;
            counter(name).fails_in = nth;
        }
        start = end + 1;
    }
}

static bool load() {
    settings.devices = static_cast<int>(number("FAKE_CUDA_DEVICES", "1"));
    settings.driver_version = static_cast<int>(number("FAKE_CUDA_VERSION", "13000"));
    settings.memory = static_cast<size_t>(number("FAKE_CUDA_MEMORY", "8589934592"));
    settings.integrated = static_cast<int>(number("FAKE_CUDA_INTEGRATED", "0"));
    settings.name = text("FAKE_CUDA_NAME", "Fake GPU");
    settings.null_mode = number("FAKE_CUDA_NULL", "0") != 0;
    settings.eager = text("FAKE_CUDA_ORDER", "lazy") == "eager";
    if (std::sscanf(text("FAKE_CUDA_CAPABILITY", "8.7").c_str(), "%d.%d", &settings.capability_major,
                    &settings.capability_minor) != 2)
        die("FAKE_CUDA_CAPABILITY must look like 8.7");
    inject(text("FAKE_CUDA_FAIL", ""));
    pthread_atfork(nullptr, nullptr, [] { forked = initialized.load(); });
    return true;
}

static const bool loaded = load();

// -- for tests ------------------------------------------------------------------------------------------------------

API long fake_calls(const char* function) { return counter(function).calls; }

API void fake_reset_calls() {
    std::lock_guard<std::mutex> guard(counters_lock());
    for (auto& [name, counter] : counters()) counter.calls = 0;
}

API void fake_fail(const char* function, long nth, int code) {
    counter(function).code = code;
    counter(function).fails_in = nth;
}

API void fake_set_eager(int eager) { settings.eager = eager != 0; }

API void fake_set_null(int null_mode) { settings.null_mode = null_mode != 0; }
