#include "streams.h"

#include <algorithm>

Registry<Stream>& streams = *new Registry<Stream>;
Registry<Event>& events = *new Registry<Event>;

std::shared_ptr<Stream> find_stream(void* handle) {
    const auto number = reinterpret_cast<uintptr_t>(handle);
    if (number > 2) return streams.find(handle);
    if (!current()) return nullptr;
    return number == 2 ? current()->per_thread : current()->legacy;
}

static bool is_default(const Stream& stream) { return &stream == stream.context->legacy.get(); }

// Streams that the default stream orders: itself and those created without STREAM_NON_BLOCKING.
static std::vector<Place> implicit_order(const Stream& stream) {
    std::vector<Place> places;
    const auto add = [&](const std::shared_ptr<Stream>& other) {
        if (other.get() != &stream && other->done < other->enqueued) places.push_back({other, other->enqueued});
    };
    if (is_default(stream)) {
        for (auto& [handle, other] : streams.alive)
            if (other->context == stream.context && !(other->flags & STREAM_NON_BLOCKING)) add(other);
        add(stream.context->per_thread);
    } else if (!(stream.flags & STREAM_NON_BLOCKING)) {
        add(stream.context->legacy);
    }
    return places;
}

CUresult enqueue(std::unique_lock<std::mutex>& guard, const std::shared_ptr<Stream>& stream, Work work) {
    if (Capture* capture = stream->capture.get()) {
        if (capture->invalid) return CAPTURE_INVALIDATED;
        if (capture->loose) return CAPTURE_UNJOINED;
        ++capture->count[stream.get()];
        if (!work.marker) capture->nodes.push_back(std::move(work));
        return SUCCESS;
    }
    if (settings.null_mode && !work.marker) return SUCCESS;
    for (Place& place : implicit_order(*stream)) stream->queue.push_back({[] {}, place, true, nullptr}), ++stream->enqueued;
    stream->queue.push_back(std::move(work));
    ++stream->enqueued;
    if (settings.eager || settings.null_mode) drain(guard, {stream, stream->enqueued});
    return SUCCESS;
}

void drain(std::unique_lock<std::mutex>& guard, const Place& place) {
    const std::shared_ptr<Stream> stream = place.stream;
    while (stream && stream->done < place.sequence) {
        if (stream->running) {
            progress.wait(guard);
            continue;
        }
        stream->running = true;
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        drain(guard, work.after);
        guard.unlock();
        work.run();
        guard.lock();
        stream->running = false;
        ++stream->done;
        progress.notify_all();
    }
}

void drain_all() {
    std::unique_lock<std::mutex> guard(lock);
    std::vector<Place> places;
    for (auto& [handle, stream] : streams.alive) places.push_back({stream, stream->enqueued});
    if (Context* context = current()) {
        places.push_back({context->legacy, context->legacy->enqueued});
        places.push_back({context->per_thread, context->per_thread->enqueued});
    }
    for (Place& place : places) drain(guard, place);
}

// -- streams --------------------------------------------------------------------------------------------------------

API CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER_CONTEXT("cuCtxGetStreamPriorityRange");
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}

API CUresult cuStreamCreateWithPriority(void** handle, unsigned flags, int priority) {
    ENTER_CONTEXT("cuStreamCreateWithPriority");
    auto stream = std::make_shared<Stream>();
    stream->context = current();
    stream->flags = flags;
    stream->priority = priority;
    std::lock_guard<std::mutex> guard(lock);
    *handle = streams.add(stream);
    return SUCCESS;
}

API CUresult cuStreamCreate(void** handle, unsigned flags) {
    ENTER_CONTEXT("cuStreamCreate");
    return cuStreamCreateWithPriority(handle, flags, 0);
}

API CUresult cuStreamDestroy_v2(void* handle) {
    ENTER_CONTEXT("cuStreamDestroy");
    std::unique_lock<std::mutex> guard(lock);
    auto stream = streams.find(handle);
    if (!stream) return INVALID_HANDLE;
    drain(guard, {stream, stream->enqueued});
    streams.alive.erase(handle);
    return SUCCESS;
}

API CUresult cuStreamGetPriority(void* handle, int* priority) {
    ENTER_CONTEXT("cuStreamGetPriority");
    std::lock_guard<std::mutex> guard(lock);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    *priority = stream->priority;
    return SUCCESS;
}

API CUresult cuStreamGetFlags(void* handle, unsigned* flags) {
    ENTER_CONTEXT("cuStreamGetFlags");
    std::lock_guard<std::mutex> guard(lock);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    *flags = stream->flags;
    return SUCCESS;
}

API CUresult cuStreamSynchronize(void* handle) {
    ENTER_CONTEXT("cuStreamSynchronize");
    std::unique_lock<std::mutex> guard(lock);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) {
        stream->capture->invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    drain(guard, {stream, stream->enqueued});
    return SUCCESS;
}

// Each query runs one piece of work, so that a polling program makes progress.
API CUresult cuStreamQuery(void* handle) {
    ENTER_CONTEXT("cuStreamQuery");
    std::unique_lock<std::mutex> guard(lock);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) {
        stream->capture->invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    if (stream->done >= stream->enqueued) return SUCCESS;
    drain(guard, {stream, stream->done + 1});
    return NOT_READY;
}

API CUresult cuCtxSynchronize() {
    ENTER_CONTEXT("cuCtxSynchronize");
    if (CUresult error = unsafe_call()) return error;
    drain_all();
    return SUCCESS;
}

// Work that takes some time, for tests.
API CUresult fake_sleep(void* handle, int milliseconds) {
    std::unique_lock<std::mutex> guard(lock);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    const auto time = std::chrono::milliseconds(milliseconds);
    return enqueue(guard, stream, {[=] { std::this_thread::sleep_for(time); }, {}, false, nullptr});
}

// -- events ---------------------------------------------------------------------------------------------------------

API CUresult cuEventCreate(void** handle, unsigned flags) {
    ENTER_CONTEXT("cuEventCreate");
    auto event = std::make_shared<Event>();
    event->context = current();
    event->flags = flags;
    std::lock_guard<std::mutex> guard(lock);
    *handle = events.add(event);
    return SUCCESS;
}

API CUresult cuEventDestroy_v2(void* handle) {
    ENTER("cuEventDestroy");
    std::lock_guard<std::mutex> guard(lock);
    return events.alive.erase(handle) ? SUCCESS : INVALID_HANDLE;
}

static CUresult record(void* event_handle, void* stream_handle, bool external) {
    std::unique_lock<std::mutex> guard(lock);
    auto event = events.find(event_handle);
    auto stream = find_stream(stream_handle);
    if (!event || !stream || event->context != stream->context) return INVALID_HANDLE;
    Capture* capture = stream->capture.get();
    if (external && !capture) return INVALID_VALUE;
    Work work{[event] { event->reached = std::chrono::steady_clock::now(); }, {}, !external, external ? event : nullptr};
    event->recorded = true;
    event->capture = external ? nullptr : stream->capture;
    if (capture && !external) {
        event->known = capture->known[stream.get()];
        event->known[stream.get()] = capture->count[stream.get()];
        return capture->invalid ? CAPTURE_INVALIDATED : SUCCESS;
    }
    CUresult error = enqueue(guard, stream, std::move(work));
    if (!capture) event->place = {stream, stream->enqueued};
    return error;
}

API CUresult cuEventRecord(void* event, void* stream) {
    ENTER_CONTEXT("cuEventRecord");
    return record(event, stream, false);
}

API CUresult cuEventRecordWithFlags(void* event, void* stream, unsigned flags) {
    ENTER_CONTEXT("cuEventRecordWithFlags");
    return record(event, stream, flags & EVENT_EXTERNAL);
}

// A stream waits for an event of a capture: it becomes part of the capture.
static CUresult join(Capture& capture, const std::shared_ptr<Stream>& stream, const Event& event) {
    if (!stream->capture) stream->capture = event.capture;
    if (stream->capture.get() != event.capture.get()) {
        stream->capture->invalid = event.capture->invalid = true;
        return CAPTURE_MERGE;
    }
    Known& known = capture.known[stream.get()];
    capture.count[stream.get()];
    for (auto& [other, count] : event.known) known[other] = std::max(known[other], count);
    return SUCCESS;
}

API CUresult cuStreamWaitEvent(void* stream_handle, void* event_handle, unsigned) {
    ENTER_CONTEXT("cuStreamWaitEvent");
    std::unique_lock<std::mutex> guard(lock);
    auto event = events.find(event_handle);
    auto stream = find_stream(stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    if (!event->recorded) return SUCCESS;
    if (event->capture) return join(*event->capture, stream, *event);
    if (stream->capture) {
        stream->capture->invalid = true;
        return CAPTURE_ISOLATION;
    }
    return enqueue(guard, stream, {[] {}, event->place, true, nullptr});
}

API CUresult cuEventSynchronize(void* handle) {
    ENTER_CONTEXT("cuEventSynchronize");
    std::unique_lock<std::mutex> guard(lock);
    auto event = events.find(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) {
        event->capture->invalid = true;
        return CAPTURED_EVENT;
    }
    drain(guard, event->place);
    return SUCCESS;
}

API CUresult cuEventQuery(void* handle) {
    ENTER_CONTEXT("cuEventQuery");
    if (CUresult error = unsafe_call()) return error;
    std::unique_lock<std::mutex> guard(lock);
    auto event = events.find(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return CAPTURED_EVENT;
    const auto& stream = event->place.stream;
    if (!stream || stream->done >= event->place.sequence) return SUCCESS;
    drain(guard, {stream, stream->done + 1});
    return NOT_READY;
}

static CUresult elapsed(float* milliseconds, void* start_handle, void* end_handle) {
    std::lock_guard<std::mutex> guard(lock);
    auto start = events.find(start_handle), end = events.find(end_handle);
    if (!start || !end || !start->recorded || !end->recorded) return INVALID_HANDLE;
    if ((start->flags | end->flags) & EVENT_DISABLE_TIMING) return INVALID_HANDLE;
    if (start->capture || end->capture) return CAPTURED_EVENT;
    for (auto& event : {start, end})
        if (event->place.stream && event->place.stream->done < event->place.sequence) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end->reached - start->reached).count();
    return SUCCESS;
}

API CUresult cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    ENTER("cuEventElapsedTime");
    return elapsed(milliseconds, start, end);
}

API CUresult cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    ENTER("cuEventElapsedTime");
    return elapsed(milliseconds, start, end);
}
