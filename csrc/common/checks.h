// Checks of the numbers and addresses passed to native code, made before anything is read or
// written. Whether there is memory behind an address cannot be checked here; eaglerl.ops does that.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>

namespace eaglerl {

// A product of sizes up to these, in bytes, does not overflow 63 bits.
constexpr int64_t kLargestSize = int64_t(1) << 40;
constexpr int64_t kLargestCount = int64_t(1) << 30;  // for numbers that are kept in 32 bits

[[noreturn]] inline void refuse_value(const char* name, int64_t value, int64_t lowest,
                                      int64_t highest) {
  throw std::invalid_argument(std::string(name) + " must be in " + std::to_string(lowest) + ".." +
                              std::to_string(highest) + ", got " + std::to_string(value));
}

inline int64_t check_between(const char* name, int64_t value, int64_t lowest, int64_t highest) {
  if (value < lowest || value > highest) refuse_value(name, value, lowest, highest);
  return value;
}

inline int64_t check_size(const char* name, int64_t value, int64_t lowest = 0) {
  return check_between(name, value, lowest, kLargestSize);
}

// Returns the product of sizes. Throws if one is negative or the product exceeds `highest`.
inline int64_t check_product(const char* name, std::initializer_list<int64_t> sizes,
                             int64_t highest = kLargestSize) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size < 0) refuse_value(name, size, 0, highest);
    if (size != 0 && product > highest / size) {
      throw std::invalid_argument(std::string(name) + " must have at most " +
                                  std::to_string(highest) + " elements");
    }
    product *= size;
  }
  return product;
}

[[noreturn]] inline void refuse_address(const char* name, uintptr_t address, size_t alignment) {
  throw std::invalid_argument(std::string(name) +
                              (address == 0
                                   ? " has no memory: its address is 0"
                                   : " must lie at a multiple of " + std::to_string(alignment) +
                                         " bytes, got address " + std::to_string(address)));
}

// Returns an address of elements, or null.
template <typename T>
T* optional_address(const char* name, uintptr_t address) {
  if (address % alignof(T) != 0) refuse_address(name, address, alignof(T));
  return reinterpret_cast<T*>(address);
}

// Returns an address of `count` elements, null only if `count` is 0.
template <typename T>
T* element_address(const char* name, uintptr_t address, int64_t count) {
  if (address == 0 && count > 0) refuse_address(name, address, alignof(T));
  return optional_address<T>(name, address);
}

// The base of objects that Python holds. Python can create one with `__new__` alone, without
// running its constructor: memory is zeroed first, so such an object is recognised. And while one
// thread runs a method without the GIL, another may call a method of the same object.
class PythonObject {
 public:
  static void* operator new(size_t size) {
    void* memory = std::calloc(1, size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  static void* operator new(size_t, void* place) { return place; }
  static void operator delete(void* memory) { std::free(memory); }

  // Throws if the object was not constructed, or if another thread is in one of its methods.
  void check_usable() const {
    if (whole_ != kWhole) throw std::logic_error("the object was made without __init__()");
    if (busy_) throw std::logic_error("the object is at work in another thread");
  }

 protected:
  // Marks the object as busy while the GIL is released.
  class AtWork {
   public:
    explicit AtWork(PythonObject& object) : object_(object) {
      object_.check_usable();
      object_.busy_ = true;
    }
    ~AtWork() { object_.busy_ = false; }
    AtWork(const AtWork&) = delete;
    AtWork& operator=(const AtWork&) = delete;

   private:
    PythonObject& object_;
  };

 private:
  static constexpr uint64_t kWhole = 0x656167'6c65726cull;
  uint64_t whole_ = kWhole;
  bool busy_ = false;
};

}  // namespace eaglerl
