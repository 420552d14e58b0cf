// Fast NMS (YOLACT, arXiv:1904.02689, section 3.2) in three kernels: prior_best, select_entries, merge_entries.
//
// Legend: N images, P priors, C classes, K coefficients, k = top_k, L = min(k, D) entries kept per list, D detection
// slots. All arrays are dense. There is one list per class, or with CROSS_CLASS one list for all classes.
//
// Per image of YOLACT-550 with 80 classes (P = 19248, k = 200, D = 100, K = 32):
//   memory      6.16 MB of scores, read once by prior_best; everything else (2.4 KB of candidate bits, 64 KB of
// entries,               29 KB gathered and written) stays in the L2 cache
//   arithmetic  1.5 M comparisons of scores, at most 1.6 M box overlaps of 15 operations
// So a large batch is limited by memory bandwidth; prior_best keeps up to 320 bytes per lane in flight for it. A single
// image is limited by latency: three launches, each with a few dependent round trips to the L2 cache.
//
// Nothing here is atomic, needs initialized memory or depends on the order of threads. The float32 arithmetic equals
// that of postprocess.py; _rn intrinsics keep compiler options from fusing or relaxing it.
//
// Defines: THREADS of select and merge, VECTOR = floats per load of prior_best (1, 2 or 4; divides C), DEPTH = loads in
// flight per lane there (at most 32), CROSS_CLASS = 0 or 1.
#include "streaming_top.cuh"

#ifndef THREADS
#define THREADS 512
#endif
#ifndef VECTOR
#define VECTOR 4
#endif
#ifndef DEPTH
#define DEPTH 20
#endif
#ifndef CROSS_CLASS
#define CROSS_CLASS 0
#endif

// Number of candidates listed at a time.
#define WINDOW 2048

#if VECTOR == 4
typedef float4 Scores;
__device__ __forceinline__ Scores all_of(float value) { return make_float4(value, value, value, value); }
__device__ __forceinline__ bool any_above(Scores s, float limit) {
    return s.x > limit || s.y > limit || s.z > limit || s.w > limit;
}
#elif VECTOR == 2
typedef float2 Scores;
__device__ __forceinline__ Scores all_of(float value) { return make_float2(value, value); }
__device__ __forceinline__ bool any_above(Scores s, float limit) { return s.x > limit || s.y > limit; }
#else
typedef float Scores;
__device__ __forceinline__ Scores all_of(float value) { return value; }
__device__ __forceinline__ bool any_above(Scores s, float limit) { return s > limit; }
#endif

// -- prior_best -------------------------------------------------------------------------------------------------------

// The lanes that hold scores of the warp's prior number `prior`, if lane i loaded vector number start + i and a prior
// has `row` vectors.
__device__ __forceinline__ unsigned lanes_of_prior(int prior, int row, int start) {
    const int low = max(prior * row - start, 0), high = min((prior + 1) * row - start, WARP);
    return low < high ? (ALL_LANES >> (WARP - (high - low))) << low : 0u;
}

// The best score of one prior and its class; NaN is ignored. Called by the whole warp.
__device__ __forceinline__ Key best_class(const float* scores, int classes) {
    Key best = 0;
    for (int c = lane_of_thread(); c < classes; c += WARP) {
        const float score = scores[c];
        if (score > -positive_infinity()) best = max(best, make_key(score, c));
    }
    for (int stride = WARP / 2; stride > 0; stride /= 2) best = max(best, __shfl_xor_sync(ALL_LANES, best, stride));
    return best;
}

// A lane's next DEPTH vectors; `left` vectors remain for the whole warp, and -infinity (above nothing) follows them.
__device__ __forceinline__ void load_scores(Scores* loaded, const Scores* from, int left) {
    if (left >= DEPTH * WARP) {  // all but the last priors of an image: loads without conditions
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) loaded[d] = __ldg(from + d * WARP);
        return;
    }
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
        loaded[d] = d * WARP + lane_of_thread() < left ? __ldg(from + d * WARP) : all_of(-positive_infinity());
}

// One warp per 32 priors. Their scores are contiguous, so every load of the warp is coalesced. Few scores are above the
// threshold, so the prior of a score is computed only for those.
//
// scores [N,P,C] -> candidates [N, words]; with CROSS_CLASS also best_scores, best_classes [N,P], for candidates only.
// Grid: (words in units of the block's warps, N); words = ceil(P / 32).
extern "C" __global__ void prior_best(const float* __restrict__ scores, int priors, int classes, int threshold_bits,
#if CROSS_CLASS
                                      unsigned* __restrict__ candidates, float* __restrict__ best_scores,
                                      int* __restrict__ best_classes) {
#else
                                      unsigned* __restrict__ candidates) {
#endif
    const int words = (priors + WARP - 1) / WARP;
    const int word = blockIdx.x * (blockDim.x / WARP) + warp_of_thread();
    if (word >= words) return;
    const float threshold = __int_as_float(threshold_bits);
    const int lane = lane_of_thread(), first_prior = word * WARP;
    const int row = classes / VECTOR;
    const int vectors = min(WARP, priors - first_prior) * row;
    const size_t prior_of_all = (size_t)blockIdx.y * priors + first_prior;
    const Scores* source = reinterpret_cast<const Scores*>(scores + prior_of_all * classes) + lane;

    bool is_candidate = false;  // the prior number `lane` of the warp
    for (int step = 0; step < row; step += DEPTH) {
        Scores loaded[DEPTH];
        load_scores(loaded, source + step * WARP, vectors - step * WARP);
        unsigned above = 0;
#pragma unroll
        for (int d = 0; d < DEPTH; ++d)
            if (any_above(loaded[d], threshold)) above |= 1u << d;
        if (__any_sync(ALL_LANES, above != 0)) {
            for (int d = 0; d < DEPTH; ++d) {
                const unsigned lanes = __ballot_sync(ALL_LANES, above >> d & 1u);
                is_candidate |= (lanes & lanes_of_prior(lane, row, (step + d) * WARP)) != 0;
            }
        }
    }
    const unsigned found = __ballot_sync(ALL_LANES, is_candidate);
    if (lane == 0) candidates[(size_t)blockIdx.y * words + word] = found;
#if CROSS_CLASS
    for (unsigned left = found; left != 0; left &= left - 1) {
        const size_t prior = prior_of_all + (__ffs(left) - 1);
        const Key best = best_class(scores + prior * classes, classes);
        if (lane == 0) {
            best_scores[prior] = key_score(best);
            best_classes[prior] = (int)key_index(best);
        }
    }
#endif
}

// -- select_entries ---------------------------------------------------------------------------------------------------

// Whether two boxes overlap by more than the limit; NaN (two boxes without area) counts as more.
__device__ __forceinline__ bool overlap(float4 a, float4 b, float limit) {
    const float width = fmaxf(__fsub_rn(fminf(a.z, b.z), fmaxf(a.x, b.x)), 0.0f);
    const float height = fmaxf(__fsub_rn(fminf(a.w, b.w), fmaxf(a.y, b.y)), 0.0f);
    const float inter = __fmul_rn(width, height);
    const float area_a = __fmul_rn(__fsub_rn(a.z, a.x), __fsub_rn(a.w, a.y));
    const float area_b = __fmul_rn(__fsub_rn(b.z, b.x), __fsub_rn(b.w, b.y));
    return !(__fdiv_rn(inter, __fsub_rn(__fadd_rn(area_a, area_b), inter)) <= limit);
}

// Offers all candidates of one list. Each thread owns a few adjacent words of candidate bits and writes its candidates,
// in order, into a window of WINDOW candidates, which the block then offers.
__device__ __forceinline__ void offer_candidates(StreamingTop& top, const unsigned* candidates, const float* values,
                                                 int priors, int stride, int* window) {
    const int words = (priors + WARP - 1) / WARP;
    const int share = (words + THREADS - 1) / THREADS;
    int word = min((int)threadIdx.x * share, words);
    const int words_end = min(word + share, words);
    int owned = 0, total;
    for (int at = word; at < words_end; ++at) owned += __popc(candidates[at]);
    int rank = amount_before<THREADS>(owned, top.sums + top.turn * WARP, &total);
    top.turn ^= 1;
    const int rank_end = rank + owned;

    unsigned bits = 0;  // candidates of word number word - 1 not listed yet
    for (int begin = 0; begin < total; begin += WINDOW) {
        const int end = min(begin + WINDOW, total);
        for (; rank < min(rank_end, end); ++rank) {
            while (bits == 0) bits = candidates[word++];
            window[rank - begin] = (word - 1) * WARP + __ffs(bits) - 1;
            bits &= bits - 1;
        }
        __syncthreads();
        for (int at = threadIdx.x; at - (int)threadIdx.x < end - begin; at += THREADS) {
            Key key = 0;
            if (at < end - begin) {
                const int prior = window[at];
                const float score = values[(size_t)prior * stride];
                if (score > -positive_infinity()) key = make_key(score, prior);  // NaN is not
            }
            offer<THREADS>(top, key);  // its barrier follows the last read of the window
        }
    }
}

// Sets the key of every entry to 0 that a better one overlaps, even if that one is dropped itself. One warp per entry,
// so that the work is balanced and ends at the first overlap.
__device__ __forceinline__ void drop_overlapped(Key* keys, const float4* boxes, int count, float iou_threshold) {
    for (int entry = warp_of_thread(); entry < count; entry += THREADS / WARP) {
        const float4 box = boxes[entry];
        bool dropped = false;
        for (int first = 0; first < entry && !dropped; first += WARP) {
            const int better = first + lane_of_thread();
            dropped = __any_sync(ALL_LANES, better < entry && overlap(boxes[better], box, iou_threshold));
        }
        if (dropped && lane_of_thread() == 0) keys[entry] = 0;
    }
    __syncthreads();
}

// The entries of one list above the second threshold that no better one overlaps, best first, followed by -1 in both
// arrays. A prior is a candidate by its best class; its entry in another class may score less.
//
// candidates [N, words], values [N,P,lists], boxes [N,P,4] -> entry_scores, entry_priors [N,lists,L].
// Grid: (lists, N). Dynamic shared memory: capacity keys of 8 bytes, then max(WINDOW x 4, top_k x 16) bytes.
extern "C" __global__ void __launch_bounds__(THREADS)
    select_entries(const unsigned* __restrict__ candidates, const float* __restrict__ values,
                   const float4* __restrict__ boxes, int priors, int top_k, int kept_length, int iou_threshold_bits,
                   int second_threshold_bits, int capacity, float* __restrict__ entry_scores, int* __restrict__ entry_priors) {
    DYNAMIC_SHARED(Key, keys);
    __shared__ int sums[2 * WARP];
    int* window = reinterpret_cast<int*>(keys + capacity);
    float4* top_boxes = reinterpret_cast<float4*>(keys + capacity);  // after the last use of the window
    const int lists = gridDim.x, list = blockIdx.x, image = blockIdx.y;
    const size_t words = (priors + WARP - 1) / WARP;

    StreamingTop top = empty_top(keys, sums, capacity, top_k);
    offer_candidates(top, candidates + image * words, values + (size_t)image * priors * lists + list, priors, lists,
                     window);
    prune<THREADS>(top);

    for (int at = threadIdx.x; at < top.count; at += THREADS)
        top_boxes[at] = boxes[(size_t)image * priors + key_index(keys[at])];
    __syncthreads();
    drop_overlapped(keys, top_boxes, top.count, __int_as_float(iou_threshold_bits));

    const size_t start = ((size_t)image * lists + list) * kept_length;
    const float second_threshold = __int_as_float(second_threshold_bits);
    int kept = 0;
    for (int first = 0; first < top.count && kept < kept_length; first += THREADS) {
        const int at = first + threadIdx.x;
        Key key = at < top.count ? keys[at] : 0;
        if (key != 0 && !(key_score(key) > second_threshold)) key = 0;
        int total;
        const int slot = kept + flagged_before<THREADS>(key != 0, sums + top.turn * WARP, &total);
        top.turn ^= 1;
        if (key != 0 && slot < kept_length) {
            entry_scores[start + slot] = key_score(key);
            entry_priors[start + slot] = (int)key_index(key);
        }
        kept += total;
    }
    for (int slot = kept + threadIdx.x; slot < kept_length; slot += THREADS) {
        entry_scores[start + slot] = -1.0f;
        entry_priors[start + slot] = -1;
    }
}

// -- merge_entries ----------------------------------------------------------------------------------------------------

// Offers the entries of all lists with keys below `ceiling`, the best ranks of every list first. Lists are sorted, so
// if a whole round has nothing above the bound, later rounds have nothing either.
__device__ __forceinline__ void offer_entries(StreamingTop& top, const float* entry_scores, const int* entry_priors,
                                              int lists, int length, Key ceiling) {
    const int ranks = max(1, THREADS / lists);  // per list and round
    for (int first_rank = 0; first_rank < length; first_rank += ranks) {
        bool above_bound = false;
        for (int first = 0; first < ranks * lists; first += THREADS) {
            const int at = first + threadIdx.x, list = at / ranks, rank = first_rank + at % ranks;
            Key key = 0;
            if (list < lists && rank < length) {
                const int entry = list * length + rank;
                const float score = entry_scores[entry];
                if (entry_priors[entry] >= 0) key = make_key(score, entry);
            }
            above_bound |= key > top.bound;
            offer<THREADS>(top, key < ceiling ? key : 0);
        }
        if (!__syncthreads_or(above_bound)) break;
        if (top.count >= 2 * top.wanted) prune<THREADS>(top);  // to get a bound early
    }
    prune<THREADS>(top);
}

// The D best entries of all lists with their boxes, labels and coefficients, followed by zeros.
//
// Grid: N. Dynamic shared memory: capacity keys of 8 bytes, then page ints. More detections than fit a page are
// computed page by page, each from the entries below those of the previous one.
extern "C" __global__ void __launch_bounds__(THREADS)
    merge_entries(const float* __restrict__ entry_scores, const int* __restrict__ entry_priors,
                  const float4* __restrict__ boxes, const float* __restrict__ coeff,
#if CROSS_CLASS
                  const int* __restrict__ best_classes,
#endif
                  int priors, int lists, int length, int coefficients, int detections, int page, int capacity,
                  int* __restrict__ num_detections, float4* __restrict__ out_boxes, float* __restrict__ out_scores,
                  int* __restrict__ out_labels, float* __restrict__ out_coeff) {
    DYNAMIC_SHARED(Key, keys);
    __shared__ int sums[2 * WARP];
    int* page_priors = reinterpret_cast<int*>(keys + capacity);
    const size_t image = blockIdx.x;
    entry_scores += image * lists * length;
    entry_priors += image * lists * length;
    boxes += image * priors;
    coeff += image * priors * coefficients;
    out_boxes += image * detections;
    out_scores += image * detections;
    out_labels += image * detections;
    out_coeff += image * detections * coefficients;

    int found = 0;
    Key ceiling = ~(Key)0;
    while (found < detections) {
        StreamingTop top = empty_top(keys, sums, capacity, min(page, detections - found));
        offer_entries(top, entry_scores, entry_priors, lists, length, ceiling);
        for (int at = threadIdx.x; at < top.count; at += THREADS) {
            const Key key = keys[at];
            const int entry = (int)key_index(key), prior = entry_priors[entry];
            page_priors[at] = prior;
            out_scores[found + at] = key_score(key);
            out_boxes[found + at] = boxes[prior];
#if CROSS_CLASS
            out_labels[found + at] = best_classes[image * priors + prior];
#else
            out_labels[found + at] = entry / length;
#endif
        }
        __syncthreads();
        float* page_coeff = out_coeff + (size_t)found * coefficients;
#pragma unroll 4
        for (int at = threadIdx.x; at < top.count * coefficients; at += THREADS) {
            const int slot = at / coefficients, k = at - slot * coefficients;
            page_coeff[at] = coeff[(size_t)page_priors[slot] * coefficients + k];
        }
        found += top.count;
        if (top.count < top.wanted) break;
        ceiling = keys[top.wanted - 1];  // before the first barrier of the next page, after which keys are written
    }

    if (threadIdx.x == 0) num_detections[image] = found;
    for (int at = found + threadIdx.x; at < detections; at += THREADS) {
        out_boxes[at] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        out_scores[at] = 0.0f;
        out_labels[at] = 0;
    }
    for (int at = found * coefficients + threadIdx.x; at < detections * coefficients; at += THREADS) out_coeff[at] = 0.0f;
}
