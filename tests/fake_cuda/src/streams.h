// Streams, events, captures and graphs. Work is queued and runs when something waits for it.
#pragma once
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <thread>

#include "core.h"

// A place in a stream: everything up to its `sequence`-th piece of work.
struct Place {
    std::shared_ptr<Stream> stream;
    uint64_t sequence = 0;
};

struct Event;

struct Work {
    std::function<void()> run;
    Place after;                   // work elsewhere that comes first
    bool marker = false;           // records or waits for an event: not a node of a graph
    std::shared_ptr<Event> event;  // recorded by every launch of the graph
};

// The work of each stream that is known to be done before a given point of a capture.
using Known = std::map<Stream*, uint64_t>;

struct Capture {
    std::vector<Work> nodes;  // of all streams, in the order of the calls, which is a valid order to run them
    Stream* origin;
    int mode;
    std::thread::id owner;
    bool invalid = false;
    void* loose = nullptr;  // a node added by hand, which no stream follows yet
    Known count;
    std::map<Stream*, Known> known;
};

struct Stream : std::enable_shared_from_this<Stream> {
    Context* context;
    unsigned flags;
    int priority;
    std::deque<Work> queue;
    uint64_t enqueued = 0, done = 0;
    bool running = false;
    std::shared_ptr<Capture> capture;
};

struct Event {
    Context* context;
    unsigned flags;
    bool recorded = false;
    Place place;                       // of the last record
    std::shared_ptr<Capture> capture;  // in which it was last recorded
    Known known;
    std::chrono::steady_clock::time_point reached;
};

struct Graph {
    std::vector<Work> nodes;
};

struct GraphExec {
    std::vector<Work> nodes;
    Place last;  // its launches run one after another, whatever their streams
};

extern Registry<Stream>& streams;
extern Registry<Event>& events;
extern Registry<Graph>& graphs;
extern Registry<GraphExec>& execs;

// The stream of a handle: 0 and 1 are the legacy default stream, 2 is the thread's. `lock` is held.
std::shared_ptr<Stream> find_stream(void* handle);

// Adds work to a stream, or to the capture that it is part of. `guard` holds `lock`, and is released while work runs.
CUresult enqueue(std::unique_lock<std::mutex>& guard, const std::shared_ptr<Stream>& stream, Work work);

// Runs the work of a stream up to a place, or waits until another thread has done so.
void drain(std::unique_lock<std::mutex>& guard, const Place& place);
void drain_all();

// An error if a call is not allowed during a capture; the call then invalidates the capture.
CUresult unsafe_call();
