// Element types and activations of policies.
#pragma once

#include <cstdint>

namespace eaglerl {

enum ElementType : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };
enum Activation : int32_t { kIdentity = 0, kTanh = 1, kRelu = 2, kSilu = 3 };

constexpr int64_t element_size(ElementType type) { return type == kFloat32 ? 4 : 2; }

}  // namespace eaglerl
