#include "policy/policy_encode.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <stdexcept>
#include <string>

#include "common/parallel.h"
#include "policy/policy_step.h"

namespace eaglerl {
namespace {

constexpr int64_t kBlockRows = 256;          // rows whose inputs are converted to floats at once
constexpr int64_t kTaskRows = 64;            // 256 KiB of x at 1,024 inputs: a second-level cache
constexpr int64_t kTaskColumns = 24;         // a multiple of the columns of every tile
constexpr int64_t kSingleTaskColumns = 8;    // the same for a single row
constexpr int64_t kSerialBytes = 512 << 10;  // layers with fewer bytes run on one thread
constexpr int64_t kSerialElements = 65'536;
constexpr int64_t kSerialSequences = 64;

// Buffers of a thread's decisions. They grow to the largest size needed and are reused.
struct Workspace {
  std::vector<uint64_t> seen;
  std::vector<uint8_t> holds;
  std::vector<int64_t> misses;
  std::vector<int64_t> numbers;
  std::vector<float> norms;
  std::vector<const float*> compared;
  std::vector<const float*> x;
  std::vector<float*> y;
  std::vector<float> compared_rows;
  std::vector<float> prepared;
  std::vector<float> features;
  std::vector<float> activations[2];
};

[[noreturn]] void refuse_count(const char* name, int64_t given, int64_t there) {
  throw std::invalid_argument(std::string(name) + " = " + std::to_string(given) +
                              " does not fit: there are " + std::to_string(there));
}

template <typename Element>
Element* room(std::vector<Element>& buffer, int64_t count) {
  if (int64_t(buffer.size()) < count) buffer.resize(size_t(count));
  return buffer.data();
}

class Decision {
 public:
  Decision(const Policy& policy, const EncodeInputs& inputs, const ActionCacheView& cache,
           const Draw& draw, const EncodeOutputs& outputs, int threads, Workspace& space)
      : policy_(policy),
        inputs_(inputs),
        cache_(cache),
        draw_(draw),
        outputs_(outputs),
        threads_(threads),
        space_(space),
        kernels_(policy_kernels()) {}

  double run() {
    check();
    const double reducing = outputs_.features == nullptr ? 0.0 : reduce_all();
    find_misses();
    const int64_t misses = int64_t(space_.misses.size());
    for (int64_t begin = 0; begin < misses; begin += kBlockRows) {
      run_mlp(space_.misses.data() + begin, std::min(kBlockRows, misses - begin));
    }
    for_sequences([this](int64_t s) { finish_sequence(s); });
    if (outputs_.features != nullptr && inputs_.type != kFloat32) round_features();
    return reducing;
  }

 private:
  void check() const {
    check_range("rows", inputs_.rows, inputs_.row_count, inputs_.available);
    if (inputs_.rows == nullptr && inputs_.row_count > inputs_.available) {
      refuse_count("row_count", inputs_.row_count, inputs_.available);
    }
    check_range("last", inputs_.last, inputs_.sequences, inputs_.row_count);
    if (inputs_.last == nullptr && inputs_.sequences > inputs_.row_count) {
      refuse_count("sequences", inputs_.sequences, inputs_.row_count);
    }
    if (cache_.state != nullptr) {
      if (cache_.mode == kCacheAdaptive && cache_.reference_size != compared_width()) {
        refuse_count("reference_size", cache_.reference_size, compared_width());
      }
      check_slots(inputs_.slots, inputs_.sequences, cache_, space_.seen);
    }
  }

  // Returns the width of the features that an adaptive cache compares.
  int64_t compared_width() const {
    if (outputs_.features != nullptr) return policy_.fc.out;
    return policy_.reads_layers ? kSketchSize : policy_.input_width();
  }

  int64_t last_row(int64_t sequence) const {
    return inputs_.last ? inputs_.last[sequence] : sequence;
  }
  int64_t slot(int64_t sequence) const {
    return inputs_.slots ? inputs_.slots[sequence] : sequence;
  }
  float* logits(int64_t sequence) const {
    return outputs_.logits + sequence * policy_.logits_width();
  }

  const void* input(int part, int64_t row, int64_t column) const {
    const int64_t source = inputs_.rows ? inputs_.rows[row] : row;
    const int64_t element = source * inputs_.stride[part] + column;
    return static_cast<const char*>(inputs_.part[part]) + element * element_size(inputs_.type);
  }

  FeatureRow features(int64_t row) const {
    const int64_t width = policy_.input_width() / kFeatureLayers;
    FeatureRow features = {{}, width, inputs_.type};
    for (int chunk = 0; chunk < kFeatureLayers; ++chunk) {
      features.chunk[chunk] = inputs_.part[1] ? input(chunk, row, 0) : input(0, row, chunk * width);
    }
    return features;
  }

  // Returns the row as the first layer reads it: in place if possible, else written to `out`.
  const float* prepare(int64_t row, float* out) const {
    const bool as_it_is = !policy_.reads_layers || (!inputs_.part[1] && !policy_.norm.chunks);
    if (as_it_is && inputs_.type == kFloat32) return static_cast<const float*>(input(0, row, 0));
    if (as_it_is) {
      kernels_.to_float(input(0, row, 0), inputs_.type, policy_.input_width(), out);
    } else {
      kernels_.prepare_features(features(row), policy_.norm, out);
    }
    return out;
  }

  // Points space_.x at the input rows rows[0, count), prepared for the first layer.
  void prepare_rows(const int64_t* rows, int64_t count) {
    const int64_t width = policy_.input_width();
    float* prepared = room(space_.prepared, count * width);
    const float** x = room(space_.x, count);
    const int64_t grain = count * width < kSerialElements ? count : 4;
    parallel_for(count, grain, threads_, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) x[i] = prepare(rows[i], prepared + i * width);
    });
  }

  // Runs a layer on the first `rows` rows of space_.x into those of space_.y, to which space_.x
  // points afterwards.
  void run_layer(const PolicyLayer& layer, Activation activation, int64_t rows) {
    const LayerCall call = {space_.x.data(), space_.y.data(), layer.weight, layer.bias,
                            layer.in,        layer.out,       policy_.type, activation};
    const int64_t passes = (rows + 3) / 4;
    const int64_t bytes = layer.in * layer.out * element_size(policy_.type) * passes;
    const int threads = bytes < kSerialBytes ? 1 : threads_;
    const int64_t row_tasks = (rows + kTaskRows - 1) / kTaskRows;
    // Eight tasks a thread: threads that start late or are delayed take fewer.
    const int64_t wanted = threads == 1 ? 1 : std::max<int64_t>(1, 8 * threads / row_tasks);
    const int64_t tile = rows == 1 ? kSingleTaskColumns : kTaskColumns;
    const int64_t tiles = (layer.out + tile - 1) / tile;
    const int64_t columns = (tiles + wanted - 1) / wanted * tile;
    const int64_t column_tasks = (layer.out + columns - 1) / columns;
    parallel_for(row_tasks * column_tasks, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t row = task / column_tasks * kTaskRows;
        const int64_t column = task % column_tasks * columns;
        kernels_.layer(call, row, std::min(row + kTaskRows, rows), column,
                       std::min(column + columns, layer.out));
      }
    });
    std::copy(space_.y.begin(), space_.y.begin() + rows, space_.x.begin());
  }

  void point_outputs(float* out, int64_t width, int64_t rows) {
    float** y = room(space_.y, rows);
    for (int64_t i = 0; i < rows; ++i) y[i] = out + i * width;
  }

  void reduce(const int64_t* rows, int64_t count, float* out) {
    prepare_rows(rows, count);
    point_outputs(out, policy_.fc.out, count);
    run_layer(policy_.fc, kIdentity, count);
  }

  // Returns g of all rows, after reduce_all().
  float* reduced() const {
    if (inputs_.type == kFloat32) return static_cast<float*>(outputs_.features);
    return space_.features.data();
  }

  // Computes g of all rows and returns the seconds it took.
  double reduce_all() {
    const auto started = std::chrono::steady_clock::now();
    if (inputs_.type != kFloat32) room(space_.features, inputs_.row_count * policy_.fc.out);
    float* features = reduced();
    int64_t* numbers = room(space_.numbers, inputs_.row_count);
    for (int64_t row = 0; row < inputs_.row_count; ++row) numbers[row] = row;
    for (int64_t begin = 0; begin < inputs_.row_count; begin += kBlockRows) {
      reduce(numbers + begin, std::min(kBlockRows, inputs_.row_count - begin),
             features + begin * policy_.fc.out);
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - started;
    return taken.count();
  }

  // Returns what an adaptive cache compares: g, the reduced features that were passed in, or the
  // sketch of low, mid and high.
  const float* comparable(int64_t sequence, float* out) const {
    const int64_t row = last_row(sequence);
    if (outputs_.features != nullptr) return reduced() + row * policy_.fc.out;
    if (!policy_.reads_layers) return prepare(row, out);
    kernels_.sketch(features(row), policy_.norm.eps, out);
    return out;
  }

  void find_misses() {
    space_.misses.clear();
    uint8_t* holds = room(space_.holds, inputs_.sequences);
    float* norms = room(space_.norms, inputs_.sequences);
    const float** compared = room(space_.compared, inputs_.sequences);
    const bool adaptive = cache_.state != nullptr && cache_.mode == kCacheAdaptive;
    float* rows = nullptr;
    if (adaptive) rows = room(space_.compared_rows, inputs_.sequences * cache_.reference_size);
    for_sequences([&](int64_t s) {
      compared[s] = adaptive ? comparable(s, rows + s * cache_.reference_size) : nullptr;
      holds[s] = cache_.state != nullptr &&
                 cache_holds(cache_, slot(s), policy_.horizon, compared[s], norms + s);
    });
    for (int64_t s = 0; s < inputs_.sequences; ++s) {
      if (!holds[s]) space_.misses.push_back(s);
    }
  }

  void run_mlp(const int64_t* sequences, int64_t count) {
    point_inputs(sequences, count);
    for (size_t layer = 0; layer < policy_.mlp.size(); ++layer) {
      const bool output = layer + 1 == policy_.mlp.size();
      const int64_t width = policy_.mlp[layer].out;
      if (output) {
        float** y = room(space_.y, count);
        for (int64_t i = 0; i < count; ++i) y[i] = logits(sequences[i]);
      } else {
        point_outputs(room(space_.activations[layer % 2], count * width), width, count);
      }
      run_layer(policy_.mlp[layer], output ? kIdentity : policy_.activation, count);
    }
  }

  // Points space_.x at the MLP's inputs for these sequences.
  void point_inputs(const int64_t* sequences, int64_t count) {
    int64_t* rows = room(space_.numbers, count);
    for (int64_t i = 0; i < count; ++i) rows[i] = last_row(sequences[i]);
    if (outputs_.features != nullptr) {
      const float** x = room(space_.x, count);
      for (int64_t i = 0; i < count; ++i) x[i] = reduced() + rows[i] * policy_.fc.out;
    } else if (policy_.fc.weight != nullptr) {
      reduce(rows, count, room(space_.features, count * policy_.fc.out));
    } else {
      prepare_rows(rows, count);
    }
  }

  template <typename Body>
  void for_sequences(Body&& body) const {
    const bool few = inputs_.sequences < kSerialSequences;
    const int64_t grain = few ? inputs_.sequences : kSerialSequences / 4;
    parallel_for(inputs_.sequences, grain, threads_, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) body(s);
    });
  }

  void finish_sequence(int64_t s) const {
    int32_t *action = outputs_.action + s, *params = outputs_.params + policy_.columns * s;
    if (space_.holds[size_t(s)]) {
      take_hit(policy_, cache_, slot(s), action, params);
      std::fill_n(logits(s), policy_.logits_width(), std::numeric_limits<float>::quiet_NaN());
    } else {
      take_miss(policy_, logits(s), draw_, s, cache_, slot(s), space_.compared[size_t(s)],
                space_.norms[size_t(s)], action, params);
    }
  }

  void round_features() {
    const int64_t count = inputs_.row_count * policy_.fc.out;
    const float* features = reduced();
    char* out = static_cast<char*>(outputs_.features);
    const int64_t size = element_size(inputs_.type);
    const int64_t grain = count < kSerialElements ? count : kSerialElements / 4;
    parallel_for(count, grain, threads_, [&](int64_t begin, int64_t end) {
      kernels_.from_float(features + begin, inputs_.type, end - begin, out + begin * size);
    });
  }

  const Policy& policy_;
  const EncodeInputs& inputs_;
  const ActionCacheView& cache_;
  const Draw& draw_;
  const EncodeOutputs& outputs_;
  const int threads_;
  Workspace& space_;
  const PolicyKernels& kernels_;
};

}  // namespace

void check_range(const char* name, const int64_t* index, int64_t count, int64_t end) {
  for (int64_t i = 0; index != nullptr && i < count; ++i) {
    if (index[i] >= 0 && index[i] < end) continue;
    throw std::invalid_argument(std::string(name) + "[" + std::to_string(i) +
                                "] = " + std::to_string(index[i]) + " is outside [0, " +
                                std::to_string(end) + ")");
  }
}

double encode(const Policy& policy, const EncodeInputs& inputs, const ActionCacheView& cache,
              const Draw& draw, const EncodeOutputs& outputs, int threads) {
  thread_local Workspace space;
  return Decision(policy, inputs, cache, draw, outputs, threads, space).run();
}

}  // namespace eaglerl
