// Memory: host memory with guards, whose addresses are also the device addresses.
#pragma once
#include <map>

#include "core.h"

enum class Kind { device, pinned };

// The user's bytes end close to an inaccessible page; the gap is filled with a pattern and checked.
struct Block {
    uintptr_t begin;
    size_t size;
    unsigned char* mapping;
    size_t mapped;
    Kind kind;
    Context* context;
};

extern std::map<uintptr_t, Block>& blocks;  // by start address

// The block that holds [address, address + size), or nullptr. `lock` is held.
const Block* find_block(uintptr_t address, size_t size);
const Block* find_block(const void* address, size_t size);

// Dies unless the memory still exists when the work runs, which may be long after it was recorded.
void require_alive(CUdeviceptr address, size_t size, const char* what);

// Bytes allocated on a device. `lock` is held.
size_t bytes_used(int device);

// Dies if something was written outside a block. `lock` is held.
void check_guards(const Block& block);
