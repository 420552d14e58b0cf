// Settings, call counters, injected errors, contexts and the state of threads.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "abi.h"

struct Stream;
struct Capture;

// Read from the environment when the library is loaded; see README.md.
struct Settings {
    int devices, driver_version, capability_major, capability_minor, integrated;
    size_t memory;
    std::string name;
    std::atomic<bool> null_mode, eager;
};
extern Settings& settings;

struct Context {
    int device;
    bool primary;
    int references = 0;
    std::shared_ptr<Stream> legacy, per_thread;  // the two default streams
};

// A function of the library: how often it was called, and when it should fail.
struct Counter {
    std::atomic<long> calls{0};
    std::atomic<long> fails_in{0};  // the n-th call from now fails; 0: none
    std::atomic<int> code{0};
};
Counter& counter(const std::string& function);

// The calling thread: its stack of contexts, its capture mode, and whether it runs a host function.
struct Thread {
    std::vector<Context*> contexts;
    int capture_mode = CAPTURE_GLOBAL;
    bool in_host_function = false;
};
extern thread_local Thread thread;
inline Context* current() { return thread.contexts.empty() ? nullptr : thread.contexts.back(); }

// Guards everything but running work; threads that wait for work wait on `progress`.
extern std::mutex lock;
extern std::condition_variable progress;

extern std::atomic<bool> initialized, forked;
CUresult enter(Counter& counter, bool needs_init);

// Live handles of one kind, by address.
template <class T> struct Registry {
    std::unordered_map<void*, std::shared_ptr<T>> alive;
    void* add(std::shared_ptr<T> object) {
        void* handle = object.get();
        alive.emplace(handle, std::move(object));
        return handle;
    }
    std::shared_ptr<T> find(void* handle) const {
        auto entry = alive.find(handle);
        return entry == alive.end() ? nullptr : entry->second;
    }
};

[[noreturn]] void die(const char* format, ...);

// First lines of every function: count the call, and fail as the driver would.
#define ENTER_UNSTARTED(name)                   \
    static Counter& counter_ = counter(name);   \
    if (CUresult error_ = enter(counter_, false)) return error_
#define ENTER(name)                             \
    static Counter& counter_ = counter(name);   \
    if (CUresult error_ = enter(counter_, true)) return error_
#define ENTER_CONTEXT(name)                     \
    ENTER(name);                                \
    if (!current()) return INVALID_CONTEXT
