// Wrappers for binding methods of objects that Python holds.
#pragma once

#include "common/checks.h"

namespace eaglerl {

// Wraps a method so that it throws for an object that is not constructed or busy in another thread.
template <typename Class, typename Result, typename... Arguments>
auto usable(Result (Class::*method)(Arguments...)) {
  return [method](Class& object, Arguments... arguments) -> Result {
    object.check_usable();
    return (object.*method)(arguments...);
  };
}

template <typename Class, typename Result, typename... Arguments>
auto usable(Result (Class::*method)(Arguments...) const) {
  return [method](const Class& object, Arguments... arguments) -> Result {
    object.check_usable();
    return (object.*method)(arguments...);
  };
}

// The same for a function whose first argument is the object.
template <typename Class, typename Result, typename... Arguments>
auto usable(Result (*function)(Class&, Arguments...)) {
  return [function](Class& object, Arguments... arguments) -> Result {
    object.check_usable();
    return function(object, arguments...);
  };
}

}  // namespace eaglerl
