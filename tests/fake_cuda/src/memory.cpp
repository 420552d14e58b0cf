#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "streams.h"

std::map<uintptr_t, Block>& blocks = *new std::map<uintptr_t, Block>;

static const unsigned char GUARD = 0xA5;
static const unsigned char FRESH = 0xFF;  // NaN as float, -1 as int: so that reading uninitialized memory shows
static const size_t FRESH_LIMIT = size_t(256) << 20;
static const size_t ALIGNMENT = 256;  // of cuMemAlloc

static size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

const Block* find_block(uintptr_t address, size_t size) {
    auto after = blocks.upper_bound(address);
    if (after == blocks.begin()) return nullptr;
    const Block& block = std::prev(after)->second;
    return address + size <= block.begin + block.size ? &block : nullptr;
}

const Block* find_block(const void* address, size_t size) {
    return find_block(reinterpret_cast<uintptr_t>(address), size);
}

void require_alive(CUdeviceptr address, size_t size, const char* what) {
    std::lock_guard<std::mutex> guard(lock);
    if (!find_block(static_cast<uintptr_t>(address), size)) die("%s of memory that was freed before it ran", what);
}

size_t bytes_used(int device) {
    size_t sum = 0;
    for (auto& [begin, block] : blocks)
        if (block.kind == Kind::device && block.context->device == device) sum += block.size;
    return sum;
}

static Block map_block(size_t size, Kind kind) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inner = round_up(round_up(size, ALIGNMENT), page);
    Block block{};
    block.mapped = inner + 2 * page;
    void* mapping = mmap(nullptr, block.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return block;
    block.mapping = static_cast<unsigned char*>(mapping);
    unsigned char* usable = block.mapping + page;
    mprotect(usable, inner, PROT_READ | PROT_WRITE);
    unsigned char* begin = usable + inner - round_up(size, ALIGNMENT);
    std::memset(usable, GUARD, static_cast<size_t>(begin - usable));
    if (size <= FRESH_LIMIT) std::memset(begin, FRESH, size);
    std::memset(begin + size, GUARD, static_cast<size_t>(usable + inner - begin) - size);
    block.begin = reinterpret_cast<uintptr_t>(begin);
    block.size = size;
    block.kind = kind;
    block.context = current();
    return block;
}

void check_guards(const Block& block) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const char* kind = block.kind == Kind::device ? "device" : "pinned";
    auto* begin = reinterpret_cast<unsigned char*>(block.begin);
    for (unsigned char* byte = block.mapping + page; byte < begin; ++byte)
        if (*byte != GUARD) die("%s buffer of %zu bytes was written %td bytes before its start", kind, block.size, begin - byte);
    for (unsigned char* byte = begin + block.size; byte < block.mapping + block.mapped - page; ++byte)
        if (*byte != GUARD)
            die("%s buffer of %zu bytes was written %td bytes past its end", kind, block.size, byte - begin - block.size + 1);
}

static CUresult allocate(size_t size, Kind kind, uintptr_t* address) {
    if (!address || !size) return INVALID_VALUE;
    if (CUresult error = unsafe_call()) return error;
    std::lock_guard<std::mutex> guard(lock);
    if (kind == Kind::device && size > settings.memory - bytes_used(current()->device)) return OUT_OF_MEMORY;
    Block block = map_block(size, kind);
    if (!block.mapping) return OUT_OF_MEMORY;
    *address = block.begin;
    blocks.emplace(block.begin, block);
    return SUCCESS;
}

static CUresult give_back(uintptr_t address, Kind kind) {
    if (CUresult error = unsafe_call()) return error;
    drain_all();  // freeing waits for the device
    std::lock_guard<std::mutex> guard(lock);
    auto entry = blocks.find(address);
    if (entry == blocks.end() || entry->second.kind != kind) return INVALID_VALUE;
    check_guards(entry->second);
    munmap(entry->second.mapping, entry->second.mapped);
    blocks.erase(entry);
    return SUCCESS;
}

API CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER_CONTEXT("cuMemGetInfo");
    std::lock_guard<std::mutex> guard(lock);
    *total = settings.memory;
    *free = settings.memory - bytes_used(current()->device);
    return SUCCESS;
}

API CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t size) {
    ENTER_CONTEXT("cuMemAlloc");
    uintptr_t begin = 0;
    CUresult error = allocate(size, Kind::device, &begin);
    if (!error) *address = begin;
    return error;
}

API CUresult cuMemFree_v2(CUdeviceptr address) {
    ENTER_CONTEXT("cuMemFree");
    return give_back(static_cast<uintptr_t>(address), Kind::device);
}

API CUresult cuMemHostAlloc(void** address, size_t size, unsigned) {
    ENTER_CONTEXT("cuMemHostAlloc");
    uintptr_t begin = 0;
    CUresult error = allocate(size, Kind::pinned, &begin);
    if (!error) *address = reinterpret_cast<void*>(begin);
    return error;
}

API CUresult cuMemFreeHost(void* address) {
    ENTER_CONTEXT("cuMemFreeHost");
    return give_back(reinterpret_cast<uintptr_t>(address), Kind::pinned);
}

API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* address, void* host, unsigned) {
    ENTER_CONTEXT("cuMemHostGetDevicePointer");
    std::lock_guard<std::mutex> guard(lock);
    const Block* block = find_block(host, 1);
    if (!block || block->kind != Kind::pinned) return INVALID_VALUE;
    *address = reinterpret_cast<uintptr_t>(host);
    return SUCCESS;
}

API CUresult cuPointerGetAttribute(void* data, int attribute, CUdeviceptr address) {
    ENTER_CONTEXT("cuPointerGetAttribute");
    std::lock_guard<std::mutex> guard(lock);
    const Block* block = find_block(static_cast<uintptr_t>(address), 1);
    if (!block) return INVALID_VALUE;
    switch (attribute) {
        case 1: *static_cast<Context**>(data) = block->context; return SUCCESS;
        case 2: *static_cast<unsigned*>(data) = block->kind == Kind::device ? 2 : 1; return SUCCESS;  // memory type
        case 3: *static_cast<CUdeviceptr*>(data) = address; return SUCCESS;                           // device pointer
        case 9: *static_cast<int*>(data) = block->context->device; return SUCCESS;                    // ordinal
        default: return NOT_SUPPORTED;
    }
}
