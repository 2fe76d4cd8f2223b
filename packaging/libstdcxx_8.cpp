// Lets a program that is compiled with a newer GCC run with the libstdc++ of GCC 8, which manylinux_2_28 promises: what the newer
// headers call and the older library lacks is defined here.
#include <new>
#include <sstream>

#define HIDDEN __attribute__((visibility("hidden")))

// std::__throw_bad_array_new_length(), of GCC 11.
[[noreturn]] HIDDEN void throw_bad_array_new_length() __asm__("_ZSt28__throw_bad_array_new_lengthv");
void throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// std::ostringstream::ostringstream(), of GCC 9.
HIDDEN void make_ostringstream(void *place) __asm__("_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev");
void make_ostringstream(void *place) { new (place) std::ostringstream(std::ios_base::out); }
