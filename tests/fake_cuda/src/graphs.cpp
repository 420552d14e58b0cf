// Stream capture and captured graphs.
#include <algorithm>

#include "streams.h"

Registry<Graph>& graphs = *new Registry<Graph>;
Registry<GraphExec>& execs = *new Registry<GraphExec>;

static auto& ongoing = *new std::vector<std::shared_ptr<Capture>>;

CUresult unsafe_call() {
    std::lock_guard<std::mutex> guard(lock);
    if (thread.capture_mode == CAPTURE_RELAXED) return SUCCESS;
    bool unsafe = false;
    for (auto& capture : ongoing) {
        const bool mine = capture->owner == std::this_thread::get_id() && capture->mode != CAPTURE_RELAXED;
        const bool everybodys = capture->mode == CAPTURE_GLOBAL && thread.capture_mode == CAPTURE_GLOBAL;
        if (mine || everybodys) capture->invalid = unsafe = true;
    }
    return unsafe ? CAPTURE_UNSUPPORTED : SUCCESS;
}

API CUresult cuThreadExchangeStreamCaptureMode(int* mode) {
    ENTER("cuThreadExchangeStreamCaptureMode");
    std::swap(*mode, thread.capture_mode);
    return SUCCESS;
}

API CUresult cuStreamBeginCapture_v2(void* handle, int mode) {
    ENTER_CONTEXT("cuStreamBeginCapture");
    std::lock_guard<std::mutex> guard(lock);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream == stream->context->legacy) return CAPTURE_UNSUPPORTED;
    if (stream->capture) return CAPTURE_UNMATCHED;
    auto capture = std::make_shared<Capture>();
    capture->origin = stream.get();
    capture->mode = mode;
    capture->owner = std::this_thread::get_id();
    capture->count[stream.get()] = 0;
    stream->capture = capture;
    ongoing.push_back(capture);
    return SUCCESS;
}

// Whether the origin has waited for the last work of every captured stream.
static bool joined(Capture& capture) {
    Known& known = capture.known[capture.origin];
    return std::all_of(capture.count.begin(), capture.count.end(), [&](auto& entry) {
        return entry.first == capture.origin || entry.second <= known[entry.first];
    });
}

static void leave(const std::shared_ptr<Capture>& capture) {
    for (auto& [handle, stream] : streams.alive)
        if (stream->capture == capture) stream->capture = nullptr;
    ongoing.erase(std::remove(ongoing.begin(), ongoing.end(), capture), ongoing.end());
}

API CUresult cuStreamEndCapture(void* handle, void** graph) {
    ENTER_CONTEXT("cuStreamEndCapture");
    std::lock_guard<std::mutex> guard(lock);
    *graph = nullptr;
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    auto capture = stream->capture;
    if (!capture) return INVALID_VALUE;
    if (capture->origin != stream.get()) return CAPTURE_UNMATCHED;
    if (capture->mode != CAPTURE_RELAXED && capture->owner != std::this_thread::get_id()) return CAPTURE_WRONG_THREAD;
    leave(capture);
    if (capture->invalid) return CAPTURE_INVALIDATED;
    if (!joined(*capture) || capture->loose) return CAPTURE_UNJOINED;
    auto made = std::make_shared<Graph>();
    made->nodes = std::move(capture->nodes);
    *graph = graphs.add(made);
    return SUCCESS;
}

API CUresult cuStreamIsCapturing(void* handle, int* status) {  // 0 no, 1 yes, 2 invalidated
    ENTER_CONTEXT("cuStreamIsCapturing");
    std::lock_guard<std::mutex> guard(lock);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return SUCCESS;
}

// The graph of a capture is its address; a node is the address of a byte that is never freed.
static CUresult capture_info(void* handle, int* status, uint64_t* id, void** graph, void*** dependencies, size_t* count) {
    ENTER_CONTEXT("cuStreamGetCaptureInfo");
    std::lock_guard<std::mutex> guard(lock);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    if (id) *id = 1;
    if (graph) *graph = stream->capture.get();
    if (dependencies) *dependencies = nullptr;
    if (count) *count = 0;
    return SUCCESS;
}

API CUresult cuStreamGetCaptureInfo_v2(void* stream, int* status, uint64_t* id, void** graph, void*** dependencies,
                                       size_t* count) {
    return capture_info(stream, status, id, graph, dependencies, count);
}

API CUresult cuStreamGetCaptureInfo_v3(void* stream, int* status, uint64_t* id, void** graph, void*** dependencies,
                                       void** edges, size_t* count) {
    if (edges) *edges = nullptr;
    return capture_info(stream, status, id, graph, dependencies, count);
}

API CUresult cuGraphAddChildGraphNode(void** node, void* graph, void*, size_t, void* child) {
    ENTER("cuGraphAddChildGraphNode");
    std::lock_guard<std::mutex> guard(lock);
    auto inner = graphs.find(child);
    auto capture = std::find_if(ongoing.begin(), ongoing.end(), [&](auto& each) { return each.get() == graph; });
    if (!inner || capture == ongoing.end()) return INVALID_VALUE;
    (*capture)->nodes.push_back({[nodes = inner->nodes] { for (auto& each : nodes) each.run(); }, {}, false, nullptr});
    *node = (*capture)->loose = new char;
    return SUCCESS;
}

static CUresult follow(void* handle, void** nodes, size_t count, unsigned flags) {
    ENTER_CONTEXT("cuStreamUpdateCaptureDependencies");
    std::lock_guard<std::mutex> guard(lock);
    auto stream = find_stream(handle);
    if (!stream || !stream->capture) return INVALID_VALUE;
    if (count != 1 || flags != 1 || nodes[0] != stream->capture->loose) return INVALID_VALUE;
    stream->capture->loose = nullptr;
    return SUCCESS;
}

API CUresult cuStreamUpdateCaptureDependencies(void* stream, void** nodes, size_t count, unsigned flags) {
    return follow(stream, nodes, count, flags);
}

API CUresult cuStreamUpdateCaptureDependencies_v2(void* stream, void** nodes, void*, size_t count, unsigned flags) {
    return follow(stream, nodes, count, flags);
}

API CUresult cuGraphGetNodes(void* handle, void** nodes, size_t* count) {
    ENTER("cuGraphGetNodes");
    std::lock_guard<std::mutex> guard(lock);
    auto graph = graphs.find(handle);
    if (!graph) return INVALID_VALUE;
    if (nodes) return NOT_SUPPORTED;
    *count = graph->nodes.size();
    return SUCCESS;
}

API CUresult cuGraphInstantiateWithFlags(void** handle, void* graph_handle, unsigned long long) {
    ENTER_CONTEXT("cuGraphInstantiate");
    std::lock_guard<std::mutex> guard(lock);
    auto graph = graphs.find(graph_handle);
    if (!graph) return INVALID_VALUE;
    auto exec = std::make_shared<GraphExec>();
    exec->nodes = graph->nodes;
    *handle = execs.add(exec);
    return SUCCESS;
}

API CUresult cuGraphUpload(void* handle, void* stream) {
    ENTER_CONTEXT("cuGraphUpload");
    std::lock_guard<std::mutex> guard(lock);
    return execs.find(handle) && find_stream(stream) ? SUCCESS : INVALID_VALUE;
}

API CUresult cuGraphLaunch(void* handle, void* stream_handle) {
    ENTER_CONTEXT("cuGraphLaunch");
    std::unique_lock<std::mutex> guard(lock);
    auto exec = execs.find(handle);
    auto stream = find_stream(stream_handle);
    if (!exec || !stream) return exec ? INVALID_HANDLE : INVALID_VALUE;
    Work work{[exec] { for (auto& node : exec->nodes) node.run(); }, exec->last, false, nullptr};
    CUresult error = enqueue(guard, stream, std::move(work));
    if (stream->capture) return error;
    exec->last = {stream, stream->enqueued};
    for (auto& node : exec->nodes)
        if (node.event) node.event->place = exec->last;
    return error;
}

API CUresult cuGraphDestroy(void* handle) {
    ENTER("cuGraphDestroy");
    std::lock_guard<std::mutex> guard(lock);
    return graphs.alive.erase(handle) ? SUCCESS : INVALID_VALUE;
}

API CUresult cuGraphExecDestroy(void* handle) {
    ENTER("cuGraphExecDestroy");
    std::lock_guard<std::mutex> guard(lock);
    return execs.alive.erase(handle) ? SUCCESS : INVALID_VALUE;
}
