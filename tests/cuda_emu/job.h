// main() of a kernel source compiled as a program, for the sanitizers: runs the job described by the file argv[1].
//
// One item per line: "seed N", "buffer BYTES FILE", "launch KERNEL GX GY GZ BX BY BZ SHARED ARGUMENTS" and, for each
// argument, "at BUFFER OFFSET" or "value HEX". Buffers are read from their files and written back at the end.
#pragma once

namespace emu {
struct Buffer {
    char file[1024];
    size_t bytes;
    unsigned char* data;
};
inline Buffer buffers[64];
inline int num_buffers = 0;

[[noreturn]] inline void stop(const char* message) {
    std::fprintf(stderr, "cuda_emu: %s\n", message);
    std::_Exit(3);
}

inline void add_buffer(std::FILE* job) {
    Buffer& buffer = buffers[num_buffers++];
    if (num_buffers > 64 || std::fscanf(job, "%zu %1023s", &buffer.bytes, buffer.file) != 2) stop("a bad buffer");
    void* memory = nullptr;  // aligned like device memory, with exactly the requested size
    if (posix_memalign(&memory, 256, buffer.bytes) != 0) stop("no memory");
    buffer.data = static_cast<unsigned char*>(memory);
    std::FILE* file = std::fopen(buffer.file, "rb");
    if (file == nullptr || std::fread(buffer.data, 1, buffer.bytes, file) != buffer.bytes) stop("a short buffer file");
    std::fclose(file);
}

inline void run_launch(std::FILE* job) {
    char kernel[128];
    unsigned grid[3], block[3], shared, count;
    if (std::fscanf(job, "%127s %u %u %u %u %u %u %u %u", kernel, &grid[0], &grid[1], &grid[2], &block[0], &block[1],
                    &block[2], &shared, &count) != 9 || count > 64)
        stop("a bad launch");
    uint64_t values[64];
    void* params[64];
    for (unsigned i = 0; i < count; ++i) {
        char kind[16];
        unsigned long long a = 0, b = 0;
        if (std::fscanf(job, "%15s", kind) != 1) stop("a missing argument");
        if (std::strcmp(kind, "at") == 0) {
            if (std::fscanf(job, "%llu %llu", &a, &b) != 2) stop("a bad address");
            values[i] = reinterpret_cast<uintptr_t>(buffers[a].data + b);
        } else if (std::fscanf(job, "%llx", &a) != 1) {
            stop("a bad value");
        } else {
            values[i] = a;
        }
        params[i] = &values[i];
    }
    if (const int code = emu_launch(kernel, grid, block, shared, params); code != 0)
        stop(code == 1 ? "no kernel of that name" : emu_error());
}

inline void run_job(const char* path) {
    std::FILE* job = std::fopen(path, "r");
    if (job == nullptr) stop("no job file");
    char item[16];
    while (std::fscanf(job, "%15s", item) == 1) {
        if (std::strcmp(item, "seed") == 0) {
            unsigned number = 0;
            if (std::fscanf(job, "%u", &number) == 1) emu_seed(number);
        } else if (std::strcmp(item, "buffer") == 0) {
            add_buffer(job);
        } else {
            run_launch(job);
        }
    }
    std::fclose(job);
    for (int i = 0; i < num_buffers; ++i) {
        std::FILE* file = std::fopen(buffers[i].file, "wb");
        if (file == nullptr || std::fwrite(buffers[i].data, 1, buffers[i].bytes, file) != buffers[i].bytes)
            stop("cannot write a buffer");
        std::fclose(file);
    }
}
}

int main(int, char** arguments) {
    emu::run_job(arguments[1]);
    return 0;
}
